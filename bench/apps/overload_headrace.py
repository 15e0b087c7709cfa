"""A model that takes 10 ms, four at a time, on Headrace."""

import time

from headrace import serve


@serve.deployment(max_ongoing_requests=4)
class Slow:
    def __call__(self, request):
        time.sleep(0.010)
        return {"done": True}


app = Slow.bind()
