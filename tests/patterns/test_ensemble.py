"""patterns.ensemble: all members at once, one answer of theirs, and what happens when some do not answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from puppets import Puppet, bound, run, until

from headrace import patterns
from headrace.serve.testing import TestInstance
from headrace.spec.errors import (
    BackPressureError,
    InputError,
    MethodNotFound,
    RequestCancelledError,
    RequestTimeoutError,
)


def members(*puppets: Puppet) -> list[Any]:
    """Bound under the names A, B, C and so on."""
    return [bound(chr(ord("A") + place), puppet) for place, puppet in enumerate(puppets)]


def test_members_are_asked_at_once_and_the_mean_is_taken() -> None:
    async def test(instance: TestInstance) -> None:
        puppets = [Puppet(answer, held=True) for answer in ([0.1, 0.9], [0.3, 0.7], [0.2, 0.8])]
        handle = await instance.run(patterns.ensemble(members(*puppets)))
        response = handle.remote("x", unit="cm")
        await until(lambda: all(puppet.began == ["x"] for puppet in puppets))
        for puppet in reversed(puppets):
            puppet.release()
        assert await response == pytest.approx([0.2, 0.8])

    run(test)


def test_a_vote_and_its_details() -> None:
    async def test(instance: TestInstance) -> None:
        puppets = [Puppet("dog"), Puppet("cat"), Puppet("cat")]
        handle = await instance.run(patterns.ensemble(members(*puppets), combine="vote", details=True))
        assert await handle.remote("x") == {"answer": "cat", "by": ["A", "B", "C"], "failed": {}}

    run(test)


@pytest.mark.parametrize("weights", [[1, 3], {"B": 3, "A": 1}])
def test_weights_are_in_the_order_of_members_or_by_name(weights: Any) -> None:
    async def test(instance: TestInstance) -> None:
        app = patterns.ensemble(members(Puppet(0.0), Puppet(1.0)), combine=patterns.weighted(weights))
        assert await (await instance.run(app)).remote("x") == 0.75

    run(test)


def test_a_weighted_vote() -> None:
    async def test(instance: TestInstance) -> None:
        asked = {"old": bound("A", Puppet("dog")), "new": bound("A", Puppet("cat")), "odd": bound("A", Puppet("dog"))}
        app = patterns.ensemble(asked, combine=patterns.weighted({"old": 1, "new": 3, "odd": 1}, "vote"))
        assert await (await instance.run(app)).remote("x") == "cat"

    run(test)


def test_another_model_makes_the_answer() -> None:
    async def test(instance: TestInstance) -> None:
        meta = Puppet(lambda answers: sum(answers))
        combine = patterns.stacking(bound("Meta", meta), method="predict")
        handle = await instance.run(patterns.ensemble(members(Puppet(1), Puppet(2)), combine=combine))
        assert await handle.remote("x") == ["predicted", 3]
        assert meta.began == [[1, 2]]

    run(test)


def test_a_function_gets_the_answers_by_name_and_may_be_async() -> None:
    async def best(answers: dict[str, float]) -> list[Any]:
        await asyncio.sleep(0)
        return [max(answers, key=answers.__getitem__), list(answers)]

    async def test(instance: TestInstance) -> None:
        models = [bound("Model", Puppet(n)) for n in (0.2, 0.9, 0.4)]
        handle = await instance.run(patterns.ensemble(models, combine=best))
        assert await handle.remote("x") == ["Model_1", ["Model", "Model_1", "Model_2"]]

    run(test)


def test_the_first_failure_cancels_the_others_and_is_the_error() -> None:
    async def test(instance: TestInstance) -> None:
        hanging, failing = Puppet(held=True), Puppet(error=LookupError("no such word"), held=True)
        handle = await instance.run(patterns.ensemble(members(hanging, failing, Puppet(1))))
        response = handle.remote("x")
        await until(lambda: hanging.began and failing.began)
        failing.release()
        with pytest.raises(LookupError, match="no such word") as caught:
            await response
        assert caught.value.__notes__ == ["It is the error of a member of Ensemble: B"]
        await until(lambda: hanging.cancelled == ["x"])

    run(test)


def test_a_client_that_leaves_stops_all_members() -> None:
    async def test(instance: TestInstance) -> None:
        puppets = [Puppet(held=True) for _ in range(3)]
        handle = await instance.run(patterns.ensemble(members(*puppets), wait_s=60))
        response = handle.remote("x")
        await until(lambda: all(puppet.began for puppet in puppets))
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: all(puppet.cancelled == ["x"] for puppet in puppets))

    run(test)


def test_those_that_answered_in_time_are_enough_and_weights_are_of_them_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(instance: TestInstance) -> None:
        hanging, failing = Puppet(held=True), Puppet(error=LookupError("no such word"))
        app = patterns.ensemble(
            members(Puppet(0.0), hanging, failing, Puppet(1.0)),
            combine=patterns.weighted([1, 5, 5, 3]),
            wait_s=0.3,
            least=2,
            details=True,
        )
        assert await (await instance.run(app)).remote("x") == {
            "answer": 0.75,
            "by": ["A", "D"],
            "failed": {"B": "RequestTimeoutError", "C": "LookupError"},
        }
        await until(lambda: hanging.cancelled == ["x"])

    caplog.set_level(logging.WARNING, "headrace.patterns")
    run(test)
    warning = next(record.getMessage() for record in caplog.records if record.name == "headrace.patterns")
    assert "Ensemble: answers without B (RequestTimeoutError: B.__call__ did not answer in time" in warning
    assert "; C (LookupError: no such word)" in warning


def test_a_model_that_combines_gets_none_for_who_is_missing() -> None:
    async def test(instance: TestInstance) -> None:
        meta = Puppet("sure")
        app = patterns.ensemble(
            members(Puppet(error=ValueError("bad")), Puppet(2)), combine=patterns.stacking(bound("Meta", meta)), least=1
        )
        assert await (await instance.run(app)).remote("x") == "sure"
        assert meta.began == [[None, 2]]

    run(test)


def test_a_slow_member_is_waited_for_while_there_is_time() -> None:
    async def test(instance: TestInstance) -> None:
        slow = Puppet(3.0, held=True)
        handle = await instance.run(patterns.ensemble(members(Puppet(1.0), slow), wait_s=60, least=1))
        response = handle.remote("x")
        await until(lambda: slow.began)
        slow.release()
        assert await response == 2.0

    run(test)


def test_too_few_in_time_is_lateness() -> None:
    async def test(instance: TestInstance) -> None:
        app = patterns.ensemble(members(Puppet(1), Puppet(held=True), Puppet(held=True)), wait_s=0.3, least=2)
        handle = await instance.run(app)
        with pytest.raises(RequestTimeoutError, match="1 of 3 members of Ensemble answered in time, and 2 must: B, C"):
            await handle.remote("x")

    run(test)


def test_as_soon_as_too_many_have_failed_it_ends_with_the_first_error() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = Puppet(held=True)
        first, second = Puppet(error=BackPressureError("full")), Puppet(error=ValueError("bad"), held=True)
        handle = await instance.run(patterns.ensemble(members(hanging, second, first), least=2))
        response = handle.remote("x")
        await until(lambda: first.ended and hanging.began)
        second.release()
        with pytest.raises(BackPressureError, match="full") as caught:
            await response
        assert caught.value.__notes__ == ["It is the error of a member of Ensemble: C"]
        await until(lambda: hanging.cancelled == ["x"])

    run(test)


@pytest.mark.parametrize("error", [InputError("the image is too small"), MethodNotFound("no such method")])
def test_a_mistake_of_the_caller_is_told_though_others_have_answered(error: Exception) -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(patterns.ensemble(members(Puppet(1), Puppet(error=error)), least=1))
        with pytest.raises(type(error), match=str(error)):
            await handle.remote("x")

    run(test)


def test_it_answers_before_the_deadline_of_the_request() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = Puppet(held=True)
        handle = await instance.run(patterns.ensemble(members(Puppet(1.0), hanging), least=1, margin_s=1))
        assert await handle.options(timeout_s=1).remote("x") == 1.0
        await until(lambda: hanging.cancelled == ["x"])

    run(test)


def test_within_another_one_each_answers_before_the_one_above() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = Puppet(held=True)
        inner = patterns.ensemble(members(Puppet(1.0), hanging), least=1, margin_s=1, options={"name": "Inner"})
        outer = patterns.ensemble([inner, bound("Z", Puppet(3.0))], least=1, margin_s=1, details=True)
        handle = await instance.run(outer)
        assert await handle.options(timeout_s=1.6).remote("x") == {"answer": 2.0, "by": ["Inner", "Z"], "failed": {}}

    run(test)


def test_of_one_deployment_twice_each_has_a_name() -> None:
    async def test(instance: TestInstance) -> None:
        model = bound("Model", Puppet(lambda x: x))
        app = patterns.ensemble([model, patterns.member(model, method="predict")], combine=lambda answers: answers)
        assert await (await instance.run(app)).remote("x") == {"Model": "x", "Model_1": ["predicted", "x"]}
        assert set(await instance.processes()) == {"Model#1@default", "Ensemble#2@default"}

    run(test)


def test_answers_that_do_not_fit_together_are_an_error_that_shows_them() -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(patterns.ensemble(members(Puppet([1]), Puppet("cat"))))
        with pytest.raises(ValueError, match=r"A: \[1\], B: 'cat'"):
            await handle.remote("x")

    run(test)
