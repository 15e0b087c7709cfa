"""One WebSocket: the bytes of its client as messages of an ASGI application, and back.

In: a call whose head asks for an upgrade, and the bytes that follow it, raw, as the ingress passes them on. Out: an
ordinary HTTP response when the application refuses, or 101 and then bytes, raw, until either side ends. The protocol
(RFC 6455, permessage-deflate) is that of the `websockets` library, without its sockets.

What holds here:
- The handshake is answered when the application accepts, and not before.
- What is held for a client that sends faster than the application receives is bounded: by UNREAD_BYTES and a message.
- The call keeps its slot until the WebSocket has ended *and* the application has returned, for which it has a grace.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from headrace.context import request_variable
from headrace.handle import cancel_calls
from headrace.replica.response import AsgiReply, flags_of
from headrace.spec.errors import NotServableError, RequestCancelledError
from headrace.wire.frames import HTTP, WINDOW_BYTES, ResponseHead

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

    from headrace.replica.incoming import Incoming
    from headrace.replica.request import HttpRequest

log = logging.getLogger("headrace.replica")

UNREAD_BYTES = WINDOW_BYTES  # of messages that the application has not received; then the client has to wait
MESSAGE_COST = 128  # what a message takes beside its bytes
SLICE = 16 * 1024  # parsed at a time: what is compressed can become a thousand times as much
REASON_BYTES = 123  # what a Close frame can hold

NORMAL, PROTOCOL_ERROR, NO_STATUS, ABNORMAL, INVALID_DATA = 1000, 1002, 1005, 1006, 1007
INTERNAL_ERROR, SERVICE_RESTART = 1011, 1012

# Those that the protocol compares by; the rest of the request is of no concern to it, and may be long.
_HANDSHAKE = frozenset(
    {
        b"connection",
        b"origin",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"upgrade",
    }
)
_TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
_encode_head = msgspec.msgpack.Encoder().encode
_protocol_log = logging.getLogger("headrace.replica.websocket")
_protocol_log.setLevel(logging.WARNING)  # the library tells of every connection


class Limits(msgspec.Struct, frozen=True):
    """Of one WebSocket; times in seconds.

    A client that has said nothing from one ping to the next is given up. `close_timeout_s` is for the client to answer
    our Close, `grace_s` for the application to return once its WebSocket has ended: then it is cancelled.
    """

    max_message_bytes: int = 16 * 1024 * 1024
    ping_interval_s: float = 20.0
    close_timeout_s: float = 10.0
    grace_s: float = 5.0


LIMITS = Limits()


class Phase(Enum):
    """How far a WebSocket is. REFUSING: the application answers with an HTTP response of its own instead."""

    HANDSHAKE = "handshake"
    REFUSING = "refusing"
    OPEN = "open"
    ANSWERED = "answered"  # with an HTTP response, which is whole


async def serve_websocket(
    incoming: Incoming, request: HttpRequest, asgi: ASGIApp | None, limits: Limits = LIMITS
) -> None:
    """Serve the WebSocket that the call asks for by an ASGI application, until both have ended; then the slot is free.

    Raises what the application raises before it has answered the handshake; later errors are logged, and close the
    WebSocket with 1011. Without an application the call is answered 501.
    """
    if asgi is None:
        text = b"this application serves no WebSockets: use @serve.ingress with an ASGI application that does\n"
        answer(incoming, 501, _TEXT, text)
        return
    protocol, response = negotiate(request.scope["headers"], limits.max_message_bytes)
    if response.status_code != 101:
        answer(incoming, response.status_code, _TEXT, bytes(response.body or b""))
        return
    session = WebSocketSession(incoming, protocol, response, limits)
    incoming.on_cancel = session.lost
    incoming.when_draining(session.drain)
    try:
        await asgi(scope_of(request.scope), session.receive, session.send)
    except BaseException as error:  # the top of the application: what it raises ends its own WebSocket alone
        session.failed(error)
    else:
        session.returned()
    finally:
        incoming.forget_draining(session.drain)
        await session.wind_up()


def scope_of(http: Scope) -> Scope:
    """The ASGI scope of a WebSocket, from that of the request which asks for it."""
    scope = {key: value for key, value in http.items() if key != "method"}
    offered = [value for name, value in http["headers"] if name == b"sec-websocket-protocol"]
    scope["type"] = "websocket"
    scope["subprotocols"] = [
        name.strip() for value in offered for name in value.decode("latin-1").split(",") if name.strip()
    ]
    scope["extensions"] = {**http.get("extensions", {}), "websocket.http.response": {}}
    return scope


class Protocol(ServerProtocol):
    """The library's, except that a client may close in the midst of a message's fragments (RFC 6455 section 5.4)."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            # Under its older name too: `websockets` calls it so since 16.
            self.current_size = self.cur_size = None
        super().recv_frame(frame)


