"""Whatever a batch function does, its own batch alone fails, and is told of once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from batched_replica import call, ended, outcomes, replica_of, stream
from fake_incoming import http_call, run
from starlette.exceptions import HTTPException

from headrace import serve
from headrace.spec.errors import (
    HeadraceError,
    UserCodeError,
)


class Own(Exception):
    """An error whose constructor takes other arguments than it keeps, so that it cannot be copied."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Weird:
    """What looks like a sequence, and breaks."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> int:
        if isinstance(self.length, BaseException):
            raise self.length
        return self.length  # type: ignore[no-any-return]

    def __getitem__(self, place: int) -> int:
        assert isinstance(self.length, int)
        return list(range(self.length - 1))[place]


class Frame:
    """As a data frame is: its length is that of its rows, its items are its columns."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, name: str) -> Any:
        return []

    def iterrows(self) -> Any:
        return iter(())


async def _coroutine() -> list[int]:
    return [1, 2, 3]


FAULTS: dict[str, Callable[[int], Any]] = {
    "raises": lambda n: 1 / 0,
    "raises what cannot be copied": lambda n: _raise(Own(1, 2)),
    "exits": lambda n: _raise(SystemExit(3)),
    "is interrupted": lambda n: _raise(KeyboardInterrupt()),
    "cancels itself": lambda n: _raise(asyncio.CancelledError()),
    "stops": lambda n: next(iter([])),
    "stops asynchronously": lambda n: _raise(StopAsyncIteration()),
    "closes": lambda n: _raise(GeneratorExit()),
    "raises a group": lambda n: _raise(BaseExceptionGroup("many", [SystemExit(), ValueError()])),
    "nothing": lambda n: None,
    "a number": lambda n: 7,
    "too few": lambda n: [1] * (n - 1),
    "too many": lambda n: [1] * (n + 1),
    "none": lambda n: [],
    "text": lambda n: "x" * n,
    "bytes": lambda n: b"x" * n,
    "a dict": dict.fromkeys,
    "a set": lambda n: set(range(n)),
    "an iterator": lambda n: iter([1] * n),
    "a generator": lambda n: (1 for _ in range(n)),
    "a scalar": lambda n: np.float64(1.0),
    "an array without dimensions": lambda n: np.array(1.0),
    "an array of another length": lambda n: np.zeros((n + 1, n)),
    "a data frame": lambda n: Frame(),
    "what has no length": lambda n: Weird(ValueError("no length")),
    "what exits when it is measured": lambda n: Weird(SystemExit()),
    "what has less than it says": lambda n: Weird(n),
    "the class of an error": lambda n: ValueError,
    "an error": lambda n: ValueError("returned"),
}


def _raise(error: BaseException) -> Any:
    raise error


class Faulty:
    """Does what the items of a batch say, all being alike."""

    @serve.batch(max_batch_size=32, bucket_fn=str)
    async def on_loop(self, items: list[str]) -> Any:
        return items if items[0] == "well" else FAULTS[items[0]](len(items))

    @serve.batch(max_batch_size=32, bucket_fn=str)
    def in_thread(self, items: list[str]) -> Any:
        return items if items[0] == "well" else FAULTS[items[0]](len(items))

    @serve.batch(max_batch_size=32, bucket_fn=str)
    async def on_loop_stream(self, items: list[str]) -> Any:
        yield items
        yield items if items[0] == "well" else FAULTS[items[0]](len(items))

    @serve.batch(max_batch_size=32, bucket_fn=str)
    def in_thread_stream(self, items: list[str]) -> Any:
        yield items
        yield items if items[0] == "well" else FAULTS[items[0]](len(items))

    async def awaits(self, item: str) -> Any:
        return await self.on_loop(item)

    def blocks(self, item: str) -> Any:
        return self.in_thread(item)

    async def reads(self, item: str) -> Any:
        return [value async for value in self.on_loop_stream(item)]

    def reads_in_a_thread(self, item: str) -> Any:
        return list(self.in_thread_stream(item))


@pytest.mark.parametrize(
    "method",
    [
        "on_loop",
        "in_thread",
        "on_loop_stream",
        "in_thread_stream",
        "awaits",
        "blocks",
        "reads",
        "reads_in_a_thread",
    ],
)
def test_whatever_a_batch_function_does_its_batch_alone_fails_and_the_next_is_served(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "headrace")
    make = stream if method.endswith("_stream") else call

    async def work() -> None:
        invoker = replica_of(Faulty(), 128)
        for fault in FAULTS:
            caplog.clear()
            bad = [make(method, fault, request_id=f"bad-{i}") for i in range(3)]
            good = [make(method, "well") for _ in range(2)]
            for one in [bad[0], good[0], *bad[1:], good[1]]:
                invoker.start(one)
            await ended(*bad, *good)
            for one in bad:
                assert one.error is not None, fault
                assert isinstance(one.raised, Exception), fault
            for one in good:
                assert one.error is None, fault
                if make is stream:
                    assert one.items == ["well", "well"]
                elif method.startswith("reads"):
                    assert one.result == ["well", "well"]
                else:
                    assert one.result == "well"
            if make is stream:
                assert [one.items for one in bad] == [[fault]] * 3, "what came before the error arrives"
            if fault != "raises what cannot be copied":
                assert len(caplog.records) <= 3, fault
                assert any("bad-0" in record.getMessage() for record in caplog.records), fault

    run(work())


