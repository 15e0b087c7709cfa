"""Slots that are kept for calls to come, over real connections: used, given back, and lost in every way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_router import Asked, Replica, World, echo, in_world, until

from headrace.router import Router
from headrace.router.reservation import Reservation
from headrace.spec.errors import BackPressureError, HeadraceError, ReplicaDiedError, RequestTimeoutError
from headrace.wire.frames import CALL, HTTP, RESERVED, STREAM, SUSPECT, CallMeta, ErrorInfo


class Kept(Reservation):
    """Notes what it is told."""

    def __init__(self, **fields: Any) -> None:
        super().__init__("app", "Model")
        self.told: list[str] = []
        self.errors: list[HeadraceError | ErrorInfo] = []
        for name, value in fields.items():
            setattr(self, name, value)

    def on_kept(self) -> None:
        self.told.append("kept")

    def on_over(self) -> None:
        self.told.append("over")

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self.errors.append(error)


def reserve(world: World, **fields: Any) -> Kept:
    kept = Kept(**fields)
    world.router.submit(kept)
    return kept


async def reserved(world: World, **fields: Any) -> Kept:
    kept = reserve(world, **fields)
    await until(lambda: kept.told)
    return kept


def use(world: World, kept: Kept, body: bytes = b"in", **fields: Any) -> Asked:
    link = kept.link
    assert link is not None
    call = Asked(body, revision=kept.revision, slot=kept, target=link.replica.id, **fields)
    world.router.submit(call)
    return call


def pool_of(world: World) -> Any:
    (pool,) = world.router._pools.values()
    return pool


async def settled(world: World, *servers: Replica) -> None:
    """Nothing is held, at either end."""
    replicas = servers or tuple(world.replicas.values())
    await until(lambda: not any(replica.server.gate.load for replica in replicas))
    await until(lambda: not any(link.calls for link in world.router.links))
    for link in world.router.links:
        assert link.replica.ours == 0
    for replica in replicas:
        assert not replica.server.on_drain
        assert not any(link.reserved._kept or link.calls for link in replica.server.links)


def test_a_slot_is_kept_and_the_call_takes_it_over(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        kept = await reserved(world)
        assert kept.stands
        assert replica.server.ongoing == 1
        waiting = world.ask(b"other")
        await until(lambda: pool_of(world).balancer.queued)
        assert await use(world, kept).outcome() == b"in"
        assert not kept.stands
        assert await waiting.outcome() == b"other"
        assert kept.told == ["kept", "over"]
        assert replica.most == 1
        await settled(world)

    in_world(test, tmp_path, limit=1)


def test_a_slot_that_is_given_back_goes_to_who_waits(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        kept = await reserved(world)
        waiting = world.ask(b"other")
        world.router.cancel(kept)
        assert await waiting.outcome() == b"other"
        assert kept.told == ["kept"]
        await settled(world)

    in_world(test, tmp_path, limit=1)


def test_a_reservation_waits_its_turn_and_can_be_given_up_meanwhile(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        first = world.ask()
        (incoming,) = await replica.until_calls(1)
        given_up, waiting, late = (
            reserve(world),
            reserve(world),
            reserve(world, deadline=world.router.loop.time() + 0.02),
        )
        world.router.cancel(given_up)
        await until(lambda: late.errors)
        assert isinstance(late.errors[0], RequestTimeoutError)
        incoming.reply(b"")
        await until(lambda: waiting.told == ["kept"])
        world.router.cancel(waiting)
        await first.outcome()
        await settled(world)
        assert given_up.told == []

    in_world(test, tmp_path, limit=1)


def test_it_is_refused_as_calls_are(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.add()
        kept = await reserved(world)
        waiting, refused = reserve(world), reserve(world)
        await until(lambda: refused.errors)
        assert isinstance(refused.errors[0], BackPressureError)
        world.router.cancel(kept)
        await until(lambda: waiting.told)
        world.router.cancel(waiting)
        await settled(world)

    in_world(test, tmp_path, limit=1, max_queued=1)


def test_its_time_ends_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        kept = await reserved(world, deadline=world.router.loop.time() + 0.05)
        await until(lambda: kept.told == ["kept", "over"])
        assert not kept.stands
        await settled(world)
        replica.handle = echo
        assert await use(world, kept).outcome() == b"in"  # as any call to that replica
        await settled(world)

    in_world(test, tmp_path, limit=1)


@pytest.mark.parametrize("how", ["drain", "crash", "dropped"])
def test_it_ends_with_its_replica(tmp_path: Path, how: str) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        kept = await reserved(world)
        if how == "dropped":  # from the snapshot: the slot stands, and the call is answered
            world.replicas.clear()
            world.publish()
            assert kept.stands
            replica.handle = echo
            assert await use(world, kept).outcome() == b"in"
            await until(lambda: not world.router.links)
            replica.server.close()
            return
        if how == "drain":
            replica.server.drain()
            await until(lambda: kept.told == ["kept", "over"])
            await asyncio.wait_for(replica.server.drained(), 20)
        else:
            replica.crash()
            await until(lambda: kept.errors)
            assert isinstance(kept.errors[0], ReplicaDiedError)
        assert not kept.stands
        outcome = await use(world, kept).outcome()
        assert isinstance(outcome, ReplicaDiedError)
        await until(lambda: not replica.server.gate.load)
        await until(lambda: not world.router.links)

    in_world(test, tmp_path, limit=1)


def test_a_call_that_crosses_the_end_of_its_slot_goes_as_any_other(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        kept = await reserved(world)
        (link,) = replica.server.links
        for stream in list(link.reserved._kept):
            link.reserved._release(stream)  # as when its time is over
        assert await use(world, kept).outcome() == b"in"
        await settled(world)

        kept = await reserved(world)
        other = Router(asyncio.get_running_loop(), "test#1")
        other.update(world.snapshot)
        replica.handle = replica.calls.append
        for stream in list(link.reserved._kept):
            link.reserved._release(stream)
        taken = Asked(b"first")
        other.submit(taken)
        await replica.until_calls(1)
        refused = use(world, kept, b"second")
        await until(lambda: pool_of(world).balancer._bound.count)
        assert refused.reservation == 0
        assert not refused.kind & RESERVED
        replica.handle = echo
        replica.calls.pop().reply(b"first")
        assert await refused.outcome() == b"second"
        assert await taken.outcome() == b"first"
        await other.close()
        await settled(world)

    in_world(test, tmp_path, limit=1)


def test_a_reservation_moves_when_its_replica_dies_before_it_answers(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second = await world.add(2)
        reservations = [reserve(world) for _ in range(2)]
        first.crash()
        await until(lambda: all(kept.told or kept.errors for kept in reservations))
        alive = [kept for kept in reservations if kept.stands]
        assert all(kept.link is not None and kept.link.replica.id == second.entry.id for kept in alive)
        for kept in reservations:
            assert not kept.suspect
            world.router.cancel(kept)
        await settled(world, second)

    in_world(test, tmp_path, limit=2)


def test_it_does_not_outlive_its_router(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        kept = await reserved(world)
        await world.router.close()
        assert kept.errors
        await until(lambda: not replica.server.gate.load)
        assert not replica.server.on_drain

    in_world(test, tmp_path, limit=1)


def test_large_and_streamed_calls_and_those_that_are_cancelled_take_slots_over_too(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        kept = await reserved(world)
        assert await use(world, kept, bytes(300_000), whole=True).outcome() == bytes(300_000)
        kept = await reserved(world)
        assert await use(world, kept, buffers=[memoryview(bytes(500_000))]).outcome() == b"in"
        replica.handle = replica.calls.append
        kept = await reserved(world)
        call = use(world, kept)
        (incoming,) = await replica.until_calls(1)
        world.router.cancel(call)
        await until(lambda: incoming.cancelled)
        assert replica.server.ongoing == 1
        incoming.reply(b"")
        await settled(world)

    in_world(test, tmp_path, limit=1)


def test_a_slot_is_used_once(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        kept = await reserved(world)
        first, second = use(world, kept, b"1"), use(world, kept, b"2")
        (incoming,) = await replica.until_calls(1)
        await until(lambda: pool_of(world).balancer._bound.count)
        replica.handle = echo
        incoming.reply(b"1")
        assert [await first.outcome(), await second.outcome()] == [b"1", b"2"]
        assert replica.most == 1
        await settled(world)

    in_world(test, tmp_path, limit=1)


def meta_of(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(CallMeta("r", "app", 1, 1, "app/Model@1", "__call__", **fields))


@pytest.mark.parametrize(
    ("flags", "meta"),
    [
        (RESERVED, b"\xc1 no metadata"),
        (RESERVED | HTTP, meta_of()),
        (RESERVED | STREAM, meta_of()),
        (RESERVED | SUSPECT, meta_of()),
        (RESERVED | 1, meta_of()),
    ],
)
def test_what_is_no_reservation_ends_the_connection_and_takes_no_slot(tmp_path: Path, flags: int, meta: bytes) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        await reserved(world)
        (link,) = world.router.links
        link.send(999, CALL, flags, 0, meta, b"")
        await until(lambda: not replica.server.links)
        await until(lambda: not replica.server.gate.load)
        assert not replica.server.on_drain

    in_world(test, tmp_path, limit=5)


def test_a_reservation_that_never_was_is_a_call_as_any_other(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        kept = await reserved(world)
        (link,) = world.router.links
        link.calls[999] = strange = Asked()
        strange.stream, strange.link = 999, link
        link.replica.ours += 1
        link.send(999, CALL, RESERVED, 0, meta_of(reservation=12345), b"x")
        (incoming,) = await replica.until_calls(1)
        assert replica.server.ongoing == 2
        incoming.reply(b"y")
        assert await strange.outcome() == b"y"
        assert kept.stands
        world.router.cancel(kept)
        await settled(world)

    in_world(test, tmp_path, limit=2)
