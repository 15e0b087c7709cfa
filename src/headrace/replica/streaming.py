"""Results that come in parts: what generators yield, on its way to a caller that may read slowly.

In: generators of user code, asynchronous ones on the loop, plain ones in threads. Out: their items, through an Outlet
that says when there is room for more; so a generator is held back where its items are not read.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from headrace.replica.response import BYTES_HEAD, TEXT_HEAD, json_body
from headrace.spec.errors import NotServableError, RequestCancelledError
from headrace.wire import payload
from headrace.wire.frames import HTTP, WINDOW_BYTES, ResponseHead
from headrace.wire.items import cost
from headrace.wire.payload import Payload

if TYPE_CHECKING:
    from headrace.replica.incoming import Incoming

# What a thread may be ahead of the loop; beyond the reader's own window.
AHEAD_BYTES = WINDOW_BYTES // 4
LINES_HEAD = msgspec.msgpack.encode(ResponseHead(200, [(b"content-type", b"application/x-ndjson")]))


class Outlet(Protocol):
    """Where the items of one call go. `encode` may be called in any thread; all else is the loop's."""

    def encode(self, item: Any) -> Payload | bytes:
        """The item as it is sent. Raises PayloadError or NotServableError for what cannot be."""

    def put(self, encoded: Payload | bytes) -> bool:
        """Send it. False: wait for `room` before the next."""

    async def room(self) -> None:
        """Until there is room. Raises RequestCancelledError or RequestTimeoutError when nobody waits any more."""

    def end(self) -> None:
        """There is no more: the call is done."""


class ItemOutlet:
    """Items to a caller that asked for items."""

    __slots__ = ("_incoming", "room")

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self.room = incoming.room
        incoming.open_items()

    def encode(self, item: Any) -> Payload:
        return payload.encode(item)

    def put(self, encoded: Payload | bytes) -> bool:
        return self._incoming.put_item(encoded)

    def end(self) -> None:
        self._incoming.end_items()


class BodyOutlet:
    """Items to an HTTP client: text and bytes as they are, all else as lines of JSON. The first one decides which."""

    __slots__ = ("_begun", "_head", "_incoming", "room")

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._head = b""
        self._begun = False
        self.room = incoming.drained

    def encode(self, item: Any) -> bytes:
        head, data = _as_part(item)
        if not self._head:
            self._head = head
        elif head != self._head:
            raise NotServableError(
                f"a generator over HTTP yields text, bytes or JSON, and not now one and now the other: {item!r:.100}"
            )
        return data

    def put(self, encoded: Payload | bytes) -> bool:
        assert isinstance(encoded, bytes)
        if self._begun:
            return self._incoming.write(encoded)
        self._begun = True
        self._incoming.start_reply(encoded, self._head, HTTP)
        return True

    def end(self) -> None:
        if self._begun:
            self._incoming.end()
        else:
            self._incoming.reply(b"", TEXT_HEAD, HTTP)


def _as_part(item: Any) -> tuple[bytes, bytes]:
    if isinstance(item, str):
        return TEXT_HEAD, item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return BYTES_HEAD, bytes(item)
    return LINES_HEAD, json_body(item) + b"\n"


def is_stream(result: object) -> bool:
    """Whether a result is to be iterated over: a generator of either kind."""
    return inspect.isgenerator(result) or inspect.isasyncgen(result)


async def send_all(outlet: Outlet, items: AsyncGenerator[Any, Any]) -> None:
    """Send the items of an asynchronous generator as they come, then close it, whatever happens."""
    encode, put = outlet.encode, outlet.put
    try:
        async for item in items:
            if not put(encode(item)):
                await outlet.room()
    finally:
        await items.aclose()
    outlet.end()


class ThreadedItems:
    """The way of items from a thread to the loop. The thread waits when it is too far ahead.

    `put` is the thread's; `cancel` and `finish` are the loop's.
    """

    __slots__ = ("_ahead", "_end", "_lock", "_loop", "_outlet", "_queue", "_resuming", "_stopped", "_taken", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop, outlet: Outlet) -> None:
        self._loop = loop
        self._outlet = outlet
        self._queue: deque[Payload | bytes] = deque()
        self._woken = False
        self._ahead = 0  # what the thread has put, counted by it
        self._taken = 0  # what the loop has sent, counted by the loop
        self._lock: threading.Lock | None = None  # held while the thread waits for it
        self._stopped = False
        self._resuming: asyncio.Task[None] | None = None
        self._end: Callable[[], None] | None = None

    def put(self, item: Any) -> None:
        """Hand an item to the loop. Raises RequestCancelledError when nobody waits for it any more."""
        encoded = self._outlet.encode(item)
        self._ahead += _size(encoded)
        self._queue.append(encoded)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)
        if self._ahead - self._taken >= AHEAD_BYTES:
            self._wait()
        if self._stopped:
            raise RequestCancelledError("nobody waits for the items any more")

    def _wait(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        self._lock = lock
        # The loop takes first and looks for the lock after; so one of the two sees the other.
        if self._ahead - self._taken >= AHEAD_BYTES and not self._stopped:
            lock.acquire()
        self._lock = None

    def cancel(self) -> None:
        """Nobody waits any more: the thread's next `put` raises."""
        self._stopped = True
        self._release()

    def finish(self, end: Callable[[], None]) -> None:
        """On the loop, when the thread has ended: call `end` once all its items are sent."""
        self._end = end
        self._drain()

    def _release(self) -> None:
        lock = self._lock
        if lock is not None and lock.locked():
            self._lock = None
            lock.release()

    def _drain(self) -> None:
        # First the flag, then the queue: whoever appends after the last popleft sees the flag down and wakes the loop.
        self._woken = False
        queue = self._queue
        while queue and self._resuming is None:
            encoded = queue.popleft()
            self._taken += _size(encoded)
            if not self._outlet.put(encoded) and not self._stopped:
                self._resuming = self._loop.create_task(self._resume(), name="room")
        if self._ahead - self._taken < AHEAD_BYTES:
            self._release()
        if self._end is not None and not queue and self._resuming is None:
            end, self._end = self._end, None
            end()

    async def _resume(self) -> None:
        try:
            await self._outlet.room()
        except RequestCancelledError:
            self._stopped = True
        except TimeoutError:
            self._stopped = True
        self._resuming = None
        self._drain()


def _size(encoded: Payload | bytes) -> int:
    if isinstance(encoded, bytes):
        return cost(len(encoded))
    return cost(len(encoded.data) + sum(map(len, encoded.buffers)))


def put_all(way: ThreadedItems, items: Iterator[Any]) -> None:
    """In a thread: send the items of a plain generator, then close it, whatever happens."""
    try:
        for item in items:
            way.put(item)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
