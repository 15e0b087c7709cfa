"""A call as the server hands it to the invoker, with what came of it; no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
import uvloop

from headrace.context import ReplicaContext
from headrace.replica.invoke import Invoker
from headrace.replica.threads import ThreadPool
from headrace.spec.errors import RequestCancelledError
from headrace.wire import payload
from headrace.wire.frames import HTTP, MORE, CallMeta, ErrorInfo, HttpHead, ResponseHead

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine on the loop that replicas run on; a minute is for ever."""

    async def limited() -> T:
        async with asyncio.timeout(60):
            return await coroutine

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(limited())


class FakeIncoming:
    """One call; `ended` is set when its slot is free. Writes are refused (until `let_drain`) beyond `window` bytes."""

    def __init__(self, meta: CallMeta, flags: int, body: bytes | memoryview, parts: Sequence[bytes] = ()) -> None:
        self.meta = meta
        self.flags = flags
        self.body = body
        self.buffers: Sequence[memoryview] = ()
        self.cancelled = False
        self.expired = False
        self.deadline: float | None = None
        self.on_cancel: Callable[[], None] | None = None
        self.models: Any = None
        self.lasts = False
        self.ended = asyncio.Event()
        self.started = asyncio.Event()  # a streamed result has begun
        self.replies: list[tuple[bytes, bytes, int]] = []
        self.result: Any = None
        self.error: ErrorInfo | None = None
        self.streamed: list[bytes] = []
        self.stream_is_whole = False
        self.window = 1 << 30
        self._drained = asyncio.Event()
        self._parts = asyncio.Queue[bytes]()
        for part in parts:
            self.feed(part)

    # the invoker's side

    def let_go(self) -> None:
        assert self.lasts

    def reply(self, payload: bytes, meta: bytes = b"", flags: int = 0) -> None:
        assert not self.ended.is_set(), "answered twice"
        self.replies.append((payload, meta, flags))
        self.ended.set()

    def answer(self, result: payload.Payload) -> None:
        assert not self.ended.is_set(), "answered twice"
        self.result = payload.decode(result.data, result.buffers)
        self.ended.set()

    def fail(self, error: ErrorInfo) -> None:
        assert not self.ended.is_set(), "answered twice"
        self.error = error
        self.ended.set()

    def start_reply(self, payload: bytes, meta: bytes, flags: int) -> None:
        assert not self.started.is_set()
        self.replies.append((payload, meta, flags))
        self.streamed.append(payload)
        self.started.set()

    def write(self, data: bytes) -> bool:
        self.streamed.append(data)
        return not self.cancelled and sum(map(len, self.streamed)) <= self.window

    async def drained(self) -> None:
        await self._drained.wait()
        if self.cancelled:
            raise RequestCancelledError("the caller has left")

    def end(self) -> None:
        assert not self.ended.is_set(), "answered twice"
        self.stream_is_whole = True
        self.ended.set()

    def expire_at(self, deadline: float) -> None:
        self.deadline = deadline

    async def read(self) -> bytes:
        part = await self._parts.get()
        if self.cancelled:
            raise RequestCancelledError("the caller has left")
        return part

    def sleep_on(self) -> None:
        pass

    def open_items(self) -> None:
        self.items: list[Any] = []

    def put_item(self, item: payload.Payload | bytes, kind: int = 0) -> bool:
        assert not self.ended.is_set(), "an item after the end"
        self.items.append(item if isinstance(item, bytes) else payload.decode(item.data, item.buffers))
        self.started.set()
        return not self.cancelled and len(self.items) <= self.window

    async def room(self) -> None:
        await self.drained()

    def end_items(self) -> None:
        self.end()

    # the test's side

    def feed(self, part: bytes) -> None:
        self._parts.put_nowait(part)

    def let_drain(self) -> None:
        self._drained.set()

    def expire(self) -> None:
        self.expired = True
        self._stop()

    def cancel(self) -> None:
        self.cancelled = True
        self._stop()

    def _stop(self) -> None:
        self._drained.set()
        self._parts.put_nowait(b"")
        if self.on_cancel is not None:
            self.on_cancel()

    @property
    def head(self) -> ResponseHead:
        meta = self.replies[0][1]
        if not meta:
            return ResponseHead(200, [(b"content-type", b"application/json")])
        return msgspec.msgpack.decode(meta, type=ResponseHead)

    @property
    def payload(self) -> bytes:
        assert self.error is None, self.error
        assert self.replies[0][2] & HTTP
        return b"".join(self.streamed) if self.streamed else self.replies[0][0]

    @property
    def raised(self) -> BaseException:
        assert self.error is not None
        return payload.decode_error(self.error)


def head(
    method: str = "POST",
    target: bytes = b"/",
    headers: Sequence[tuple[bytes, bytes]] = ((b"host", b"a.test"),),
    root_path: str = "",
    client: tuple[str, int] | None = ("10.0.0.1", 1234),
) -> HttpHead:
    return HttpHead(method, target, root_path, list(headers), "1.1", "http", client, ("10.0.0.2", 8000))


def meta_of(method: str = "__call__", http: HttpHead | None = None, **fields: Any) -> CallMeta:
    raw = msgspec.Raw(msgspec.msgpack.encode(http))
    values = {"request_id": "r-1", "app": "shop", "revision": 3, "snapshot": 1, "key": "shop/M@0"}
    return CallMeta(**(values | fields), method=method, http=raw)


def http_call(
    body: bytes = b"", parts: Sequence[bytes] | None = None, http: HttpHead | None = None, **fields: Any
) -> FakeIncoming:
    flags = HTTP if parts is None else HTTP | MORE
    return FakeIncoming(meta_of(http=http or head(), **fields), flags, body, parts or ())


def handle_call(method: str, *args: Any, remaining_s: float = -1.0, **kwargs: Any) -> FakeIncoming:
    encoded = payload.encode((args, kwargs))
    incoming = FakeIncoming(meta_of(method, remaining_s=remaining_s), 0, encoded.data)
    incoming.buffers = encoded.buffers
    return incoming


def invoker_of(servable: object, limit: int = 8) -> Invoker:
    loop = asyncio.get_running_loop()
    replica = ReplicaContext(app_name="shop", deployment="M", replica_id="M#0", servable_object=servable)
    return Invoker(loop, servable, replica, ThreadPool(loop, limit))


async def served(servable: object, *calls: FakeIncoming) -> None:
    """Run the calls on a replica of `servable`, all at once, to their ends."""
    invoker = invoker_of(servable)
    for call in calls:
        invoker.start(call)
    for call in calls:
        await call.ended.wait()
    await invoker.rested()
