"""The no-op model on Ray Serve. argv: port. Its limit of five calls at once is lifted to 100, which favours it."""

import sys

import msgspec
from ray import serve

decode = msgspec.json.decode


@serve.deployment(max_ongoing_requests=100)
class Total:
    async def __call__(self, request):
        return {"y": sum(decode(await request.body())["x"])}


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Total.bind(), blocking=True)
