"""Calls that were in work at a crash, over real connections: they take turns, and a crash convicts one at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from test_router import Asked, Replica, World, echo, in_world, until

from headrace.router import Router
from headrace.spec.errors import PoisonousRequestError
from headrace.spec.snapshot import RevisionEntry, Snapshot
from headrace.wire.frames import SUSPECT


def with_two_suspects(
    test: Callable[[World, Replica, dict[bytes, Asked], Router], Awaitable[None]], tmp_path: Path
) -> None:
    """Two calls of two routers were in work at a crash. They are at the other replica, where one of them runs."""

    async def run(world: World) -> None:
        other = Router(asyncio.get_running_loop(), "other#0")
        (first,) = await world.add()
        world.publish(router=other)
        calls = {b"mine": world.ask(b"mine"), b"theirs": world.ask(b"theirs", other)}
        await first.until_calls(2)
        world.replicas.clear()
        (second,) = await world.add()
        world.publish(router=other)
        first.crash()
        await until(lambda: second.server.ongoing == 2)
        assert len(second.calls) == 1
        await test(world, second, calls, other)
        await other.close()

    in_world(run, tmp_path)


def test_suspects_of_two_routers_run_one_after_the_other(tmp_path: Path) -> None:
    async def test(world: World, replica: Replica, calls: dict[bytes, Asked], other: Router) -> None:
        replica.calls[0].reply(b"done")
        await replica.until_calls(2)
        assert {bytes(incoming.body) for incoming in replica.calls} == {b"mine", b"theirs"}
        assert [incoming.meta.attempt for incoming in replica.calls] == [2, 2]
        replica.calls[1].reply(b"done")
        assert [await call.outcome() for call in calls.values()] == [b"done", b"done"]

    with_two_suspects(test, tmp_path)


def test_a_suspect_that_waits_for_its_turn_is_not_convicted_by_the_next_crash(tmp_path: Path) -> None:
    async def test(world: World, replica: Replica, calls: dict[bytes, Asked], other: Router) -> None:
        guilty = calls.pop(bytes(replica.calls[0].body))
        (bystander,) = calls.values()
        world.replicas.clear()
        (third,) = await world.add()
        world.publish(router=other)
        third.handle = echo
        replica.crash()
        assert isinstance(await guilty.outcome(), PoisonousRequestError)
        assert await bystander.outcome() == bystander.body

    with_two_suspects(test, tmp_path)


def test_calls_that_are_new_to_crashes_run_beside_a_suspect(tmp_path: Path) -> None:
    async def test(world: World, replica: Replica, calls: dict[bytes, Asked], other: Router) -> None:
        replica.handle = echo
        assert await world.ask(b"new").outcome() == b"new"
        replica.calls[0].reply(b"done")
        await asyncio.gather(*(call.outcome() for call in calls.values()))

    with_two_suspects(test, tmp_path)


def test_a_suspect_that_is_cancelled_before_its_turn_gives_its_slot_back(tmp_path: Path) -> None:
    async def test(world: World, replica: Replica, calls: dict[bytes, Asked], other: Router) -> None:
        running = calls.pop(bytes(replica.calls[0].body))
        (waiting,) = calls.values()
        (world.router if waiting.body == b"mine" else other).cancel(waiting)
        await until(lambda: replica.server.ongoing == 1)
        replica.calls[0].reply(b"done")
        assert await running.outcome() == b"done"
        await until(lambda: replica.server.gate.load == 0)
        assert len(replica.calls) == 1

    with_two_suspects(test, tmp_path)


def test_a_suspect_whose_router_is_gone_before_its_turn_gives_its_slot_back(tmp_path: Path) -> None:
    async def test(world: World, replica: Replica, calls: dict[bytes, Asked], other: Router) -> None:
        running = bytes(replica.calls[0].body)
        await (other if running == b"mine" else world.router).close()
        await until(lambda: replica.server.ongoing == 1)
        replica.calls[0].reply(b"done")
        assert await calls[running].outcome() == b"done"
        await until(lambda: replica.server.gate.load == 0)
        assert len(replica.calls) == 1

    with_two_suspects(test, tmp_path)


def test_a_suspect_that_is_drawn_to_another_revision_remains_one(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = world.ask(b"poison")
        await replica.until_calls(1)
        world.replicas.clear()
        world.publish()
        replica.crash()
        await until(lambda: call.suspect)
        replica = Replica(tmp_path, 2, 10)
        await replica.server.listen(replica.entry.address)
        old = next(iter(world.snapshot.deployments.values()))
        new = msgspec.structs.replace(old, key="app/Model@2", replicas=(replica.entry,))
        app = world.snapshot.applications["app"]
        second = RevisionEntry(number=2, weight=0.0, deployments={"Model": new.key})
        both = msgspec.structs.replace(app, revisions=(*app.revisions, second))
        world.router.update(
            Snapshot(version=world.version + 1, applications={"app": both}, deployments={old.key: old, new.key: new})
        )
        replica.handle = echo
        assert await world.ask(b"connected", revision=2).outcome() == b"connected"
        replica.handle = replica.calls.append
        alone = msgspec.structs.replace(app, revisions=(msgspec.structs.replace(second, weight=1.0),))
        world.router.update(
            Snapshot(version=world.version + 2, applications={"app": alone}, deployments={new.key: new})
        )
        (incoming,) = await replica.until_calls(1)
        assert incoming.flags & SUSPECT
        assert call.revision == 2
        await until(lambda: call.started)
        replica.crash()
        assert isinstance(await call.outcome(), PoisonousRequestError)

    in_world(test, tmp_path)
