"""Batches of generators: their readers, slow ones and such as leave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
from batched_replica import batches_of, call, ended, outcomes, replica_of, stream, turns, until
from fake_incoming import run

from headrace import serve
from headrace.replica import batched_streams
from headrace.spec.errors import (
    RequestTimeoutError,
)


class Endless:
    """Generators that go on until they are closed."""

    def __init__(self) -> None:
        self.made = 0
        self.seen: list[str] = []
        self.closed = threading.Event()

    @serve.batch(max_batch_size=4)
    async def on_loop(self, items: list[Any]) -> Any:
        try:
            while True:
                self.made += 1
                yield [self.made] * len(items)
                await asyncio.sleep(0)
        finally:
            self.seen.append("closed")
            self.closed.set()

    @serve.batch(max_batch_size=4)
    def in_thread(self, items: list[Any]) -> Any:
        try:
            while True:
                self.made += 1
                yield [self.made] * len(items)
        finally:
            self.seen.append("closed")
            self.closed.set()

    async def takes(self, count: int) -> Any:
        taken = []
        async for value in self.on_loop(0):
            taken.append(value)
            if len(taken) == count:
                return taken

    def takes_in_a_thread(self, count: int) -> Any:
        taken = []
        for value in self.in_thread(0):
            taken.append(value)
            if len(taken) == count:
                return taken

    async def never_begins(self) -> Any:
        self.on_loop(0)
        return "let go of"

    def never_begins_in_a_thread(self) -> Any:
        self.in_thread(0)
        return "let go of"


@pytest.mark.parametrize("method", ["on_loop", "in_thread"])
@pytest.mark.parametrize("way", ["cancel", "expire"])
@pytest.mark.parametrize("window", [3, 1 << 30])
def test_a_generator_that_all_have_left_is_closed(method: str, way: str, window: int) -> None:
    async def check() -> None:
        endless = Endless()
        invoker = replica_of(endless)
        calls = [stream(method, i, window=window, remaining_s=1000.0) for i in range(2)]
        for one in calls:
            invoker.start(one)
        for one in calls:
            await one.started.wait()
        getattr(calls[0], way)()
        await ended(calls[0])
        assert calls[0].error is not None
        before = len(calls[1].items)
        if window > 3:
            await until(lambda: len(calls[1].items) > before)
        assert not endless.seen
        getattr(calls[1], way)()
        await ended(calls[1])
        await until(endless.closed.is_set)
        batches = batches_of(invoker, method)
        await until(lambda: not batches.batcher.running)
        assert endless.seen == ["closed"]

    run(check())


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("takes", [1, 2, 3]),
        ("takes_in_a_thread", [1, 2, 3]),
        ("never_begins", "let go of"),
        ("never_begins_in_a_thread", "let go of"),
    ],
)
def test_a_reader_that_lets_go_has_left(method: str, result: Any) -> None:
    async def check() -> None:
        endless = Endless()
        invoker = replica_of(endless)
        one = call(method, 3) if method.startswith("takes") else call(method)
        invoker.start(one)
        await ended(one)
        assert one.result == result
        batches = batches_of(invoker, "in_thread" if "thread" in method else "on_loop")
        await until(lambda: not batches.batcher.running and not batches.batcher.waiting)
        assert endless.seen in (["closed"], []) if method.startswith("never") else endless.seen == ["closed"]

    run(check())


@pytest.mark.parametrize("method", ["on_loop", "in_thread"])
def test_a_batch_waits_for_a_slow_reader(method: str) -> None:
    async def check() -> None:
        endless = Endless()
        invoker = replica_of(endless)
        slow, quick = stream(method, 0, window=5), stream(method, 1)
        invoker.start(slow)
        invoker.start(quick)
        await until(lambda: len(slow.items) > 5)
        count = endless.made
        await turns(50)
        assert endless.made <= count + batched_streams.AHEAD_OF_LOOP + 1
        assert len(quick.items) == len(slow.items) == 6
        slow.window = 1 << 30
        slow.let_drain()
        await until(lambda: len(quick.items) > 50)
        assert slow.items == list(range(1, len(slow.items) + 1))
        slow.cancel()
        quick.cancel()
        await ended(slow, quick)

    run(check())


@pytest.mark.parametrize("method", ["on_loop", "in_thread"])
def test_a_reader_that_takes_nothing_while_others_wait_is_failed(method: str) -> None:
    async def check() -> None:
        endless = Endless()
        invoker = replica_of(endless)
        batches_of(invoker, method).stall_s = 0.02
        stuck, quick = stream(method, 0, window=5), stream(method, 1)
        invoker.start(stuck)
        invoker.start(quick)
        await ended(stuck)
        assert isinstance(stuck.raised, RequestTimeoutError)
        assert "was not read for 0.02 s, while others of its batch waited" in str(stuck.raised)
        count = len(quick.items)
        await until(lambda: len(quick.items) > count + 10)
        quick.cancel()
        await ended(quick)

    run(check())


@pytest.mark.parametrize("method", ["on_loop", "in_thread"])
def test_readers_that_all_take_nothing_are_waited_for(method: str) -> None:
    async def check() -> None:
        endless = Endless()
        invoker = replica_of(endless)
        batches_of(invoker, method).stall_s = 0.001
        calls = [stream(method, i, window=5) for i in range(2)]
        for one in calls:
            invoker.start(one)
        await until(lambda: all(len(one.items) > 5 for one in calls))
        await asyncio.sleep(0.02)
        assert not any(one.ended.is_set() for one in calls)
        for one in calls:
            one.cancel()
        await ended(*calls)

    run(check())


def test_readers_in_user_code_are_a_bounded_way_behind() -> None:
    class Reads(Endless):
        async def slowly(self, turn: int) -> Any:
            reader = self.on_loop(0)
            first = await anext(reader)
            await until(lambda: self.made >= batched_streams.AHEAD)
            count = self.made
            await turns(50)
            assert self.made <= count + 2
            taken = [first]
            async for value in reader:
                taken.append(value)
                if len(taken) > 2 * batched_streams.AHEAD:
                    return taken == list(range(1, len(taken) + 1))

        def slowly_in_a_thread(self, turn: int) -> Any:
            taken = []
            for value in self.in_thread(0):
                if not taken:
                    while self.made < batched_streams.AHEAD:
                        pass
                taken.append(value)
                if len(taken) > 2 * batched_streams.AHEAD:
                    bound = 2 * batched_streams.AHEAD + len(taken) + 2 * batched_streams.AHEAD_OF_LOOP
                    return taken == list(range(1, len(taken) + 1)) and self.made <= bound

        async def stuck(self) -> Any:
            self.on_loop.batches(asyncio.get_running_loop(), serve.get_replica_context()).stall_s = 0.02
            stuck, quick = self.on_loop(0), self.on_loop(1)
            first = await anext(stuck)
            count = 0
            async for _ in quick:
                count += 1
                if count > 3 * batched_streams.AHEAD:
                    break
            taken = [first]
            try:
                async for value in stuck:
                    taken.append(value)
            except RequestTimeoutError:
                return len(taken)

    assert outcomes(Reads(), call("slowly", 0)) == [True]
    assert outcomes(Reads(), call("slowly_in_a_thread", 0)) == [True]
    assert outcomes(Reads(), call("stuck")) == [batched_streams.AHEAD + 2]


def test_a_generator_whose_streams_have_ended_may_end_by_itself() -> None:
    seen = []

    class Decodes:
        @serve.batch
        async def decode(self, ends: list[int]) -> Any:
            try:
                i = 0
                while True:
                    left = [i < end for end in ends]
                    yield [i if more else StopIteration for more in left]
                    if not any(left):
                        break
                    i += 1
                seen.append("ended")
            except GeneratorExit:
                seen.append("closed")
                raise

        @serve.batch
        def never_ends(self, ends: list[int]) -> Any:
            try:
                while True:
                    yield [StopIteration for _ in ends]
            finally:
                seen.append("closed")

    calls = [stream("decode", 2), stream("decode", 3)]
    outcomes(Decodes(), *calls)
    assert [one.items for one in calls] == [[0, 1], [0, 1, 2]]
    assert seen == ["ended"]

    async def check() -> None:
        invoker = replica_of(Decodes())
        one = stream("never_ends", 1)
        invoker.start(one)
        await ended(one)
        await until(lambda: len(seen) == 2)

    run(check())
    assert seen == ["ended", "closed"]


def test_a_generator_that_will_not_close_fails_nobody() -> None:
    class Stubborn:
        @serve.batch
        async def on_loop(self, items: list[Any]) -> Any:
            with contextlib.suppress(GeneratorExit):
                while True:
                    yield items
            yield items

        @serve.batch
        def in_thread(self, items: list[Any]) -> Any:
            with contextlib.suppress(GeneratorExit):
                while True:
                    yield items
            yield items

    async def check(method: str) -> None:
        stubborn = Stubborn()
        invoker = replica_of(stubborn)
        for _ in range(2):
            one = stream(method, 1)
            invoker.start(one)
            await one.started.wait()
            one.cancel()
            await ended(one)
        batches = batches_of(invoker, method)
        await until(lambda: not batches.batcher.running)

    for method in ("on_loop", "in_thread"):
        run(check(method))


def test_an_error_in_the_slot_of_a_stream_is_that_streams_own() -> None:
    class Slots:
        @serve.batch
        async def yields(self, items: list[int]) -> Any:
            yield items
            yield [ValueError("of the slot") if item == 1 else item for item in items]
            yield items

    calls = [stream("yields", i) for i in range(3)]
    outcomes(Slots(), *calls)
    assert [one.items for one in calls] == [[0, 0, 0], [1], [2, 2, 2]]
    assert isinstance(calls[1].raised, ValueError)