def test_a_failed_batch_is_told_once_and_each_caller_gets_an_error_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "headrace")
    errors = []

    class Fails:
        @serve.batch(max_batch_size=8)
        async def fail(self, items: list[int]) -> list[int]:
            error = ValueError("of the batch", items)
            error.note = "kept"  # type: ignore[attr-defined]
            raise error

        async def passes_on(self, item: int) -> int:
            try:
                return await self.fail(item)  # type: ignore[no-any-return]
            except ValueError as error:
                errors.append(error)
                raise

        async def handles(self, item: int) -> Any:
            with contextlib.suppress(ValueError):
                return await self.fail(item)
            raise KeyError("of the method")

    calls = [call("passes_on", i, request_id=f"r-{i}") for i in range(8)]
    found = outcomes(Fails(), *calls)
    assert all(isinstance(error, ValueError) and error.args[1] == list(range(8)) for error in found)
    assert all(error.note == "kept" and len(vars(error)) == 1 for error in found), "what was noted stays here"
    assert len({id(error) for error in errors}) == 8
    assert "of the batch" in calls[0].error.traceback_text  # type: ignore[union-attr]
    [record] = caplog.records
    assert "requests r-0, r-1, r-2, r-3, r-4 and 3 more: M: " in record.getMessage()
    assert "Fails.fail raised ValueError" in record.getMessage()
    assert "Traceback" in record.getMessage()

    caplog.clear()
    outcomes(Fails(), call("handles", 1))
    assert [
        f"raised {name}" in record.getMessage()
        for name, record in zip(("ValueError", "KeyError"), caplog.records, strict=True)
    ] == [True, True]

    caplog.clear()
    calls = [call("fail", i, request_id=f"r-{i}") for i in range(3)]
    assert all(isinstance(error, ValueError) for error in outcomes(Fails(), *calls))
    assert ["requests r-0, r-1, r-2: M:" in record.getMessage() for record in caplog.records] == [True]


def test_an_error_in_a_slot_is_that_requests_own(caplog: pytest.LogCaptureFixture) -> None:
    class Slots:
        @serve.batch
        async def sort_out(self, items: list[Any]) -> list[Any]:
            wrong = ValueError("shared")
            return [item if item != "bad" else wrong for item in items]

        @serve.batch
        async def exits(self, items: list[Any]) -> list[Any]:
            return [item if item != "bad" else SystemExit(3) for item in items]

        async def passes_on(self, item: Any) -> Any:
            return await self.exits(item)

    found = outcomes(Slots(), call("sort_out", 1), call("sort_out", "bad"), call("sort_out", "bad"))
    assert found[0] == 1
    assert [str(error) for error in found[1:]] == ["shared", "shared"]
    found = outcomes(Slots(), call("passes_on", "bad"), call("passes_on", 2), call("exits", "bad"))
    assert isinstance(found[0], UserCodeError)
    assert found[1] == 2
    assert isinstance(found[2], UserCodeError)


def test_tracebacks_of_callers_do_not_add_up() -> None:
    depths = []

    class Fails:
        @serve.batch
        async def fail(self, items: list[int]) -> list[int]:
            raise ValueError("of the batch")

        async def counts(self, item: int) -> int:
            try:
                await self.fail(item)
            except ValueError as error:
                await asyncio.sleep(0)
                depth, trace = 0, error.__traceback__
                while trace is not None:
                    depth, trace = depth + 1, trace.tb_next
                depths.append(depth)
            return 0

    outcomes(Fails(), *[call("counts", i) for i in range(8)])
    assert len(set(depths)) == 1


def test_what_cannot_be_sent_fails_alone() -> None:
    class Returns:
        @serve.batch
        async def give(self, items: list[Any]) -> list[Any]:
            return [threading.Lock() if item == "lock" else item for item in items]

        @serve.batch
        async def yields(self, items: list[Any]) -> Any:
            yield [threading.Lock() if item == "lock" else item for item in items]
            yield items

    bad, good = outcomes(Returns(), call("give", "lock"), call("give", 1))
    assert isinstance(bad, HeadraceError)
    assert good == 1
    bad_call, good_call = stream("yields", "lock"), stream("yields", 1)
    outcomes(Returns(), bad_call, good_call)
    assert isinstance(bad_call.raised, HeadraceError)
    assert good_call.items == [1, 1]


def test_arguments_that_cannot_be_read_fail_alone() -> None:
    class Doubles:
        @serve.batch
        async def double(self, items: list[int]) -> list[int]:
            return [item * 2 for item in items]

    async def check() -> None:
        invoker = replica_of(Doubles())
        bad, good = call("double", 1), call("double", 2)
        bad.body = b"\x80\x05nonsense"
        invoker.start(bad)
        invoker.start(good)
        await ended(bad, good)
        assert bad.error is not None
        assert good.result == 4

    run(check())


def test_an_http_exception_of_the_function_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Refuses:
        @serve.batch
        async def __call__(self, requests: list[Any]) -> list[Any]:
            raise HTTPException(418, "a teapot")

        async def passes_on(self, item: Any) -> Any:
            return await self(item)

    calls = [http_call(), http_call(), http_call()]
    calls[2].meta.method = "passes_on"
    outcomes(Refuses(), *calls)
    assert [(one.head.status, one.payload) for one in calls] == [(418, b"a teapot")] * 3
    assert not caplog.records


def test_who_limits_requests_to_less_than_a_batch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "headrace")

    class Doubles:
        @serve.batch(max_batch_size=4)
        async def double(self, items: list[int]) -> list[int]:
            return [item * 2 for item in items]

    async def check() -> None:
        doubles = Doubles()
        invoker = replica_of(doubles)
        invoker.replica.max_ongoing_requests = 6
        for size in (4, 6, 7):
            doubles.double.set_max_batch_size(size)
            one = call("double", 1)
            invoker.start(one)
            await ended(one)

    run(check())
    [record] = caplog.records
    assert "Doubles.double: max_ongoing_requests=6 of M is less than max_batch_size" in record.getMessage()
