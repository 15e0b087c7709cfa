"""Nothing is kept of a call that has ended: not by a reference, nor by a cycle that the collector cannot see."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator

from headrace import serve
from headrace.replica.incoming import Incoming
from headrace.serve.testing import TestInstance

CALLS = 20


@serve.deployment
class Callee:
    async def on_loop(self, number: int) -> int:
        return number

    def in_thread(self, number: int) -> int:
        return number

    async def stream(self, number: int) -> AsyncIterator[int]:
        for each in range(number):
            yield each

    def plain_stream(self, number: int) -> Iterator[int]:
        yield from range(number)

    async def fail(self, number: int) -> int:
        raise ValueError("no")

    async def wait(self, number: int) -> None:
        await asyncio.Event().wait()


def kept() -> int:
    gc.collect()
    return sum(type(each) is Incoming for each in gc.get_objects())


def test_ended_calls_are_gone() -> None:
    async def run() -> None:
        before = kept()  # by earlier tests
        async with TestInstance() as instance:
            handle = await instance.run(Callee.bind())
            for number in range(CALLS):
                assert await handle.on_loop.remote(number) == number
                assert await handle.in_thread.remote(number) == number
                for method in ("stream", "plain_stream"):
                    items = handle.options(method_name=method, stream=True).remote(3)
                    assert [item async for item in items] == [0, 1, 2]
                try:
                    await handle.fail.remote(number)
                except ValueError:
                    pass
                waiting = handle.wait.remote(number)
                await asyncio.sleep(0)
                waiting.cancel()
            assert await handle.on_loop.remote(1) == 1  # after the cancellations, on the same connection
            assert kept() - before < CALLS

    asyncio.run(run())
