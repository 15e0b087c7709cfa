"""Rollouts of real processes under load: nobody notices, nothing is mixed, no death in the middle changes the end."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.apps.versioned import Door, Inner, application
from bench.checked_load import Load, Tally
from bench.deploys import check, kill_controller
from bench.instance import free_port, on_ray, wait_for
from headrace import serve
from headrace.spec.errors import DeployFailedError, ResourcesShortError
from headrace.spec.status import ReplicaState, RolloutOutcome

APP = "versioned"


class Clients:
    """A checked load in a thread of its own."""

    def __init__(self, port: int, rate: int = 200, check: Any = check) -> None:
        self.tally: Tally | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.load = Load(port, rate, check=check)
        self._run(self.load.start())

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def until_answered(self, more: int) -> None:
        self._run(self.load.until_answered(more))

    def stop(self) -> Tally:
        tally: Tally = self._run(self.load.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        return tally


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as home:
        monkeypatch.setenv("HEADRACE_HOME", home)
        monkeypatch.setenv("HEADRACE_INSTANCE", f"rollouts-{Path(home).name}")  # whose revisions begin with 1
        port = free_port()
        serve.start(http_options={"port": port})
        try:
            yield port
        finally:
            serve.shutdown()


@pytest.mark.parametrize(
    "strategy",
    [
        serve.RollingUpdate(),
        serve.RollingUpdate(max_surge=1),
        serve.Canary(steps=[(0.1, 0.1), (0.5, 0.1)], analysis=[]),
        serve.BlueGreen(hold_s=0.1),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_deploys_in_a_row_fail_nobody_and_mix_nothing(port: int, strategy: Any) -> None:
    serve.run(application(0, replicas=2), name=APP)
    clients = Clients(port)
    for version in (1, 2):
        serve.run(application(version, replicas=2), name=APP, rollout=strategy)
        assert serve.wait_for_rollout(APP, 60).outcome == RolloutOutcome.PROMOTED
        clients.until_answered(50)
    tally = clients.stop()
    assert tally.failures == []
    assert tally.answered == tally.sent > 100


def test_a_controller_that_is_killed_in_the_middle_of_a_canary_goes_on_with_it(port: int) -> None:
    serve.run(application(0), name=APP)
    clients = Clients(port)
    serve.run(application(1), name=APP, rollout=serve.Canary(steps=[(0.5, None)], analysis=[]))
    before = wait_for(lambda: (s := serve.rollout_status(APP)).stage == "watching" and s, "the canary has its weight")
    kill_controller()
    after = wait_for(lambda: (s := serve.rollout_status(APP)).ready == 1.0 and s, "the controller is back")
    assert (after.stage, after.weights, after.revision) == ("watching", {1: 0.5, 2: 0.5}, 2)
    assert after.since == pytest.approx(before.since, abs=1.0)
    clients.until_answered(100)
    assert serve.rollout_status(APP).weights == {1: 0.5, 2: 0.5}
    serve.resume_rollout(APP)
    assert serve.wait_for_rollout(APP, 30).outcome == RolloutOutcome.PROMOTED
    assert clients.stop().failures == []


def test_requests_in_work_at_a_replica_that_is_shared_end_with_the_revision_that_they_began_with(port: int) -> None:
    @serve.deployment(name="Door", max_ongoing_requests=200, graceful_shutdown_timeout_s=5)
    class Patient:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, request: Any) -> dict[str, Any]:
            number = (await request.json())["n"]
            before = await self.inner.tell.remote()
            await asyncio.sleep(0.3)  # what it does takes a while
            after = await self.inner.tell.remote()
            return {"n": number, "pid": 0, "versions": [before[0], after[0]], "revisions": [before[1], after[1]]}

    serve.run(Patient.bind(Inner.bind(0)), name=APP)
    clients = Clients(port, rate=50)
    for version in (1, 2):
        serve.run(Patient.bind(Inner.bind(version)), name=APP)
        clients.until_answered(30)
    tally = clients.stop()
    assert len(serve.status().applications[APP].deployments["Door"].replicas) == 1
    assert tally.failures == []


def test_a_canary_whose_replica_dies_gives_its_traffic_back_until_there_is_another(port: int) -> None:
    serve.run(application(0), name=APP)
    clients = Clients(port)
    serve.run(application(1), name=APP, rollout=serve.Canary(steps=[(0.5, None)], analysis=[]))
    wait_for(lambda: serve.rollout_status(APP).stage == "watching", "the canary has its weight")
    for replica in serve.status().applications[APP].deployments["Door"].replicas:
        if replica.revision == 2:
            os.kill(replica.pid, signal.SIGKILL)
    wait_for(lambda: any("100" in each.reason for each in serve.history(APP).events[-6:]), "the traffic went back")
    wait_for(lambda: serve.rollout_status(APP).weights == {1: 0.5, 2: 0.5}, "the canary has its weight again")
    serve.abort_rollout(APP, reason="enough")
    status = serve.wait_for_rollout(APP, 30)
    assert (status.outcome, status.weights) == (RolloutOutcome.ROLLED_BACK, {1: 1.0})
    assert "enough" in status.reason
    tally = clients.stop()
    assert tally.failures == []


def test_a_revision_that_never_comes_up_takes_no_traffic_and_says_why(port: int) -> None:
    @serve.deployment(max_constructor_retry_count=1)
    class Door:
        def __init__(self) -> None:
            raise RuntimeError("no model here")

        async def __call__(self, request: Any) -> None: ...

    serve.run(application(0), name=APP)
    clients = Clients(port)
    for strategy in (serve.RollingUpdate(), serve.Canary(), serve.BlueGreen(), serve.Shadow()):
        with pytest.raises(DeployFailedError, match="no model here"):
            serve.run(Door.bind(), name=APP, rollout=strategy)
        status = serve.rollout_status(APP)
        assert (status.outcome, status.weights) == (RolloutOutcome.FAILED, {1: 1.0})
        assert "RuntimeError: no model here" in status.reason
    clients.until_answered(20)
    tally = clients.stop()
    assert tally.failures == []
    assert [record.outcome for record in serve.history(APP).revisions] == ["PROMOTED", *["FAILED"] * 4]


def test_a_revision_that_fails_more_is_rolled_back_by_itself(port: int) -> None:
    @serve.deployment(name="Door")
    class Failing:
        def __init__(self) -> None:
            self.count = 0

        async def __call__(self, request: Any) -> dict[str, Any]:
            self.count += 1
            if self.count % 2:
                raise RuntimeError("half of them")
            return {"n": (await request.json())["n"], "pid": 0, "versions": [1], "revisions": [2]}

    serve.run(application(0), name=APP)
    clients = Clients(port, rate=400)
    serve.run(Failing.bind(), name=APP, rollout=serve.Canary(steps=[(0.2, 60.0)]))
    status = serve.wait_for_rollout(APP, 60)
    assert (status.outcome, status.weights) == (RolloutOutcome.ROLLED_BACK, {1: 1.0})
    assert "error rate" in status.reason
    clients.until_answered(50)
    tally = clients.stop()
    assert 0 < len(tally.failures) < 200  # those of the canary alone


def test_a_rolling_update_goes_on_beside_what_it_replaces(port: int) -> None:
    """With a surge of one, there is never more than one replica beyond the number, and never one too few."""
    serve.run(application(0, replicas=3), name=APP)
    done = threading.Event()
    counts: list[int] = []

    def watch() -> None:
        while not done.is_set():
            replicas = serve.status().applications[APP].deployments["Inner"].replicas
            counts.append(sum(replica.state is ReplicaState.RUNNING for replica in replicas))

    watcher = threading.Thread(target=watch)
    watcher.start()
    serve.run(application(1, replicas=3), name=APP, rollout=serve.RollingUpdate(max_surge=1))
    done.set()
    watcher.join()
    assert {min(counts), max(counts)} <= {3, 4}


def test_where_there_is_no_room_beside_the_old_replicas_they_go_first(port: int) -> None:
    replicas, cpus = all_cpus()

    def large(version: int) -> serve.Application:
        inner = Inner.bind(version)
        return Door.options(num_replicas=replicas, num_cpus=cpus).bind(inner, version)

    serve.run(large(0), name=APP)
    clients = Clients(port, rate=50)
    with pytest.raises(ResourcesShortError, match="max_unavailable=1"):
        serve.run(large(1), name=APP)
    assert serve.rollout_status(APP).weights == {1: 1.0}
    serve.run(large(2), name=APP, rollout=serve.RollingUpdate(max_surge=0, max_unavailable=1))
    assert serve.rollout_status(APP).weights == {3: 1.0}
    clients.until_answered(20)
    assert clients.stop().failures == []  # they waited


def test_a_model_without_room_for_another_changes_behind_a_door_that_stays(port: int) -> None:
    replicas, cpus = all_cpus()

    def large(version: int) -> serve.Application:
        inner = Inner.options(num_replicas=replicas, num_cpus=cpus).bind(version)
        return Door.options(graceful_shutdown_timeout_s=1.0).bind(inner, 0)

    def check_inner(number: int, body: bytes, answer: dict[str, Any]) -> str:
        revisions = answer["revisions"]
        known = {1: 0, 2: 1}.get(revisions[0]) == answer["versions"][1]
        return "" if answer["n"] == number and len(set(revisions)) == 1 and known else f"got {answer}"

    serve.run(large(0), name=APP)
    clients = Clients(port, rate=50, check=check_inner)
    serve.run(large(1), name=APP, rollout=serve.RollingUpdate(max_surge=0, max_unavailable=1))
    assert serve.rollout_status(APP).weights == {2: 1.0}
    clients.until_answered(20)
    assert clients.stop().failures == []


def all_cpus() -> tuple[int, int]:
    """How many replicas of how many CPUs take all that there are: on a cluster, those of each of its nodes."""
    return (3, 16) if on_ray() else (1, os.cpu_count() or 1)
