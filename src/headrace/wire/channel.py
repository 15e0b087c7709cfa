"""One end of an established control connection on the event loop.

In: bytes of the private control socket. Out: whole control messages, in order, to the owner's `on_message`; one
`on_close` when the connection has ended, whoever ended it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from headrace.spec.errors import ProtocolError
from headrace.wire.control import Message, MessageBuffer, encode

logger = logging.getLogger(__name__)


class ControlChannel(asyncio.Protocol):
    """Messages both ways over one socket. Bytes that are no message end the connection, with an error in the log.

    `on_message` is called on the loop; a ProtocolError that it raises ends the connection likewise, any other error is
    logged and the connection goes on.
    """

    def __init__(
        self,
        on_message: Callable[[ControlChannel, Message], None],
        on_close: Callable[[ControlChannel], None],
        *,
        on_open: Callable[[ControlChannel], None] | None = None,
        name: str = "the controller",
    ) -> None:
        self.name = name
        self.transport: asyncio.Transport | None = None
        self._on_message = on_message
        self._on_close = on_close
        self._on_open = on_open
        self._buffer = MessageBuffer()
        self._closed = False

    def __repr__(self) -> str:
        return f"<ControlChannel to {self.name}{' closed' if self._closed else ''}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            for message in self._buffer.feed(data):
                self._deliver(message)
                if self._closed:
                    return
        except ProtocolError as error:
            logger.error("closing the control connection to %s: %s", self.name, error)
            self.close()

    def _deliver(self, message: Message) -> None:
        try:
            self._on_message(self, message)
        except ProtocolError:
            raise
        except Exception:  # the top of handling one message: a fault in one handler must not end the connection
            logger.exception("a %s from %s was not handled", type(message).__name__, self.name)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self.transport = None
        self._on_close(self)

    @property
    def unsent_bytes(self) -> int:
        """What was sent and has not left, as the other end does not read it."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def send(self, message: Message) -> bool:
        """Send the message; False when the connection has ended."""
        if self._closed or self.transport is None:
            return False
        self.transport.write(encode(message))
        return True

    def close(self) -> None:
        """End the connection once what was sent has left; nothing is delivered any more."""
        self._closed = True
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End the connection now, whatever the other end does."""
        self._closed = True
        if self.transport is not None:
            self.transport.abort()
