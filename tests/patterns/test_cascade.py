"""patterns.cascade: the dear model is asked when the cheap one is not sure, or fails."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from puppets import Puppet, bound, run, until

from headrace import patterns
from headrace.serve.testing import TestInstance
from headrace.spec.errors import InputError, RequestCancelledError, RequestTimeoutError


@dataclass
class Guess:
    confidence: float


def cascade(cheap: Puppet, dear: Puppet, confident: Any = 0.9, **options: Any) -> Any:
    return patterns.cascade([bound("Cheap", cheap), bound("Dear", dear)], confident, **options)


@pytest.mark.parametrize(("sure", "asked"), [(0.95, 0), (0.9, 0), (0.89, 1), (float("nan"), 1)])
def test_the_dear_one_is_asked_when_the_cheap_one_is_not_sure(sure: float, asked: int) -> None:
    async def test(instance: TestInstance) -> None:
        cheap, dear = Puppet({"label": "cat", "confidence": sure}), Puppet({"label": "lynx"})
        handle = await instance.run(cascade(cheap, dear))
        assert (await handle.remote("x", size=3))["label"] == ("lynx" if asked else "cat")
        assert len(dear.began) == asked

    run(test)


@pytest.mark.parametrize(
    ("answer", "confident", "confidence"),
    [
        ([0.05, 0.95], 0.9, max),
        (np.array([0.05, 0.95]), 0.9, max),
        ({"cat": 0.95}, 0.9, lambda answer: answer["cat"]),
        ({"p": 0.95}, 0.9, "p"),
        (Guess(0.95), 0.9, None),
        (Guess(0.95), 0.9, "confidence"),
        ("cat", lambda answer: answer == "cat", None),
        (7, -3, lambda answer: -answer + 5),
    ],
)
def test_confidence_is_found_in_answers_of_many_kinds(answer: Any, confident: Any, confidence: Any) -> None:
    async def test(instance: TestInstance) -> None:
        dear = Puppet()
        handle = await instance.run(cascade(Puppet(answer), dear, confident, confidence=confidence))
        assert (await handle.remote("x") == answer) is not False
        assert dear.began == []

    run(test)


def test_functions_may_be_async_and_each_member_may_have_its_own_threshold() -> None:
    async def sure(answer: Any) -> Any:
        return answer["p"]

    async def never(answer: Any) -> bool:
        return False

    async def test(instance: TestInstance) -> None:
        members = {"small": bound("M", Puppet({"p": 0.6})), "middle": bound("M", Puppet({"p": 0.6})), "large": None}
        members["large"] = bound("M", Puppet({"p": 0.1}))
        for number, (confident, by) in enumerate(
            [([0.7, 0.5], "middle"), ([0.5, 0.7], "small"), ([never, 0.7], "large")]
        ):
            app = patterns.cascade(members, confident, confidence=sure, details=True)
            handle = await instance.run(app, name=f"app{number}", route_prefix=None)
            assert (await handle.remote("x"))["by"] == by

    run(test)


@pytest.mark.parametrize("failure", ["fails", "hangs"])
def test_when_the_cheap_one_fails_or_hangs_the_dear_one_is_asked(
    failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(instance: TestInstance) -> None:
        cheap = Puppet(held=True) if failure == "hangs" else Puppet(error=LookupError("no such word"))
        app = patterns.cascade(
            [patterns.member(bound("Cheap", cheap), timeout_s=0.3), bound("Dear", Puppet("lynx"))], 0.9, details=True
        )
        kind = "RequestTimeoutError" if failure == "hangs" else "LookupError"
        assert await (await instance.run(app)).remote("x") == {
            "answer": "lynx",
            "by": "Dear",
            "failed": {"Cheap": kind},
        }
        await until(lambda: cheap.cancelled or cheap.ended)

    caplog.set_level(logging.WARNING, "headrace.patterns")
    run(test)
    assert "Cascade: Cheap failed, and the next is asked (" in caplog.text


def test_a_failure_of_the_cheap_one_can_be_that_of_the_request() -> None:
    async def test(instance: TestInstance) -> None:
        dear = Puppet("lynx")
        handle = await instance.run(cascade(Puppet(error=LookupError("no such word")), dear, pass_over_failed=False))
        with pytest.raises(LookupError, match="no such word") as caught:
            await handle.remote("x")
        assert caught.value.__notes__ == ["It is the error of a member of Cascade: Cheap"]
        assert dear.began == []

    run(test)


def test_a_mistake_of_the_caller_is_no_reason_to_ask_the_dear_one() -> None:
    async def test(instance: TestInstance) -> None:
        dear = Puppet("lynx")
        handle = await instance.run(cascade(Puppet(error=InputError("no image")), dear))
        with pytest.raises(InputError, match="no image"):
            await handle.remote("x")
        assert dear.began == []

    run(test)


@pytest.mark.parametrize("allowed", [True, False])
def test_when_the_dear_one_fails_the_unsure_answer_is_given_where_that_is_allowed(allowed: bool) -> None:
    async def test(instance: TestInstance) -> None:
        cheap, dear = Puppet({"confidence": 0.1}), Puppet(error=LookupError("no such word"))
        handle = await instance.run(cascade(cheap, dear, allow_unsure=allowed, details=True))
        if allowed:
            expected = {"answer": {"confidence": 0.1}, "by": "Cheap", "failed": {"Dear": "LookupError"}}
            assert await handle.remote("x") == expected
            return
        with pytest.raises(LookupError, match="no such word") as caught:
            await handle.remote("x")
        assert caught.value.__notes__ == ["It is the error of a member of Cascade: Dear"]

    run(test)


def test_when_all_fail_it_is_the_error_of_the_last() -> None:
    async def test(instance: TestInstance) -> None:
        cheap, dear = Puppet(error=ValueError("bad")), Puppet(error=LookupError("no such word"))
        handle = await instance.run(cascade(cheap, dear, allow_unsure=True))
        with pytest.raises(LookupError, match="no such word"):
            await handle.remote("x")

    run(test)


def test_the_unsure_answer_comes_before_the_deadline_when_the_dear_one_hangs() -> None:
    async def test(instance: TestInstance) -> None:
        dear = Puppet(held=True)
        handle = await instance.run(cascade(Puppet({"confidence": 0.1}), dear, allow_unsure=True, margin_s=1))
        assert await handle.options(timeout_s=1).remote("x") == {"confidence": 0.1}
        await until(lambda: dear.cancelled == ["x"])

    run(test)


def test_where_it_is_not_allowed_the_request_is_late() -> None:
    async def test(instance: TestInstance) -> None:
        dear = Puppet(held=True)
        handle = await instance.run(cascade(Puppet({"confidence": 0.1}), dear))
        with pytest.raises(RequestTimeoutError):
            await handle.options(timeout_s=0.3).remote("x")
        await until(lambda: dear.cancelled == ["x"])

    run(test)


@pytest.mark.parametrize("who", ["cheap", "dear"])
def test_a_client_that_leaves_stops_the_one_that_works_and_no_other_is_asked(who: str) -> None:
    async def test(instance: TestInstance) -> None:
        cheap, dear = Puppet({"confidence": 0.1}, held=who == "cheap"), Puppet(held=True)
        works = cheap if who == "cheap" else dear
        handle = await instance.run(cascade(cheap, dear, allow_unsure=True))
        response = handle.remote("x")
        await until(lambda: works.began)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: works.cancelled == ["x"])
        assert len(dear.began) == (who == "dear")

    run(test)


@pytest.mark.parametrize(
    ("answer", "confidence", "said"),
    [
        ({"label": "cat"}, None, "an answer of Cheap .dict. has no 'confidence': give cascade.. a confidence="),
        ("cat", None, "an answer of Cheap .str. has no 'confidence'"),
        ({"confidence": "high"}, None, "the confidence of the answer of Cheap must be a number, not 'high'"),
        ([0.1, 0.2], lambda answer: answer, r"must be a number, not \[0.1, 0.2\]"),
    ],
)
def test_an_answer_without_a_confidence_is_an_error(answer: Any, confidence: Any, said: str) -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(cascade(Puppet(answer), Puppet(), confidence=confidence))
        with pytest.raises(TypeError, match=said):
            await handle.remote("x")

    run(test)
