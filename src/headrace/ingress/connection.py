"""One client's connection: its requests in their order, its responses, how fast it is read, and when it ends.

In: requests, from the reader of its bytes; what exchanges write. Out: exchanges, submitted to the router one at a time:
a request is started when the response before it has been written, as RFC 9112 section 9.3.2 asks of what is not safe.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from httptools import HttpRequestParser

from headrace.ingress.exchange import Exchange
from headrace.ingress.reader import MAX_WAITING, RequestReader
from headrace.ingress.request import Refusal

if TYPE_CHECKING:
    from headrace.ingress.door import Door

LINGER_S = 5.0  # how long a refused client's remaining bytes are read and thrown away, so that it can read why
PROGRESS_BYTES = 1024  # less than this of a body within body_timeout_s is no progress
EARLY_S = 0.001  # a timer's clock has no smaller steps
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
DRAIN_GRACE_S = 1.0  # a stopping ingress still answers an idle client that asks within this time


class ClientConnection(RequestReader):
    """Lets the exchanges of one client write, one after the other."""

    __slots__ = ("_advancing", "_alarm", "_lingering")

    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self._lingering = False  # all is answered; we wait for the client to hang up
        self._advancing = False
        self._alarm: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "lingering" if self._lingering else "deaf" if self._deaf else "idle" if self.idle else "at work"
        return f"<ClientConnection {self._client} {state} first={self.first} waiting={len(self._waiting)}>"

    @property
    def idle(self) -> bool:
        """Between requests, with nothing half read and nothing to answer."""
        return self.first is None and self._boundary and not self._held and not self._waiting

    @property
    def held_bytes(self) -> int:
        """Bytes of the client's that this object holds, apart from those of the request in work."""
        waiting = sum(len(exchange.body) for exchange in self._waiting)
        return len(self._held) + sum(map(len, self._body_parts)) + waiting + self._head_bytes

    # --- the event loop --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio's and uvloop's share no useful type
        self._parser = HttpRequestParser(self)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        if not self.door.opened(self):
            if self.door.flooded:
                self._fall_deaf()
                self.transport.abort()
                return
            self._refuse(Refusal(503, "too many connections", headers=b"retry-after: 1\r\n"))
        self._since = self.door.now

    def eof_received(self) -> bool:
        # By returning False the transport closes: a client that has hung up does not wait for an answer. But the last
        # that it sent on a WebSocket may ask for one, which is then the last of that. (TLS knows no half-closed.)
        tunnel = self._tunnel
        if tunnel is None or tunnel.over or not tunnel.open or not self.transport.can_write_eof():
            return False
        tunnel.received = True
        tunnel.end_input()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._fall_deaf()
        if self._alarm is not None:
            self._alarm.cancel()
        self.door.closed(self)
        for exchange in (self.first, self._receiving, *self._waiting):
            if exchange is not None:
                exchange.cancel()
        self.first = self._receiving = self._tunnel = None
        self._waiting.clear()
        self._body_parts = []
        # The parser and this object hold each other.
        self._parser = None

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._mark = -1
        self._since = self.door.now
        self._review_reading()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._mark = -1
        if self.first is not None:
            self.first.drained()
        if not self._deaf or self._waiting:
            self.proceed()

    # --- requests in their order -----------------------------------------------------------------------------------

    def _enqueue(self, exchange: Exchange) -> None:
        if self.first is None and not self._waiting and not self.writing_paused:
            self.first = exchange
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self.busy = True

    def _start(self, exchange: Exchange) -> None:
        head = exchange.head
        refusal = exchange.refusal or head.refusal
        if refusal is not None:
            exchange.answer(refusal.status, refusal.text, headers=refusal.headers, close=refusal.fatal)
        elif head.local:
            self.door.answer(exchange)
        else:
            if exchange is self._receiving:
                self._take_parts(exchange)
                self._body_blocked = False
            if head.timeout_s is not None:
                deadline = self.door.loop.time() + head.timeout_s
                exchange.limit(deadline)
                if deadline < self._alarm_at:
                    self._set_alarm(deadline)
            exchange.submitted = True
            self._submit(exchange)

    def _take_parts(self, exchange: Exchange) -> None:
        """What has come of a body that streams, until its request is started."""
        exchange.body = b"".join(self._body_parts)
        self._body_parts = []

    def finished(self, exchange: Exchange) -> None:
        """The response of `first` has been written whole."""
        self.first = None
        if not exchange.persistent:
            self._hang_up(exchange)
        elif self.busy:
            self.proceed()

    def proceed(self) -> None:
        """Start what has waited, until something is in work; read on if there is room again."""
        if self._advancing:
            return
        # A loop, and not each request from the end of the one before: thousands may be answered at once.
        self._advancing = True
        while self.first is None and self._waiting and not self.writing_paused:
            self.first = self._waiting.popleft()
            self._start(self.first)
        self._advancing = False
        self.busy = bool(self._waiting)
        self._review_reading()
        if self._receiving is not None:
            self._invite()

    def resume_body(self) -> None:
        """The replica has room for more of the body."""
        self._body_blocked = False
        self._since = self.door.now
        self._review_reading()

    def _invite(self) -> None:
        """Send the interim response that `Expect: 100-continue` waits for, when its turn has come and no body has."""
        exchange = self._receiving
        if exchange is None or not exchange.head.expect or exchange.size or exchange.invited:
            return
        if self.first is None and not self._waiting:
            exchange.invited = True
            self.transport.write(CONTINUE)
        else:
            self.busy = True

    def _review_reading(self) -> None:
        """Read from the client or not, by what is held for it."""
        pause = not self._deaf and (
            len(self._waiting) >= MAX_WAITING
            or self._body_blocked
            # A client that does not read its responses need not send requests; but one may send a body first.
            or (self.writing_paused and self._receiving is None)
        )
        if pause != self._reading_paused:
            self._reading_paused = pause
            if pause:
                self._memo_size = -1
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
        if not pause and self._held and not self._feeding:
            held, self._held = self._held, b""
            self._feed(held)

    # --- ends ------------------------------------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal) -> None:
        """Answer so, once all before it is answered, and read nothing more."""
        self._fall_deaf()
        exchange, self._receiving = self._receiving, None
        self._body_parts = []
        if exchange is None or exchange.received:
            # It has not been queued yet.
            exchange = Exchange(self, exchange.head if exchange is not None else refusal.head)
            exchange.refusal = refusal
            exchange.received = exchange.persistent = False
            self._enqueue(exchange)
        elif exchange is not self.first:
            exchange.refusal = refusal
        elif exchange.begun:
            exchange.break_off()
        else:
            exchange.drop_call()
            exchange.answer(refusal.status, refusal.text, headers=refusal.headers, close=True)
        self._review_reading()

    def _hang_up(self, exchange: Exchange) -> None:
        """The last response has been written."""
        self._fall_deaf()
        self._waiting.clear()
        self._since = self.door.now
        half = self.transport.can_write_eof()
        # TLS knows no half-closed: its closing waits for the client as well, and a WebSocket's has been agreed upon.
        if exchange.refusal is None and (exchange.received or (exchange is self._tunnel and not half)):
            self.transport.close()
            return
        # The client may be sending still. To close now would reset the connection, and the response be lost with it.
        self._receiving = None
        self._lingering = True
        self._review_reading()
        if half:
            self.transport.write_eof()

    # One timer for all the requests of a connection: it is set anew when it rings, and not with every request.

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self.door.loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._alarm_at = math.inf
        first = self.first
        due = first.due() if first is not None else None
        if due is None:
            return
        assert first is not None
        if due > self.door.loop.time() + EARLY_S:
            self._set_alarm(due)
        else:
            first.expire()

    def drain(self) -> None:
        """Serve what has been begun, and say that it is the last. An idle connection is closed by the sweep."""
        self._forget_memo()
        if self._tunnel is not None and self._tunnel.open:
            self._tunnel.end_input()
        for exchange in (self.first, self._receiving):
            if exchange is not None:
                exchange.persistent = False
        self._since = self.door.now

    def reread(self) -> None:
        """The routes have changed: what is known of heads is not valid any more."""
        self._forget_memo()

    def sweep(self, now: float) -> None:
        """End what has lasted too long. `now` on the loop's clock."""
        options = self.door.options
        first = self.first
        age_s = now - self._since
        if self._tunnel is not None and first is self._tunnel and not self._tunnel.over:
            self._since = now  # it may be silent, and its application deaf, for as long as they want
        elif self.writing_paused or self.transport.is_closing():
            # A client that does not read. Progress is what leaves the transport's buffer.
            size = self.transport.get_write_buffer_size()
            if size != self._mark:
                self._mark, self._since = size, now
            elif age_s >= options.body_timeout_s:
                self.transport.abort()
        elif self._lingering:
            if age_s >= LINGER_S:
                self.transport.abort()
        elif self._receiving is not None:
            self._sweep_body(self._receiving, now, age_s)
        elif first is not None:
            self._since = now
        elif not self._boundary:
            if age_s >= options.header_timeout_s:
                self._refuse(Refusal(408, "the head of the request did not come in time"))
        elif self.idle and age_s >= self._patience_s():
            self.transport.close()

    def _sweep_body(self, receiving: Exchange, now: float, age_s: float) -> None:
        if self._body_blocked or (self.first is not None and self.first is not receiving):
            self._since = now  # it is us who keep the client waiting
        elif self._mark < 0 or receiving.size - self._mark >= PROGRESS_BYTES:
            self._mark, self._since = receiving.size, now
        elif age_s >= self.door.options.body_timeout_s:
            self._refuse(Refusal(408, "the body of the request did not come in time"))

    def _patience_s(self) -> float:
        """How long an idle connection may stay: one that has never asked for anything less long."""
        options = self.door.options
        if self.door.draining:
            return DRAIN_GRACE_S
        if not self._parsed:
            return min(options.header_timeout_s, options.keep_alive_timeout_s)
        return options.keep_alive_timeout_s


def _address(info: object) -> tuple[str, int] | None:
    if isinstance(info, tuple) and len(info) >= 2:
        return str(info[0]), int(info[1])
    return None
