"""The bytes of one client read as requests: the parser, its callbacks, and a short way for what is like the last one.

In: bytes, from the event loop. Out: exchanges, to the connection that queues them; refusals of what is no valid
request, or too long.

Invariants: what is held for a client is bounded, whatever it sends: a head by `max_header_bytes`, a body by
STREAM_ABOVE (then it streams, at the pace of the replica), pipelined requests by MAX_WAITING and one slice. Once deaf,
nothing that the client sends is read as a request any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from headrace.ingress.exchange import Exchange
from headrace.ingress.request import UNREADABLE, Refusal, RequestHead, request_id_of
from headrace.ingress.tunnel import Tunnel

if TYPE_CHECKING:
    from headrace.ingress.door import Door

log = logging.getLogger("headrace.ingress")

SLICE = 4096  # what the parser gets at a time between bodies: bounds how many requests one read can bring
STREAM_ABOVE = 64 * 1024  # bodies up to here are collected; longer ones stream
MAX_WAITING = 8  # pipelined requests that are parsed before the one in work is answered
MEMO_BYTES = 4096  # heads up to here are remembered, for the next request to be compared with
CHUNK_OVERHEAD = 8  # bytes of chunk framing per byte of body that are tolerated, beside a flat amount


class RequestReader(asyncio.Protocol, ABC):
    """Reads requests by llhttp's callbacks (`on_*`). What becomes of them is its subclass's to say."""

    __slots__ = (
        "_alarm_at",
        "_body_blocked",
        "_body_parts",
        "_boundary",
        "_client",
        "_deaf",
        "_feeding",
        "_head_bytes",
        "_headers",
        "_held",
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
        "_tunnel",
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
        self._waiting: deque[Exchange] = deque()  # read, and not started: `first` is before them
        self._receiving: Exchange | None = None  # the one whose body is coming
        self._boundary = True  # the parser stands between two messages
        self._deaf = False  # no request will be read any more
        self._feeding = False
        self._reading_paused = False
        self._body_blocked = False  # the replica does not keep up with the body
        self._held = b""  # bytes that were read but are not parsed yet
        self._since = 0.0  # when the connection came to wait for what it waits for now
        self._tunnel: Tunnel | None = None  # what comes belongs to this, and is no request
        self._alarm_at = math.inf  # when the deadline of `first` is looked at next
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

    # --- what the subclass does ------------------------------------------------------------------------------------

    @abstractmethod
    def _enqueue(self, exchange: Exchange) -> None:
        """A request is there (its body may still be coming): start it, now or in its turn."""

    @abstractmethod
    def _take_parts(self, exchange: Exchange) -> None:
        """Give the request what has come of its body before it was started."""

    @abstractmethod
    def _refuse(self, refusal: Refusal) -> None:
        """Answer so, once all before it is answered, and read nothing more."""

    @abstractmethod
    def _invite(self) -> None:
        """Have a client that waits for it send the body of the request that is being received, if it is its turn."""

    @abstractmethod
    def _review_reading(self) -> None:
        """Read from the client or not, by what is held for it."""

    @abstractmethod
    def _set_alarm(self, deadline: float) -> None:
        """Look at the deadline of `first` then, and not later."""

    @abstractmethod
    def finished(self, exchange: Exchange) -> None:
        """The response of `first` has been written whole."""

    @abstractmethod
    def proceed(self) -> None:
        """Start what has waited, until something is in work; read on if there is room again."""

    @abstractmethod
    def resume_body(self) -> None:
        """The replica has room for more of the body."""

    # --- bytes to the parser ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        # A client that stays sends the same head again and again. The same bytes at the same place mean the same: what
        # was read the first time need not be read a second time, and only the body differs.
        # (`_memo_size` is set between two messages only: the first byte of another message takes it away.)
        if len(data) == self._memo_size and self.first is None and data.startswith(self._memo):
            door = self.door
            self._since = door.now
            head = self._memo_head
            self.first = exchange = Exchange(self, head, data[self._memo_at :])
            timeout_s = head.timeout_s
            if timeout_s is not None:
                exchange.deadline = deadline = door.loop.time() + timeout_s
                if deadline < self._alarm_at:
                    self._set_alarm(deadline)
            exchange.submitted = True
            self._submit(exchange)
        else:
            self._receive(data)

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
        if self._tunnel is not None:
            self._pour(self._tunnel, data)
            return
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
            if self._tunnel is not None:
                self._pour(self._tunnel, bytes(piece))
            return
        try:
            parser.feed_data(piece)
        except HttpParserUpgrade as upgrade:
            rest = bytes(piece[upgrade.args[0] :])
            if isinstance(self._receiving, Tunnel):
                self._dig(self._receiving, rest)
            else:
                self._ignore_upgrade(rest)
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

    def _dig(self, tunnel: Tunnel, rest: bytes) -> None:
        """All that follows the head belongs to the WebSocket, if one is opened."""
        self._parser = None
        self._tunnel = tunnel
        self._enqueue(tunnel)
        if rest:
            self._pour(tunnel, rest)
        elif not tunnel.submitted:
            self._hold_tunnel()

    def _pour(self, tunnel: Tunnel, data: bytes) -> None:
        """Bytes of the client's for its WebSocket."""
        if self._deaf or tunnel.ended:
            return
        if not tunnel.submitted:
            self._body_parts.append(data)
            self._hold_tunnel()
        elif not self.door.router.send_body(tunnel, data, True):
            self._body_blocked = True
            self._review_reading()

    def _hold_tunnel(self) -> None:
        """It waits for a request before it, and so do its bytes."""
        self._body_blocked = True
        self._review_reading()

    def _remember(self, data: bytes) -> None:
        """`data` was one whole request: know the next one with the same head without parsing it."""
        head = self._memo_head
        at = len(data) - head.content_length
        # The head must end there, and not before: then nothing but the head and the body was in `data`.
        if head.repeatable and at <= MEMO_BYTES and data.find(b"\r\n\r\n") == at - 4 and not self.door.draining:
            self._memo = data[:at]
            self._memo_at = at
            self._memo_size = len(data)

    def _fall_deaf(self) -> None:
        """From now on nothing that the client sends is a request."""
        self._deaf = True
        self._held = b""
        self._forget_memo()

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
        # Trailers come here too, after the head has been read: nobody looks at them.
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
            if head.upgrade and parser.should_upgrade() and not head.websocket:
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
        self._receiving = exchange = (Tunnel if head.websocket else Exchange)(self, head)
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
        if exchange.head.websocket:
            return  # `_dig` comes next
        self._receiving = None
        if not exchange.persistent:
            self._fall_deaf()
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

    def _measure_head(self, method: bytes) -> None:
        """Refuse a head that is whole and too long. Exact, where `_check_size` counts pieces."""
        size = len(method) + len(self._url) + 14 + sum(len(n) + len(v) + 4 for n, v in self._headers)
        if size > self.door.options.max_header_bytes:
            raise Refusal(431, f"the head is longer than {self.door.options.max_header_bytes} bytes")
