"""The fake engine's nodes: where processes run, and what is heard of nodes that are cut off, gone, leaving, or new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from instances import until_async

from headrace.engine.base import EngineEvent, NodesChanged, ProcessExited, ProcessRequest, Resources
from headrace.engine.fake import FakeEngine, HostedProcess
from headrace.spec.errors import InstanceError, ResourcesShortError
from headrace.spec.placement import Placement


class Sleeper:
    """Lives until it is asked to end, or killed."""

    def __init__(self, alive: set[str], id: str) -> None:
        self.alive = alive
        self.id = id
        self.asked = asyncio.Event()

    async def run(self) -> int:
        self.alive.add(self.id)
        try:
            await self.asked.wait()
            return 0
        finally:
            self.alive.discard(self.id)

    def stop(self) -> None:
        self.asked.set()


class World:
    """An engine of three nodes with two CPUs each, what it has told, and who lives, seen or not."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.events: list[EngineEvent] = []
        self.engine = FakeEngine({"worker": self.host}, cpus=2.0, gpus=1, nodes=("a", "b", "c"))

    async def host(self, request: ProcessRequest) -> HostedProcess:
        return Sleeper(self.alive, f"{request.id} on {request.node}")

    async def start(self, id: str, cpus: float = 0.0, **request: object) -> str:
        """Start it; where it runs."""
        wanted = ProcessRequest(id=id, role="worker", argv=("x",), resources=Resources(cpus=cpus), **request)  # type: ignore[arg-type]
        return (await self.engine.start(wanted)).node

    def exits(self) -> list[str]:
        return [event.id for event in self.events if isinstance(event, ProcessExited)]


def run(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        async with world.engine:
            await world.engine.open(world.events.append)
            await body(world)

    asyncio.run(main())


def test_processes_spread_over_nodes_that_have_room() -> None:
    async def body(world: World) -> None:
        assert [await world.start(f"{i}", cpus=1.0) for i in range(3)] == ["a", "b", "c"]
        assert await world.start("named", cpus=1.0, node="a") == "a"
        assert await world.start("elsewhere", cpus=1.0, avoid=("b",)) == "c"
        assert await world.start("last", cpus=1.0) == "b"
        with pytest.raises(ResourcesShortError, match=r"fits on no node: node a: .* has 2 of which 0 free"):
            await world.start("none", cpus=1.0)
        with pytest.raises(InstanceError, match=r"'d', which there is not \(a, b, c\)"):
            await world.start("nowhere", node="d")
        assert world.engine.capacity() == Resources(cpus=6.0, gpus=3.0)
        assert [(node.id, node.head) for node in world.engine.nodes()] == [("a", True), ("b", False), ("c", False)]

    run(body)


def test_no_more_of_a_group_than_may_share_a_node() -> None:
    async def body(world: World) -> None:
        two = Placement(group="g", max_per_node=1)
        assert sorted([await world.start(f"{i}", placement=two) for i in range(3)]) == ["a", "b", "c"]
        with pytest.raises(ResourcesShortError, match="node b has 1 of them already"):
            await world.start("4", placement=two)

    run(body)


def test_of_a_node_that_is_cut_off_nothing_is_heard_and_it_hears_nothing() -> None:
    async def body(world: World) -> None:
        for id in ("stopped", "dead", "given up", "well"):
            await world.start(id, node="b")
        await until_async(lambda: len(world.alive) == 4, "all to be up")
        world.engine.lose_node("b")
        with pytest.raises(InstanceError, match="node b cannot be reached"):
            await world.start("new", node="b")
        with pytest.raises(InstanceError, match="node b cannot be reached"):
            await world.engine.reserve_port("127.0.0.1", 0, node="b")
        world.engine.stop("stopped", 5.0)
        world.engine.crash("dead")
        world.engine.abandon("given up")
        assert world.exits() == ["given up"]
        await until_async(lambda: "dead on b" not in world.alive, "one to die")
        assert world.exits() == ["given up"]
        assert world.alive == {"stopped on b", "given up on b", "well on b"}
        assert "given up" not in [info.id for info in await world.engine.list()]
        world.engine.return_node("b")
        await until_async(lambda: world.alive == {"well on b"}, "what was said to be heard")
        await until_async(lambda: sorted(world.exits()) == ["dead", "given up", "stopped"], "the exits")

    run(body)


def test_a_node_that_is_gone_takes_all_along() -> None:
    async def body(world: World) -> None:
        await world.start("1", node="c")
        await world.start("2", node="c")
        world.engine.lose_node("c")
        world.engine.abandon("2")
        world.engine.remove_node("c")
        assert world.exits() == ["2", "1"]
        assert isinstance(world.events[-1], NodesChanged)
        assert [node.id for node in world.events[-1].nodes] == ["a", "b"]
        await until_async(lambda: not world.alive, "all to be gone")
        assert len(world.exits()) == 2
        world.engine.stop("1", 0.0)  # nobody's any more

    run(body)


def test_nodes_leave_and_come() -> None:
    async def body(world: World) -> None:
        world.engine.drain_node("a")
        assert [node.leaving for node in world.engine.nodes()] == [True, False, False]
        world.engine.add_node("d")
        assert {await world.start(f"{i}") for i in range(3)} == {"b", "c", "d"}
        world.engine.drain_node("a", leaving=False)
        assert await world.start("3") == "a"
        assert sum(isinstance(event, NodesChanged) for event in world.events) == 3
        with pytest.raises(ValueError, match="there is a node 'd' already"):
            world.engine.add_node("d")

    run(body)


def test_each_node_has_ports_of_its_own() -> None:
    async def body(world: World) -> None:
        ports = [await world.engine.reserve_port("127.0.0.1", 0, node=node) for node in "abc"]
        assert len(set(ports)) == 3
        assert [await world.engine.reserve_port("127.0.0.1", 0, node=node) for node in "abc"] == ports

    run(body)
