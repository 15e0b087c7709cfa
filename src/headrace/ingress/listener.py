"""The sockets that clients connect to: several processes bind the same port and the kernel deals connections out.

In: host and port, which the keeper has proved free of anybody else, or `unix:PATH` in the place of a host. Out:
connections, to the protocol factory.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from headrace.spec.errors import OptionError, PortBusyError

BACKLOG = 2048
UNIX = "unix:"


class Listener:
    """Listens from `open` to `leave`. `port` is the port that is bound, also where 0 was asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._loop = loop
        self._protocol = protocol
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self.port = 0

    def __repr__(self) -> str:
        return f"<Listener on port {self.port}, {len(self._servers)} sockets>"

    async def open(self, host: str, port: int) -> None:
        """Listen on every address that `host` has here. Raises OptionError (no such host), PortBusyError."""
        if host.startswith(UNIX):
            await self._open_path(host.removeprefix(UNIX))
            return
        self._sockets = bind(host, port)
        self.port = self._sockets[0].getsockname()[1]
        for sock in self._sockets:
            self._servers.append(await self._loop.create_server(self._protocol, sock=sock, backlog=BACKLOG))

    async def _open_path(self, path: str) -> None:
        sock = bind_path(path)
        self._sockets = [sock]
        server = await self._loop.create_unix_server(self._protocol, sock=sock, backlog=BACKLOG)
        self._servers.append(server)

    async def leave(self) -> None:
        """Take no more connections, and lose none: those that wait to be accepted are taken first."""
        for server, sock in zip(self._servers, self._sockets, strict=True):
            accepted = accept_waiting(sock)
            # No await between the last accept and the close: whoever connects later finds another process, or nobody.
            server.close()
            sock.close()
            for connection in accepted:
                await self._loop.connect_accepted_socket(self._protocol, connection)
        self._servers.clear()
        self._sockets.clear()


def bind(host: str, port: int) -> list[socket.socket]:
    """Bound sockets that do not listen yet, one for each address of `host`, all with the same port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OptionError(f"host={host!r} is not the name of an address ({error})") from error
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    for family, _, _, _, address in found:
        if sockets:
            port = sockets[0].getsockname()[1]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind((address[0], port, *address[2:]))
        except OSError as error:  # `localhost` names ::1 also where there is no IPv6
            sock.close()
            refused = error
        else:
            sockets.append(sock)
    if not sockets:
        reason = refused.strerror if refused is not None else "the host has no address"
        raise PortBusyError(f"cannot listen on {host}:{port}: {reason}") from refused
    return sockets


def bind_path(path: str) -> socket.socket:
    """A Unix socket bound to the path, in the place of one that an ended process left. Raises PortBusyError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        Path(path).unlink(missing_ok=True)
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise PortBusyError(f"cannot listen on {UNIX}{path}: {error.strerror or error}") from error
    return sock


def accept_waiting(sock: socket.socket) -> list[socket.socket]:
    """The connections in the accept queue of a listening socket, taken out of it."""
    accepted: list[socket.socket] = []
    while True:
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            return accepted
        except ConnectionAbortedError:
            continue  # it was given up while it waited
        except OSError:
            return accepted  # no descriptor is left: those in work must not be lost over those that wait
        connection.setblocking(False)
        accepted.append(connection)
