"""Batched functions and methods of each kind, and a loop to call them on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from headrace import serve

T = TypeVar("T")


def on_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it on a loop of its own; a minute is for ever."""

    async def limited() -> T:
        async with asyncio.timeout(60):
            return await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(limited())


class Model:
    """Methods of each kind, and what they were called with."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    @serve.batch(max_batch_size=4)
    async def double(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await asyncio.sleep(0)
        return [item * 2 for item in items]

    @serve.batch(max_batch_size=4)
    def triple(self, items: list[int]) -> list[int]:
        """Three times each."""
        self.batches.append(items)
        assert threading.current_thread().name.startswith("headrace-batch") or len(items) == 1
        return [item * 3 for item in items]

    @serve.batch
    async def count(self, ends: list[int]) -> Any:
        self.batches.append(ends)
        for i in range(max(ends) + 1):
            yield [i if i < end else StopAsyncIteration for end in ends]

    @serve.batch
    def count_in_thread(self, ends: list[int]) -> Any:
        self.batches.append(ends)
        for i in range(max(ends) + 1):
            yield [i if i < end else StopIteration() for end in ends]

    @serve.batch
    def weigh(self, items: list[int], factors: list[int], *, plus: list[int] | None = None) -> list[Any]:
        self.batches.append((items, factors, plus))
        return [i * f + p for i, f, p in zip(items, factors, plus or [0] * len(items), strict=True)]

    @staticmethod
    @serve.batch
    async def negative(items: list[int]) -> list[int]:
        return [-item for item in items]

    @serve.batch
    @staticmethod
    def positive(items: list[int]) -> list[int]:
        return [abs(item) for item in items]

    @classmethod
    @serve.batch
    def named(cls, items: list[int]) -> list[str]:
        return [f"{cls.__name__} {item} of {len(items)}" for item in items]


@serve.batch(max_batch_size=8)
async def doubled(items: list[int]) -> list[tuple[int, int]]:
    """Two times each."""
    return [(item * 2, len(items)) for item in items]


async def all_of(iterator: Any) -> list[Any]:
    return [item async for item in iterator]
