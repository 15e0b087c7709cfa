"""patterns.fallback: what is answered when a model fails, is late, hangs or is overloaded, and when nothing is."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import pytest
from puppets import Puppet, bound, run, until

from headrace import patterns
from headrace.serve.testing import TestInstance
from headrace.spec.errors import InputError, MethodNotFound, RequestCancelledError, RequestTimeoutError


def test_an_answer_that_comes_is_the_answer() -> None:
    async def test(instance: TestInstance) -> None:
        model = Puppet(lambda x, y: x + y)
        handle = await instance.run(patterns.fallback(bound("Model", model), 0, timeout_s=30))
        assert await handle.remote(1, y=2) == 3

    run(test)


async def told(text: str, error: Exception, size: int = 0) -> list[Any]:
    await asyncio.sleep(0)
    return [text, type(error).__name__, size]


@pytest.mark.parametrize(
    ("default", "answer", "by"),
    [
        ([], [], "default"),
        (None, None, "default"),
        ("no answer", "no answer", "default"),
        (told, ["x", "LookupError", 3], "default"),
        (lambda text, error, size: f"{text}: {error}", "x: no such word", "default"),
        (bound("Simple", Puppet(lambda text, size: text * size)), "xxx", "Simple"),
    ],
)
def test_a_failure_gives_the_default(default: Any, answer: Any, by: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(instance: TestInstance) -> None:
        model = bound("Model", Puppet(error=LookupError("no such word")))
        handle = await instance.run(patterns.fallback(model, default, details=True))
        assert await handle.remote("x", size=3) == {"answer": answer, "by": by, "failed": {"Model": "LookupError"}}

    caplog.set_level(logging.WARNING, "headrace.patterns")
    run(test)
    assert "Fallback: Model failed, and the default is answered (LookupError: no such word)" in caplog.text


def test_a_slow_answer_in_time_is_no_failure() -> None:
    async def test(instance: TestInstance) -> None:
        slow = Puppet("slow", held=True)
        handle = await instance.run(patterns.fallback(bound("Model", slow), "default", timeout_s=60))
        response = handle.remote("x")
        await until(lambda: slow.began)
        slow.release()
        assert await response == "slow"

    run(test)


@pytest.mark.parametrize(
    ("own_s", "request_s", "margin_s"), [(0.05, None, 0.02), (None, 1, 1), (0.05, 60, 0.02), (60, 1, 1)]
)
def test_a_hanging_one_gives_it_after_its_time_or_before_that_of_the_request(
    own_s: float | None, request_s: float | None, margin_s: float
) -> None:
    async def test(instance: TestInstance) -> None:
        hanging = Puppet(held=True)
        app = patterns.fallback(bound("Model", hanging), "default", timeout_s=own_s, margin_s=margin_s)
        handle = await instance.run(app)
        assert await handle.options(timeout_s=request_s).remote("x") == "default"
        await until(lambda: hanging.cancelled == ["x"])

    run(test)


def test_an_overloaded_one_gives_it() -> None:
    async def test(instance: TestInstance) -> None:
        held = Puppet("answer", held=True)
        model = bound("Model", held, max_ongoing_requests=1, max_queued_requests=1)
        handle = await instance.run(patterns.fallback(model, "default"))
        responses = [handle.remote(n) for n in range(4)]
        await until(lambda: sum(response.done() for response in responses) == 2)
        held.release()
        assert sorted(await asyncio.gather(*responses)) == ["answer", "answer", "default", "default"]

    run(test)


def test_a_replica_that_dies_gives_it() -> None:
    async def test(instance: TestInstance) -> None:
        held = Puppet("answer", held=True)
        handle = await instance.run(patterns.fallback(bound("Model", held, repeatable=False), "default", details=True))
        response = handle.remote("x")
        await until(lambda: held.began)
        instance.engine.crash("Model#1@default")
        assert await response == {"answer": "default", "by": "default", "failed": {"Model": "ReplicaDiedError"}}

    run(test)


def test_a_client_that_leaves_is_told_nothing_and_the_default_is_not_made() -> None:
    async def test(instance: TestInstance) -> None:
        hanging, default = Puppet(held=True), Puppet()
        handle = await instance.run(patterns.fallback(bound("Model", hanging), bound("Default", default)))
        response = handle.remote("x")
        await until(lambda: hanging.began)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: hanging.cancelled == ["x"])
        assert default.began == []

    run(test)


def test_a_client_that_leaves_while_the_default_is_made_stops_that() -> None:
    async def test(instance: TestInstance) -> None:
        default = Puppet(held=True)
        failing = bound("Model", Puppet(error=ValueError("bad")))
        handle = await instance.run(patterns.fallback(failing, bound("Default", default)))
        response = handle.remote("x")
        await until(lambda: default.began)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: default.cancelled == ["x"])

    run(test)


@pytest.mark.parametrize("error", [InputError("no image"), MethodNotFound("no such method")])
def test_mistakes_of_the_caller_are_told(error: Exception) -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(patterns.fallback(bound("Model", Puppet(error=error)), "default"))
        with pytest.raises(type(error), match=str(error)):
            await handle.remote("x")

    run(test)


def test_a_method_that_is_not_there_is_told() -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(patterns.fallback(bound("Model", Puppet()), "default", method="predikt"))
        with pytest.raises(MethodNotFound, match="did you mean predict"):
            await handle.remote("x")

    run(test)


def test_it_stands_in_only_for_the_errors_that_are_named() -> None:
    async def test(instance: TestInstance) -> None:
        model = Puppet(error=ConnectionResetError("gone"))
        handle = await instance.run(patterns.fallback(bound("Model", model), "default", on=(OSError, TimeoutError)))
        assert await handle.remote("x") == "default"
        model.error = ValueError("a bug")
        with pytest.raises(ValueError, match="a bug"):
            await handle.remote("x")

    run(test)


def test_an_error_of_the_default_is_that_of_the_request() -> None:
    async def test(instance: TestInstance) -> None:
        failing = bound("Model", Puppet(error=ValueError("bad")))
        handle = await instance.run(patterns.fallback(failing, lambda x, error: x / 0))
        with pytest.raises(ZeroDivisionError):
            await handle.remote(1)

    run(test)


def test_one_within_another_is_asked_first() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = [Puppet(held=True), Puppet(held=True)]
        inner = patterns.fallback(bound("A", hanging[0]), bound("B", hanging[1]), margin_s=1)
        handle = await instance.run(patterns.fallback(inner, "default", margin_s=1))
        assert await handle.options(timeout_s=1.6).remote("x") == "default"
        await until(lambda: all(each.cancelled == ["x"] for each in hanging))

    run(test)


def test_without_a_default_s_time_the_request_may_be_late() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = bound("Default", Puppet(held=True))
        handle = await instance.run(patterns.fallback(bound("Model", Puppet(error=ValueError("bad"))), hanging))
        with pytest.raises(RequestTimeoutError):
            await handle.options(timeout_s=0.3).remote("x")

    run(test)


@dataclass(frozen=True)
class Frozen(Exception):
    """Takes no attributes, so no notes; and cannot be printed."""

    code: int

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_errors_of_users_may_be_strange(caplog: pytest.LogCaptureFixture) -> None:
    async def test(instance: TestInstance) -> None:
        def strange(x: Any) -> Any:
            raise Frozen(3)

        handle = await instance.run(patterns.fallback(patterns.pipeline(strange, bound("Model", Puppet())), "default"))
        assert await handle.remote("x") == "default"

    caplog.set_level(logging.WARNING, "headrace.patterns")
    run(test)
    assert "Fallback: Pipeline failed, and the default is answered (" in caplog.text
