"""The synchronous end of the control protocol for drivers and the CLI: requests out, one answer each in.

In: operations from `serve` and `cli`. Out: the controller's answers, as values or as the errors that they name.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable

from headrace.spec import errors
from headrace.spec.errors import HeadraceError, InstanceError, PeerVersionError, ProtocolError, RequestTimeoutError
from headrace.wire.control import (
    CONTROL_VERSION,
    Answer,
    Failed,
    Hello,
    Message,
    MessageBuffer,
    Operation,
    Progress,
    Request,
    Response,
    encode,
)

HELLO_TIMEOUT_S = 10.0


def named_error(failed: Failed) -> HeadraceError:
    """The error that a Failed answer names; a name that is no HeadraceError gives a plain HeadraceError."""
    kind = getattr(errors, failed.error, None)
    if isinstance(kind, type) and issubclass(kind, HeadraceError):
        return kind(failed.message)
    return HeadraceError(f"{failed.error}: {failed.message}")


class ControlClient:
    """A connection to the controller for requests. Usable from several threads: one request at a time."""

    def __init__(self, path: str, role: str = "driver") -> None:
        self._path = path
        self._role = role
        self._socket: socket.socket | None = None
        self._buffer = MessageBuffer()
        self._arrived: deque[Message] = deque()
        self._last_id = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<ControlClient {self._path}{'' if self._socket else ' not connected'}>"

    def connect(self) -> None:
        """Connect and say hello. Raises InstanceError when none answers, PeerVersionError for another version."""
        with self._lock:
            self._connect()

    def _connect(self) -> None:
        self._disconnect()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(HELLO_TIMEOUT_S)
            connection.connect(self._path)
            self._socket = connection
            identity = f"{self._role}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            node = os.environ.get("HEADRACE_NODE", "")
            connection.sendall(encode(Hello(role=self._role, id=identity, pid=os.getpid(), node=node)))
            hello = self._next(time.monotonic() + HELLO_TIMEOUT_S)
            if not isinstance(hello, Hello):
                raise ProtocolError(f"the controller's first message is {type(hello).__name__}, not Hello")
            if hello.version != CONTROL_VERSION:
                raise PeerVersionError(
                    f"the controller at {self._path} speaks version {hello.version} of the control protocol, this "
                    f"program version {CONTROL_VERSION}; run both from one version of headrace"
                )
        except OSError as error:
            connection.close()
            self._disconnect()
            raise InstanceError(f"no controller answers at {self._path} ({error}); is the instance running?") from error
        except BaseException:
            connection.close()
            self._disconnect()
            raise

    def request(
        self, operation: Operation, timeout_s: float | None, on_progress: Callable[[str], None] | None = None
    ) -> Answer:
        """The controller's answer to the operation; connects first if need be.

        Raises the HeadraceError class that a Failed answer names; RequestTimeoutError after `timeout_s` seconds (None:
        never); InstanceError when the controller goes away first (whether it acted is then not known). `on_progress` is
        called with each line that the controller has to tell meanwhile.
        """
        with self._lock:
            if self._socket is None:
                self._connect()
            try:
                answer = self._exchange(operation, timeout_s, on_progress)
            except BaseException:
                # The stream may stand in the middle of a message: never reuse it.
                self._disconnect()
                raise
        if isinstance(answer, Failed):
            raise named_error(answer)
        return answer

    def tell(self, message: Message, timeout_s: float | None) -> None:
        """Send a message that has no answer; connects first if need be. Raises InstanceError, RequestTimeoutError."""
        with self._lock:
            if self._socket is None:
                self._connect()
            try:
                self._send(encode(message), None if timeout_s is None else time.monotonic() + timeout_s)
            except TimeoutError as error:
                self._disconnect()
                raise RequestTimeoutError(f"the controller did not read within {timeout_s:g} s") from error
            except OSError as error:
                self._disconnect()
                raise InstanceError(f"the controller at {self._path} went away: {error}") from error

    def _exchange(
        self, operation: Operation, timeout_s: float | None, on_progress: Callable[[str], None] | None
    ) -> Answer:
        what = type(operation).__name__
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._last_id += 1
        try:
            self._send(encode(Request(self._last_id, operation)), deadline)
            while True:
                match self._next(deadline):
                    case Progress(id=self._last_id, line=line):
                        if on_progress is not None:
                            on_progress(line)
                    case Response(id=self._last_id, answer=answer):
                        return answer
                    case _:
                        pass  # nothing else is said to a client
        except TimeoutError as error:
            raise RequestTimeoutError(f"the controller did not answer {what} within {timeout_s:g} s") from error
        except OSError as error:
            raise InstanceError(f"the controller at {self._path} went away during {what}: {error}") from error

    def _send(self, data: bytes, deadline: float | None) -> None:
        connection = self._connection(deadline)
        connection.sendall(data)

    def _next(self, deadline: float | None) -> Message:
        while not self._arrived:
            data = self._connection(deadline).recv(256 * 1024)
            if not data:
                raise ConnectionResetError("connection closed")
            self._arrived.extend(self._buffer.feed(data))
        return self._arrived.popleft()

    def _connection(self, deadline: float | None) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError("not connected")
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)
        return self._socket

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._buffer = MessageBuffer()
        self._arrived.clear()
