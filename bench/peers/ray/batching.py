"""The model of `apps/batch_model.py` on Ray Serve, in its batches of at most 32, waited for up to 10 ms. argv: port.

The batch runs in a thread, so that requests come in meanwhile: in the loop itself it would stop them.
"""

import asyncio
import sys

import msgspec
from batch_model import infer
from ray import serve

decode = msgspec.json.decode


@serve.deployment(max_ongoing_requests=512)
class Model:
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.010)
    async def predict(self, vectors):
        return await asyncio.to_thread(infer, vectors)

    async def __call__(self, request):
        return {"y": await self.predict(decode(await request.body())["x"])}


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Model.bind(), blocking=True)
