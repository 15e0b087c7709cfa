"""One call in work at a replica: what came of it, and the ways to answer it.

In: the CALL frame and the DATA that follows it, from the link. Out: to whoever runs the call, its arguments and body;
to the link, the answer, whole or in parts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from headrace.replica.held import ENDED, Holder
from headrace.spec.errors import NotServableError, ProtocolError, RequestCancelledError, RequestTimeoutError
from headrace.wire.buffers import Landing, blocks_of, unchanging
from headrace.wire.connection import GATHERED_BYTES, Outflow
from headrace.wire.frames import (
    ARENAS,
    ERROR,
    HELD,
    ITEM,
    MAX_PAYLOAD_BYTES,
    MORE,
    REPLY,
    STARTED,
    WINDOW_BYTES,
    CallMeta,
    ErrorInfo,
)
from headrace.wire.items import FAILURE, PLAIN, ItemOutflow
from headrace.wire.payload import Payload, encode_error

if TYPE_CHECKING:
    from headrace.replica.callee import CalleeLink

log = logging.getLogger("headrace.replica")

_encode = msgspec.msgpack.Encoder().encode


class Inflow:
    """What has come of a body that follows its CALL in parts."""

    __slots__ = ("ended", "parts", "waiter", "whole")

    def __init__(self, whole: bool) -> None:
        self.whole = whole  # the call starts when the body has ended, not before
        self.parts: deque[bytes] = deque()
        self.ended = False
        self.waiter: asyncio.Future[None] | None = None


def wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Incoming:
    """One call in work at this replica. Its slot is free when `reply`, `answer`, `fail` or `end` has been called."""

    __slots__ = (
        "_drain_waiter",
        "_inflow",
        "_items",
        "_link",
        "_outflow",
        "_stream",
        "body",
        "buffers",
        "cancelled",
        "expired",
        "flags",
        "lasts",
        "meta",
        "models",
        "on_cancel",
        "timer",
    )

    def __init__(self, link: CalleeLink, stream: int, flags: int, meta: CallMeta, body: bytes) -> None:
        self._link = link
        self._stream = stream
        self.meta = meta
        self.flags = flags
        self.body: bytes | memoryview = body
        self.buffers: Sequence[memoryview] = ()
        self.cancelled = False  # the caller has left
        self.expired = False  # the time is over
        self.timer: asyncio.TimerHandle | None = None  # at whose end it is
        self.on_cancel: Callable[[], None] | None = None
        self.models: Holder | None = None  # that its code was given
        self.lasts = False  # its code goes on after the answer: who runs it lets go of them
        self._inflow: Inflow | None = None
        self._outflow: Outflow | None = None
        self._items: ItemOutflow | None = None

    def __repr__(self) -> str:
        return f"<Incoming {self.meta.request_id} {self.meta.method} stream={self._stream} cancelled={self.cancelled}>"

    # --- the answer ------------------------------------------------------------------------------------------------

    def reply(self, payload: bytes, meta: bytes = b"", flags: int = 0) -> None:
        """The whole result, of any size. With a head (`meta`) beyond a frame the call fails."""
        if len(payload) + len(meta) <= MAX_PAYLOAD_BYTES:
            self._link.finish(self._stream, REPLY, flags, meta, b"" if self.cancelled else payload)
        else:
            self._reply_large([payload], meta, flags)

    def answer(self, payload: Payload) -> None:
        """The whole result of a call by handle."""
        if payload.buffers and not self.cancelled:
            self._reply_large(self._link.buffers.wrap(payload.data, payload.buffers), b"", ARENAS)
        else:
            self.reply(payload.data)

    def fail(self, error: ErrorInfo) -> None:
        """The call failed; after `start_reply`, the stream broke. Items that were put arrive before the error."""
        if self._items is not None and not self.cancelled:
            self._items.put(_encode(error), FAILURE)
            self.end_items()
            return
        if self._outflow is not None:
            self._link.drop_outflow(self._stream)
        payload = _encode(error)
        if len(payload) > MAX_PAYLOAD_BYTES:
            short = error.traceback_text[-8192:]
            payload = _encode(ErrorInfo(error.type_name, error.message[:8192], short, error.status))
        self._link.finish(self._stream, ERROR, 0, b"", payload)

    def start_reply(self, payload: bytes, meta: bytes, flags: int) -> None:
        """The first part of a result that follows with `write` and `end`. Raises NotServableError for a head beyond a
        frame.
        """
        if self.cancelled:
            return
        if len(meta) > MAX_PAYLOAD_BYTES:
            raise _head_too_large(meta)
        self._link.send(
            self._stream, REPLY, flags | MORE | HELD, self._link.load, meta, payload[: MAX_PAYLOAD_BYTES - len(meta)]
        )
        self._drain_waiter: asyncio.Future[None] | None = None
        self._outflow = self._link.open_outflow(self._stream, WINDOW_BYTES, self._on_drained)
        rest = payload[MAX_PAYLOAD_BYTES - len(meta) :]
        if rest:
            self._outflow.write(rest, True)

    def write(self, data: bytes) -> bool:
        """The next part. False: wait for `drained` before the next."""
        if self.cancelled or self._outflow is None:
            return not self.cancelled
        if len(data) >= GATHERED_BYTES:
            return self._outflow.write(data, True)
        return not data or self._outflow.gather(data)

    async def drained(self) -> None:
        """Until the caller has read enough for more to be sent. Raises RequestCancelledError when it has left."""
        while (
            not (self.cancelled or self.expired)
            and self._outflow is not None
            and self._outflow.pending_bytes >= WINDOW_BYTES // 2
        ):
            self._drain_waiter = self._link.loop.create_future()
            await self._drain_waiter
        self._check_wanted()

    def end(self) -> None:
        """The streamed result is whole, and the call is done."""
        if self._outflow is not None and not self.cancelled:
            self._outflow.write(b"", False)
        self._link.finish_streamed(self._stream)

    # --- items -----------------------------------------------------------------------------------------------------

    def open_items(self) -> None:
        """The result is a sequence of items (the call has the flag STREAM): `put_item` each, then `end_items`."""
        link = self._link
        self._drain_waiter = None
        self._items = ItemOutflow(link, self._stream, self._on_drained, lambda: link.load)
        if not self.cancelled:  # else nothing will leave, nor end, by it
            link.outflows[self._stream] = self._items

    def put_item(self, item: Payload | bytes, kind: int = PLAIN) -> bool:
        """The next item. False: wait for `room` before the next."""
        items = self._items
        if self.cancelled or items is None:
            return not self.cancelled
        if type(item) is bytes:
            return items.put(item, kind)
        assert isinstance(item, Payload)
        if not item.buffers:
            return items.put(item.data)
        buffers = self._link.buffers
        body = b"".join(buffers.wrap(item.data, item.buffers))
        return items.put_with_blocks(body, sum(map(len, item.buffers)), partial(buffers.take_back, blocks_of(body)))

    async def room(self) -> None:
        """Until the caller has taken enough items for more to be made. Raises RequestCancelledError when it left."""
        while not (self.cancelled or self.expired) and self._items is not None and self._items.room <= 0:
            self._drain_waiter = self._link.loop.create_future()
            await self._drain_waiter
        self._check_wanted()

    def end_items(self) -> None:
        """The last item has been put, and the call is done."""
        items, link = self._items, self._link
        if items is None or self.cancelled:
            link.finish(self._stream, REPLY, 0, b"", b"")
            return
        last = items.close()
        if last is None:
            link.finish_streamed(self._stream)
        else:
            link.outflows.pop(self._stream, None)
            link.finish(self._stream, ITEM, 0, b"", last)

    def _reply_large(self, parts: Sequence[bytes | memoryview], meta: bytes, flags: int) -> None:
        if self.cancelled:
            self._link.finish(self._stream, REPLY, 0, b"", b"")
            return
        room = MAX_PAYLOAD_BYTES - len(meta)
        if room < 0:
            error = _head_too_large(meta)
            log.error("request %s: %s", self.meta.request_id, error)
            self.fail(encode_error(error))
            return
        first, rest = parts[0][:room], [parts[0][room:], *parts[1:]]
        rest = [part for part in rest if len(part)]
        self._link.finish(self._stream, REPLY, flags | (MORE if rest else 0), meta, bytes(first))
        if rest and not self._link.closed:
            outflow = self._link.open_outflow(self._stream, WINDOW_BYTES)
            if flags & ARENAS:
                outflow.frame_bytes = self._link.landed_bytes
                self._link.flush_now()  # the caller makes room while the rest is copied
                rest = [unchanging(part) for part in rest]
            for i, part in enumerate(rest):
                outflow.write(part, i + 1 < len(rest))

    def _on_drained(self) -> None:
        wake(self._drain_waiter)

    # --- the start -------------------------------------------------------------------------------------------------

    def sleep_on(self) -> None:
        """Whoever sent the call has much else to do (gRPC): its next is not worth waiting for awake."""
        self._link.sleep_on()

    def tell_started(self) -> None:
        """Tell the caller that it starts, before it may take the process down with it."""
        self._link.send(self._stream, STARTED)
        self._link._flush()

    def let_go(self) -> None:
        """Its code has ended, and uses no models any more."""
        if self.models is None:
            self.models = ENDED
        else:
            self.models.release()

    # --- the body --------------------------------------------------------------------------------------------------

    def expect_body(self, whole: bool) -> None:
        """More of the body follows. `whole`: join it before the call starts (handle calls)."""
        self._inflow = Inflow(whole)

    @property
    def waits_for_body(self) -> bool:
        """Whether the call has not started because its body is not whole."""
        inflow = self._inflow
        return inflow is not None and inflow.whole and not inflow.ended

    def feed(self, data: bytes, more: bool, landing: Landing | None) -> bool:
        """The next part has come (b"" where it is in its `landing`). True: the body is whole, and the call was waiting
        for that.
        """
        inflow = self._inflow
        if inflow is None:
            raise ProtocolError(f"DATA on stream {self._stream}, whose body was whole")
        if landing is not None:
            landing.feed(data)
            if more:
                self._link.consumed(self._stream, len(data), self._link.landed_window)
                return False
            self.body = landing.whole()
            inflow.ended = True
            return True
        if data:
            inflow.parts.append(data)
        inflow.ended = not more
        if not inflow.whole:
            wake(inflow.waiter)
            return False
        self._link.consumed(self._stream, len(data))
        if more:
            return False
        self.body = b"".join((self.body, *inflow.parts))
        inflow.parts.clear()
        return True

    async def read(self) -> bytes:
        """The next part of the body, b"" at its end. Raises RequestCancelledError when the caller has left."""
        inflow = self._inflow
        if inflow is None:
            return b""
        while not (inflow.parts or inflow.ended or self.cancelled or self.expired):
            inflow.waiter = self._link.loop.create_future()
            await inflow.waiter
        self._check_wanted()
        if not inflow.parts:
            return b""
        part = inflow.parts.popleft()
        self._link.consumed(self._stream, len(part))
        return part

    # --- the end of interest ---------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """The caller is no longer interested."""
        if not self.cancelled:
            self.cancelled = True
            if not self.expired:  # else it has been stopped, and what it does to end is not to be interrupted
                self._stop()

    def expire_at(self, deadline: float) -> None:
        """Have the work on it stop at `deadline`, on the loop's clock, if it has not ended by then."""
        self.timer = self._link.loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        if not self.cancelled:
            self.expired = True
            self._stop()

    def _stop(self) -> None:
        if self._inflow is not None:
            wake(self._inflow.waiter)
        if self._outflow is not None or self._items is not None:
            wake(self._drain_waiter)
        if self.on_cancel is not None:
            self.on_cancel()

    # --- the end of the replica ------------------------------------------------------------------------------------

    def when_draining(self, act: Callable[[], None]) -> None:
        """Have `act` called when the replica begins to drain (now, if it has), for a call that ends only when told."""
        server = self._link.server
        server.on_drain.add(act)
        if server.draining:
            act()

    def forget_draining(self, act: Callable[[], None]) -> None:
        """The call is about to end by itself."""
        self._link.server.on_drain.discard(act)

    def _check_wanted(self) -> None:
        if self.cancelled:
            raise RequestCancelledError(f"the caller of request {self.meta.request_id} has left")
        if self.expired:
            raise RequestTimeoutError(f"the time of request {self.meta.request_id} is over")


def _head_too_large(meta: bytes) -> NotServableError:
    return NotServableError(f"the head of the response takes {len(meta)} bytes, and {MAX_PAYLOAD_BYTES} at most can be")
