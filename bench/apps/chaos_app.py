"""The applications of `bench/chaos.py`: answers by which each mistake of the path would show, for every kind of call.

`app` is asked by HTTP, gRPC and handles, and streams through three deployments; `web` has FastAPI routes and
WebSockets.
"""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import fastapi
from google.protobuf.wrappers_pb2 import Int64Value
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from headrace import serve

VERSION = 0  # a deploy of the bench puts another number here, and with it other code
web_routes = fastapi.FastAPI()


@serve.deployment
class Back:
    """Answers with its version; a request belongs to one revision, so it is that of the caller."""

    async def __call__(self, number: int) -> list[int]:
        return [number, VERSION]

    async def items(self, count: int, size: int) -> AsyncIterator[tuple[int, int, bytes]]:
        for number in range(count):
            yield number, VERSION, bytes(size)
            if number % 16 == 0:
                await asyncio.sleep(0.001)

    def plain_items(self, count: int, size: int) -> Iterator[tuple[int, int, bytes]]:
        for number in range(count):
            yield number, VERSION, bytes(size)


@serve.deployment
class Middle:
    """Hands on streams."""

    def __init__(self, back: Any) -> None:
        self.back = back.options(stream=True)

    async def items(self, count: int, size: int) -> AsyncIterator[tuple[int, int, bytes]]:
        async for item in self.back.items.remote(count, size):
            yield item

    def plain_items(self, count: int, size: int) -> Iterator[tuple[int, int, bytes]]:
        yield from self.back.plain_items.remote(count, size)


@serve.deployment(max_queued_requests=500)
class Front:
    """Sums up what came, and what the deployment behind it says."""

    def __init__(self, back: Any, middle: Any) -> None:
        self.back = back
        self.middle = middle.options(stream=True)

    async def __call__(self, request: Request) -> Any:
        path, query = request.url.path, request.query_params
        if path.startswith("/stream"):
            items = getattr(self.middle, "plain_items" if path.endswith("plain") else "items")
            return StreamingResponse(lines(items.remote(int(query["count"]), int(query["size"]))))
        if path == "/wait":
            await asyncio.sleep(float(query["s"]))
        crc, first, size = 0, b"", 0
        async for part in request.stream():
            first = first if b"}" in first else first + part
            crc, size = zlib.crc32(part, crc), size + len(part)
        number = json.loads(first[: first.index(b"}") + 1])["n"]
        echoed, version = await self.back.remote(number)
        answer = {"n": echoed, "crc": crc, "size": size, "pid": os.getpid(), "versions": [VERSION, version]}
        return JSONResponse(answer) if query.get("response") else answer

    async def items(self, count: int, size: int) -> AsyncIterator[tuple[int, int, bytes]]:
        async for number, version, data in self.middle.items.remote(count, size):
            if version != VERSION:
                raise AssertionError(f"version {VERSION} got an item of version {version}")
            yield number, version, data

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def tasks(self) -> tuple[int, int]:
        """This replica's process, and how many tasks it has beside this one."""
        return os.getpid(), len(asyncio.all_tasks()) - 1

    async def Say(self, number: Int64Value) -> Int64Value:
        echoed, _ = await self.back.remote(number.value)
        return Int64Value(value=echoed + 1)

    async def Count(self, number: Int64Value) -> AsyncIterator[Int64Value]:
        async for item, _, _ in self.middle.items.remote(number.value, 10):
            yield Int64Value(value=item)


async def lines(items: Any) -> AsyncIterator[bytes]:
    """Each item as its number, its version, and as many dots as it has bytes."""
    async for number, version, data in items:
        if version != VERSION:
            raise AssertionError(f"version {VERSION} got an item of version {version}")
        yield b"%d %s\n" % (number, b"." * len(data))


class Thing(BaseModel):
    """The body of a route."""

    n: int
    text: str


@serve.deployment(graceful_shutdown_timeout_s=5)
@serve.ingress(web_routes)
class Web:
    """Routes of FastAPI, and a WebSocket that echoes."""

    def __init__(self, back: Any) -> None:
        self.back = back

    @web_routes.post("/things/{number}")
    async def thing(self, number: int, thing: Thing) -> dict[str, Any]:
        echoed, version = await self.back.remote(number)
        return {"n": echoed, "body": thing.n, "text": thing.text, "versions": [VERSION, version]}

    @web_routes.websocket("/ws")
    async def ws(self, socket: fastapi.WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            echoed, _ = await self.back.remote(int(text.partition(" ")[0]))
            await socket.send_text(f"{echoed}{text[len(str(echoed)) :]}")


def application(front: int = 2, middle: int = 1, back: int = 2) -> serve.Application:
    """The application with these many replicas."""
    behind = Back.options(num_replicas=back).bind()
    return Front.options(num_replicas=front).bind(behind, Middle.options(num_replicas=middle).bind(behind))


def web_application(web: int = 1) -> serve.Application:
    """The application with web routes."""
    return Web.options(num_replicas=web).bind(Back.options(num_replicas=1).bind())


app = application()
