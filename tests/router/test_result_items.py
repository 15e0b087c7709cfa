"""Results that are items, over real connections: slots and blocks are given back, whatever ends the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_router import Asked, World, in_world, taken_bytes, until

from headrace.replica.incoming import Incoming
from headrace.router.call import Item
from headrace.spec.errors import ReplicaDiedError, RequestCancelledError
from headrace.wire.frames import STREAM
from headrace.wire.items import RecordReader
from headrace.wire.payload import Payload


class AskedForItems(Asked):
    kind = STREAM

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.reader = RecordReader()
        self.items: list[bytes] = []
        self.costs: list[int] = []

    def on_items(self, items: list[Item], more: bool) -> None:
        for _, data, _, cost in items:
            self.items.append(data)
            self.costs.append(cost)
        if not more:
            self.end.set()


def ask_for_items(world: World) -> AskedForItems:
    call = AskedForItems()
    world.router.submit(call)
    return call


@pytest.mark.parametrize("size", [0, 65_000, 70_000, 1_000_000])
def test_an_item_of_any_size_may_be_the_first_and_the_last_at_once(tmp_path: Path, size: int) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()

        def answer(incoming: Incoming) -> None:
            incoming.open_items()
            incoming.put_item(bytes(size))
            incoming.end_items()

        replica.handle = answer
        call = ask_for_items(world)
        await until(call.end.is_set)
        assert not call.errors
        assert call.items == [bytes(size)]
        assert replica.server.ongoing == 0

    in_world(test, tmp_path)


@pytest.mark.parametrize("size", [10, 200_000])
def test_blocks_of_items_that_never_left_are_free_again(tmp_path: Path, size: int) -> None:
    """They were put when the caller had gone already, or stood behind others in line."""

    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = ask_for_items(world)
        (incoming,) = await replica.until_calls(1)
        incoming.open_items()
        incoming.put_item(bytes(2_000_000))
        for _ in range(3):
            incoming.put_item(Payload(bytes(size), [memoryview(bytes(300_000))]))
        assert taken_bytes(world) > 0
        world.router.cancel(call)
        await until(lambda: incoming.cancelled)
        incoming.end_items()
        await until(lambda: replica.server.ongoing == 0 and not next(iter(world.router.links)).calls)
        await until(lambda: taken_bytes(world) == 0)

    in_world(test, tmp_path)


def test_credit_for_what_came_last_is_owed_to_nobody(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()

        def answer(incoming: Incoming) -> None:
            incoming.open_items()
            incoming.put_item(b"one")
            incoming.end_items()

        replica.handle = answer
        call = ask_for_items(world)
        await until(call.end.is_set)
        (link,) = world.router.links
        world.router.consumed(call, sum(call.costs))
        assert not link._owed

    in_world(test, tmp_path)


def test_the_end_of_the_time_and_of_interest_stop_the_work_once(tmp_path: Path) -> None:
    """What it does to end is not interrupted when the caller leaves, as it does at about that time."""

    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = ask_for_items(world)
        (incoming,) = await replica.until_calls(1)
        stops: list[bool] = []
        incoming.on_cancel = lambda: stops.append(incoming.cancelled)
        incoming.expire_at(world.router.loop.time())
        await until(lambda: incoming.expired)
        world.router.cancel(call)
        await until(lambda: incoming.cancelled)
        assert stops == [False]
        incoming.open_items()
        assert not incoming.put_item(b"to nobody")
        with pytest.raises(RequestCancelledError):
            await incoming.room()
        incoming.end_items()
        await until(lambda: replica.server.ongoing == 0)
        assert not any(link.outflows for link in replica.server.links)  # a replica drains until they have left

    in_world(test, tmp_path)


def test_a_dead_replica_that_sent_no_item_is_no_loss(tmp_path: Path) -> None:
    """The call is repeated; with the first item there is no going back."""

    async def test(world: World) -> None:
        (first,) = await world.add()
        before, after = ask_for_items(world), ask_for_items(world)
        _, begun = await first.until_calls(2)
        begun.open_items()
        begun.put_item(b"first")
        await until(lambda: after.items)
        world.replicas.clear()
        (second,) = await world.add()
        first.crash()
        (again,) = await second.until_calls(1)
        assert again.meta.attempt == 2
        again.open_items()
        again.put_item(b"whole")
        again.end_items()
        await until(lambda: before.end.is_set() and after.end.is_set())
        assert before.items == [b"whole"]
        assert not before.errors
        assert after.items == [b"first"]
        assert isinstance(after.errors[0], ReplicaDiedError)
        assert second.server.ongoing == 0

    in_world(test, tmp_path)
