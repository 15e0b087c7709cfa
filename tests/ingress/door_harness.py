"""A client, a router that tests answer for, and a transport without a socket, to try the HTTP side alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvloop

from headrace.ingress.connection import ClientConnection
from headrace.ingress.door import Door
from headrace.ingress.listener import Listener
from headrace.router import Call
from headrace.spec.config import HTTPOptions
from headrace.spec.snapshot import ApplicationEntry, RevisionEntry, Snapshot
from headrace.wire.frames import HTTP, MORE, HttpHead, ResponseHead

decode_head = msgspec.msgpack.Decoder(HttpHead).decode


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 20))


def application(name: str, prefix: str | None, *, failed: str = "", ready: bool = True) -> ApplicationEntry:
    revisions = (RevisionEntry(number=1, weight=1.0, deployments={"Model": f"{name}/Model@0"}),) if ready else ()
    return ApplicationEntry(name=name, route_prefix=prefix, ingress="Model", revisions=revisions, failed=failed)


def snapshot(*applications: ApplicationEntry, version: int = 1) -> Snapshot:
    return Snapshot(version=version, applications={entry.name: entry for entry in applications})


def response_head(status: int = 200, *headers: tuple[bytes, bytes]) -> bytes:
    return msgspec.msgpack.encode(ResponseHead(status, list(headers)))


def head_of(call: Call) -> HttpHead:
    return decode_head(call.http)


def echo(router: FakeRouter, call: Call) -> None:
    """Answer at once with what came: `METHOD target|body`."""
    head = head_of(call)
    call.on_reply(HTTP, b"", b"%b %b|%b" % (head.method.encode(), head.target, router.body(call)))


def keep(router: FakeRouter, call: Call) -> None:
    """Answer nothing: the test will."""


@dataclass
class FakeRouter:
    """Takes calls, and has `handler` answer each once its body is whole (or at once, when `eager`)."""

    handler: Callable[[FakeRouter, Call], None] = echo
    eager: bool = False
    room: int = 1 << 40  # bytes of a streamed body that are taken before send_body says no
    calls: list[Call] = field(default_factory=list)
    cancelled: list[Call] = field(default_factory=list)
    credit: dict[int, int] = field(default_factory=dict)
    uploads: dict[int, list[bytes]] = field(default_factory=dict)
    unread: int = 0
    most_unread: int = 0

    def submit(self, call: Call) -> None:
        self.calls.append(call)
        if call.more:
            self.uploads[id(call)] = []
        if self.eager or not call.more:
            self.handler(self, call)

    def cancel(self, call: Call) -> None:
        self.cancelled.append(call)

    def consumed(self, call: Call, n: int) -> None:
        self.credit[id(call)] = self.credit.get(id(call), 0) + n

    def send_body(self, call: Call, data: bytes, more: bool) -> bool:
        self.uploads[id(call)].append(data)
        self.unread += len(data)
        self.most_unread = max(self.most_unread, self.unread)
        if not more:
            call.more = False
            if not self.eager:
                self.handler(self, call)
        return self.unread < self.room

    def read(self, call: Call) -> int:
        """The replica has read what came of the body."""
        n, self.unread = self.unread, 0
        call.on_writable()
        return n

    def body(self, call: Call) -> bytes:
        return call.body + b"".join(self.uploads.get(id(call), []))


class Transport:
    """Keeps what is written. `pause` makes it a client that does not read."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.written = bytearray()
        self.reading = True
        self.ended = False
        self.closed = False
        self.aborted = False
        self.unsent = 0

    def write(self, data: bytes) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = self.closed = True

    def abort(self) -> None:
        self.ended = self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("127.0.0.1", 1000), "sockname": ("127.0.0.1", 8000)}.get(name)

    def take(self) -> bytes:
        """What was written since the last time."""
        data, self.written = bytes(self.written), bytearray()
        return data


