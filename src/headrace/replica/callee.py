"""The replica's end of the connection to one router: its CALLs in, the answers out.

In: frames of the router; from the server, which call may start. Out: to the server, each call that has a slot; to the
router, replies with the replica's load, refusals, offers of freed slots.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

import msgspec

from headrace.core.places import Question
from headrace.replica.held import ENDED
from headrace.replica.incoming import Incoming
from headrace.replica.reserved import ReservedSlots
from headrace.spec.errors import ProtocolError
from headrace.wire.buffers import Buffers
from headrace.wire.connection import BURST_PARTS, Connection
from headrace.wire.frames import (
    ARENA,
    ARENAS,
    BROKEN,
    CALL,
    CANCEL,
    CREDIT,
    DATA,
    DECLINE,
    FREED,
    GOAWAY,
    HEADER,
    HELLO,
    LEASED,
    LOAD,
    MORE,
    OFFER,
    OFFERED,
    PLACES,
    PLACES_COUNTS,
    PROTOCOL_VERSION,
    REJECT,
    RELEASE,
    REPLY,
    RESERVED,
    SUSPECT,
    U32,
    WAITING,
    WAITING_COUNTS,
    WINDOW_BYTES,
    WITHDRAW,
    CallMeta,
    HelloInfo,
)
from headrace.wire.over_tcp import OverTcp

if TYPE_CHECKING:
    from headrace.replica.server import Server

log = logging.getLogger("headrace.replica")

_pack = HEADER.pack
NONE_WAITS = 0xFFFF
_OTHERWISE = LEASED | RESERVED  # calls that get their slot in another way than most
_NOT_WHOLE = MORE | ARENAS | RESERVED  # more is to be done before they start
_decode_meta = msgspec.msgpack.Decoder(CallMeta).decode
_encode = msgspec.msgpack.Encoder().encode


class CalleeLink(Connection):
    """The replica's end of the connection to one router."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, server: Server) -> None:
        super().__init__(loop, sock)
        self.server = server
        self.gate = server.gate
        self.peer = ""  # until it has said hello
        self.calls: dict[int, Incoming] = {}
        self.buffers = Buffers(self)
        self.reserved = ReservedSlots(self)
        self._awake = server.awake
        self._latest = 0  # the newest call's stream, and what it was at the last flush: was that call alone?
        self._latest_flushed = 0
        handlers = self.handlers
        handlers[HELLO] = self._on_hello
        handlers[CANCEL] = self._on_cancel
        handlers[ARENA] = self.buffers.on_arena
        handlers[RELEASE] = self.buffers.on_release

    @property
    def load(self) -> int:
        return min(self.gate.load, 0xFFFF)

    def _flush(self) -> None:
        super()._flush()
        awake = self._awake
        if awake is not None:
            latest = self._latest
            if latest > self._latest_flushed + 1:
                awake.crowded()
            elif latest > self._latest_flushed and not self.gate.load:
                awake.begin()
            self._latest_flushed = latest

    def sleep_on(self) -> None:
        """The call that has just come is no reason to wait awake for the next."""
        self._latest_flushed = self._latest

    def finish(self, stream: int, kind: int, flags: int, meta: bytes, payload: bytes) -> None:
        """The call is done: free its slot, and send its last frame (its first, when `flags` has MORE)."""
        call = self.calls.pop(stream, None)
        if call is None:
            return  # answered already: `fail` after `end`, say
        if call.timer is not None:
            call.timer.cancel()
        # It leads to the task, whose context leads back to the call by structs that the collector does not look into.
        call.on_cancel = None
        if not call.lasts:  # as Incoming.let_go, without the call
            if call.models is None:
                call.models = ENDED
            else:
                call.models.release()
        if call.flags & MORE:
            self.forget_inflow(stream)
        gate = self.gate
        chosen = gate.leave(self.loop.time() if gate.wanted else 0.0)
        if chosen is self:
            flags |= OFFERED
        elif chosen is not None:
            chosen.send(0, OFFER, load=chosen.load)
        if chosen is not None:
            self.server.watch_leases()
        load = gate.load
        # What `send` does, without the call: this is the path of every request.
        if not self.closed:
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._flush)
            length = len(meta) + len(payload)
            header = _pack(length, stream, len(meta), load if load < 0xFFFF else 0xFFFF, kind, flags)
            self._out += (header, meta, payload)
            if len(self._out) >= BURST_PARTS:
                self.flush_now()
        if call.flags & SUSPECT:
            self.server.end_suspect(call)
        if self.server.draining:
            self.server.check_drained()

    def finish_streamed(self, stream: int) -> None:
        """The call is done and frees its slot; its last frame is the outflow's, and leaves when its reader lets it."""
        call = self.calls.pop(stream, None)
        if call is None:
            return
        if call.timer is not None:
            call.timer.cancel()
        if call.cancelled:
            self.calls[stream] = call
            self.finish(stream, REPLY, 0, b"", b"")
            return
        call.on_cancel = None  # as in finish
        if not call.lasts:
            call.let_go()
        if call.flags & MORE:
            self.forget_inflow(stream)
        chosen = self.gate.leave(self.loop.time())
        if chosen is not self:
            self.server.offer(chosen)
        else:
            self.server.watch_leases()
        self.send(stream, FREED, OFFERED if chosen is self else 0, self.load)
        if call.flags & SUSPECT:
            self.server.end_suspect(call)
        if self.server.draining:
            self.server.check_drained()

    # --- frames in -------------------------------------------------------------------------------------------------

    def _on_hello(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        try:
            hello = msgspec.msgpack.decode(meta, type=HelloInfo)
        except BROKEN as error:
            raise ProtocolError(f"not a HELLO: {error}") from error
        self.send(
            0, HELLO, meta=_encode(HelloInfo(PROTOCOL_VERSION, "replica", self.server.replica_id, self.gate.limit))
        )
        if hello.version != PROTOCOL_VERSION:
            self._flush()
            raise ProtocolError(f"{hello.role} {hello.id} speaks version {hello.version}, not {PROTOCOL_VERSION}")
        self.peer = hello.id
        # Only who has said hello is heard.
        handlers = self.handlers
        handlers[CALL] = self._on_call
        handlers[DATA] = self._on_data
        handlers[WAITING] = self._on_waiting
        handlers[WITHDRAW] = self._on_withdraw
        handlers[DECLINE] = self._on_decline
        handlers[PLACES] = self._on_places
        handlers[LOAD] = self._on_load
        self.server.models.greet(self)
        if self.server.draining:
            self.send(0, GOAWAY)

    def _on_call(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        server = self.server
        self._latest = stream
        if self._awake is not None and self._awake.since:
            self._awake.came()
        if not (self._enter_otherwise(flags, load, meta) if flags & _OTHERWISE else self.gate.enter(self, False, 0.0)):
            if flags & ARENAS:
                self.buffers.discard(payload)
            self.send(stream, REJECT, load=min(self.gate.load, 0xFFFF))
            return
        try:
            call_meta = _decode_meta(meta)
        except BROKEN as error:
            server.offer(self.gate.leave(self.loop.time()))
            raise ProtocolError(f"not the metadata of a call: {error}") from error
        incoming = self.calls[stream] = Incoming(self, stream, flags, call_meta, payload)
        if flags & _NOT_WHOLE:
            self._start_large(stream, incoming)
        elif flags & SUSPECT:
            server.start_suspect(incoming)
        else:
            server.start(incoming)

    def _enter_otherwise(self, flags: int, load: int, meta: bytes) -> bool:
        """By a lease, or in a slot that was kept for the call (else as any other)."""
        if flags & LEASED:
            return self._enter_leased(load)
        try:
            reservation = _decode_meta(meta).reservation
        except BROKEN as error:
            raise ProtocolError(f"not the metadata of a call: {error}") from error
        return self.reserved.take(reservation) or self.gate.enter(self, False, 0.0)

    def _enter_leased(self, load: int) -> bool:
        now = self.loop.time()
        started = self.gate.enter(self, True, now, None if load == NONE_WAITS else load / 1000)
        while (chosen := self.gate.offer(now)) is not None:
            self.server.offer(chosen)
        return started

    def _start_large(self, stream: int, incoming: Incoming) -> None:
        if incoming.flags & RESERVED and not incoming.meta.reservation:
            self.reserved.keep(stream, incoming)
            return
        if incoming.flags & MORE:
            whole = call_is_by_handle(incoming)
            incoming.expect_body(whole)
            landing = self.buffers.landing(incoming.body) if whole and incoming.flags & ARENAS else None
            if landing is not None:
                self.land(stream, landing)
            else:
                self.send(stream, CREDIT, payload=U32.pack(WINDOW_BYTES))
            if whole:
                return
        self._start_whole(incoming)

    def _start_whole(self, incoming: Incoming) -> None:
        if incoming.flags & ARENAS:
            try:
                incoming.body, incoming.buffers = self.buffers.unwrap(incoming.body)
            except ProtocolError:
                incoming.reply(b"")  # it never started
                raise
        if incoming.flags & SUSPECT:
            self.server.start_suspect(incoming)
        else:
            self.server.start(incoming)

    def _on_data(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        incoming = self.calls.get(stream)
        if incoming is None:
            return  # answered before its body had ended
        if incoming.feed(payload, bool(flags & MORE), self.landings.get(stream)):
            self.forget_inflow(stream)
            self._start_whole(incoming)

    def _on_cancel(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        streaming = stream in self.outflows
        self.drop_outflow(stream)
        incoming = self.calls.get(stream)
        if incoming is None:
            if streaming:
                self.send(stream, DATA)  # the end of a result that the caller reads no further
            return
        self._cancel(incoming)

    def _cancel(self, incoming: Incoming) -> None:
        waits_for_body = incoming.waits_for_body
        incoming.cancel()
        if waits_for_body and incoming.flags & ARENAS:
            self.buffers.discard(incoming.body)
        if waits_for_body or self.server.suspects.waits(incoming):
            incoming.reply(b"")  # it never started

    def _on_waiting(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        if len(payload) != WAITING_COUNTS.size:
            raise ProtocolError(f"a WAITING frame of {len(payload)} bytes")
        count, age_ms = WAITING_COUNTS.unpack(payload)
        self.server.offer_all(self.gate.waiting(self, count, age_ms / 1000, self.loop.time()))

    def _on_withdraw(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        self.server.offer_all(self.gate.withdraw(self, self.loop.time()))

    def _on_decline(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        self.server.offer_all(self.gate.decline(self, self.loop.time()))

    def _on_places(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        if len(payload) != PLACES_COUNTS.size:
            raise ProtocolError(f"a PLACES frame of {len(payload)} bytes")
        question = Question(*PLACES_COUNTS.unpack(payload))
        self.server.grant(self.server.places.ask(self, question, self.loop.time()))

    def _on_load(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        try:
            model = payload.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"not the id of a model: {error}") from error
        self.server.models.wanted(model)

    def on_lost(self, error: BaseException | None) -> None:
        self.server.links.discard(self)
        self.settle_lost()

    def close(self) -> None:
        super().close()
        self.settle_lost()

    def settle_lost(self) -> None:
        """Nobody waits for these calls any more: cancel them; their slots stay taken until their work has ended."""
        self.server.offer_all(self.gate.disconnect(self, self.loop.time()))
        self.server.grant(self.server.places.disconnect(self, self.loop.time()))
        for incoming in list(self.calls.values()):
            self._cancel(incoming)
        self.buffers.close()  # after the calls, which may refer to blocks


class TcpCalleeLink(OverTcp, CalleeLink):
    """The replica's end of the connection to a router of another node."""


def call_is_by_handle(incoming: Incoming) -> bool:
    return bytes(incoming.meta.http) == b"\xc0"
