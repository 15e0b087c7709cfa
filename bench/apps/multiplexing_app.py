"""Many small models in one deployment, for the bench: those of `ridge.py`, loaded when first asked for.

GET /loads tells what was loaded and dropped so far, as [what, model, process]. BENCH_REPLICAS, BENCH_MODELS: how many
replicas, and how many models each of them keeps.
"""

import asyncio
import os
import time
from pathlib import Path

import msgspec
from batch_model import wait_until
from ridge import Ridge

from headrace import serve

decode = msgspec.json.Decoder().decode
REPLICAS = int(os.environ.get("BENCH_REPLICAS", "1"))
MODELS = int(os.environ.get("BENCH_MODELS", "200"))
SERVICE_S = 0.010  # of the busy deployment
NOTES = Path(os.environ.get("HEADRACE_HOME", "/tmp")) / "models.txt"  # of all replicas


def note(what, model_id):
    with NOTES.open("ab", buffering=0) as notes:
        notes.write(f"{what} {model_id} {os.getpid()}\n".encode())


class Noted(Ridge):
    def __init__(self, model_id):
        super().__init__(model_id)
        self.model_id = model_id
        note("loaded", model_id)

    def __del__(self):
        note("dropped", self.model_id)


def notes():
    return [line.split() for line in NOTES.read_text().splitlines()] if NOTES.exists() else []


@serve.deployment(num_replicas=REPLICAS)
class Models:
    @serve.multiplexed(max_num_models_per_replica=MODELS)
    def model(self, model_id):
        return Noted(model_id)

    async def __call__(self, request):
        if request.url.path == "/loads":
            return notes()
        model = await self.model(serve.get_multiplexed_model_id())
        return {"y": model.predict(decode(await request.body())["x"])}


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=4)
class Busy:
    """The same, but an answer takes 10 ms, and a replica makes four at a time."""

    @serve.multiplexed(max_num_models_per_replica=MODELS)
    def model(self, model_id):
        return Noted(model_id)

    async def __call__(self, request):
        if request.url.path == "/loads":
            return notes()
        model = await self.model(serve.get_multiplexed_model_id())
        began = time.perf_counter()
        y = model.predict(decode(await request.body())["x"])
        await asyncio.to_thread(wait_until, began + SERVICE_S)
        return {"y": y}


app = Models.bind()
busy = Busy.bind()
