"""A controller that says what a test has it say: the other end of the private socket, on a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType

from headrace.engine.directory import InstanceDirectory, KeeperLock
from headrace.spec.errors import HeadraceError
from headrace.spec.snapshot import Snapshot
from headrace.spec.status import ServeStatus
from headrace.wire.control import (
    Answer,
    Failed,
    GetSnapshot,
    GetStatus,
    Hello,
    MessageBuffer,
    Operation,
    Request,
    Response,
    Signals,
    SnapshotMessage,
    Status,
    encode,
)

Script = Callable[[Operation], Answer]


class ScriptedController:
    """`answers` by class of operation: an answer, an error, or a function of the operation. `asked` is what came."""

    def __init__(self, directory: InstanceDirectory) -> None:
        self.directory = directory
        self.answers: dict[type, Answer | HeadraceError | Script] = {
            GetStatus: Status(ServeStatus(instance=directory.name)),
            GetSnapshot: SnapshotMessage(Snapshot(instance=directory.name, version=1)),
        }
        self.asked: list[Operation] = []
        self.signals: list[Signals] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._lock: KeeperLock | None = None

    def __enter__(self) -> ScriptedController:
        self.directory.create()
        self._lock = self.directory.lock_keeper()
        self._listener.bind(str(self.directory.control_socket))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.directory.control_socket.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()

    def asked_for(self, kind: type) -> list[Operation]:
        return [operation for operation in self.asked if isinstance(operation, kind)]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = MessageBuffer()
        with connection:
            while data := connection.recv(65536):
                for message in buffer.feed(data):
                    match message:
                        case Hello():
                            connection.sendall(encode(Hello(role="controller", id="controller", pid=1)))
                        case Signals():
                            self.signals.append(message)
                        case Request(id=id, operation=operation):
                            self.asked.append(operation)
                            answer = self._answer(operation)
                            if answer is None:
                                return  # it goes away in the middle
                            connection.sendall(encode(Response(id, answer)))

    def _answer(self, operation: Operation) -> Answer | None:
        answer = self.answers.get(type(operation))
        if callable(answer):
            answer = answer(operation)
        if isinstance(answer, HeadraceError):
            return Failed(type(answer).__name__, str(answer))
        return answer
