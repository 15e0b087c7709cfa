"""The callee's side of the data plane: one replica's socket, the calls that come over it, the answers that leave.

In: connections of routers and their CALLs. Out: to the owner's `start`, each call that has a slot; to routers, replies
with the replica's load, refusals, offers of freed slots. Which call may start is `core.gate`'s to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from headrace.core.gate import Gate
from headrace.core.places import Grant, PlaceLedger, Question
from headrace.core.turns import Turns
from headrace.engine.linux import peer_uid
from headrace.replica.board import ModelBoard
from headrace.replica.held import ENDED
from headrace.replica.incoming import Incoming
from headrace.replica.reserved import ReservedSlots
from headrace.spec.errors import ProtocolError
from headrace.wire.awake import Awake
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
    GRANT,
    GRANT_COUNTS,
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
from headrace.wire.tcp import Credentials, Listener, format_address, listen

log = logging.getLogger("headrace.replica")

BACKLOG = 1024
FLUSH_INTERVAL_S = 0.002
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
                self._flush_burst()
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


class Server:
    """One replica's socket and its slots. `start(incoming)` is called on the loop for each call that has a slot."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        replica_id: str,
        limit: int,
        start: Callable[[Incoming], None],
        awake: Awake | None = None,
        models: ModelBoard | None = None,
    ) -> None:
        self.loop = loop
        self.replica_id = replica_id
        self.start = start
        self.gate: Gate[CalleeLink] = Gate(limit)
        self.suspects: Turns[Incoming] = Turns()
        self.places: PlaceLedger[CalleeLink] = PlaceLedger()
        self.links: set[CalleeLink] = set()
        self.models = models or ModelBoard()
        self.models.links = self.links
        self.awake = awake  # None: the loop sleeps whenever there is nothing to do
        self.draining = False
        self.on_drain: set[Callable[[], None]] = set()  # of calls that last until they are told to end
        self._socket: socket.socket | None = None
        self._path: Path | None = None
        self._door: Listener | None = None  # for other nodes
        self._idle: asyncio.Event = asyncio.Event()
        self._lease_timer: asyncio.TimerHandle | None = None

    @property
    def ongoing(self) -> int:
        """Calls in work now."""
        return self.gate.ongoing

    async def listen(self, address: str) -> None:
        """Take connections at `unix:PATH`. Raises OSError."""
        kind, _, path = address.partition(":")
        if kind != "unix":
            raise OSError(f"a replica listens on unix:PATH here, not {address!r}")
        self._path = Path(path)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.bind(path)
        self._socket.listen(BACKLOG)
        self.loop.add_reader(self._socket.fileno(), self._accept)

    def listen_tcp(
        self, host: str, ports: tuple[int, int] | None, credentials: Credentials, purpose: str, at: str = ""
    ) -> str:
        """Take connections of other nodes too, at `host` and a port of `ports`: the address, `tcp:HOST:PORT`.

        `at` is where to listen, where that is not `host`, by which others reach it.

        What has not proved that it belongs to the instance, and means `purpose`, never becomes a link. Raises OSError,
        and InstanceError for TLS files that cannot be used.
        """
        sock = listen(at or host, ports)
        self._door = Listener(
            self.loop, sock, credentials, self._admit_distant, purpose=purpose, what=f"replica {self.replica_id}"
        )
        address = format_address(host, sock.getsockname()[1])
        self._door.start()
        return address

    def _accept(self) -> None:
        assert self._socket is not None
        while True:
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.error("cannot accept a connection: %s", error)
                return
            sock.setblocking(False)
            if peer_uid(sock) not in (None, os.getuid()):
                log.error("refused a connection of another user to replica %s", self.replica_id)
                sock.close()
                continue
            self._admit(CalleeLink(self.loop, sock, self))

    def _admit_distant(self, sock: socket.socket) -> None:
        self._admit(TcpCalleeLink(self.loop, sock, self))

    def _admit(self, link: CalleeLink) -> None:
        self.links.add(link)
        link.start()

    def start_suspect(self, incoming: Incoming) -> None:
        """Start it, or let it wait for its turn in the slot that it has."""
        if self.suspects.enter(incoming):
            self._run_suspect(incoming)

    def end_suspect(self, incoming: Incoming) -> None:
        """A suspect has ended: start the next."""
        following = self.suspects.leave(incoming)
        if following is not None:
            self._run_suspect(following)

    def _run_suspect(self, incoming: Incoming) -> None:
        incoming.tell_started()
        self.start(incoming)

    def offer(self, chosen: CalleeLink | None) -> None:
        """Tell the router whose turn it is that a slot is held for it."""
        if chosen is not None:
            chosen.send(0, OFFER, load=chosen.load)
            self.watch_leases()

    def limit_queues(self, total: int) -> None:
        """So many calls may wait for the deployment, over all routers that ask this replica for places."""
        self.grant(self.places.resize(total, self.loop.time()))

    def grant(self, grants: Sequence[Grant[CalleeLink]]) -> None:
        """Tell routers how many of their calls may wait."""
        for link, number, places, more in grants:
            link.send(0, GRANT, MORE if more else 0, payload=GRANT_COUNTS.pack(number, places))

    def offer_all(self, chosen: Sequence[CalleeLink]) -> None:
        for link in chosen:
            link.send(0, OFFER, load=link.load)
        if chosen:
            self.watch_leases()

    def watch_leases(self) -> None:
        """Have a timer at the earliest end of a lease."""
        if self._lease_timer is None:
            expiry = self.gate.next_expiry()
            if expiry is not None:
                self._lease_timer = self.loop.call_at(expiry, self._expire_leases)

    def _expire_leases(self) -> None:
        self._lease_timer = None
        for link in self.gate.expire(self.loop.time()):
            link.send(0, OFFER, load=link.load)
        self.watch_leases()

    def drain(self) -> None:
        """Take no new calls; tell all routers."""
        self.draining = True
        self.gate.close()
        for link in self.links:
            link.send(0, GOAWAY)
        for act in tuple(self.on_drain):
            act()
        self.check_drained()

    def check_drained(self) -> None:
        if self.gate.ongoing == 0:
            self._idle.set()

    async def drained(self) -> None:
        """Until no call is in work and all results have left, after `drain`."""
        await self._idle.wait()
        while any(link.unsent for link in self.links):  # noqa: ASYNC110 - at the end of a life only: nothing to wake us
            await asyncio.sleep(FLUSH_INTERVAL_S)

    def close(self) -> None:
        """Stop listening and close all connections."""
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        if self._socket is not None:
            self.loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        for link in list(self.links):
            self.links.discard(link)
            link.close()
