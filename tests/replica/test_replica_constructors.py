"""Plain constructors run in a thread, and on the loop when they ask for the loop that runs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from fake_incoming import run
from hosting import Hosted, S, order_of, shop, short_directory, spec_of

from headrace.spec.application import ImportedCode

threads: list[str] = []


class Counting:
    """Counts beside its calls, by a task that its constructor leaves on the loop."""

    def __init__(self, by: str) -> None:
        threads.append(threading.current_thread().name)
        self.count = 0
        if by == "create_task":
            self.task = asyncio.create_task(self.go_on())
        elif by == "get_running_loop":
            self.task = asyncio.get_running_loop().create_task(self.go_on())
        elif by == "get_event_loop":
            self.task = asyncio.get_event_loop().create_task(self.go_on())
        else:
            raise RuntimeError("another one")

    async def go_on(self) -> None:
        while self.count < 3:
            self.count += 1
            await asyncio.sleep(0)

    async def counted(self) -> int:
        await self.task
        return self.count


@pytest.fixture(autouse=True)
def _fresh() -> None:
    threads.clear()


def spec(by: str) -> Any:
    return spec_of(ImportedCode(__name__, "Counting"), by, name="Counting")


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("by", ["create_task", "get_running_loop", "get_event_loop"])
def test_a_constructor_that_asks_for_the_running_loop_gets_it(by: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with shop(spec(by)) as ((hosted, handle),):
            assert hosted.states == [S.STARTING, S.RUNNING]
            assert await handle.counted.remote() == 3

    run(check())
    assert threads == ["headrace-init", threading.current_thread().name]
    assert "make it `async def __init__`" in caplog.text


def test_any_other_error_of_a_constructor_is_its_end() -> None:
    async def check() -> str:
        with short_directory() as directory:
            hosted = Hosted(order_of(directory, spec("nothing")))
            report = await hosted.until(S.FAILED)
            await hosted.end()
            return report.error

    assert "RuntimeError: another one" in run(check())
    assert threads == ["headrace-init"]