def negotiate(headers: list[tuple[bytes, bytes]], max_message_bytes: int) -> tuple[ServerProtocol, Response]:
    """A protocol for a request with these headers, and the answer to its handshake: 101, or why it is none."""
    protocol = Protocol(
        extensions=[
            # Less memory than the most that is allowed (32 KiB and not 256 each way), for nearly the same compression.
            ServerPerMessageDeflateFactory(
                server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
            )
        ],
        max_size=max_message_bytes,
        logger=_protocol_log,
    )
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] in _HANDSHAKE]
    protocol.receive_data(b"GET / HTTP/1.1\r\n%b\r\n" % b"".join(lines))
    for event in protocol.events_received():
        if isinstance(event, Request):
            return protocol, protocol.accept(event)
    return protocol, protocol.reject(400, "the request to open a WebSocket is not valid\n")


def answer(incoming: Incoming, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Answer the handshake with a whole HTTP response."""
    incoming.reply(body, _encode_head(ResponseHead(status, headers)), flags_of(status))


class WebSocketSession:
    """The ASGI channels of one WebSocket, and the task that reads what its client sends once it is open."""

    def __init__(self, incoming: Incoming, protocol: ServerProtocol, response: Response, limits: Limits) -> None:
        self._incoming = incoming
        self._limits = limits
        self._protocol = protocol
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._phase = Phase.HANDSHAKE
        self._reply: AsgiReply | None = None
        self._told = False  # the application has received websocket.connect
        self._unread: deque[Message] = deque()
        self._unread_bytes = 0
        self._news = asyncio.Event()  # something has come for the application
        self._taken = asyncio.Event()  # the application has taken something
        self._end: Message | None = None  # the websocket.disconnect, once it is due
        self._over = asyncio.Event()  # nothing more is to be sent to the client, or awaited from it
        self._closed = False  # the application has sent websocket.close
        self._draining = False
        self._pump: asyncio.Task[None] | None = None
        self._binary = False  # of the message whose fragments are coming
        self._parts: list[Any] = []
        self._decoder: codecs.IncrementalDecoder | None = None
        self._full = False  # enough waits to be sent
        self._writers = asyncio.Lock()  # a call can be waited for by one task
        self._ping: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when the client was last heard, on the loop's clock
        self._pinged = 0.0
        self._blocked = False  # we do not read, for the application does not

    def __repr__(self) -> str:
        return f"<WebSocketSession {self._phase.value} {self._protocol.state.name} unread={len(self._unread)}>"

    # --- the application's channels --------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next ASGI message. After websocket.disconnect, that again."""
        if not self._told:
            self._told = True
            return {"type": "websocket.connect"}
        while not self._unread:
            if self._end is not None:
                return self._end
            self._news.clear()
            await self._news.wait()
        message = self._unread.popleft()
        self._unread_bytes -= cost(message)
        self._taken.set()
        return message

    async def send(self, message: Message) -> None:
        """Take the next ASGI message. Raises OSError when the client has left, RuntimeError for one out of turn."""
        kind = message["type"]
        if self._phase is Phase.OPEN:
            if kind == "websocket.send" and not self._closed:
                await self._send_message(message)
                return
            if kind == "websocket.close" and not self._closed:
                self._close(message.get("code", NORMAL), message.get("reason") or "")
                self._closed = True
                return
        elif self._phase is Phase.HANDSHAKE:
            if self._end is not None and kind.startswith("websocket."):
                raise OSError("the client has left")
            if kind == "websocket.accept":
                self._accept(message)
                return
            if kind == "websocket.close":
                self._phase = Phase.ANSWERED
                answer(self._incoming, 403, _TEXT, b"Forbidden")
                self._ended(ABNORMAL, "")
                return
            if kind == "websocket.http.response.start":
                self._phase = Phase.REFUSING
                self._reply = AsgiReply(self._incoming)
                await self._reply.send({**message, "type": "http.response.start"})
                return
        elif self._phase is Phase.REFUSING and kind == "websocket.http.response.body":
            assert self._reply is not None
            await self._reply.send({**message, "type": "http.response.body"})
            if self._reply.finished:
                self._phase = Phase.ANSWERED
                self._ended(ABNORMAL, "")
            return
        raise RuntimeError(f"ASGI message {kind!r} out of turn: the WebSocket is {self._state()}")

    def _state(self) -> str:
        return "closed by the application" if self._closed else self._phase.value

    def _accept(self, message: Message) -> None:
        headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers") or ()]
        if any(name == b"sec-websocket-protocol" for name, _ in headers):
            raise RuntimeError("the subprotocol is given as `subprotocol` of websocket.accept, not among its headers")
        ours = [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in self._response.headers.raw_items()
            if name.lower() not in ("date", "sec-websocket-protocol")
        ]
        subprotocol = message.get("subprotocol")
        if subprotocol is not None:
            ours.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        self._protocol.send_response(self._response)
        self._protocol.data_to_send()  # the head as the library writes it: the ingress writes its own
        self._phase = Phase.OPEN
        self._incoming.start_reply(b"", _encode_head(ResponseHead(101, ours + headers)), HTTP)
        self._pump = self._loop.create_task(self._read(), name="websocket")
        self._ping = self._loop.call_later(self._limits.ping_interval_s, self._keep_alive)
        if self._draining:
            self.drain()

    async def _send_message(self, message: Message) -> None:
        if self._end is not None:
            raise OSError("the WebSocket has ended")
        text = message.get("text")
        if text is not None:
            self._protocol.send_text(text.encode())
        else:
            self._protocol.send_binary(bytes(message["bytes"]))
        self._flush()
        if self._full:
            try:
                await self._writable()
            except RequestCancelledError as error:
                raise OSError("the client has left") from error

    # --- bytes from the client -------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read what the client sends, until it or we have ended."""
        incoming, part = self._incoming, bytes(self._incoming.body)
        try:
            while True:
                for at in range(0, len(part), SLICE):
                    self._feed(part[at : at + SLICE])
                    if self._over.is_set():
                        return
                    if self._full:
                        await self._writable()  # a client that pings and does not read the pongs
                    await self._room()
                part = await incoming.read()
                if not part:
                    break
        except RequestCancelledError:
            return  # `lost` has been called
        # The ingress passes on that nothing more will come: the client has left without a Close, or the ingress is
        # about to. For the second case the client is told; in the first nobody hears it.
        self._fail(SERVICE_RESTART, "service restart")
        self._protocol.receive_eof()
        self._finish(ABNORMAL, "")

    async def _room(self) -> None:
        """Until the application has received enough for more to be read."""
        while self._unread_bytes >= UNREAD_BYTES and self._end is None:
            self._blocked = True
            self._taken.clear()
            await self._taken.wait()
        if self._blocked:
            self._blocked = False
            self._heard = self._loop.time()

    def _feed(self, data: bytes) -> None:
        protocol = self._protocol
        protocol.receive_data(data)
        self._heard = self._loop.time()
        for frame in protocol.events_received():
            # After our own Close nobody receives messages any more.
            if self._end is None and isinstance(frame, Frame):
                self._take(frame)
        self._flush()
        received, sent = protocol.close_rcvd, protocol.close_sent
        if received is not None and protocol.parser_exc is None:
            self._finish(received.code, received.reason)
        elif protocol.parser_exc is not None and sent is not None:
            self._finish(sent.code, sent.reason)

    def _take(self, frame: Frame) -> None:
        """A frame that carries data: hand on the message when it is whole."""
        opcode, data = frame.opcode, frame.data
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self._binary = opcode is Opcode.BINARY
            if not self._binary and not frame.fin:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
        elif opcode is not Opcode.CONT:
            return
        try:
            piece = bytes(data) if self._binary else self._text(bytes(data), frame.fin)
        except UnicodeDecodeError as error:
            self._parts = []
            reason = f"{error.reason} at position {error.start}"
            self._fail(INVALID_DATA, reason)
            self._finish(INVALID_DATA, reason)
            return
        if not frame.fin:
            self._parts.append(piece)
            return
        if self._parts:
            parts, self._parts = [*self._parts, piece], []
            piece = b"".join(parts) if self._binary else "".join(parts)
        message = {"type": "websocket.receive", "bytes" if self._binary else "text": piece}
        self._unread.append(message)
        self._unread_bytes += cost(message)
        self._news.set()

    def _text(self, data: bytes, final: bool) -> str:
        decoder = self._decoder
        if decoder is None:
            return data.decode()
        if final:
            self._decoder = None
        return decoder.decode(data, final)

    # --- bytes to the client ---------------------------------------------------------------------------------------

    def _flush(self) -> None:
        parts = self._protocol.data_to_send()
        if not self._incoming.write(parts[0] if len(parts) == 1 else b"".join(parts)):
            self._full = True

    async def _writable(self) -> None:
        """Until enough has been sent. Raises RequestCancelledError when nobody reads any more."""
        async with self._writers:
            if self._full:
                await self._incoming.drained()
                self._full = False

    def _keep_alive(self) -> None:
        """Ping; and give up a client that has said nothing since the ping before."""
        now = self._loop.time()
        if self._pinged > self._heard and not self._blocked:
            self._fail(INTERNAL_ERROR, "keepalive ping timeout")
            self._finish(INTERNAL_ERROR, "keepalive ping timeout")
            return
        if not self._full:
            self._pinged = now
            self._protocol.send_ping(b"%x" % int(now))
            self._flush()
        self._ping = self._loop.call_later(self._limits.ping_interval_s, self._keep_alive)

    # --- ends ------------------------------------------------------------------------------------------------------

    def _close(self, code: int, reason: str) -> None:
        """Begin to close, as the application or we want it. The client's Close comes to `_feed`."""
        if self._end is not None:
            return
        try:
            self._protocol.send_close(code, shortened(reason))
        except ProtocolError as error:
            raise ValueError(f"code={code!r} cannot close a WebSocket: use 1000 or 3000 to 4999") from error
        self._flush()
        self._ended(code, reason)

    def _fail(self, code: int, reason: str) -> None:
        """Close, if that has not begun yet, and read nothing more."""
        if self._protocol.state is State.OPEN:
            self._protocol.fail(code, shortened(reason))
            self._flush()

    def _finish(self, code: int, reason: str) -> None:
        """The WebSocket has ended, and its client is owed nothing more."""
        self._ended(code, reason)
        self._over.set()

    def _ended(self, code: int, reason: str) -> None:
        """Tell the application that its WebSocket has ended, once; it is cancelled when it does not return then."""
        if self._end is not None:
            return
        self._end = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._news.set()
        self._taken.set()
        if self._ping is not None:
            self._ping.cancel()
        if self._task is not None:
            self._grace = self._loop.call_later(self._limits.grace_s, self._task.cancel)

    def lost(self) -> None:
        """The caller is no longer interested: the client has left before the handshake was answered, or its ingress."""
        self._finish(ABNORMAL, "")

    def drain(self) -> None:
        """The replica is about to stop: have the client come back elsewhere."""
        self._draining = True
        if self._phase is Phase.OPEN:
            self._close(SERVICE_RESTART, "service restart")

    def returned(self) -> None:
        """The application has returned. Raises NotServableError when it has not answered the handshake."""
        if self._phase is Phase.OPEN:
            self._close(NORMAL, "")
        elif self._phase is not Phase.ANSWERED:
            if self._end is not None:
                raise RequestCancelledError("the client has left")
            if self._reply is not None:
                self._reply.check_finished()
            raise NotServableError("the ASGI application returned without accepting or refusing the WebSocket")

    def failed(self, error: BaseException) -> None:
        """The application raised. Raises it again when the handshake has not been answered."""
        if self._phase in (Phase.HANDSHAKE, Phase.REFUSING):
            raise error
        # That its client has left is no error of an application, nor that we cancelled it for that.
        expected = isinstance(error, asyncio.CancelledError | WebSocketDisconnect | OSError) and self._end is not None
        if not expected:
            request_id = self._incoming.meta.request_id
            log.error("request %s: the application of a WebSocket raised", request_id, exc_info=error)
        if self._phase is Phase.OPEN:
            restarts = isinstance(error, asyncio.CancelledError)
            self._close(SERVICE_RESTART if restarts else INTERNAL_ERROR, "")

    async def wind_up(self) -> None:
        """Wait for the client's Close, where ours has been sent, and free the slot."""
        if self._grace is not None:
            self._grace.cancel()
        if self._ping is not None:
            self._ping.cancel()
        if self._end is not None and not self._closed:
            cancel_calls(request_variable.get())  # the client has left: what was done for it is of no use any more
        if self._phase is not Phase.OPEN:
            return
        try:
            async with asyncio.timeout(self._limits.close_timeout_s):
                await self._over.wait()
        except TimeoutError:
            pass  # a client that does not answer: it loses the connection
        finally:
            assert self._pump is not None
            self._pump.cancel()
            self._incoming.end()


def cost(message: Message) -> int:
    """What a message that has not been received counts for."""
    return len(message.get("text") or message.get("bytes") or b"") + MESSAGE_COST


def shortened(reason: str) -> str:
    """As much of the reason as a Close frame can hold."""
    return reason.encode()[:REASON_BYTES].decode(errors="ignore")
