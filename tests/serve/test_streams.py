"""Generators from one deployment to another: items in their order, held back by who reads, ended by who leaves."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from headrace import serve
from headrace.handle import DeploymentHandle, DeploymentResponseGenerator
from headrace.serve.testing import TestInstance
from headrace.spec.errors import (
    GeneratorError,
    LoopBlockedError,
    PayloadError,
    ReplicaDiedError,
    RequestCancelledError,
    RequestTimeoutError,
)
from headrace.wire.frames import WINDOW_BYTES
from headrace.wire.items import ITEM_COST

AHEAD = WINDOW_BYTES // ITEM_COST


@serve.deployment(max_ongoing_requests=20)
class Source:
    def __init__(self) -> None:
        self.made = 0
        self.closed: list[str] = []

    async def count(self, n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                self.made += 1
                yield i
        finally:
            self.closed.append("async")

    def plain(self, n: int) -> Iterator[int]:
        try:
            for i in range(n):
                self.made += 1
                yield i
        finally:
            self.closed.append("plain")

    async def endless(self) -> AsyncIterator[int]:
        try:
            while True:
                self.made += 1
                yield self.made
                await asyncio.sleep(0)
        finally:
            self.closed.append("endless")

    async def arrays(self, n: int, size: int) -> AsyncIterator[np.ndarray]:
        for i in range(n):
            self.made += 1
            yield np.full(size, i, dtype=np.uint8)

    async def breaks(self, after: int) -> AsyncIterator[int]:
        for i in range(after):
            yield i
        raise KeyError("broken")

    async def later(self, n: int) -> AsyncIterator[int]:
        return self.count(n)

    def later_plain(self, n: int) -> Iterator[int]:
        return self.plain(n)

    def one(self) -> int:
        return 1

    async def unpicklable(self) -> AsyncIterator[Any]:
        yield 1
        yield threading.Lock()

    def state(self) -> tuple[int, list[str]]:
        return self.made, self.closed


@serve.deployment
class Through:
    def __init__(self, below: DeploymentHandle, method: str = "count") -> None:
        self.below = below.options(stream=True, method_name=method)

    async def count(self, *args: int) -> AsyncIterator[Any]:
        async for item in self.below.remote(*args):
            yield item

    endless = count


def run(check: Callable[[TestInstance], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), TestInstance() as instance:
            await check(instance)

    asyncio.run(main())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0)


async def state_of(source: DeploymentHandle) -> tuple[int, list[str]]:
    return await source.state.remote()


@pytest.mark.parametrize("method", ["count", "plain", "later", "later_plain"])
@pytest.mark.parametrize("n", [0, 1, 5 * AHEAD])
def test_items_come_in_their_order(method: str, n: int) -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        items = source.options(stream=True, method_name=method).remote(n)
        assert isinstance(items, DeploymentResponseGenerator)
        assert [item async for item in items] == list(range(n))
        with pytest.raises(StopAsyncIteration):
            await anext(items)

    run(check)


def test_plain_code_iterates_with_for() -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        handle = source.options(stream=True)
        assert await asyncio.to_thread(lambda: list(handle.count.remote(3 * AHEAD))) == list(range(3 * AHEAD))
        with pytest.raises(LoopBlockedError, match="async for"):
            next(handle.count.remote(1))

    run(check)


@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
def test_arrays_of_any_size_are_items(size: int) -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        at = 0
        async for array in source.options(stream=True).arrays.remote(12, size):
            assert array.shape == (size,)
            assert (array == at).all()
            assert not array.flags.writeable
            at += 1
        assert at == 12

    run(check)


@pytest.mark.parametrize("hops", [0, 1, 2])
@pytest.mark.parametrize("method", ["count", "plain"])
def test_who_does_not_read_holds_the_generator_back(method: str, hops: int) -> None:
    async def check(instance: TestInstance) -> None:
        app = Source.bind()
        for hop in range(hops):
            app = Through.options(name=f"Through{hop}").bind(app, "count" if hop else method)
        front = await instance.run(app)
        source = DeploymentHandle("Source")
        items = front.options(stream=True, method_name="count" if hops else method).remote(100 * AHEAD)
        assert await anext(items) == 0
        bound = (hops + 1) * (AHEAD + AHEAD // 2)
        # It goes on until it is held back: what it has made is then the same for hundreds of turns of the loop.
        before = -1
        while (made := (await state_of(source))[0]) != before:
            before = made
            for _ in range(200):
                await source.one.remote()
        assert AHEAD // 2 < made <= bound
        rest = [item async for item in items]
        assert rest == list(range(1, 100 * AHEAD))

    run(check)


def test_large_items_are_held_back_by_their_size() -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        items = source.options(stream=True).arrays.remote(50, 1_000_000)
        await anext(items)
        for _ in range(200):
            await source.one.remote()
        assert (await state_of(source))[0] <= 3
        assert len([item async for item in items]) == 49

    run(check)


@pytest.mark.parametrize("hops", [0, 1, 2])
@pytest.mark.parametrize("way", ["cancel", "aclose", "leave", "cancelled task"])
def test_who_leaves_closes_the_generator(way: str, hops: int) -> None:
    async def check(instance: TestInstance) -> None:
        app = Source.bind()
        for hop in range(hops):
            app = Through.options(name=f"Through{hop}").bind(app, "endless")
        front = await instance.run(app)
        source = DeploymentHandle("Source")
        items = front.options(stream=True).endless.remote()
        if way == "leave":
            async for item in items:
                if item > 10:
                    break
            del items
        elif way == "cancelled task":

            async def read(items: DeploymentResponseGenerator) -> None:
                async for _ in items:
                    pass

            task = asyncio.ensure_future(read(items))
            await until(lambda: made_some(source))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await anext(items)
            if way == "cancel":
                items.cancel()
            else:
                await items.aclose()
            assert items.cancelled()
            with pytest.raises(RequestCancelledError):
                await anext(items)

        async def closed() -> bool:
            return (await state_of(source))[1] == ["endless"]

        await until(closed)

    async def made_some(source: DeploymentHandle) -> bool:
        return (await state_of(source))[0] > 3

    run(check)


def test_a_plain_generator_that_is_held_back_is_closed_too() -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        items = source.options(stream=True).plain.remote(1 << 30)
        await anext(items)
        items.cancel()

        async def closed() -> bool:
            return (await state_of(source))[1] == ["plain"]

        await until(closed)

    run(check)


@pytest.mark.parametrize("method", ["count", "plain"])
def test_a_stream_ends_at_its_deadline(method: str) -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        items = source.options(stream=True, method_name=method, timeout_s=0.05).remote(1 << 30)
        with pytest.raises(RequestTimeoutError):
            async for _ in items:
                pass

        async def closed() -> bool:
            return len((await state_of(source))[1]) == 1

        await until(closed)

    run(check)


@pytest.mark.parametrize("after", [0, 1, 300])
def test_items_before_an_error_arrive_and_then_the_error_with_its_type(after: int) -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        items = source.options(stream=True).breaks.remote(after)
        assert [await anext(items) for _ in range(after)] == list(range(after))
        with pytest.raises(KeyError, match="broken"):
            await anext(items)

    run(check)


def test_an_item_that_cannot_be_pickled_ends_the_stream_alone() -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        items = source.options(stream=True).unpicklable.remote()
        assert await anext(items) == 1
        with pytest.raises(PayloadError, match="lock"):
            await anext(items)
        assert await source.one.remote() == 1

    run(check)


def test_the_wrong_way_to_call_says_which_is_right() -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        with pytest.raises(GeneratorError, match=r"Source.count is a generator.*stream=True"):
            await source.count.remote(3)
        with pytest.raises(GeneratorError, match=r"Source.later returned a generator.*stream=True"):
            await source.later.remote(3)
        with pytest.raises(GeneratorError, match="returned no generator but int"):
            await anext(source.options(stream=True).one.remote())
        items = source.options(stream=True).count.remote(1)
        with pytest.raises(GeneratorError, match="iterate over"):
            await items
        with pytest.raises(GeneratorError, match="iterate over"):
            items.result()
        response = source.one.remote()
        with pytest.raises(GeneratorError, match=r"`async for` over the one result of Source.one.*stream=True"):
            async for _ in response:
                pass
        with pytest.raises(GeneratorError, match=r"`for` over the one result of Source.one.*stream=True"):
            list(response)
        assert await response == 1
        with pytest.raises(PayloadError, match="by yielding them"):
            pickle.dumps(items)

    run(check)


def test_a_replica_that_dies_breaks_the_stream_after_what_had_come() -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.bind())
        items = source.options(stream=True).endless.remote()
        assert await anext(items) == 1
        (worker,) = [id for id in await instance.processes() if id.startswith("Source")]
        instance.engine.crash(worker)
        with pytest.raises(ReplicaDiedError):
            async for _ in items:
                pass

    run(check)


def test_slots_are_free_again_after_streams() -> None:
    async def check(instance: TestInstance) -> None:
        source = await instance.run(Source.options(max_ongoing_requests=1).bind())
        for method in ("count", "plain", "breaks", "count"):
            items = source.options(stream=True, method_name=method).remote(2)
            try:
                assert [item async for item in items] == [0, 1]
            except KeyError:
                assert method == "breaks"
        assert await source.one.remote() == 1

    run(check)
