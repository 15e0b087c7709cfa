"""Processes kept by a thread of a process with other work and other children, such as an actor of Ray is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import alive, until

from headrace.engine import messages
from headrace.engine.base import ProcessRequest
from headrace.engine.directory import InstanceDirectory
from headrace.engine.machine import Machine
from headrace.engine.ray.caretaker import Caretaker

PATIENCE_S = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def caretaker(folder: Path) -> Iterator[Caretaker]:
    directory = InstanceDirectory(folder / "t")
    directory.create()
    caretaker = Caretaker(directory, Machine(cpus=2), dict(os.environ), {"HEADRACE_NODE": "n1"})
    caretaker.open()
    yield caretaker
    caretaker.close()


def start(caretaker: Caretaker, id: str, code: str) -> int:
    request = ProcessRequest(id=id, role="worker", argv=(sys.executable, "-S", "-c", code))
    answer = caretaker.ask(messages.Start(0, request)).result(PATIENCE_S)
    assert isinstance(answer, messages.Started), answer
    return answer.info.pid


def exits(caretaker: Caretaker, told: int = 0, patience_s: float = PATIENCE_S) -> list[messages.Exited]:
    return caretaker.exits(told, patience_s).result(PATIENCE_S)


def test_an_end_is_told_until_it_is_acknowledged(caretaker: Caretaker) -> None:
    pid = start(caretaker, "a", "print('last words'); raise SystemExit(7)")
    (first,) = exits(caretaker)
    assert (first.event.id, first.event.pid, first.event.code, first.event.tail) == ("a", pid, 7, ("last words",))
    assert exits(caretaker) == [first]
    assert exits(caretaker, told=first.number, patience_s=0) == []


def test_who_asks_last_is_told(caretaker: Caretaker) -> None:
    gone = caretaker.exits(0, PATIENCE_S)
    start(caretaker, "a", "pass")
    present = exits(caretaker)
    assert gone.result(PATIENCE_S) in ([], present)  # the end may have come before the second question
    waiting, later = caretaker.exits(present[0].number, PATIENCE_S), caretaker.exits(present[0].number, 0.0)
    assert (waiting.result(PATIENCE_S), later.result(PATIENCE_S)) == ([], [])


def test_askers_that_are_gone_keep_nobody_from_the_news(caretaker: Caretaker) -> None:
    assert caretaker.exits(0, PATIENCE_S).cancel()  # as Ray does with the calls of a controller that died
    caretaker.ask(messages.ListProcesses(0)).cancel()
    start(caretaker, "a", "pass")
    assert [exited.event.id for exited in exits(caretaker)] == ["a"]


def test_children_of_others_are_left_to_them(caretaker: Caretaker) -> None:
    other = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.exit(5)"])
    start(caretaker, "a", "pass")
    assert [exited.event.id for exited in exits(caretaker)] == ["a"]
    assert other.wait(PATIENCE_S) == 5


def test_what_an_ended_process_had_started_elsewhere_goes_with_it(caretaker: Caretaker, folder: Path) -> None:
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    open({str(folder / "pid")!r} + "~", "w").write(str(os.getpid()))
    os.rename({str(folder / "pid")!r} + "~", {str(folder / "pid")!r})
    time.sleep(1000)
time.sleep(1000)
"""
    pid = start(caretaker, "a", code)
    until((folder / "pid").exists, "the grandchild")
    grandchild = int((folder / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    (exited,) = exits(caretaker)
    assert exited.event.code == -9
    until(lambda: not alive(grandchild), "its end")
    until(lambda: not Path(f"/proc/{grandchild}").exists(), "that it is reaped")


def test_processes_are_told_their_node(caretaker: Caretaker) -> None:
    start(caretaker, "a", "import os; print(os.environ['HEADRACE_NODE'], os.environ['HEADRACE_PROCESS_ID'])")
    (exited,) = exits(caretaker)
    assert exited.event.tail == ("n1 a",)


def test_what_cannot_be_done_is_refused_and_harms_nobody(caretaker: Caretaker) -> None:
    wrong = ProcessRequest(id="a", role="worker", argv=("/no/such/program",))
    answer = caretaker.ask(messages.Start(3, wrong)).result(PATIENCE_S)
    assert isinstance(answer, messages.Refused)
    assert answer.error == "InstanceError"
    assert isinstance(caretaker.ask(messages.EndInstance(1.0)).result(PATIENCE_S), messages.Refused)
    assert isinstance(caretaker.ask(messages.ListProcesses(1)).result(PATIENCE_S), messages.Listed)


def test_closing_kills_what_runs(caretaker: Caretaker) -> None:
    pid = start(caretaker, "a", "import time; time.sleep(1000)")
    caretaker.close()
    assert not alive(pid)
