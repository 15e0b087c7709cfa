"""Connections between hosts: addresses, listening, connecting, and the proof before anything else is said.

In: `tcp:HOST:PORT` addresses, the instance's Credentials. Out: connected, non-blocking sockets whose other end has
proved that it belongs to the instance (`wire.handshake`), under TLS where there are certificates: TLS first, and the
handshake inside of it. Whoever does not prove it gets nowhere (`wire.doorkeeper`).
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.spec.errors import ProtocolError
from headrace.wire.doorkeeper import PATIENCE_S, Doorkeeper, Newcomer
from headrace.wire.entrance import Entrance
from headrace.wire.handshake import Handshake
from headrace.wire.tls import TlsFiles, client_context, secured, server_context

__all__ = [
    "CUT_OFF_S",
    "Credentials",
    "Doorkeeper",
    "Listener",
    "Newcomer",
    "format_address",
    "listen",
    "meet",
    "open_connection",
    "parse_address",
    "replica_purpose",
    "tune",
]


BACKLOG = 1024
# A peer that was cut off says nothing, not even that it is gone. Loss of a packet is made good within 2 s at most, and
# what is asked again after this long would have been told that the node is lost (3 s) soon after.
CUT_OFF_S = 5.0
_IDLE_S, _PROBE_S, _PROBES = 2, 1, 3  # a connection on which nothing is said is asked after in the same time
# What waits in the socket to be sent goes before any small frame that comes after it.
_UNSENT_BYTES = 256 * 1024


class Credentials:
    """What a process proves that it belongs to the instance by: the secret, and maybe certificates."""

    def __init__(self, secret: bytes, tls: TlsFiles | None = None) -> None:
        self.secret = secret
        self.tls = tls
        self._contexts: dict[bool, tuple[tuple[float, ...], ssl.SSLContext]] = {}

    def __repr__(self) -> str:
        return f"<Credentials {'with' if self.tls else 'without'} TLS>"

    def context(self, *, server: bool) -> ssl.SSLContext | None:
        """For one end of a connection; None where there is no TLS. Files that were renewed are read again.

        Raises InstanceError naming the file that cannot be used.
        """
        if self.tls is None:
            return None
        state = tuple(map(_changed_at, (self.tls.certfile, self.tls.keyfile, self.tls.cafile)))
        known = self._contexts.get(server)
        if known is None or known[0] != state:
            known = (state, (server_context if server else client_context)(self.tls))
            self._contexts[server] = known
        return known[1]


def _changed_at(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


# --- addresses -----------------------------------------------------------------------------------------------------


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp:HOST:PORT`, an IPv6 address in brackets. Raises OSError for what is none."""
    kind, _, rest = address.partition(":")
    host, colon, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    known = kind == "tcp" and host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65536
    if not known:
        raise OSError(f"an address between nodes is tcp:HOST:PORT, such as tcp:10.0.0.1:7000, not {address!r}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """As `parse_address` takes it."""
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def replica_purpose(app: str, replica_id: str) -> str:
    """What both ends of a connection to a replica mean: ports are used again, and another may listen there now."""
    return f"replica {app} {replica_id}"


# --- sockets -------------------------------------------------------------------------------------------------------


def listen(host: str, ports: tuple[int, int] | None = None) -> socket.socket:
    """A non-blocking socket that listens at `host`, on a free port of `ports` (first, last) or any. Raises OSError.

    Where `host` is an address that only others know this machine by (behind a translation), it listens on all of its
    own.
    """
    family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    candidates = [0] if ports is None else list(range(ports[0], ports[1] + 1))
    random.shuffle(candidates)  # others look for one at the same time
    try:
        sock = _listen_on_one(family, str(where[0]), candidates)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        sock = _listen_on_one(family, "::" if family == socket.AF_INET6 else "0.0.0.0", candidates)
    if sock is None:
        raise OSError(errno.EADDRINUSE, f"no port of {ports} is free at {host}")
    return sock


def _listen_on_one(family: int, host: str, ports: Sequence[int]) -> socket.socket | None:
    """None where none of them is free."""
    for port in ports:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return sock
    return None


def tune(sock: socket.socket) -> None:
    """Small frames leave at once, a peer that was cut off is noticed within CUT_OFF_S, bulk waits where it can wait."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_S),
        ("TCP_KEEPINTVL", _PROBE_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", int(CUT_OFF_S * 1000)),
        ("TCP_NOTSENT_LOWAT", _UNSENT_BYTES),
    ):
        option = getattr(socket, name, None)
        if option is not None:  # not of every system
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def open_connection(
    loop: asyncio.AbstractEventLoop, address: str, credentials: Credentials, purpose: str = ""
) -> socket.socket:
    """A connection to `tcp:HOST:PORT` whose other end has proved that it belongs to the instance and means `purpose`.

    Raises OSError (TimeoutError after PATIENCE_S among them), ProtocolError, or InstanceError for TLS files.
    """
    host, port = parse_address(address)
    context = credentials.context(server=False)
    async with asyncio.timeout(PATIENCE_S):
        family, where = await _resolve(loop, host, port)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            tune(sock)
            error = sock.connect_ex(where)
            if error == errno.EINPROGRESS:
                await _ready(loop, sock, writing=True)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, f"{errno.errorcode.get(error, error)} at {address}")
            if context is not None:
                sock = secured(sock, context, server=False)
            await meet(loop, sock, Handshake(credentials.secret, initiator=True, purpose=purpose))
        except BaseException:
            sock.close()
            raise
        return sock


