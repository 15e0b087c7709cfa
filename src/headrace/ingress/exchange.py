"""One request and its response: the call that the router carries, and how what comes back is put into HTTP.

In: the reply, stream parts or error from the router. Out: bytes of one response to the client's connection, which asks
for one exchange at a time: responses leave in the order of their requests.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from typing import TYPE_CHECKING

from headrace.ingress.request import Refusal, RequestHead
from headrace.ingress.response import OK_JSON, BadResponseError, Prepared, phrase
from headrace.observe.tally import TIMED_OUT
from headrace.router import Call
from headrace.spec.errors import ApplicationNotFound, BackPressureError, HeadraceError, RequestTimeoutError
from headrace.wire.frames import HTTP, MORE, ErrorInfo

if TYPE_CHECKING:
    from headrace.ingress.reader import RequestReader

RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time at all: closing resets the connection

# Errors of a nested call that say something about load or time, and not that the handler is wrong.
PASSED_ON = frozenset({408, 429, 502, 503, 504})
# Errors of the router whose message is for the client. That of others may quote a traceback, and is for the log.
TOLD = (ApplicationNotFound, BackPressureError, RequestTimeoutError)


class Exchange(Call):
    """A request on its way and the state of its response.

    `received`: the request's body has come whole. `persistent`: the connection may serve another request afterwards.
    `begun`: the response's head has left. `over`: nothing more will be written. What is usual is a class attribute, so
    that a usual request stores little.
    """

    kind = HTTP
    received = True
    size = 0  # bytes of the body so far
    begun = False
    over = False
    submitted = False
    invited = False  # the client has been told to go on with the body
    refusal: Refusal | None = None
    chunked = False  # the response's body is sent in chunks
    left: int | None = None  # bytes of the response's body that its content-length still promises
    until_close = False  # the response's body ends with the connection
    owed = 0  # bytes of the response that the transport holds, for which the replica has no credit yet

    def __init__(self, connection: RequestReader, head: RequestHead, body: bytes = b"") -> None:
        # Not super().__init__: on the path of every request, and there is nothing in it but these assignments.
        self.connection = connection
        self.head = head
        self.body = body
        self.persistent = head.keep_alive
        self.request_id = head.request_id or connection.door.new_request_id()
        route = head.route
        if route is not None:
            self.app = route.app
            self.deployment = route.deployment
            self.http = head.http
            # Attributes that most requests do without: stored only where they are set.
            if head.marked:
                self.priority = head.priority
                self.sticky = head.sticky
                self.key = head.key
                self.model_id = head.model_id
                self.trace = head.trace

    def __repr__(self) -> str:
        state = "over" if self.over else "begun" if self.begun else "in work" if self.submitted else "waiting"
        return f"<{type(self).__name__} {self.request_id} {state}>"

    # --- from the router -------------------------------------------------------------------------------------------

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        connection = self.connection
        # The usual answer: whole, 200, JSON, to a client that stays.
        if flags & (HTTP | MORE) == HTTP and not meta and self.head.plain and self.received and self.persistent:
            self.over = True
            connection.transport.write(
                b"%b%b\r\ncontent-length: %d\r\n\r\n%b"
                % (connection.door.heads.ok_json, self.request_id.encode(), len(payload), payload)
            )
            connection.first = None
            if connection.busy:
                connection.proceed()
            return
        if not flags & HTTP:
            self.count_failure(500)
            self._complain("the replica's reply is no HTTP response")
            return self.answer(500, "Internal Server Error", drop=bool(flags & MORE))
        try:
            prepared = connection.door.heads.prepared(meta) if meta else OK_JSON
        except BadResponseError as error:
            self.count_failure(500)
            self._complain(str(error))
            return self.answer(500, "Internal Server Error", drop=bool(flags & MORE))
        self._begin(prepared, payload, bool(flags & MORE))

    def on_data(self, payload: bytes, more: bool) -> None:
        if self.over:
            return
        self._write_body(payload, more)
        if more and not self.over:
            if self.connection.writing_paused:
                self.owed += len(payload)
            else:
                self.connection.door.router.consumed(self, len(payload))

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        if self.over:
            return
        if self.begun:
            self._complain(f"the response broke off: {_describe(error)}")
            return self.break_off()
        if isinstance(error, ErrorInfo):
            status = error.status if error.status in PASSED_ON else 500
            text, retry_after_s = phrase(status), error.retry_after_s
        else:
            status = error.status
            told = isinstance(error, TOLD)
            text = f"{phrase(status)}: {error}" if told else phrase(status)
            retry_after_s = error.retry_after_s if isinstance(error, BackPressureError) else 0.0
            if not told:
                self._complain(_describe(error))
        headers = b""
        if status == 503 or status == 429:
            headers = b"retry-after: %d\r\n" % max(1, math.ceil(retry_after_s))
        self.answer(status, text, headers=headers)

    def on_writable(self) -> None:
        self.connection.resume_body()

    # --- from the connection ---------------------------------------------------------------------------------------

    def drained(self) -> None:
        """The client has read what was written: the replica may send as much again."""
        owed, self.owed = self.owed, 0
        if owed and not self.over:
            self.connection.door.router.consumed(self, owed)

    def cancel(self) -> None:
        """The client has left: nobody waits for the answer any more."""
        if self.over:
            return
        if self.head.outlives and self.submitted and self.received and self.connection.door.has_room_for_orphans:
            orphan(self)
            return
        self.over = True
        if self.submitted:
            self.connection.door.router.cancel(self)

    def limit(self, deadline: float) -> None:
        """The request has until then, on the loop's clock; so has all that is done for it."""
        self.deadline = deadline

    def due(self) -> float | None:
        """When `expire` is to be called, None for never."""
        return self.deadline

    def expire(self) -> None:
        """The request's time is up."""
        if self.over:
            return
        self.drop_call()
        self.fail(RequestTimeoutError(f"request {self.request_id} was not answered in time"))

    def drop_call(self) -> None:
        """Have the replica stop its work; the client gets another answer than its own."""
        if self.submitted:
            self.submitted = False
            self.connection.door.router.cancel(self)

    def answer(
        self,
        status: int,
        text: str,
        *,
        headers: bytes = b"",
        close: bool = False,
        drop: bool = False,
        body: bytes = b"",
    ) -> None:
        """Answer with the ingress's own words. `drop`: more of the replica's reply would follow, and is not wanted.

        `body` (JSON) instead of the text, where it is given.
        """
        if drop:
            self.drop_call()
        if close or not self.received:
            self.persistent = False
        connection = self.connection
        self.over = True
        connection.transport.write(
            connection.door.heads.own(
                status,
                text,
                self.request_id,
                headers=headers,
                json=body,
                close=not self.persistent,
                keep_alive=self.head.version_1_0 and self.persistent,
                without_body=self.head.is_head,
            )
        )
        connection.finished(self)

    def break_off(self) -> None:
        """End a response that is not whole so that the client can tell: no last chunk, or fewer bytes than said."""
        self.over = True
        if self.until_close:
            # Here the end of the connection is the end of the body: only a reset tells.
            sock = self.connection.transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.connection.transport.abort()
        else:
            self.connection.transport.close()

    def _complain(self, message: str) -> None:
        self.connection.door.complain(f"request {self.request_id} to {self.deployment} of {self.app}: {message}")

    # --- the response ----------------------------------------------------------------------------------------------

    def _begin(self, prepared: Prepared, payload: bytes, more: bool) -> None:
        """Write the head and what there is of the body."""
        head = self.head
        framing = b""
        bodyless = prepared.bodyless or head.is_head
        if not self.received or prepared.close:
            self.persistent = False
        if prepared.bodyless:
            pass
        elif not more:
            length = len(payload)
            if head.is_head and not payload and prepared.length is not None:
                length = prepared.length
            framing = b"content-length: %d\r\n" % length
        elif prepared.length is not None:
            self.left = prepared.length
            framing = b"content-length: %d\r\n" % prepared.length
        elif not head.version_1_0:
            self.chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self.until_close = True
            self.persistent = False
        if not self.persistent:
            framing += b"connection: close\r\n"
        elif head.version_1_0:
            framing += b"connection: keep-alive\r\n"
        transport = self.connection.transport
        heads = self.connection.door.heads
        start = b"%b%b%b\r\n%b\r\n" % (prepared.lines, heads.common, self.request_id.encode(), framing)
        self.begun = True
        if bodyless or not more:
            if more:
                self.drop_call()
            self.over = True
            transport.write(start if bodyless else start + payload)
            self.connection.finished(self)
        else:
            transport.write(start)
            self._write_body(payload, True)

    def _write_body(self, data: bytes, more: bool) -> None:
        transport = self.connection.transport
        if self.chunked:
            # An empty chunk would be the end.
            if data:
                transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            if not more:
                transport.write(b"0\r\n\r\n")
        else:
            if self.left is not None:
                if len(data) > self.left or (not more and len(data) < self.left):
                    self.count_failure(500)
                    self._complain("the response's body is not as long as its content-length")
                    transport.write(data[: self.left])
                    if more:
                        self.drop_call()
                    return self.break_off()
                self.left -= len(data)
            transport.write(data)
        if not more:
            self.over = True
            self.connection.finished(self)