@dataclass
class FakeTimer:
    when: float
    act: Callable[..., None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """The clock and the timers of a loop, for a door without one: a test lets time pass."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.set_timers = 0
        self._timers: list[FakeTimer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, act: Callable[..., None], *args: Any) -> Any:
        self.set_timers += 1
        timer = FakeTimer(when, act)
        self._timers.append(timer)
        return timer

    def call_later(self, delay: float, act: Callable[..., None], *args: Any) -> Any:
        return FakeTimer(self.now + delay, act)  # the door's own sweep: the test does that

    @property
    def timers(self) -> list[FakeTimer]:
        """What is still to ring, the earliest first."""
        self._timers = [timer for timer in self._timers if not timer.cancelled]
        return sorted(self._timers, key=lambda timer: timer.when)

    def pass_to(self, now: float) -> None:
        """Let time pass until then, each timer ringing in its time."""
        while self.timers and self.timers[0].when <= now:
            timer = self.timers[0]
            timer.cancelled = True
            self.now = max(self.now, timer.when)
            timer.act()
        self.now = now


@dataclass
class Bench:
    """A door whose connections have no sockets."""

    router: FakeRouter = field(default_factory=FakeRouter)
    options: HTTPOptions = field(default_factory=HTTPOptions)
    snapshot: Snapshot = field(default_factory=lambda: snapshot(application("default", "/")))

    def __post_init__(self) -> None:
        self.loop = FakeLoop()
        self.door = Door(self.loop, self.router, self.options)  # type: ignore[arg-type]
        self.door.update(self.snapshot)

    def connect(self) -> tuple[ClientConnection, Transport]:
        connection = ClientConnection(self.door)
        transport = Transport(connection)
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and sweep as often as the timer would."""
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.pass_to(min(end, self.loop.now + self.door.sweep_interval_s()))
            self.door.sweep(self.loop.now)


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    chunked: bool = False


def parse_responses(data: bytes, heads: tuple[bool, ...] = ()) -> list[Response]:
    """All the responses in `data`, strictly: what is left over or missing is an AssertionError.

    `heads[i]` is whether the i-th answers a HEAD request.
    """
    found: list[Response] = []
    while data:
        head, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, f"no whole response head: {data[:200]!r}"
        line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for text in lines:
            name, _, value = text.partition(": ")
            assert name.lower() not in headers or name.lower() == "set-cookie", f"{name} twice"
            headers[name.lower()] = value
        if status == "100":
            found.append(Response(100, headers, b""))
            data = rest
            continue
        final = [response for response in found if response.status != 100]
        without_body = status in ("204", "304") or (len(final) < len(heads) and heads[len(final)])
        chunked = headers.get("transfer-encoding") == "chunked"
        assert not (chunked and "content-length" in headers)
        if without_body:
            body = b""
        elif chunked:
            body, rest = _chunks(rest)
        elif "content-length" in headers:
            length = int(headers["content-length"])
            assert len(rest) >= length, f"{length} bytes were promised, {len(rest)} came"
            body, rest = rest[:length], rest[length:]
        else:
            assert headers["connection"] == "close"
            body, rest = rest, b""
        found.append(Response(int(status), headers, body, chunked))
        data = rest
    return found


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, separator, data = data.partition(b"\r\n")
        assert separator, "the chunks do not end"
        n = int(size, 16)
        assert data[n : n + 2] == b"\r\n"
        body, data = body + data[:n], data[n + 2 :]
        if n == 0:
            return body, data


class Client:
    """A raw client on a real socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self, *, head: bool = False) -> Response:
        """The next response, interim ones included."""
        data = await self.reader.readuntil(b"\r\n\r\n")
        fields = data.lower()
        if data.startswith(b"HTTP/1.1 100") or head or data[9:12] in (b"204", b"304"):
            pass
        elif b"\r\ncontent-length: " in fields:
            length = int(fields.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
            data += await self.reader.readexactly(length)
        elif b"\r\ntransfer-encoding: chunked" in fields:
            while True:
                line = await self.reader.readuntil(b"\r\n")
                data += line + await self.reader.readexactly(int(line, 16) + 2)
                if int(line, 16) == 0:
                    break
        else:
            data += await self.reader.read()
        (response,) = parse_responses(data, (head,))
        return response

    async def rest(self) -> bytes:
        """What still comes until the end of the connection."""
        return await self.reader.read()


@dataclass
class Site:
    """A door on a real port."""

    door: Door
    listener: Listener
    router: FakeRouter

    async def connect(self, **limits: int) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.listener.port, **limits))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; the test's own time limit is the only one."""
        while not condition():
            await asyncio.sleep(0.001)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.port}"


@contextlib.asynccontextmanager
async def site(
    router: FakeRouter | None = None, options: HTTPOptions | None = None, known: Snapshot | None = None
) -> AsyncIterator[Site]:
    loop = asyncio.get_running_loop()
    router = router or FakeRouter()
    door = Door(loop, router, options or HTTPOptions())  # type: ignore[arg-type]
    door.update(known or snapshot(application("default", "/")))
    listener = Listener(loop, lambda: ClientConnection(door))
    await listener.open("127.0.0.1", 0)
    try:
        yield Site(door, listener, router)
    finally:
        await listener.leave()
        await door.drain(0)


__all__ = ["HTTP", "MORE"]
