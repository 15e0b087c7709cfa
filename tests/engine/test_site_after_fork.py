"""A process that talks to a cluster and forks while one of its threads asks where the instance is."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from headrace import runtime as runtimes
from headrace.engine.directory import InstanceDirectory
from headrace.engine.site import RaySite
from headrace.spec.cluster import ClusterOptions


class Slow:
    """A cluster that answers in this process when it is let, and in a child of it at once."""

    def __init__(self, directory: InstanceDirectory) -> None:
        self.asked = threading.Event()
        self.let = threading.Event()
        self._directory = directory
        self._pid = os.getpid()

    def connect(self, address: str | None) -> None:
        pass

    def find(self, instance: str) -> InstanceDirectory | None:
        if os.getpid() == self._pid:
            self.asked.set()
            self.let.wait()
        return self._directory

    def start(self, instance: str, options: ClusterOptions) -> tuple[InstanceDirectory, bool]:
        raise AssertionError("it is not asked to")

    def end(self, instance: str, timeout_s: float) -> None:
        raise AssertionError("it is not asked to")


def test_the_child_of_a_fork_can_ask_where_the_instance_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_RUNTIME_DIR", raising=False)
    cluster = Slow(InstanceDirectory(tmp_path / "x"))
    site = RaySite("x", cluster=cluster)
    runtimes.mean(site)
    asking = threading.Thread(target=site.find)
    asking.start()
    try:
        cluster.asked.wait()
        pid = os.fork()
        if not pid:
            signal.alarm(20)  # it is never to be waited for without end
            os._exit(0 if site.find() is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        cluster.let.set()
        asking.join()
        runtimes.mean(None)