class Orphan(Exchange):
    """A request that runs on although its client has left, for the client has asked for that. It ends by its reply, an
    error, or at its deadline.
    """

    timer: asyncio.TimerHandle | None = None

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        if not flags & MORE:
            self.bury()

    def on_data(self, payload: bytes, more: bool) -> None:
        if more:
            self.connection.door.router.consumed(self, len(payload))
        else:
            self.bury()

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self._complain(f"nobody hears it, but it failed: {_describe(error)}")
        self.bury()

    def on_writable(self) -> None:
        pass  # its body is whole

    def expire(self) -> None:
        self.connection.door.router.cancel(self)
        self.count_failure(TIMED_OUT)
        self.bury()

    def bury(self) -> None:
        """The call has ended."""
        if self.timer is not None:
            self.timer.cancel()
        self.connection.door.forget(self)


def orphan(exchange: Exchange) -> None:
    """Go on with the exchange without its client."""
    # Another class, and not another object: the router knows this one. Nothing on the way of other requests asks.
    exchange.__class__ = Orphan
    assert isinstance(exchange, Orphan)
    exchange.over = True
    door = exchange.connection.door
    door.adopt(exchange)
    if exchange.deadline is not None:
        exchange.timer = door.loop.call_at(exchange.deadline, exchange.expire)
    if exchange.owed:
        door.router.consumed(exchange, exchange.owed)


def _describe(error: HeadraceError | ErrorInfo) -> str:
    if isinstance(error, ErrorInfo):
        return f"{error.type_name}: {error.message}"
    return f"{type(error).__name__}: {error}"
