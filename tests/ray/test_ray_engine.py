"""What the Ray engine promises beyond the contract of all engines: places, what Ray prepares, and who dies how."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray_cluster import RayCluster

from headrace.core.resources import Resources
from headrace.engine.base import EngineEvent, NodesChanged, ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.ray import cluster as clusters
from headrace.engine.ray import inventory
from headrace.engine.ray.engine import RayEngine
from headrace.engine.ray.names import NAMESPACE, agent_name
from headrace.engine.ray.places import what_was_raised
from headrace.spec.errors import InstanceError, ResourcesShortError
from headrace.spec.placement import Placement
from tests.engine.instances import alive, until_async

INSTANCE = "engine"
SECRET = os.urandom(32)
WAIT = "import time; time.sleep(1000)"


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(shared_cluster: RayCluster) -> Iterator[None]:
    yield
    clusters.end(INSTANCE, 0)
    assert clusters.left(INSTANCE) == []


class Bench:
    """An open engine, and what it told."""

    def __init__(self, cluster: RayCluster) -> None:
        self.cluster = cluster
        self.engine = RayEngine(INSTANCE, SECRET)
        self.events: list[EngineEvent] = []

    async def start(self, id: str, code: str = WAIT, **options: object) -> ProcessInfo:
        argv = (sys.executable, "-S", "-c", code)
        return await self.engine.start(ProcessRequest(id=id, role="worker", argv=argv, **options))  # type: ignore[arg-type]

    async def exited(self, id: str) -> ProcessExited:
        def told() -> list[ProcessExited]:
            return [event for event in self.events if isinstance(event, ProcessExited) and event.id == id]

        await until_async(told, f"the exit of {id}")
        (event,) = told()
        return event


@contextlib.asynccontextmanager
async def opened(cluster: RayCluster) -> AsyncIterator[Bench]:
    bench = Bench(cluster)
    await bench.engine.open(bench.events.append)
    try:
        yield bench
    finally:
        await bench.engine.close()


def run(cluster: RayCluster, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    """The scenario on an open engine; afterwards nothing that it started may live."""

    async def main() -> None:
        async with opened(cluster) as bench:
            try:
                await scenario(bench)
            finally:
                for info in await bench.engine.list():
                    bench.engine.stop(info.id, 0)
                    await bench.exited(info.id)
        await until_async(lambda: inventory.groups(INSTANCE) == [], "the placement groups to be gone")

    asyncio.run(main())


def test_processes_of_a_group_are_spread_and_bounded(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        placement = Placement(group="d", max_per_node=1)
        infos = await asyncio.gather(*(bench.start(id, placement=placement) for id in "abc"))
        assert {info.node for info in infos} == {node.id for node in cluster.nodes}
        with pytest.raises(ResourcesShortError, match="at most 1 replicas of it on one node"):
            await bench.start("e", placement=placement)
        await bench.engine.close()
        async with opened(cluster) as second:  # who comes later knows it as well
            with pytest.raises(ResourcesShortError, match="at most 1 replicas of it on one node"):
                await second.start("e", placement=placement)
        await bench.engine.open(bench.events.append)
        assert {info.id for info in await bench.engine.list()} == set("abc")

    run(cluster, scenario)


def test_a_process_runs_where_it_is_to_and_is_told_so(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        node = cluster.nodes[1]
        code = "import os; print(*(os.environ['HEADRACE_' + name] for name in ('NODE', 'NODE_HOST', 'RUNTIME_DIR')))"
        info = await bench.start("a", code, node=node.id)
        assert info.node == node.id
        assert (await bench.exited("a")).tail == (f"{node.id} {node.host} {node.home / INSTANCE}",)
        with pytest.raises(ResourcesShortError, match="does not fit on any node"):
            await bench.start("a", node="f" * 56)

    run(cluster, scenario)


def test_nodes_to_avoid_are_taken_when_no_other_has_room(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        first, second, third = (node.id for node in cluster.nodes)
        assert (await bench.start("a", avoid=(first, third))).node == second
        assert (await bench.start("b", avoid=(first, second, third))).node in (first, third)

    run(cluster, scenario)


def test_bundles_are_held_while_the_process_lives(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        placement = Placement(bundles=({"CPU": 1.0}, {"CPU": 2.0}), strategy="STRICT_SPREAD")
        await bench.start("a", placement=placement, resources=Resources(cpus=1.0))
        assert len(inventory.groups(INSTANCE)) == 1
        bench.engine.stop("a", 0)
        await bench.exited("a")
        await until_async(lambda: inventory.groups(INSTANCE) == [], "the group to be gone")
        never = Placement(bundles=tuple({"CPU": 1.0} for _ in range(4)), strategy="STRICT_SPREAD")
        with pytest.raises(ResourcesShortError, match="STRICT_SPREAD"):
            await bench.start("b", placement=never)

    run(cluster, scenario)


def test_a_process_has_the_runtime_env_of_its_seat(cluster: RayCluster, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        with zipfile.ZipFile(tmp_path / "folder.zip", "w") as packed:
            packed.writestr("folder/greeting.txt", "hello")
        placement = Placement(runtime_env={"working_dir": (tmp_path / "folder.zip").as_uri()})
        await bench.start("a", "print(open('greeting.txt').read())", placement=placement)
        assert (await bench.exited("a")).tail == ("hello",)
        wrong = Placement(runtime_env={"working_dir": "gcs://_ray_pkg_0000000000000000.zip"})
        with pytest.raises(InstanceError, match="b cannot be started: its runtime_env cannot be made"):
            await bench.start("b", placement=wrong)
        local = Placement(runtime_env={"working_dir": str(tmp_path)})  # of this machine, which no node can see
        with pytest.raises(InstanceError, match=r"c cannot be started: .* is a folder of one machine"):
            await bench.start("c", placement=local)

    run(cluster, scenario)


def test_of_what_failed_on_a_node_the_error_says_what_was_raised() -> None:
    told = """Failed to set up runtime environment.
