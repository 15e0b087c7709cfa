"""Hedged deployments whose replicas stand still while a file says so, and note what they do in another."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from starlette.requests import Request

from headrace import serve
from headrace.handle import DeploymentHandle

FOLDER = Path(os.environ["HEDGING_FOLDER"])
WINDOW_S = 0.02
LOG = FOLDER / "log"


def replica_id() -> str:
    return serve.get_replica_context().replica_id


def stalled() -> bool:
    return (FOLDER / f"stall-{replica_id()}").exists()


def note(what: str, number: object) -> None:
    """A line of the log: what, where, and which call."""
    with LOG.open("a") as log:
        log.write(f"{what} {replica_id()} {number}\n")


@serve.deployment(num_replicas=3, max_ongoing_requests=20, hedge={"budget": 1.0})
class Model:
    """Answers with who answers."""

    async def ask(self, number: int) -> list[object]:
        note("began", number)
        try:
            while stalled():
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            note("cancelled", number)
            raise
        note("ended", number)
        return [number, replica_id()]

    def compute(self, number: int) -> list[object]:
        note("began", number)
        request = serve.get_request_context()
        while stalled():
            if request.cancelled:
                note("cancelled", number)
                request.check()
            threading.Event().wait(0.002)
        note("ended", number)
        return [number, replica_id()]

    @serve.method(hedge=False)
    async def exempt(self, number: int) -> list[object]:
        return await self.ask(number)

    @serve.method(repeatable=False)
    async def once(self, number: int) -> list[object]:
        return await self.ask(number)

    async def __call__(self, request: Request) -> list[object]:
        return await self.ask(int(request.query_params["n"]))


@serve.deployment(num_replicas=2, max_ongoing_requests=20, hedge={"budget": 1.0})
class Batched:
    """Waits a moment for each batch to become full."""

    async def ask(self, number: int) -> list[object]:
        note("waited" if serve.get_request_context().waited_s >= WINDOW_S else "came", number)
        return await self.predict(number)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=WINDOW_S)
    def predict(self, numbers: list[int]) -> list[list[object]]:
        for number in numbers:
            note("batch", number)
        while stalled():
            threading.Event().wait(0.002)  # it cannot be interrupted
        return [[number, replica_id()] for number in numbers]


@serve.deployment
class Door:
    def __init__(self, model: DeploymentHandle, batched: DeploymentHandle) -> None:
        self.model = model

    async def __call__(self, request: Request) -> list[object]:
        return await self.model.ask.remote(int(request.query_params["n"]))


app = Model.bind()
composed = Door.bind(Model.bind(), Batched.bind())
