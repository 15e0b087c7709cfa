"""An ingress and a replica with an ASGI application behind it, over sockets, in one loop; and raw WebSocket clients."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from headrace.context import ReplicaContext
from headrace.ingress.connection import ClientConnection
from headrace.ingress.door import Door
from headrace.ingress.listener import Listener
from headrace.ingress.tls import TlsHandshake, context_of
from headrace.replica.incoming import Incoming
from headrace.replica.invoke import Invoker
from headrace.replica.request import HttpRequest
from headrace.replica.server import Server
from headrace.replica.threads import ThreadPool
from headrace.replica.websocket import LIMITS, Limits, serve_websocket
from headrace.router import Router
from headrace.spec.config import HTTPOptions
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, ReplicaEntry, RevisionEntry, Snapshot

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebStage:
    """`asgi` answers what comes to `port`; `end` it when done."""

    def __init__(
        self, directory: Path, asgi: Any, limit: int, options: HTTPOptions, limits: Limits, entry: dict[str, Any]
    ) -> None:
        self.asgi = asgi
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.address = f"unix:{directory}/r.sock"
        replica = ReplicaContext(app_name="app", deployment="Model", replica_id="Model#0")
        self.invoker = Invoker(self.loop, object(), replica, ThreadPool(self.loop, 2), asgi)
        start = self.invoker.start if limits is LIMITS else self._start
        self.server = Server(self.loop, "Model#0", limit, start)
        self.router = Router(self.loop, "ingress#0", "ingress")
        self.door = Door(self.loop, self.router, options)
        context = context_of(options)
        self.listener = Listener(self.loop, self._client)
        self._context = context
        deployment = DeploymentEntry(
            key="k",
            app="app",
            name="Model",
            max_ongoing_requests=limit,
            max_queued_requests=10,
            replicas=(ReplicaEntry("Model#0", self.address),),
        )
        revision = RevisionEntry(number=1, weight=1.0, deployments={"Model": "k"})
        application = ApplicationEntry(
            **({"name": "app", "route_prefix": "/", "ingress": "Model", "revisions": (revision,)} | entry)
        )
        self.snapshot = Snapshot(version=1, applications={"app": application}, deployments={"k": deployment})

    def _start(self, incoming: Incoming) -> None:
        async def run() -> None:
            try:
                self.invoker.enter(incoming, None)
                await serve_websocket(incoming, HttpRequest(incoming), self.asgi, self.limits)
            except BaseException as error:
                self.invoker.fail(incoming, error)

        self.loop.create_task(run())

    def _client(self) -> asyncio.Protocol:
        if self._context is None:
            return ClientConnection(self.door)
        return TlsHandshake(self.door, self._context, lambda: ClientConnection(self.door))

    async def begin(self) -> None:
        await self.server.listen(self.address)
        self.router.update(self.snapshot)
        self.door.update(self.snapshot)
        await self.listener.open("127.0.0.1", 0)

    async def end(self) -> None:
        await self.listener.leave()
        await self.door.drain(0)
        await self.router.close()
        self.server.close()

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; the test's own time limit is the only one."""
        while not condition():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def web_stage(
    directory: Path,
    asgi: Any,
    *,
    limit: int = 100,
    options: HTTPOptions | None = None,
    limits: Limits = LIMITS,
    **entry: Any,
) -> AsyncIterator[WebStage]:
    stage = WebStage(directory, asgi, limit, options or HTTPOptions(), limits, entry)
    await stage.begin()
    try:
        yield stage
    finally:
        await stage.end()


class RawSocket:
    """A WebSocket client that sends what a test wants, right or wrong, and reads frames one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: its first byte (FIN, reserved bits, opcode) and its data."""
        first, size = await self.reader.readexactly(2)
        assert not size & 0x80, "a server masks nothing"
        if size == 126:
            (size,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
        return first, await self.reader.readexactly(size)

    async def closed_with(self) -> int:
        """The code of the Close that comes next; then the connection ends."""
        first, data = await self.frame()
        assert first == 0x88, (first, data)
        assert await self.reader.read() == b""
        return struct.unpack(">H", data[:2])[0] if data else 1005


async def raw_socket(
    port: int, path: str = "/", *headers: bytes, ahead: bytes = b"", context: ssl.SSLContext | None = None
) -> RawSocket:
    """Open a WebSocket by hand. `ahead` is sent with the request, before its answer. The answer must be right."""
    raw = RawSocket(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
    key = base64.b64encode(os.urandom(16))
    lines = [
        b"GET %b HTTP/1.1" % path.encode(),
        b"Host: h",
        b"Connection: keep-alive, Upgrade",
        b"Upgrade: WebSocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + key,
        *headers,
    ]
    await raw.send(b"\r\n".join(lines) + b"\r\n\r\n" + ahead)
    raw.head = await raw.reader.readuntil(b"\r\n\r\n")
    accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
    assert raw.head.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nsec-websocket-accept: " + accept in raw.head
    return raw


def frame(first: int, data: bytes = b"", *, mask: bytes | None = b"\x12\x34\x56\x78", size: int | None = None) -> bytes:
    """A client's frame; `mask` None for one that is not masked, `size` for one that lies about its size."""
    size = len(data) if size is None else size
    masked = 0x80 if mask is not None else 0
    if size < 126:
        head = bytes([first, masked | size])
    elif size < 65536:
        head = struct.pack(">BBH", first, masked | 126, size)
    else:
        head = struct.pack(">BBQ", first, masked | 127, size)
    if mask is None:
        return head + data
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(0x88, struct.pack(">H", code) + reason)
