"""A model whose cost changes while it runs, in batches by an objective and by fixed settings, for the bench.

`app` has an objective; `filled` has it too, and its batches wait for more as long as that allows; `fixed` has a size
and a time to wait, `idle` neither. POST {"x": [...], "due": a number} asks the model; {"steps": [[t, f], ...]} makes
batches cost f times as much from the reading t of the machine's clock on; {"batches": true} gives the `due` of the
requests of every batch so far, in the order of their start. BENCH_TARGET_S: the objective.
"""

import os
import time

import msgspec
from batch_model import infer

from headrace import serve

decode = msgspec.json.Decoder().decode
USUAL = 2.0  # times the model of batch_model.py: 4 ms and 0.1 ms for each
TARGET_S = float(os.environ.get("BENCH_TARGET_S", "0.070"))


class Model:
    """What the deployments share; each has a `predict` of its own."""

    def __init__(self):
        self.steps = []
        self.batches = []

    def run(self, asked):
        self.batches.append([one["due"] for one in asked])
        now = time.monotonic()
        factor = next((factor for since, factor in reversed(self.steps) if since <= now), 1)
        return infer([one["x"] for one in asked], USUAL * factor)

    async def __call__(self, request):
        asked = decode(await request.body())
        if "x" in asked:
            return {"y": await self.predict(asked)}
        if "steps" in asked:
            self.steps = asked["steps"]
            return asked
        return self.batches


@serve.deployment(max_ongoing_requests=1000)
class Objective(Model):
    @serve.batch(max_batch_size=256, target_latency_s=TARGET_S)
    def predict(self, asked):
        return self.run(asked)


@serve.deployment(max_ongoing_requests=1000)
class Filled(Model):
    @serve.batch(max_batch_size=256, target_latency_s=TARGET_S, batch_wait_timeout_s=1.0)
    def predict(self, asked):
        return self.run(asked)


@serve.deployment(max_ongoing_requests=1000)
class Fixed(Model):
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.010)
    def predict(self, asked):
        return self.run(asked)


@serve.deployment(max_ongoing_requests=1000)
class Idle(Model):
    @serve.batch(max_batch_size=256)
    def predict(self, asked):
        return self.run(asked)


app = Objective.bind()
filled = Filled.bind()
fixed = Fixed.bind()
idle = Idle.bind()
