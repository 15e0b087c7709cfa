"""The caller's end of a connection to one replica: calls out, replies in, each to the call that it is for.

In: frames of the replica; calls that the pool has given this replica. Out: frames; replies to calls; to the pool, what
a reply tells of the replica's load, offers of slots, calls that were refused, and those lost with the replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from headrace.core.balance import Replica
from headrace.core.places import Question
from headrace.router.call import KEPT_BYTES, Call, Item
from headrace.spec.errors import HeadraceError, ProtocolError
from headrace.wire.buffers import Buffers, unchanging
from headrace.wire.connection import BURST_PARTS, Connection
from headrace.wire.frames import (
    ARENA,
    ARENAS,
    BROKEN,
    CALL,
    CANCEL,
    DATA,
    DECLINE,
    ERROR,
    FAULT,
    FREED,
    GOAWAY,
    GRANT,
    GRANT_COUNTS,
    GRPC,
    GRPC_FAULTS,
    HEADER,
    HELD,
    HELLO,
    ITEM,
    LOAD,
    MAX_PAYLOAD_BYTES,
    MODELS,
    MORE,
    OFFER,
    OFFERED,
    PLACES,
    PLACES_COUNTS,
    PROTOCOL_VERSION,
    REJECT,
    RELEASE,
    REPLY,
    STARTED,
    WAITING,
    WAITING_COUNTS,
    WINDOW_BYTES,
    WITHDRAW,
    CallMeta,
    ErrorInfo,
    GrpcStatus,
    HelloInfo,
    ModelsInfo,
)
from headrace.wire.items import BUFFERS, FAILURE, PLAIN, STATUS, Record, cost

if TYPE_CHECKING:
    from headrace.router.pool import Pool

log = logging.getLogger("headrace.router")

_pack = HEADER.pack
NONE_WAITS = 0xFFFF  # in the load field of a leased call: this caller has no other call waiting
_encode_meta = msgspec.msgpack.Encoder().encode
_decode_error = msgspec.msgpack.Decoder(ErrorInfo).decode
_decode_hello = msgspec.msgpack.Decoder(HelloInfo).decode
_decode_models = msgspec.msgpack.Decoder(ModelsInfo).decode
_decode_status = msgspec.msgpack.Decoder(GrpcStatus).decode


def _is_fault(status: bytes) -> bool:
    """Whether the status of an RPC says that the server failed; one that cannot be read does."""
    try:
        return _decode_status(status).code in GRPC_FAULTS
    except BROKEN:
        return True


class Abandoned(Call):
    """Stands in for a call that was cancelled while a replica worked on it, until the replica says that it is done."""

    def __init__(self, call: Call) -> None:
        super().__init__("", "")
        self.suspect = call.suspect
        self.held = call.held
        self.answered = call.answered
        self.reader = call.reader


def connect(address: str) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError. A Unix socket connects at once or not at all."""
    kind, _, path = address.partition(":")
    if kind != "unix":
        raise OSError(f"a replica's address is unix:PATH here, not {address!r}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class Link(Connection):
    """The caller's end of the connection to one replica."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        pool: Pool,
        replica: Replica,
        role: str,
        identity: str,
    ) -> None:
        super().__init__(loop, sock)
        self.pool = pool
        self.replica = replica
        self.calls: dict[int, Call] = {}
        self.leaving = False
        self._last_stream = 0
        self._awake = pool.router.awake
        self._buffers = Buffers(self)
        handlers = self.handlers
        handlers[HELLO] = self._on_hello
        handlers[REPLY] = self._on_reply
        handlers[ERROR] = self._on_error
        handlers[FREED] = self._on_freed
        handlers[STARTED] = self._on_started
        handlers[DATA] = self._on_data
        handlers[ITEM] = self._on_item
        handlers[REJECT] = self._on_reject
        handlers[OFFER] = self._on_offer
        handlers[GOAWAY] = self._on_goaway
        handlers[GRANT] = self._on_grant
        handlers[CANCEL] = self._on_cancel
        handlers[MODELS] = self._on_models
        handlers[ARENA] = self._buffers.on_arena
        handlers[RELEASE] = self._buffers.on_release
        hello = HelloInfo(PROTOCOL_VERSION, role, f"{identity}/{os.getpid()}")
        self.send(0, HELLO, meta=_encode_meta(hello))

    # --- calls out -------------------------------------------------------------------------------------------------

    def call(self, call: Call, snapshot: int, flags: int, next_age_ms: int) -> None:
        """Send the call. `flags` LEASED when it takes an offered slot; then `next_age_ms` tells who waits after it."""
        self._last_stream += 1
        stream = call.stream = self._last_stream
        call.link = self
        self.calls[stream] = call
        deadline = call.deadline
        remaining_s = -1.0
        if deadline is not None:
            now = call.sent_at = self.loop.time()
            remaining_s = deadline - now if deadline > now else 0.0
            call.observed = True
        if call.queued_since is not None or call.reservation:
            meta = self._meta_of_waited(call, snapshot, remaining_s)
        else:
            meta = _encode_meta(
                (  # the fields of CallMeta, in their order: a tuple is made faster than a struct
                    call.request_id,
                    call.app,
                    call.revision,
                    snapshot,
                    self.pool.key,
                    call.method,
                    remaining_s,
                    call.attempt,
                    call.sticky,
                    call.model_id,
                    call.trace,
                    call.priority,
                    call.http,
                )
            )
        flags |= call.kind
        body = call.body
        length = len(body) + len(meta)
        if call.buffers or length > MAX_PAYLOAD_BYTES or call.more:
            self._call_large(call, meta, flags, next_age_ms)
        else:
            # What `send` does, without the call: this is the path of every request.
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._flush)
            self._out += (_pack(length, stream, len(meta), next_age_ms, CALL, flags), meta, body)
            if len(self._out) >= BURST_PARTS:
                self.flush_now()

    def _meta_of_waited(self, call: Call, snapshot: int, remaining_s: float) -> bytes:
        """The metadata of a call that has waited, or whose slot is reserved."""
        since = call.queued_since
        return _encode_meta(
            CallMeta(
                request_id=call.request_id,
                app=call.app,
                revision=call.revision,
                snapshot=snapshot,
                key=self.pool.key,
                method=call.method,
                remaining_s=remaining_s,
                attempt=call.attempt,
                sticky=call.sticky,
                model_id=call.model_id,
                trace=call.trace,
                priority=call.priority,
                http=call.http,
                waited_s=0.0 if since is None else max(0.0, self.loop.time() - since),
                reservation=call.reservation,
                mirrored=call.mirrored,
            )
        )

    def _call_large(self, call: Call, meta: bytes, flags: int, next_age_ms: int) -> None:
        """What does not fit the first frame waits for the replica's credit: a call that is refused lost nothing."""
        parts: list[bytes | memoryview] = [call.body]
        if call.buffers:
            flags |= ARENAS
            if sum(map(len, call.buffers)) <= KEPT_BYTES:
                call.buffers = [bytes(buffer) for buffer in call.buffers]  # for a repeat: the caller may change its own
            parts = self._buffers.wrap(call.body, call.buffers)
        room = MAX_PAYLOAD_BYTES - len(meta)
        first = parts[0][:room]
        parts[0] = memoryview(parts[0])[len(first) :]
        rest = [part for part in parts if len(part)]
        more = call.more or bool(rest)
        self.send(call.stream, CALL, flags | (MORE if more else 0), next_age_ms, meta, bytes(first))
        if call.buffers and rest:
            self.flush_now()  # the credit for the rest comes while that is copied
            if self.closed:
                return
            rest = [unchanging(part) for part in rest]
        if more:
            call.outflow = self.open_outflow(call.stream, 0, call.on_writable)
            if flags & ARENAS and not call.more:
                call.outflow.frame_bytes = self.landed_bytes
            call.outflow.starved = call.paused and bool(rest)
            if call.paused and not rest:
                self.loop.call_soon(call.on_writable)  # nothing of it has to leave before there is room
            if call.more:
                call.streamed = True
                call.kept, call.kept_bytes = [], len(call.body)
            for i, part in enumerate(rest):
                call.outflow.write(part, call.more or i + 1 < len(rest))

    def _flush(self) -> None:
        super()._flush()
        awake = self._awake
        if awake is not None:
            if len(self.calls) > 1:
                awake.crowded()
            elif self.calls and next(iter(self.calls.values())).near and self.pool.router.alone(self):
                awake.begin()

    def cancel(self, call: Call) -> None:
        """The answer is of no interest any more. The slot stays taken until the replica says that the work ended."""
        if self.calls.get(call.stream) is call:
            self.calls[call.stream] = Abandoned(call)
            if call.parts is not None and call.reply_flags & ARENAS:
                self._buffers.discard(call.parts[0])
            self.drop_outflow(call.stream)
            self.forget_inflow(call.stream)
            self.send(call.stream, CANCEL)

    def tell_waiting(self, count: int, urgency_s: float) -> None:
        self.send(0, WAITING, payload=WAITING_COUNTS.pack(min(count, 0xFFFFFFFF), int(urgency_s * 1000)))

    def tell_places(self, question: Question) -> None:
        self.send(0, PLACES, payload=PLACES_COUNTS.pack(*question))

    def tell_withdrawn(self) -> None:
        self.send(0, WITHDRAW)

    def decline(self) -> None:
        self.send(0, DECLINE)

    def load(self, model: str) -> None:
        """Ask the replica to load a model for calls to come."""
        self.send(0, LOAD, payload=model.encode())

    def leave(self) -> None:
        """No new calls go here; when those in work have been answered, the connection closes."""
        self.leaving = True
        if not self.calls:
            self.close()

    def cut(self, error: HeadraceError) -> None:
        """Close at once; calls in work end with `error`, whatever becomes of them in the replica."""
        calls, self.calls = self.calls, {}
        self.close()
        for call in calls.values():
            if not isinstance(call, Abandoned):
                call.on_error(error)

    def give_up(self) -> None:
        """As when the replica dies: it is out of reach, whether the connection shows it or not."""
        self._lose(None)

    # --- frames in -------------------------------------------------------------------------------------------------

    def _on_hello(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        try:
            hello = _decode_hello(meta)
        except BROKEN as error:
            raise ProtocolError(f"not a HELLO: {error}") from error
        if hello.version != PROTOCOL_VERSION:
            raise ProtocolError(f"replica {hello.id} speaks version {hello.version}, not {PROTOCOL_VERSION}")

    def _on_reply(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        if flags & MORE:
            call = self.calls.get(stream)
        else:
            call = self.calls.pop(stream, None)
        if call is None:
            raise ProtocolError(f"a reply on stream {stream}, which has no call")
        # The books first: the callback may submit the next call.
        awake = self._awake
        if awake is not None and awake.since:
            awake.came()
        if flags & HELD:
            call.held = True
            if call.observed:
                self.pool.begun(call)
        else:
            if call.observed:
                self.pool.served(call)
            self.pool.replied(self.replica, load, flags & OFFERED, call.suspect)
        if call.__class__ is not Abandoned:
            if flags & (MORE | ARENAS):
                self._large_reply(call, flags, meta, payload)
            else:
                call.answered = True
                if call.buffers:
                    call.buffers = ()  # those of the arguments
                call.count(flags)
                call.on_reply(flags, meta, payload)
        elif flags & ARENAS:
            self._buffers.discard(payload)
        if self.leaving and not self.calls:
            self.close()

    def _large_reply(self, call: Call, flags: int, meta: bytes, payload: bytes) -> None:
        if not (flags & MORE and (call.whole or flags & ARENAS)):
            self._whole_reply(call, flags, meta, payload)
            return
        call.parts = [payload]
        call.reply_flags = flags & ~MORE
        call.reply_meta = meta
        landing = self._buffers.landing(payload) if flags & ARENAS else None
        if landing is not None:
            self.land(call.stream, landing, WINDOW_BYTES)

    def _whole_reply(self, call: Call, flags: int, meta: bytes, body: bytes | memoryview) -> None:
        call.answered = True
        call.buffers = ()
        if flags & ARENAS:
            body, call.buffers = self._buffers.unwrap(body)
        call.count(flags)
        call.on_reply(flags & ~ARENAS, meta, bytes(body))

    def _on_data(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        more = bool(flags & MORE)
        call = self.calls.get(stream) if more else self.calls.pop(stream, None)
        if call is None:
            raise ProtocolError(f"a part of a result on stream {stream}, which has no call")
        parts = call.parts
        if isinstance(call, Abandoned):
            pass  # it was on its way when the call was cancelled
        elif parts is None:
            call.on_data(payload, more)
        elif stream in self.landings:
            landing = self.landings[stream]
            landing.feed(payload)
            if more:
                self.consumed(stream, len(payload), self.landed_window)
            else:
                call.parts = None
                self._whole_reply(call, call.reply_flags, call.reply_meta, landing.whole())
        else:
            parts.append(payload)
            if more:
                self.consumed(stream, len(payload))
            else:
                call.parts = None
                self._whole_reply(call, call.reply_flags, call.reply_meta, b"".join(parts))
        if not more:
            self.forget_inflow(stream)
            if self.leaving and not self.calls:
                self.close()

    def _on_item(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        more = bool(flags & MORE)
        call = self.calls.get(stream) if more else self.calls.pop(stream, None)
        if call is None or call.reader is None:
            raise ProtocolError(f"items on stream {stream}, which has no call for any")
        if not call.answered:
            call.answered = call.held = True
            call.buffers = ()  # those of the arguments
            if call.observed:
                self.pool.begun(call)
        if not more:
            if call.held:
                call.held = False
                self.pool.replied(self.replica, load, flags & OFFERED, call.suspect)
            self.forget_inflow(stream)
        self._deliver(call, call.reader.feed(payload), more)
        if not more and self.leaving and not self.calls:
            self.close()

    def _deliver(self, call: Call, records: list[Record], more: bool) -> None:
        """Give the call its items; an error among them is the last."""
        abandoned = call.__class__ is Abandoned
        items: list[Item] = []
        error: ErrorInfo | None = None
        for kind, data in records:
            buffers: Sequence[memoryview] = ()
            size = len(data)
            if kind == FAILURE:
                error = self._error_of(data)
                break
            if kind == BUFFERS:
                if abandoned:
                    self._buffers.discard(data)
                    continue
                view, buffers = self._buffers.unwrap(data)
                kind, data = PLAIN, bytes(view)
                size += sum(map(len, buffers))
            items.append((kind, data, buffers, cost(size)))
        if abandoned:
            return
        if call.tally is not None:
            self._count_items(call, items, more or error is not None)
        if items or (not more and error is None):
            call.on_items(items, more or error is not None)
        if error is not None:
            call.fail(error)

    def _count_items(self, call: Call, items: list[Item], more: bool) -> None:
        """The first item of the result is what is waited for: what an RPC says before it is none, and after it the end
        of the RPC may still say that it failed.
        """
        fault = bool(call.kind & GRPC and items and items[-1][0] == STATUS and _is_fault(items[-1][1]))
        if not call.counted and (not more or any(kind == PLAIN for kind, *_ in items)):
            call.count(FAULT if fault else 0)
            call.counted = True
        elif fault:
            call.count_failure(500)

    def _on_freed(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        call = self.calls.get(stream)
        if call is None or not call.held:
            raise ProtocolError(f"a slot was freed on stream {stream}, which holds none")
        call.held = False
        self.pool.replied(self.replica, load, flags & OFFERED, call.suspect)

    def _on_error(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        call = self.calls.pop(stream, None)
        if call is None:
            raise ProtocolError(f"an error on stream {stream}, which has no call")
        self.drop_outflow(stream)
        self.forget_inflow(stream)
        if call.observed:
            self.pool.served(call, failed=True)
        if call.held or not call.answered:
            self.pool.replied(self.replica, load, flags & OFFERED, call.suspect)
        if not isinstance(call, Abandoned):
            call.fail(self._error_of(payload))
        if self.leaving and not self.calls:
            self.close()

    def _error_of(self, data: bytes) -> ErrorInfo:
        try:
            return _decode_error(data)
        except BROKEN as broken:
            raise ProtocolError(f"not an error: {broken}") from broken

    def _on_started(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        """A suspect has started: if the replica dies now, it may be the cause."""
        call = self.calls.get(stream)
        if call is not None:
            call.started = True

    def _on_reject(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        call = self.calls.pop(stream, None)
        if call is None:
            raise ProtocolError(f"a refusal on stream {stream}, which has no call")
        call.take_back_body(started=False)
        self.drop_outflow(stream)
        abandoned = isinstance(call, Abandoned)
        self.pool.rejected(self.replica, load, None if abandoned else call, call.suspect)
        if self.leaving and not self.calls:
            self.close()

    def _on_grant(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        if len(payload) != GRANT_COUNTS.size:
            raise ProtocolError(f"a GRANT frame of {len(payload)} bytes")
        number, places = GRANT_COUNTS.unpack(payload)
        self.pool.places.granted(self.replica.id, number, places, bool(flags & MORE))

    def _on_models(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        try:
            info = _decode_models(payload)
        except BROKEN as error:
            raise ProtocolError(f"not a list of models: {error}") from error
        self.pool.models_changed(self.replica, info)

    def _on_offer(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        self.pool.offered(self.replica, load)

    def _on_cancel(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        """The replica reads no more of the body; its answer comes all the same."""
        self.drop_outflow(stream)

    def _on_goaway(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        self.pool.going(self.replica)
        self.leave()

    def on_lost(self, error: BaseException | None) -> None:
        calls, self.calls = self.calls, {}
        self._buffers.close()
        self.pool.router.links.discard(self)
        self.pool.lost(self.replica, [call for call in calls.values() if not isinstance(call, Abandoned)])

    def close(self) -> None:
        super().close()
        self._buffers.close()
        self.pool.router.links.discard(self)
