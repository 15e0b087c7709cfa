"""Calls for one replica, or for those that have a model, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from test_router import Replica, World, in_world, until

from headrace.spec.errors import ReplicaDiedError


def with_replicas(test: Callable[[World], Awaitable[None]], tmp_path: Path, replicas: int, limit: int = 2) -> None:
    """Run the test in a world with so many replicas, which keep several models."""

    async def prepared(world: World) -> None:
        world.options["multiplexed"] = True
        await world.add(replicas)
        await test(world)

    in_world(prepared, tmp_path, limit)


def answer(replica: Replica, payload: bytes = b"ok") -> None:
    for incoming in replica.calls:
        incoming.reply(payload)
    replica.calls.clear()


def test_a_call_goes_to_the_replica_that_it_is_for(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for replica in world.replicas.values():
            calls = [world.ask(target=replica.entry.id) for _ in range(2)]
            await replica.until_calls(2)
            answer(replica, replica.entry.id.encode())
            assert [await call.outcome() for call in calls] == [replica.entry.id.encode()] * 2

    with_replicas(test, tmp_path, 3)


def test_it_waits_for_that_replica_while_others_are_idle(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        one, other = world.replicas.values()
        calls = [world.ask(target=one.entry.id) for _ in range(5)]
        for _ in range(5):
            await one.until_calls(1)
            one.calls.pop(0).reply(b"ok")
        assert [await call.outcome() for call in calls] == [b"ok"] * 5
        assert not other.calls

    with_replicas(test, tmp_path, 2)


def test_it_fails_with_its_replica_and_is_not_repeated_elsewhere(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        one, other = world.replicas.values()
        calls = [world.ask(target=one.entry.id) for _ in range(3)]
        await one.until_calls(1)
        one.crash()
        for call in calls:
            assert isinstance(await call.outcome(), ReplicaDiedError)
        assert not other.calls

    with_replicas(test, tmp_path, 2, limit=1)


def test_news_of_others_do_not_end_the_wait_for_a_replica_beyond_this_routers_share(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.options["routers"] = 100  # so each has a share of 20 replicas
        world.publish()
        (pool,) = world.router._pools.values()
        (beyond,) = [replica for name, replica in world.replicas.items() if name not in pool.connections]
        calls = [world.ask(target=beyond.entry.id) for _ in range(2)]
        await beyond.until_calls(1)
        world.options["retry_after_s"] = 2.0
        world.publish()
        for _ in calls:
            await beyond.until_calls(1)
            answer(beyond)
        assert [await call.outcome() for call in calls] == [b"ok"] * 2
        world.options["retry_after_s"] = 3.0
        world.publish()
        assert beyond.entry.id not in pool.connections, "nothing is kept that nobody waits for"

    with_replicas(test, tmp_path, 21, limit=1)


def test_a_loader_whose_replica_cannot_be_reached_leaves_no_trace(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (home,) = world.replicas.values()
        home.server.close()
        call = world.ask(model_id="cat")
        (pool,) = world.router._pools.values()
        world.router.cancel(call)
        assert not pool.balancer.loads(call)
        assert not pool.balancer.homes.known("cat")
        assert not pool.balancer.queued

    with_replicas(test, tmp_path, 1)


def test_a_replica_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        error = await world.ask(target="Model#77").outcome()
        assert isinstance(error, ReplicaDiedError)
        assert "Model#77" in str(error)

    with_replicas(test, tmp_path, 1)


def test_a_model_is_loaded_once_and_then_its_calls_go_there(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        calls = [world.ask(model_id="cat") for _ in range(6)]
        await until(lambda: any(replica.calls for replica in world.replicas.values()))
        (home,) = [replica for replica in world.replicas.values() if replica.calls]
        (other,) = [replica for replica in world.replicas.values() if replica is not home]
        home.server.models.tell(loading=["cat"])
        dog = world.ask(target=home.entry.id)  # a second call, to know that nothing else is on its way
        await home.until_calls(2)
        assert [incoming.meta.model_id for incoming in home.calls] == ["cat", None]
        home.server.models.tell(ready=["cat"])
        await home.until_calls(7)
        answer(home)
        assert [await call.outcome() for call in [*calls, dog]] == [b"ok"] * 7
        assert not other.calls

    with_replicas(test, tmp_path, 2, limit=8)


def test_a_router_that_comes_later_is_greeted_with_the_models(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        home = list(world.replicas.values())[1]
        home.server.models.tell(ready=["cat", "dog"], loading=["owl"])
        for replica in world.replicas.values():
            call = world.ask(target=replica.entry.id)
            await replica.until_calls(1)
            answer(replica)
            await call.outcome()
        (pool,) = world.router._pools.values()
        await until(lambda: pool.balancer.homes.known("owl"))
        call = world.ask(model_id="dog")
        await home.until_calls(1)
        answer(home)
        assert await call.outcome() == b"ok"

    with_replicas(test, tmp_path, 3, limit=8)


def test_a_hot_model_is_loaded_by_another_replica_without_a_call_waiting_there(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first = world.ask(model_id="cat")
        await until(lambda: any(replica.calls for replica in world.replicas.values()))
        (home,) = [replica for replica in world.replicas.values() if replica.calls]
        (other,) = [replica for replica in world.replicas.values() if replica is not home]
        wanted: list[str] = []
        other.server.models.load = wanted.append
        home.server.models.tell(loading=["cat"])
        home.server.models.tell(ready=["cat"])
        (pool,) = world.router._pools.values()
        record = pool.balancer.replicas[home.entry.id]
        await until(lambda: pool.balancer.homes.takes("cat", record))
        calls = [world.ask(model_id="cat") for _ in range(12)]
        await until(lambda: wanted == ["cat"])
        assert not other.calls
        other.server.models.tell(loading=["cat"])
        other.server.models.tell(ready=["cat"])
        await other.until_calls(2)
        while not all(call.end.is_set() for call in [first, *calls]):
            answer(home)
            answer(other)
            await asyncio.sleep(0)
        assert [await call.outcome() for call in calls] == [b"ok"] * 12

    with_replicas(test, tmp_path, 2, limit=2)


@pytest.mark.parametrize("how", ["answered", "cancelled", "lost"])
def test_calls_that_wait_for_a_loader_go_on_when_it_ends_without_a_load(tmp_path: Path, how: str) -> None:
    async def test(world: World) -> None:
        (home,) = world.replicas.values()
        loader = world.ask(model_id="cat")
        others = [world.ask(model_id="cat") for _ in range(3)]
        await home.until_calls(1)
        if how == "answered":
            answer(home)
            await loader.outcome()
        elif how == "cancelled":
            world.router.cancel(loader)
        else:
            home.crash()
            (home,) = await world.add()
            world.replicas.pop("Model#1")
            world.publish()
            await home.until_calls(1)
            home.server.models.tell(ready=["cat"])
        await until(lambda: len(home.calls) >= 3)
        answer(home)
        for call in others:
            assert await call.outcome() == b"ok"

    with_replicas(test, tmp_path, 1, limit=4)
