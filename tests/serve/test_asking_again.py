"""serve.driver: what is asked again when the controller goes away in the middle, as what, and what is not."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.engine.directory import InstanceDirectory
from headrace.serve.driver import Driver
from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import InstanceError
from headrace.spec.rollout import Command
from headrace.spec.status import History, RevisionRecord
from headrace.wire.control import (
    Answer,
    ControlRollout,
    Deploy,
    Deployed,
    Done,
    GetHistory,
    Hello,
    MessageBuffer,
    Operation,
    Past,
    Request,
    Response,
    Rollback,
    SetTraffic,
    encode,
)

SPEC = ApplicationSpec(name="app", route_prefix=None, ingress="D", deployments=())


class Controller:
    """Answers as scripted; None: it goes away without an answer."""

    def __init__(self, path: Path) -> None:
        self.script: list[Answer | None] = []
        self.asked: list[Operation] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        buffer = MessageBuffer()
        while data := connection.recv(65536):
            for message in buffer.feed(data):
                if isinstance(message, Hello):
                    connection.sendall(encode(Hello(role="controller", id="controller", pid=1)))
                if isinstance(message, Request):
                    self.asked.append(message.operation)
                    answer = self.script.pop(0)
                    if answer is None:
                        return
                    connection.sendall(encode(Response(message.id, answer)))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    """Of an instance that runs, as far as its lock tells."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_INSTANCE", "i")
    directory: InstanceDirectory = Driver().directory()
    directory.create()
    with directory.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        controller = Controller(Path(directory.control_socket))
        try:
            yield controller
        finally:
            controller.close()


def past(number: int, by: str) -> Past:
    return Past(History(app="app", revisions=(RevisionRecord(number=number, at=0.0, by=by),)))


def test_a_deploy_is_asked_for_again(controller: Controller) -> None:
    controller.script = [None, Deployed("app", 2, 9)]
    assert Driver().ask(Deploy(SPEC)) == Deployed("app", 2, 9)
    assert controller.asked == [Deploy(SPEC), Deploy(SPEC)]


def test_a_deploy_that_was_taken_on_expects_itself(controller: Controller) -> None:
    controller.script = [None, past(4, "us"), Deployed("app", 4, 9)]
    Driver().ask(Deploy(SPEC, expected=3, by="us"))
    assert [operation.expected for operation in controller.asked if isinstance(operation, Deploy)] == [3, 4]


@pytest.mark.parametrize("newest", [past(4, "them"), past(3, "us"), Past(History(app="app"))])
def test_a_deploy_that_was_not_still_expects_what_it_did(controller: Controller, newest: Past) -> None:
    controller.script = [None, newest, Deployed("app", 4, 9)]
    Driver().ask(Deploy(SPEC, expected=3, by="us"))
    assert [operation.expected for operation in controller.asked if isinstance(operation, Deploy)] == [3, 3]
    assert GetHistory("app") in controller.asked


def test_a_split_is_asked_for_again(controller: Controller) -> None:
    controller.script = [None, None, Done()]
    Driver().ask(SetTraffic(app="app", weights={1: 1.0}))
    assert len(controller.asked) == 3


@pytest.mark.parametrize(
    "make", [lambda: Rollback(app="app"), lambda: ControlRollout(app="app", command=Command.PROMOTE)]
)
def test_what_must_not_be_done_twice_is_not(controller: Controller, make: Callable[[], Operation]) -> None:
    controller.script = [None]
    with pytest.raises(InstanceError, match=r"whether it acted, serve\.rollout_status\('app'\) tells"):
        Driver().ask(make())
    assert len(controller.asked) == 1
