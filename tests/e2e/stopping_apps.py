"""Three deployments, one calling the next, and work of each kind at the bottom that goes on until it is stopped."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from headrace import serve
from headrace.handle import DeploymentHandle


@serve.deployment(max_ongoing_requests=50)
class Bottom:
    """Counts what began and what ended, by kind."""

    def __init__(self) -> None:
        self.began: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    async def coroutine(self) -> None:
        self.began["coroutine"] += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended["coroutine"] += 1

    def thread(self) -> None:
        self.began["thread"] += 1
        request = serve.get_request_context()
        while not request.cancelled:
            threading.Event().wait(0.001)  # a step of its work
        self.ended["thread"] += 1

    async def stream(self) -> AsyncIterator[str]:
        self.began["stream"] += 1
        try:
            while True:
                yield "."
                await asyncio.sleep(0.001)
        finally:
            self.ended["stream"] += 1

    def thread_stream(self) -> Iterator[str]:
        self.began["thread_stream"] += 1
        try:
            while True:
                yield "."
        finally:
            self.ended["thread_stream"] += 1

    async def counts(self) -> dict[str, dict[str, int]]:
        return {"began": dict(self.began), "ended": dict(self.ended)}


class Hop:
    """Passes on every kind of call as that kind is written: awaiting, blocking a thread, iterating."""

    def __init__(self, below: DeploymentHandle) -> None:
        self.below = below

    async def coroutine(self) -> None:
        await self.below.coroutine.remote()

    def thread(self) -> None:
        self.below.thread.remote().result()

    async def stream(self) -> AsyncIterator[str]:
        async for item in self.below.options(stream=True).stream.remote():
            yield item

    def thread_stream(self) -> Iterator[str]:
        yield from self.below.options(stream=True).thread_stream.remote()


@serve.deployment(max_ongoing_requests=50)
class Middle(Hop):
    pass


@serve.deployment(max_ongoing_requests=50)
class Door(Hop):
    async def __call__(self, request: Request) -> Any:
        kind = request.url.path.strip("/")
        if kind.endswith("stream"):
            return StreamingResponse(getattr(self.below.options(stream=True), kind).remote())
        return await getattr(self.below, kind).remote()


app = Door.bind(Middle.bind(Bottom.bind()))
