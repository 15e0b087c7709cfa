"""The model of `batch_model.py` on Headrace: with batches, without, and with a size that is set from outside.

BENCH_MAX_BATCH: the largest batch of `app`.
"""

import asyncio
import os

import msgspec
from batch_model import infer

from headrace import serve

decode = msgspec.json.Decoder().decode


@serve.deployment
class Batched:
    """Batches as the decorator makes them when nothing more is said: a batch leaves when the model is free."""

    @serve.batch(max_batch_size=int(os.environ.get("BENCH_MAX_BATCH", "256")))
    def predict(self, vectors):
        return infer(vectors)

    async def __call__(self, request):
        return {"y": await self.predict(decode(await request.body())["x"])}


@serve.deployment(max_ongoing_requests=512)
class Bare:
    """The same without batches: each request is one call of the model."""

    async def __call__(self, request):
        vector = decode(await request.body())["x"]
        return {"y": (await asyncio.to_thread(infer, [vector]))[0]}


@serve.deployment(max_ongoing_requests=512)
class Fixed:
    """Batches of a fixed size, waited for up to 10 ms. POST {"size": n} sets it."""

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.010)
    def predict(self, vectors):
        return infer(vectors)

    async def __call__(self, request):
        asked = decode(await request.body())
        if "size" in asked:
            self.predict.set_max_batch_size(asked["size"])
            return asked
        return {"y": await self.predict(asked["x"])}


app = Batched.bind()
bare = Bare.bind()
fixed = Fixed.bind()
