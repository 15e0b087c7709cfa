"""Callers that leave: before their batch starts they are not in it, and a batch that all have left is cancelled."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from batched_replica import GONE, LATE, Gate, batches_of, call, ended, outcomes, replica_of, stream, turns, until
from fake_incoming import run

from headrace import serve
from headrace.context import current_request
from headrace.spec.errors import (
    HeadraceError,
)
from headrace.wire import payload
from headrace.wire.frames import STREAM

INNER = {"on_loop": "on_loop", "in_thread": "in_thread", "awaits": "on_loop", "blocks": "in_thread"}


@pytest.mark.parametrize("method", ["on_loop", "in_thread", "awaits", "blocks"])
@pytest.mark.parametrize("way", ["cancel", "expire"])
def test_who_leaves_before_the_batch_starts_is_not_in_it(method: str, way: str) -> None:
    async def check() -> None:
        gate = Gate()
        invoker = replica_of(gate)
        first = call(method, "first")
        invoker.start(first)
        await until(lambda: gate.batches)
        gone, stays = call(method, "gone", remaining_s=1000.0), call(method, "stays")
        invoker.start(gone)
        invoker.start(stays)
        waiting = batches_of(invoker, INNER[method]).batcher
        await until(lambda: waiting.waiting == 2)
        getattr(gone, way)()
        await ended(gone)
        assert waiting.waiting == 1
        gate.let_go()
        await ended(first, stays)
        assert gate.batches == [["first"], ["stays"]]
        assert stays.result == "stays"
        assert gone.error is not None
        assert gone.error.type_name == (GONE if way == "cancel" else LATE)

    run(check())


@pytest.mark.parametrize("method", ["on_loop", "in_thread", "awaits", "blocks"])
@pytest.mark.parametrize("way", ["cancel", "expire"])
def test_who_leaves_while_the_batch_runs_gets_nothing_and_the_others_their_own(method: str, way: str) -> None:
    async def check() -> None:
        gate = Gate()
        invoker = replica_of(gate)
        calls = [call(method, i, remaining_s=1000.0) for i in range(3)]
        for one in calls:
            invoker.start(one)
        await until(lambda: gate.batches and batches_of(invoker, INNER[method]).batcher.running)
        if method == "blocks":  # threads come one by one
            gate.go_on.set()
            await ended(*calls)
            return
        assert gate.batches == [[0, 1, 2]]
        getattr(calls[1], way)()
        await turns()
        assert gate.seen == []
        assert calls[1].ended.is_set() == (method == "awaits"), "its slot is taken while it is worked on"
        gate.let_go()
        await ended(*calls)
        assert [one.result for one in calls] == [0, None, 2]
        assert calls[1].error is not None
        assert calls[1].error.type_name == (GONE if way == "cancel" else LATE)

    run(check())


@pytest.mark.parametrize("method", ["on_loop", "in_thread", "awaits", "blocks"])
@pytest.mark.parametrize("way", ["cancel", "expire"])
def test_a_batch_that_all_have_left_is_cancelled(method: str, way: str) -> None:
    async def check() -> None:
        gate = Gate()
        invoker = replica_of(gate)
        calls = [call(method, i, remaining_s=1000.0) for i in range(1 if method == "blocks" else 3)]
        for one in calls:
            invoker.start(one)
        await until(lambda: gate.batches)
        for one in calls:
            getattr(one, way)()
        if method in ("in_thread", "blocks"):
            await turns()
            gate.go_on.set()
        await ended(*calls)
        await until(lambda: not batches_of(invoker, INNER[method]).batcher.running)
        thread = method in ("in_thread", "blocks")
        assert ("cancelled: True" if thread else "cancelled") in gate.seen
        assert {one.error.type_name for one in calls if one.error} == {GONE if way == "cancel" else LATE}
        gate.let_go()
        after = call(method, "after")
        invoker.start(after)
        await ended(after)
        assert after.result == "after"

    run(check())


def test_a_batch_that_is_left_before_its_first_step_ends_too() -> None:
    async def check() -> None:
        gate = Gate()
        invoker = replica_of(gate)
        one = call("on_loop", 1)
        invoker.start(one)
        batches = batches_of(invoker, "on_loop")
        await until(lambda: batches.batcher.running)
        one.cancel()
        await ended(one)
        await until(lambda: not batches.batcher.running)
        assert gate.batches in ([], [[1]])
        gate.let_go()
        after = call("on_loop", "after")
        invoker.start(after)
        await ended(after)
        assert after.result == "after"

    run(check())


def test_a_task_that_waits_can_be_cancelled_alone() -> None:
    class Waits(Gate):
        async def gives_up(self, item: Any) -> Any:
            task = asyncio.ensure_future(self.on_loop(item))
            await until(lambda: self.batches)
            never_begun = asyncio.create_task(self.on_loop("never begun"))
            never_begun.cancel()
            await asyncio.wait([never_begun])
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                return "given up"

        async def in_time(self, item: Any) -> Any:
            try:
                return await asyncio.wait_for(self.on_loop(item), 0.01)
            except TimeoutError:
                return "too late"

    waits = Waits()
    assert outcomes(waits, call("gives_up", 1)) == ["given up"]
    assert waits.seen == ["cancelled"]
    assert waits.batches == [[1]]
    assert outcomes(Waits(), call("in_time", 1)) == ["too late"]


def test_a_call_whose_time_is_over_before_its_batch_can_start_is_not_in_it() -> None:
    async def check() -> None:
        gate = Gate()
        invoker = replica_of(gate)
        first, second = call("on_loop", 1), call("on_loop", 2, remaining_s=0.001)
        invoker.start(first)
        await until(lambda: gate.batches)
        invoker.start(second)
        await asyncio.sleep(0.005)  # FakeIncoming has no timer, as where the loop was held up
        gate.let_go()
        await ended(first, second)
        assert gate.batches == [[1]]
        assert isinstance(second.raised, HeadraceError)

    run(check())


def test_calls_that_a_batch_made_end_with_it() -> None:
    cancelled = []

    class Calls(Gate):
        @serve.batch
        async def on_loop(self, items: list[Any]) -> Any:
            request = current_request()
            assert request is not None

            class Made:
                def cancel(self) -> None:
                    cancelled.append(request.request_id)

            request.calls = {Made()}
            self.batches.append(items)
            await self.go.wait()
            return items

    async def check() -> None:
        calls = [call("on_loop", 1, request_id="a"), call("on_loop", 2, request_id="b")]
        gate = Calls()
        invoker = replica_of(gate)
        for one in calls:
            invoker.start(one)
        await until(lambda: gate.batches)
        calls[0].cancel()
        await turns()
        assert cancelled == []
        calls[1].cancel()
        await ended(*calls)
        assert cancelled == ["a"]

    run(check())


def test_what_runs_shows_its_state() -> None:
    async def check() -> None:
        gate = Gate()
        invoker = replica_of(gate)
        one = call("on_loop", 1)
        invoker.start(one)
        await until(lambda: gate.batches)
        batches = batches_of(invoker, "on_loop")
        assert repr(batches).startswith("<Batches of Gate.on_loop: <Batcher 0 waiting")
        gate.go.set()
        await ended(one)

    run(check())


class Busy:
    """Batches of every kind that take a little, fail now and then, and stream."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def _answer(self, items: list[Any]) -> list[Any]:
        chance = self.random.random()
        if chance < 0.1:
            raise ValueError("of the batch")
        return [ValueError("of the slot") if chance < 0.2 and item % 3 == 0 else item for item in items]

    @serve.batch(max_batch_size=5, max_concurrent_batches=2)
    async def on_loop(self, items: list[Any]) -> Any:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        return self._answer(items)

    @serve.batch(max_batch_size=5, max_concurrent_batches=2)
    def in_thread(self, items: list[Any]) -> Any:
        return self._answer(items)

    @serve.batch(max_batch_size=5, max_concurrent_batches=2)
    async def stream_on_loop(self, items: list[Any]) -> Any:
        for _ in range(self.random.randrange(6)):
            yield self._answer(items)

    @serve.batch(max_batch_size=5, max_concurrent_batches=2)
    def stream_in_thread(self, items: list[Any]) -> Any:
        for _ in range(self.random.randrange(6)):
            yield self._answer(items)

    async def awaits(self, item: Any) -> Any:
        return await asyncio.gather(self.on_loop(item), self.in_thread(item))

    def blocks(self, item: Any) -> Any:
        return self.on_loop(item), self.in_thread(item)

    async def reads(self, item: Any) -> Any:
        return [value async for value in self.stream_in_thread(item)]

    def reads_in_a_thread(self, item: Any) -> Any:
        return list(self.stream_on_loop(item))