[Node 10.0.0.2] Traceback (most recent call last):
  File "pip.py", line 132, in __init__
ModuleNotFoundError: No module named 'virtualenv'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "pip.py", line 134, in __init__
ray._private.runtime_env.utils.SubprocessCalledProcessError: Run cmd[3] failed with the following details.
Last 50 lines of stdout:
    ERROR: No matching distribution found for nothing
"""
    assert what_was_raised(told).splitlines() == [
        "ray._private.runtime_env.utils.SubprocessCalledProcessError: Run cmd[3] failed with the following details.",
        "Last 50 lines of stdout:",
        "    ERROR: No matching distribution found for nothing",
    ]
    assert what_was_raised("it could not be done\n") == "it could not be done"


def test_what_no_node_has_is_refused_by_name(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(ResourcesShortError, match=r"a does not fit on any node of the cluster: .*1 moon"):
            await bench.start("a", placement=Placement(resources={"moon": 1.0}))

    run(cluster, scenario)


def test_a_seat_that_is_killed_is_the_end_of_its_process(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        info = await bench.start("a")
        ((_, seating),) = inventory.seats(INSTANCE)
        os.kill(ray.get(seating.actor.where.remote()).pid, signal.SIGKILL)
        event = await bench.exited("a")
        assert (event.pid, event.code) == (info.pid, -9)
        assert event.tail[0].startswith("Ray: ")

    run(cluster, scenario)


def test_what_was_abandoned_is_told_at_once_and_dies(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        info = await bench.start("a")
        bench.engine.abandon("a")
        bench.engine.abandon("nobody")
        await asyncio.sleep(0)
        assert [event.id for event in bench.events if isinstance(event, ProcessExited)] == ["a"]
        again = await bench.start("a")
        assert again.pid != info.pid
        # `-S -c` ends with its lifeline only when asked: the engine kills it.
        await until_async(lambda: not alive(info.pid), "the end of what was abandoned")
        assert alive(again.pid)

    run(cluster, scenario)


def test_a_start_that_is_not_wanted_any_more_waits_no_longer(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        starting = asyncio.create_task(bench.start("a"))
        await asyncio.sleep(0)
        bench.engine.stop("a", 5)
        with pytest.raises(InstanceError, match="was stopped before"):
            await starting
        await bench.start("a")

    run(cluster, scenario)


def test_an_agent_that_dies_ends_its_ingress_and_holds_its_ports_again(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        node = cluster.nodes[2].id
        port = await bench.engine.reserve_port("127.0.0.1", 0, node=node)
        argv = (sys.executable, "-S", "-c", WAIT)
        await bench.engine.start(ProcessRequest(id="i", role="ingress", argv=argv, node=node))
        agent = ray.get_actor(agent_name(INSTANCE, node), namespace=NAMESPACE)
        before = ray.get(agent.post.remote())
        os.kill(before.where.pid, signal.SIGKILL)
        assert (await bench.exited("i")).code == -9
        await bench.engine.start(ProcessRequest(id="j", role="ingress", argv=argv, node=node))
        assert ray.get(agent.post.remote()).directory == before.directory
        assert await bench.engine.reserve_port("127.0.0.1", 0, node=node) == port
        assert await bench.engine.reserve_port("127.0.0.1", port, node=node) == port

    run(cluster, scenario)


def test_an_engine_that_follows_another_begins_without_a_node_that_answers_nobody(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        mute = cluster.nodes[1]
        info = await bench.start("a", node=mute.id)
        ((_, seating),) = inventory.seats(INSTANCE)
        agent = ray.get_actor(agent_name(INSTANCE, mute.id), namespace=NAMESPACE)
        stopped = [where.pid for where in ray.get([seating.actor.where.remote(), agent.where.remote()])]
        await bench.engine.close()
        bench.engine = RayEngine(INSTANCE, SECRET, patience_s=0.5)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            await bench.engine.open(bench.events.append)
            named = {node.id for node in bench.engine.nodes()}
            assert named == {node.id for node in cluster.nodes} - {mute.id}
            assert [each.node for each in await bench.engine.list()] == [mute.id]
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        await until_async(lambda: mute.id in {node.id for node in bench.engine.nodes()}, "the node is named")

        async def known() -> bool:
            return [each.pid for each in await bench.engine.list()] == [info.pid]

        while not await known():
            await asyncio.sleep(0.05)

    run(cluster, scenario)


def test_a_node_that_joins_and_one_that_is_drained_are_told(cluster: RayCluster) -> None:
    async def scenario(bench: Bench) -> None:
        assert [node.head for node in bench.engine.nodes()].count(True) == 1
        joined = cluster.add_node(env={"HEADRACE_HOME": str(cluster.head.home)})  # a second node of one machine
        try:
            await until_async(lambda: joined.id in {node.id for node in bench.engine.nodes()}, "the node")
            assert isinstance(bench.events[-1], NodesChanged)
            await bench.start("a", "import os; print(os.environ['HEADRACE_RUNTIME_DIR'])", node=joined.id)
            assert (await bench.exited("a")).tail == (f"{cluster.head.home}/@{joined.id[:8]}/{INSTANCE}",)
            gcs = ray._private.worker.global_worker.gcs_client
            gcs.drain_node(joined.id, 2, "the machine is to be taken back", 0)
            await until_async(lambda: any(node.leaving for node in bench.engine.nodes()), "that it leaves")
            with pytest.raises(ResourcesShortError, match="leaving"):
                await bench.start("b", node=joined.id)
        finally:
            cluster.kill(joined)

    run(cluster, scenario)
