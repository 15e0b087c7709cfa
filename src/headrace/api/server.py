"""The server below the API: uvicorn, with patience that ends.

In: an ASGI application, a listening socket. Out: whole requests. h11 reads them, which bounds what it keeps of a head
that is not whole; a head has HEAD_TIMEOUT_S to arrive, and there are at most MAX_CONNECTIONS.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from headrace.api.errors import body_of
from headrace.api.guard import MAX_HEAD_BYTES
from headrace.spec.errors import CallerError, InstanceError, PortBusyError

HEAD_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 15
MAX_CONNECTIONS = 256
STOP_TIMEOUT_S = 3


class PatientProtocol(H11Protocol):
    """A connection whose client has `head_timeout_s` for each head, from its first byte on."""

    head_timeout_s = HEAD_TIMEOUT_S
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._head_timer is None and (before is None or before.response_complete):
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)
        super().data_received(data)
        if self.cycle is not before:
            self._cancel_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so as JSON, like all that is wrong."""
        body = body_of(CallerError(msg))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        events = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises PortBusyError, InstanceError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(addresses, key=lambda each: each[0] != family)
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InstanceError(f"the control API cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        # Not SO_REUSEPORT: two programs never share the port by accident.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise PortBusyError(
            f"the control API cannot listen on {host}:{port}: {error.strerror}; choose another port with --port"
        ) from error
    return listener


class Server(uvicorn.Server):
    """Ends at a signal, and then lets its caller go on. `on_started` is called once signals are heeded."""

    on_started: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_started is not None:
            self.on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def server_of(app: Any, protocol: type[H11Protocol] = PatientProtocol) -> Server:
    """A server of the application, to be run on a listening socket; SIGINT and SIGTERM end it."""
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_TIMEOUT_S,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    # Its warnings are of requests that are none, which anybody can send as often as they like.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    return Server(config)
