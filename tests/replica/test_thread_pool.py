"""Threads beside the loop: what they give is done on it, and let go where the loop is no more."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from bench.instance import wait_for
from headrace.replica.threads import Done, ThreadPool


class Model:
    def done(self) -> None:
        """What is done on the loop."""


def test_what_a_thread_gives_is_done_on_the_loop() -> None:
    told: list[int] = []

    async def body() -> None:
        pool = ThreadPool(asyncio.get_running_loop(), 2)
        every = asyncio.Event()

        def work(number: int) -> Done:
            def done() -> None:
                assert threading.current_thread() is threading.main_thread()
                told.append(number)
                if len(told) == 10:
                    every.set()

            return done

        for number in range(10):
            pool.submit(lambda number=number: work(number))
        await every.wait()
        pool.close()

    asyncio.run(body())
    assert sorted(told) == list(range(10))


@pytest.mark.parametrize("closed", ["before the thread tells it", "before it takes what it was told"])
def test_what_no_loop_takes_any_more_is_let_go(closed: str) -> None:
    loop = asyncio.new_event_loop()
    pool = ThreadPool(loop, 1)
    may_end = threading.Event()
    model = Model()
    gone = weakref.ref(model)

    def work(model: Model = model) -> Done:
        may_end.wait(60)
        return model.done

    pool.submit(work)
    if closed == "before the thread tells it":
        loop.close()
        may_end.set()
    else:
        may_end.set()
        wait_for(lambda: pool._woken, "the loop is told", 60)
        loop.close()
    del work, model
    wait_for(lambda: gone() is None, "nothing holds it", 60)
    pool.close()
