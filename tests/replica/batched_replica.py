"""Calls of batched methods, on a replica in the test's own loop; no socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from fake_incoming import FakeIncoming, invoker_of, meta_of, run

from headrace import serve
from headrace.replica.batching import Batches
from headrace.replica.invoke import Invoker
from headrace.spec.errors import RequestCancelledError
from headrace.wire import payload
from headrace.wire.frames import STREAM

GONE = "headrace.spec.errors.RequestCancelledError"
LATE = "headrace.spec.errors.RequestTimeoutError"


def call(method: str, *args: Any, flags: int = 0, **fields: Any) -> FakeIncoming:
    """A call by a handle, or with the flag STREAM one for items; `fields` of its metadata."""
    return FakeIncoming(meta_of(method, **fields), flags, payload.encode((args, {})).data)


def stream(method: str, *args: Any, window: int = 1 << 30, **fields: Any) -> FakeIncoming:
    made = call(method, *args, flags=STREAM, **fields)
    made.window = window
    return made


def replica_of(servable: object, limit: int = 8) -> Invoker:
    """A replica on the running loop."""
    invoker = invoker_of(servable, limit)
    invoker.replica.loop = asyncio.get_running_loop()
    return invoker


async def ended(*calls: FakeIncoming) -> None:
    for one in calls:
        await one.ended.wait()


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def turns(n: int = 10) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def outcomes(servable: object, *calls: FakeIncoming) -> list[Any]:
    """Run the calls on a replica of it, all at once: their results, or what they raise."""

    async def work() -> None:
        invoker = replica_of(servable, 64)
        for one in calls:
            invoker.start(one)
        await ended(*calls)

    run(work())
    return [one.result if one.error is None else one.raised for one in calls]


class Gate:
    """A model whose batches, on the loop and in threads, wait until they are let go, and tell what became of them."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.go = asyncio.Event()
        self.go_on = threading.Event()
        self.seen: list[str] = []

    @serve.batch
    async def on_loop(self, items: list[Any]) -> Any:
        self.batches.append(items)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        return items

    @serve.batch
    def in_thread(self, items: list[Any]) -> Any:
        self.batches.append(items)
        self.go_on.wait(60)
        request = serve.get_request_context()
        self.seen.append(f"cancelled: {request.cancelled}")
        return items

    async def awaits(self, item: Any) -> Any:
        return await self.on_loop(item)

    def blocks(self, item: Any) -> Any:
        try:
            return self.in_thread(item)
        except RequestCancelledError:
            self.seen.append("woken")
            raise

    def let_go(self) -> None:
        self.go.set()
        self.go_on.set()


def batches_of(invoker: Invoker, method: str) -> Batches:
    """Those of a method of the replica."""
    batches: Batches = getattr(invoker.servable, method).batches(invoker.loop, invoker.replica)
    return batches
