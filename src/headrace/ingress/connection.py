"""One client's connection: bytes in, requests to the router; responses out, in the order of their requests.

In: bytes of the client, by the event loop. Out: exchanges, submitted to the router one at a time (a request is started
when the response before it has been written, as RFC 9112 section 9.3.2 asks of what may not be safe), and their bytes.

Invariants: what is held for a client is bounded, whatever it sends: a head by `max_header_bytes`, a body by
STREAM_ABOVE (then it streams, at the pace of the replica), pipelined requests by MAX_WAITING and one slice. After a
refusal nothing of what the client sends is read as a request any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from headrace.ingress.exchange import Exchange
from headrace.ingress.request import UNREADABLE, Refusal, RequestHead, request_id_of

if TYPE_CHECKING:
    from headrace.ingress.door import Door

log = logging.getLogger("headrace.ingress")

SLICE = 4096  # what the parser gets at a time between bodies: bounds how many requests one read can bring
STREAM_ABOVE = 64 * 1024  # bodies up to here are collected; longer ones stream
MAX_WAITING = 8  # pipelined requests that are parsed before the one in work is answered
MEMO_BYTES = 4096  # heads up to here are remembered, for the next request to be compared with
LINGER_S = 5.0  # how long a refused client's remaining bytes are read and thrown away, so that it can read why
PROGRESS_BYTES = 1024  # less than this of a body within body_timeout_s is no progress
CHUNK_OVERHEAD = 8  # bytes of chunk framing per byte of body that are tolerated, beside a flat amount
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
DRAIN_GRACE_S = 1.0  # a stopping ingress still answers an idle client that asks within this time


class ClientConnection(asyncio.Protocol):
    """Reads requests by llhttp's callbacks (`on_*`), and lets exchanges write, one after the other."""

    __slots__ = (
        "_advancing",
        "_body_blocked",
        "_body_parts",
        "_boundary",
        "_client",
        "_deaf",
        "_feeding",
        "_head_bytes",
        "_headers",
        "_held",
        "_lingering",
        "_mark",
        "_memo",
        "_memo_at",
        "_memo_head",
        "_memo_size",
        "_parsed",
        "_parser",
        "_reading_paused",
        "_receiving",
        "_refused",
        "_server",
        "_since",
        "_submit",
        "_url",
        "_waiting",
        "_wire",
        "busy",
        "door",
        "first",
        "transport",
        "writing_paused",
    )

    def __init__(self, door: Door) -> None:
        self.door = door
        self.transport: asyncio.Transport
        self.first: Exchange | None = None  # the one whose response is due
        self.busy = False  # when `first` is done, there is more to do at once than to wait for bytes
        self.writing_paused = False
        self._submit = door.router.submit
        self._waiting: deque[Exchange] = deque()
        self._receiving: Exchange | None = None  # the one whose body is coming
        self._boundary = True  # the parser stands between two messages
        self._deaf = False  # no request will be read any more
        self._lingering = False  # all is answered; we wait for the client to hang up
        self._feeding = False
        self._advancing = False
        self._reading_paused = False
        self._body_blocked = False  # the replica does not keep up with the body
        self._held = b""  # bytes that were read but are not parsed yet
        self._since = 0.0  # when the connection came to wait for what it waits for now
        self._mark = -1  # the progress that had been made by then
        self._head_bytes = 0
        self._wire = 0  # bytes of a chunked body with its framing
        self._parsed = 0  # messages begun
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body_parts: list[bytes] = []
        self._refused: Refusal | None = None
        self._memo = b""
        self._memo_size = -1  # bytes of a whole request that begins with `_memo`; -1 when there is none
        self._memo_at = 0
        self._memo_head = UNREADABLE
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._parser: HttpRequestParser | None = None

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
            self._refuse(Refusal(503, "too many connections", headers=b"retry-after: 1\r\n"))
        self._since = self.door.now

    def data_received(self, data: bytes) -> None:
        # A client that stays sends the same head again and again. The same bytes at the same place mean the same: what
        # was read the first time need not be read a second time, and only the body differs.
        if len(data) == self._memo_size and self.first is None and self._boundary and data.startswith(self._memo):
            door = self.door
            self._since = door.now
            head = self._memo_head
            self.first = exchange = Exchange(self, head, data[self._memo_at :])
            if head.timeout_s is not None:
                door.time(exchange, head.timeout_s)
            exchange.submitted = True
            self._submit(exchange)
        else:
            self._receive(data)

    def eof_received(self) -> None:
        # By returning None the transport closes: a client that has hung up does not wait for an answer.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._held = b""
        self._forget_memo()
        self.door.closed(self)
        for exchange in (self.first, self._receiving, *self._waiting):
            if exchange is not None:
                exchange.cancel()
        self.first = self._receiving = None
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

    # --- bytes to the parser ---------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._held or self._reading_paused:
            # What the loop had read before it was told to pause.
            self._held += data
            return
        fresh = self._boundary and self.first is None
        parsed = self._parsed
        self._feed(data)
        if fresh and self._boundary and self._parsed == parsed + 1:
            self._remember(data)

    def _feed(self, data: bytes) -> None:
        """Parse; keep in `_held` what has to wait until requests before it are answered."""
        self._feeding = True
        end = len(data)
        if end <= SLICE:
            self._parse(data)
        else:
            view = memoryview(data)
            at = 0
            while at < end and not self._deaf:
                if len(self._waiting) >= MAX_WAITING:
                    self._held = data[at:]
                    break
                receiving = self._receiving
                size = SLICE
                if receiving is not None and receiving.head.content_length > 0:
                    size = max(1, receiving.head.content_length - receiving.size)
                self._parse(view[at : at + size])
                at += size
        self._feeding = False
        if self._waiting:
            self._review_reading()
        if self._receiving is not None:
            self._invite()

    def _parse(self, piece: bytes | memoryview) -> None:
        if self._receiving is None:
            self._head_bytes += len(piece)
        else:
            self._wire += len(piece)
        parser = self._parser
        if parser is None:
            return
        try:
            parser.feed_data(piece)
        except HttpParserUpgrade as upgrade:
            self._ignore_upgrade(bytes(piece[upgrade.args[0] :]))
        except HttpParserError as error:
            self._on_parser_error(error)
        else:
            if not self._boundary:
                self._check_size()

    def _check_size(self) -> None:
        """Refuse a message that is not whole yet and is too long already."""
        receiving = self._receiving
        if receiving is None:
            # Less than what has come: a message that begins within a piece counts from the next piece on.
            if self._head_bytes > self.door.options.max_header_bytes:
                self._refuse(Refusal(431, f"the head is longer than {self.door.options.max_header_bytes} bytes"))
        elif receiving.head.content_length < 0 and self._wire > CHUNK_OVERHEAD * receiving.size + STREAM_ABOVE:
            self._refuse(Refusal(400, "the body has more chunk framing than body"))

    def _on_parser_error(self, error: HttpParserError) -> None:
        if self._deaf:
            return  # what came after the last request
        refused, self._refused = self._refused, None
        if refused is None and isinstance(error, HttpParserCallbackError):
            # An error of ours in a callback: this connection is lost, the process is not.
            log.error("a request on %r could not be handled", self, exc_info=error.__context__ or error)
            refused = Refusal(500, "Internal Server Error")
        if refused is None:
            refused = Refusal(400, f"not a valid HTTP request: {error}")
        self._refuse(refused)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Serve a request that offered an upgrade as if it had not (RFC 9110 section 7.8).

        The parser takes what follows such a head for another protocol, so a fresh one gets the head without the offer.
        """
        parser = self._parser
        assert parser is not None
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self._headers if name != b"upgrade"]
        self._parser = HttpRequestParser(self)
        self._parse(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _remember(self, data: bytes) -> None:
        """`data` was one whole request: know the next one with the same head without parsing it."""
        head = self._memo_head
        at = len(data) - head.content_length
        # The head must end there, and not before: then nothing but the head and the body was in `data`.
        if head.repeatable and at <= MEMO_BYTES and data.find(b"\r\n\r\n") == at - 4 and not self.door.draining:
            self._memo = data[:at]
            self._memo_at = at
            self._memo_size = len(data)

    def _forget_memo(self) -> None:
        self._memo = b""
        self._memo_size = -1
        self._memo_head = UNREADABLE

    # --- the parser's callbacks ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._boundary = False
        self._parsed += 1
        self._since = self.door.now
        self._head_bytes = 0
        self._url = b""
        self._headers = []
        self._memo_size = -1

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._receiving is None:  # else it is a trailer, which nobody asked for
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._deaf:
            raise Refusal(400, "no request is read after the last one")
        parser = self._parser
        assert parser is not None
        door = self.door
        method = parser.get_method()
        try:
            if self._head_bytes + SLICE > door.options.max_header_bytes:
                self._measure_head(method)
            head = door.reader.read(
                method,
                self._url,
                parser.get_http_version(),
                self._headers,
                parser.should_keep_alive(),
                self._client,
                self._server,
            )
            if head.upgrade and parser.should_upgrade():
                return
            refusal = head.refusal
            if refusal is not None and (head.expect or not 0 <= head.content_length <= STREAM_ABOVE):
                # The body is not wanted.
                raise Refusal(refusal.status, refusal.text, headers=refusal.headers)
        except Refusal as refused:
            refused.head = RequestHead(is_head=method == b"HEAD")
            refused.head.request_id = request_id_of(self._headers)
            self._refused = refused
            raise
        self._memo_head = head
        self._receiving = exchange = Exchange(self, head)
        if door.draining:
            exchange.persistent = False
        self._head_bytes = self._wire = 0
        self._mark = -1
        if head.content_length:
            self._since = door.now

    def on_body(self, data: bytes) -> None:
        exchange = self._receiving
        assert exchange is not None
        exchange.size += len(data)
        if exchange.size > self.door.options.max_body_bytes:
            self._refused = Refusal(
                413, f"the body is longer than the {self.door.options.max_body_bytes} bytes that are allowed"
            )
            raise self._refused
        if exchange.submitted:
            if not self.door.router.send_body(exchange, data, True):
                self._body_blocked = True
                self._review_reading()
            return
        self._body_parts.append(data)
        if exchange.received and exchange.size > STREAM_ABOVE:
            exchange.received = False
            exchange.more = True
            self._enqueue(exchange)
        if not exchange.received and not exchange.submitted:
            # It waits for a request before it, and so do the rest of its bytes.
            self._body_blocked = True
            self._review_reading()

    def on_message_complete(self) -> None:
        exchange = self._receiving
        self._boundary = True
        if exchange is None:
            return  # an offer to upgrade: the request comes again
        self._receiving = None
        if not exchange.persistent:
            self._deaf = True
        if exchange.received:
            parts = self._body_parts
            if parts:
                exchange.body = parts[0] if len(parts) == 1 else b"".join(parts)
                self._body_parts = []
            self._enqueue(exchange)
            return
        exchange.received = True
        if self._body_blocked:
            self._body_blocked = False
            self._review_reading()
        if exchange.submitted:
            self.door.router.send_body(exchange, b"", False)
        else:
            self._take_parts(exchange)
            exchange.more = False

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
                self.door.time(exchange, head.timeout_s)
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
        self._deaf = True
        self._held = b""
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
        self._deaf = True
        self._held = b""
        self._waiting.clear()
        self._since = self.door.now
        if exchange.received and exchange.refusal is None:
            self.transport.close()
            return
        # The client may be sending still. To close now would reset the connection, and the response be lost with it.
        self._receiving = None
        self._lingering = True
        self._review_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def drain(self) -> None:
        """Serve what has been begun, and say that it is the last. An idle connection is closed by the sweep."""
        self._forget_memo()
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
        if first is not None and first.deadline is not None and now >= first.deadline and not first.over:
            first.expire()
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

    def _measure_head(self, method: bytes) -> None:
        """Refuse a head that is whole and too long. Exact, where `_check_size` counts pieces."""
        size = len(method) + len(self._url) + 14 + sum(len(n) + len(v) + 4 for n, v in self._headers)
        if size > self.door.options.max_header_bytes:
            raise Refusal(431, f"the head is longer than {self.door.options.max_header_bytes} bytes")


def _address(info: object) -> tuple[str, int] | None:
    if isinstance(info, tuple) and len(info) >= 2:
        return str(info[0]), int(info[1])
    return None
