"""Connections between hosts for protocols of the event loop: the proof first, then what the connection is for.

In: `tcp:HOST:PORT` or a listening socket, the instance's Credentials. Out: `connection_made` of a protocol of the
owner's, once the other end has proved that it belongs to the instance, and not before. Control connections are met so;
those of calls, whose sockets a Connection owns, by `wire.tcp`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from headrace.spec.errors import ProtocolError
from headrace.wire.entrance import Entrance
from headrace.wire.handshake import Handshake
from headrace.wire.tcp import Credentials, parse_address, tune


class _Meeting(asyncio.Protocol):
    """The handshake. `ended` is done with it; an error in it is that of the future."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, handshake: Handshake, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self._handshake = handshake
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self._say(self._handshake.begin())

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return  # refused, and not gone yet
        try:
            self._say(self._handshake.feed(data))
        except ProtocolError as error:
            self._end(error)
            return
        if self._handshake.done:
            self.ended.set_result(None)
            self._hand_over()

    def _hand_over(self) -> None:
        assert self._transport is not None
        protocol = self._protocol()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._handshake.rest:
            protocol.data_received(self._handshake.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionAbortedError(f"it left in the middle of the handshake{f': {exc}' if exc else ''}"))

    def _say(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _end(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # whoever waited for it may have been cancelled


async def connect(
    address: str, credentials: Credentials, purpose: str, protocol: Callable[[], asyncio.Protocol]
) -> None:
    """Make the connection of the protocol to `tcp:HOST:PORT`, whose other end has proved that it means `purpose` too.

    Takes as long as it takes: bound it. Raises OSError, ProtocolError, or InstanceError for TLS files.
    """
    loop = asyncio.get_running_loop()
    host, port = parse_address(address)
    context = credentials.context(server=False)
    meeting = _Meeting(loop, Handshake(credentials.secret, initiator=True, purpose=purpose), protocol)
    transport, _ = await loop.create_connection(lambda: meeting, host, port, ssl=context)
    try:
        tune(transport.get_extra_info("socket"))
        await meeting.ended
    except BaseException:
        transport.abort()
        raise


class Reception(Entrance):
    """Takes connections at `sock`, a protocol each for those whose other end has proved that it may. Others are bounded
    as a Doorkeeper does. `what` names this in log lines.
    """

    def __init__(
        self,
        sock: socket.socket,
        credentials: Credentials,
        purpose: str,
        protocol: Callable[[], asyncio.Protocol],
        *,
        what: str,
    ) -> None:
        super().__init__(sock, what)
        self._credentials = credentials
        self._purpose = purpose
        self._protocol = protocol

    def start(self) -> None:
        """Begin to accept, on the running loop. Raises InstanceError for TLS files that cannot be used."""
        self._credentials.context(server=True)
        super().start()

    async def close(self) -> None:
        """Stop to accept, and turn away those who have not proved who they are. Harmless again."""
        self.stop()
        await self.stopped()

    async def _meet(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            tune(sock)
            context = self._credentials.context(server=True)
            handshake = Handshake(self._credentials.secret, initiator=False, purpose=self._purpose)
        except BaseException:
            sock.close()
            raise
        meeting = _Meeting(loop, handshake, self._protocol)
        transport, _ = await loop.connect_accepted_socket(lambda: meeting, sock, ssl=context)
        try:
            await meeting.ended
        except BaseException:
            transport.abort()
            raise
