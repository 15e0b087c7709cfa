"""A driver of an instance on a cluster: its agent may be followed by another, the instance by none.

In: a directory as an agent keeps it, and a cluster that finds it. Out: whether the driver's runtime lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace import runtime as runtimes
from headrace import serve
from headrace.engine.directory import InstanceDirectory, KeeperLock, write_node, write_secret, write_snapshot
from headrace.engine.site import RaySite
from headrace.serve.driver import driver
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import InstanceError, OptionError
from headrace.spec.snapshot import Snapshot

NODE = "ab" * 28


class Agent:
    """The directory of a node's agent, which this process is in its place."""

    def __init__(self, folder: Path) -> None:
        self.directory = InstanceDirectory(folder / "x@abababab")
        self.directory.create()
        self.lock: KeeperLock | None = None

    def begin(self, secret: bytes) -> None:
        self.lock = self.directory.lock_keeper()
        self.directory.clean()
        write_snapshot(self.directory, Snapshot(version=1))
        write_node(self.directory, NODE)
        write_secret(self.directory, secret)

    def die(self) -> None:
        assert self.lock is not None
        self.lock.release()

    def connect(self, address: str | None) -> None:
        pass

    def find(self, instance: str) -> InstanceDirectory | None:
        return self.directory if self.directory.keeper_pid() is not None else None

    def start(self, instance: str, options: ClusterOptions) -> tuple[InstanceDirectory, bool]:
        raise AssertionError("it is not asked to")

    def end(self, instance: str, timeout_s: float) -> None:
        raise AssertionError("it is not asked to")


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.delenv("HEADRACE_RUNTIME_DIR", raising=False)
    agent = Agent(tmp_path_factory.mktemp("a"))
    agent.begin(b"one")
    runtimes.close_own()
    runtimes.mean(RaySite("x", "h:1", agent))
    yield agent
    runtimes.close_own()
    runtimes.mean(None)
    agent.die()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_its_router_knows_its_node(agent: Agent) -> None:
    assert runtimes.current().router.node == NODE
    assert (driver().engine, driver().name, driver().runs()) == ("ray", "x", True)


def test_another_agent_of_the_same_instance_changes_nothing(agent: Agent) -> None:
    runtime = runtimes.current()
    agent.die()
    agent.begin(b"one")
    looks = runtimes.WATCH_S * 3
    began = time.monotonic()
    until(lambda: time.monotonic() - began > looks)  # nothing is to happen in that time
    assert runtime.alive
    assert runtimes.current() is runtime


def test_another_instance_of_the_name_ends_what_the_driver_had(agent: Agent) -> None:
    runtime = runtimes.current()
    agent.die()
    agent.begin(b"two")
    until(lambda: not runtime.alive)
    assert runtimes.current() is not runtime


def test_an_instance_that_has_ended_is_told(agent: Agent) -> None:
    runtime = runtimes.current()
    agent.die()
    agent.directory.secret.unlink()
    until(lambda: not runtime.alive)
    with pytest.raises(InstanceError, match="no instance 'x' is running on the Ray cluster at 'h:1'"):
        runtimes.current()
    assert serve.status().applications == {}
    agent.begin(b"three")


def test_a_process_of_the_instance_never_asks_ray(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_RUNTIME_DIR", str(agent.directory.path))
    assert runtimes.own_site().engine == "local"
    driver().mean(RaySite("y", "h:2", agent))
    assert runtimes.own_directory() == agent.directory


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"engine": "rey"}, "engine='rey': did you mean 'ray'"),
        ({"engine": "ray", "address": "ray://head:10001"}, "is a Ray Client's"),
        ({"engine": "local", "address": "h:1"}, "address='h:1' has no effect with engine='local'"),
        ({"engine": "local", "cluster_options": {}}, "cluster_options have no effect with engine='local'"),
        (
            {"engine": "ray", "address": "h:1", "cluster_options": {"port": "1-2"}},
            "'port' is no cluster option: did you",
        ),
    ],
)
def test_wrong_options_of_a_start_are_told_before_anything_is_asked(
    agent: Agent, wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        serve.start(**wrong)  # type: ignore[arg-type]
    assert driver().name == "x", "what was meant before is meant still"