async def meet(loop: asyncio.AbstractEventLoop, sock: socket.socket, handshake: Handshake) -> None:
    """Have the handshake over `sock`, after that of TLS where it is under TLS. Raises OSError, ProtocolError."""
    if isinstance(sock, ssl.SSLSocket):
        await _secure(loop, sock)
    await _send(loop, sock, handshake.begin())
    while not handshake.done:
        try:
            data = sock.recv(handshake.wanted)  # and no more: what follows is for whoever owns the connection
        except BlockingIOError:
            await _ready(loop, sock)
            continue
        if not data:
            raise ConnectionAbortedError("it left in the middle of the handshake")
        await _send(loop, sock, handshake.feed(data))


async def _secure(loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> None:
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(loop, sock)
        except ssl.SSLWantWriteError:
            await _ready(loop, sock, writing=True)
        except ssl.SSLError as error:
            raise ProtocolError(f"no TLS with it: {error.reason or error}") from error
        else:
            return


async def _send(loop: asyncio.AbstractEventLoop, sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await _ready(loop, sock, writing=True)


async def _ready(loop: asyncio.AbstractEventLoop, sock: socket.socket, writing: bool = False) -> None:
    ready: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(fd, wake)
    try:
        await ready
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(fd)


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> tuple[int, tuple[object, ...]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, where = found[0]
    return family, where


# --- the door ------------------------------------------------------------------------------------------------------


class Listener(Entrance):
    """Takes connections at `sock`, and gives those to `admit` whose other end has proved that it may.

    `purpose` is what both ends have to mean, and `what` names this listener in log lines.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        credentials: Credentials,
        admit: Callable[[socket.socket], None],
        *,
        purpose: str = "",
        what: str = "",
    ) -> None:
        super().__init__(sock, what or purpose, loop)
        self._credentials = credentials
        self._admit = admit
        self._purpose = purpose

    def start(self) -> None:
        """Begin to accept. Raises InstanceError for TLS files that cannot be used."""
        self._credentials.context(server=True)
        super().start()

    def close(self) -> None:
        """Stop to accept, and turn away those who have not proved yet who they are."""
        self.stop()

    async def _meet(self, sock: socket.socket) -> None:
        try:
            tune(sock)
            context = self._credentials.context(server=True)
            if context is not None:
                sock = secured(sock, context, server=True)
            handshake = Handshake(self._credentials.secret, initiator=False, purpose=self._purpose)
            await meet(asyncio.get_running_loop(), sock, handshake)
        except BaseException:
            sock.close()
            raise
        self._admit(sock)
