"""Deployments with batches, for instances of real processes."""

from __future__ import annotations

import os
import time

from headrace import serve


@serve.deployment(num_replicas=2, max_ongoing_requests=32)
class Model:
    """Sums what it is sent; a batch with the number 13 in it takes its process down."""

    @serve.batch(max_batch_size=8)
    def predict(self, numbers):
        time.sleep(0.002)
        if 13 in numbers:
            os._exit(13)
        return [{"square": number * number, "of": len(numbers)} for number in numbers]

    async def __call__(self, request):
        return await self.predict(int(await request.body()))


@serve.deployment(max_ongoing_requests=32)
class Direct:
    """The same, where the handler of requests is batched itself."""

    @serve.batch(max_batch_size=8)
    async def __call__(self, requests):
        numbers = [int(await request.body()) for request in requests]
        if 13 in numbers:
            os._exit(13)
        return [{"square": number * number, "of": len(numbers)} for number in numbers]


app = Model.bind()
direct = Direct.bind()
