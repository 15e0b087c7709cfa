"""The model of `apps/batch_model.py` on BentoML, in its batches of at most 32: one worker.

BENCH_MAX_LATENCY_MS: beyond it BentoML refuses requests; it has no time to wait for, and sees itself how long.
"""

import os

import bentoml
from batch_model import infer

MAX_LATENCY_MS = int(os.environ["BENCH_MAX_LATENCY_MS"])


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Model:
    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=MAX_LATENCY_MS)
    def total(self, x: list[list[float]]) -> list[float]:
        return infer(x)
