"""The control socket of a node without a controller: each connection to it is carried to the controller, byte for byte.

In: connections of this user's processes at the Unix socket of the node's directory; where the controller is at present.
Out: as many connections over TCP, each begun by the proof of the instance's secret. So the processes of a node speak to
a controller of their own, as they see it, and one that moved is one that was started anew. A connection that cannot be
carried is closed within `connect_s`: whoever opened it tries again by himself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from headrace.engine.directory import InstanceDirectory
from headrace.engine.linux import peer_uid
from headrace.spec.errors import HeadraceError
from headrace.wire.control import CONTROL_PURPOSE
from headrace.wire.meeting import connect
from headrace.wire.tcp import Credentials
from headrace.wire.tls import TlsFiles

logger = logging.getLogger(__name__)

CONNECT_S = 3.0  # to have the connection and the handshake, waiting for a turn included
AT_ONCE = 4  # that are being connected: fewer than the controller has newcomers from one address at its door
UNREAD_BYTES = 256 * 1024  # that wait for a reader who does not come, in each direction of a connection


class Relay:
    """Listens at `directory.control_socket`, for this user alone. `where` answers at once: `tcp:HOST:PORT`, or "" while
    that is not known. All on the loop that `start` is called on.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        secret: bytes,
        tls: TlsFiles | None,
        where: Callable[[], str],
        *,
        connect_s: float = CONNECT_S,
    ) -> None:
        self._directory = directory
        self._credentials = Credentials(secret, tls)
        self._where = where
        self._connect_s = connect_s
        self._server: asyncio.Server | None = None
        self._carried: set[_Carried] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._empty = asyncio.Event()
        self._told = asyncio.Event()
        self._failing = ""

    def __repr__(self) -> str:
        return f"<Relay {self._directory.control_socket} -> {self._where() or 'nowhere'}, {len(self._carried)} carried>"

    async def start(self) -> None:
        """Bind and listen. Raises OSError, or InstanceError for TLS files that cannot be used."""
        self._credentials.context(server=False)
        path = self._directory.control_socket
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(mask)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._newcomer, sock=listener, backlog=1024)

    async def close(self) -> None:
        """Stop to listen, and end all connections. Harmless again."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._directory.control_socket.unlink(missing_ok=True)
        ending = [carried.connecting for carried in self._carried if carried.connecting is not None]
        self.cut()
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._carried:
            await self._empty.wait()  # what was aborted is told to be closed in the loop's next rounds

    def cut(self) -> None:
        """End all connections now: the controller at their other ends is not there any more. Clients connect anew."""
        for carried in list(self._carried):
            carried.abort()

    def told(self) -> None:
        """It may be known by now where the controller is: who came before that is waiting."""
        self._told.set()

    def _newcomer(self) -> _Side:
        return _Carried(self).near

    # --- for what is carried -----------------------------------------------------------------------------------------

    def opened(self, carried: _Carried) -> None:
        """A process has connected: connect it on."""
        self._carried.add(carried)
        self._empty.clear()
        transport = carried.near.transport
        assert transport is not None
        uid = peer_uid(transport.get_extra_info("socket"))
        if uid is not None and uid != os.getuid():
            logger.error("closing a control connection of user %d: the instance is of user %d", uid, os.getuid())
            carried.abort()
            return
        carried.connecting = asyncio.get_running_loop().create_task(self._connect(carried), name="relay")

    def closed(self, carried: _Carried) -> None:
        """Both ends of it are gone."""
        self._carried.discard(carried)
        if not self._carried:
            self._empty.set()

    async def _connect(self, carried: _Carried) -> None:
        where = ""
        try:
            async with asyncio.timeout(self._connect_s):
                while not (where := self._where()):
                    await self._told.wait()
                    self._told.clear()
                async with self._turns:
                    await connect(where, self._credentials, CONTROL_PURPOSE, lambda: carried.far)
            carried.begin()
        except (OSError, HeadraceError) as error:  # TimeoutError and ssl.SSLError are OSErrors
            carried.abort()
            silent = f"no answer within {self._connect_s:g} s" if where else "nobody knows where it is"
            self._failed(where, str(error) or silent)
        except Exception:  # the top of a task: its connection must end, whatever it was
            carried.abort()
            logger.exception("a connection to the controller failed")
        else:
            if self._failing:
                logger.warning("the controller is reached again, at %s", where)
                self._failing = ""
        finally:
            carried.connecting = None

    def _failed(self, where: str, why: str) -> None:
        # Told once: each process of the node tries again and again.
        if self._failing != why:
            self._failing = why
            logger.warning("the controller cannot be reached%s: %s", where and f" at {where}", why)


class _Carried:
    """A connection of a process, and the one that carries it. An end of one becomes an end of the other."""

    def __init__(self, relay: Relay) -> None:
        self.near = _Side(self)
        self.far = _Side(self)
        self.connecting: asyncio.Task[None] | None = None
        self._relay = relay
        self._aborted = False

    def made(self, side: _Side) -> None:
        """The connection of this side is there."""
        assert side.transport is not None
        side.transport.set_write_buffer_limits(high=UNREAD_BYTES)
        side.read(False)  # what is said waits until somebody hears it
        if side is self.near:
            self._relay.opened(self)
        elif self._aborted:
            side.transport.abort()

    def begin(self) -> None:
        """Both are there: carry."""
        if self.near.transport is None or self.far.transport is None:
            self.abort()
            return
        self.near.other, self.far.other = self.far, self.near
        self.near.begin()
        self.far.begin()

    def lost(self, side: _Side, error: Exception | None) -> None:
        """The connection of this side has ended."""
        other = self.far if side is self.near else self.near
        if other.transport is None:
            self.abort()
            self._relay.closed(self)
        elif side is self.far and self.connecting is not None:
            pass  # whoever connects it is told, and says why
        elif error is not None or side.other is None:
            self.abort()
        else:
            other.transport.close()  # once it has all that was said

    def abort(self) -> None:
        """End both now."""
        self._aborted = True
        if self.connecting is not None and self.connecting is not asyncio.current_task():
            self.connecting.cancel()
        for side in (self.near, self.far):
            if side.transport is not None:
                side.transport.abort()


class _Side(asyncio.Protocol):
    """One of the two connections. `other` is None until they are carried."""

    def __init__(self, carried: _Carried) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self._carried = carried
        self._said_all = False
        self._early = b""  # what came before there was another side: not every loop can be told at once not to read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self._carried.made(self)

    def begin(self) -> None:
        """Carry from now on, to the other side."""
        self.read(True)
        if self._early:
            self.data_received(self._early)
            self._early = b""
        if self._said_all and not self._end_other() and self.transport is not None:
            self.transport.close()

    def read(self, on: bool) -> None:
        """Read on, or not for now."""
        if self.transport is None or self.transport.is_closing():
            return
        if on:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early += data
            self.read(False)
        elif self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Carry on that nothing more will be said; what is answered still comes back, where the kind of connection has
        such a thing (TLS does not, and ends). False: this one is closed.
        """
        self._said_all = True
        if self.other is not None and not self._end_other():
            return False
        return self.transport is not None and self.transport.can_write_eof()

    def _end_other(self) -> bool:
        """Tell the other side that nothing more will be said. False: with that all is over."""
        other = self.other
        if other is None or other.transport is None or not other.transport.can_write_eof():
            return False
        other.transport.write_eof()
        if other._said_all:
            other.transport.close()
            return False
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.read(False)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.read(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._carried.lost(self, exc)