@pytest.mark.parametrize("seed", range(8))
def test_everybody_gets_one_answer_whoever_leaves_and_whatever_fails(seed: int) -> None:
    async def check() -> None:
        busy, chance = Busy(seed), random.Random(seed)
        invoker = replica_of(busy)
        direct = ["on_loop", "in_thread", "stream_on_loop", "stream_in_thread"]
        calls = []
        for number in range(150):
            method = chance.choice([*direct, "awaits", "blocks", "reads", "reads_in_a_thread"])
            make = stream if method.startswith("stream") else call
            one = make(method, number, remaining_s=1000.0 if chance.random() < 0.5 else -1.0)
            if make is stream and chance.random() < 0.3:
                one.window = 2
            calls.append(one)
            invoker.start(one)
            while chance.random() < 0.5:
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                leaves = chance.choice(calls)
                if not (leaves.ended.is_set() or leaves.cancelled or leaves.expired):
                    leaves.cancel() if leaves.deadline is None or chance.random() < 0.5 else leaves.expire()
        for one in calls:
            one.let_drain()
        await ended(*calls)
        for method in direct:
            batches = batches_of(invoker, method)
            await until(lambda batches=batches: not batches.batcher.running and not batches.batcher.waiting)
        for one in calls:
            if one.error is None and not one.flags & STREAM:
                number = payload.decode(one.body)[0][0]
                plain = {"awaits": [number, number], "blocks": (number, number)}
                wanted = plain.get(one.meta.method, number)
                assert one.result == wanted or one.meta.method.startswith("reads")

    run(check())
