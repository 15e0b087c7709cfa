"""Where the keeper is asked: the private socket, its connections, and the exits that the controller must learn of.

In: connections of this user's processes, messages. Out: answers by the keeper's handler; each exit to the connection
that said Open last, until it is acknowledged, so that an exit while no controller runs is told to the next one.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path

from headrace.engine import linux
from headrace.engine.base import ProcessExited
from headrace.engine.messages import Acknowledge, Exited, FromKeeper, Open, ToKeeper, encode, to_keeper
from headrace.spec.errors import ProtocolError

_MOST_UNSENT_BYTES = 64 * 1024 * 1024
_MOST_UNTOLD = 10_000

Answer = Callable[[ToKeeper], FromKeeper | None]


class Desk:
    """Listens on `path` and answers by `answer`, never blocking. Whoever sends nonsense or reads nothing is cut off."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, answer: Answer) -> None:
        self._path = path
        self._selector = selector
        self._answer = answer
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()
        self._told: _Connection | None = None
        self._untold: dict[int, ProcessExited] = {}
        self._next_number = 1

    def listen(self) -> None:
        """Bind the socket, only for this user."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(self._path))
        self._path.chmod(0o600)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def tell(self, event: ProcessExited) -> None:
        """Have the controller, this one or the next, learn of the exit."""
        self._untold[self._next_number] = event
        if len(self._untold) > _MOST_UNTOLD:
            del self._untold[next(iter(self._untold))]
        if self._told is not None:
            self._send(self._told, Exited(self._next_number, event))
        self._next_number += 1

    def close(self) -> None:
        """Close all connections and the socket."""
        for connection in tuple(self._connections):
            self._drop(connection)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        try:
            client, _address = self._listener.accept()
        except OSError:  # gone meanwhile, or no descriptor is left: whoever asks waits until one is
            return
        client.setblocking(False)
        if linux.peer_uid(client) not in (None, os.getuid()):
            client.close()
            return
        connection = _Connection(client)
        self._connections.add(connection)
        self._selector.register(client, selectors.EVENT_READ, lambda events: self._ready(connection, events))

    def _ready(self, connection: _Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if not events & selectors.EVENT_READ or connection not in self._connections:
            return
        try:
            data = connection.socket.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        try:
            messages = connection.buffer.feed(data)
        except ProtocolError:
            self._drop(connection)
            return
        for message in messages:
            self._handle(connection, message)

    def _handle(self, connection: _Connection, message: ToKeeper) -> None:
        if isinstance(message, Acknowledge):
            self._untold.pop(message.number, None)
            return
        answer = self._answer(message)
        if answer is not None:
            self._send(connection, answer)
        if isinstance(message, Open):
            self._told = connection
            for number, event in self._untold.items():
                self._send(connection, Exited(number, event))

    def _send(self, connection: _Connection, message: FromKeeper) -> None:
        connection.unsent += encode(message)
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        try:
            while connection.unsent:
                del connection.unsent[: connection.socket.send(connection.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        if len(connection.unsent) > _MOST_UNSENT_BYTES:
            self._drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        if events != connection.events:
            connection.events = events
            key = self._selector.get_key(connection.socket)
            self._selector.modify(connection.socket, events, key.data)

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if self._told is connection:
            self._told = None
        self._selector.unregister(connection.socket)
        connection.socket.close()


class _Connection:
    """One connection's socket, its unfinished input and its unsent output."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.buffer = to_keeper()
        self.unsent = bytearray()
        self.events = selectors.EVENT_READ
