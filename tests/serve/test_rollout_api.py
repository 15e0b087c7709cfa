"""serve.set_traffic, promote, rollback and the others: what they ask for, what they refuse, what comes of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace import serve
from headrace.serve.comparators import comparison
from headrace.serve.testing import LocalTesting, TestInstance
from headrace.spec.errors import (
    ApplicationNotFound,
    InstanceError,
    OptionError,
    OptionTypeError,
    RequestTimeoutError,
    RevisionConflictError,
    RevisionNotFound,
    RolloutError,
)
from headrace.spec.rollout import Comparison
from headrace.spec.status import RolloutOutcome
from headrace.wire.code import load_code


@serve.deployment
class Model:
    def __init__(self, answer: Any = 1) -> None:
        self.answer = answer

    def __call__(self) -> Any:
        return self.answer


@serve.deployment
def broken() -> None:
    raise AssertionError("is never called")


def close(primary: Any, shadow: Any) -> bool:
    return bool(abs(primary - shadow) < 1)


WAITS = serve.Canary(steps=[(0.5, None)], analysis=[])


# --- what is refused, before anything is asked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "error", "match"),
    [
        (lambda: serve.set_traffic("app", {1: 0.9}), OptionError, r"add up to 1, and add up to 0\.9"),
        (lambda: serve.set_traffic("app", [1]), OptionTypeError, "must be a dict of revision and weight"),
        (lambda: serve.set_traffic("app", {"1": 1.0}), OptionTypeError, "must be the number of a revision"),
        (lambda: serve.set_traffic("app", {1: "x"}), OptionTypeError, "must be a number from 0 to 1"),
        (lambda: serve.set_traffic("app", {1: float("nan")}), OptionError, "must be a number from 0 to 1"),
        (lambda: serve.set_traffic("app", {}), OptionError, "must add up to 1"),
        (lambda: serve.set_traffic(3, {1: 1.0}), OptionTypeError, "app_name=3 must be the name"),
        (lambda: serve.set_traffic("app", {1: 1.0}, sticky="uid"), OptionError, "must name where the key is"),
        (lambda: serve.set_traffic("app", {1: 1.0}, sticky=7), OptionTypeError, "sticky=7 must be"),
        (lambda: serve.set_traffic("app", {1: 1.0}, expected="2"), OptionTypeError, "expected='2' must be the number"),
        (lambda: serve.set_traffic("app", {1: 1.0}, expected=-1), OptionError, "expected=-1 must be the number"),
        (lambda: serve.shadow_traffic("app", 0.1), OptionTypeError, "must be a dict of revision and share"),
        (lambda: serve.shadow_traffic("app", {1: 2}), OptionError, "must be a share of the requests"),
        (lambda: serve.shadow_traffic("app", {1: "all"}), OptionTypeError, "must be a share of the requests"),
        (lambda: serve.shadow_traffic("app", {1: True}), OptionTypeError, "must be a share of the requests"),
        (lambda: serve.shadow_traffic("app", {0: 0.1}), OptionError, "must be the number of a revision, from 1"),
        (lambda: serve.shadow_traffic("app", {None: 0.1}), OptionTypeError, "must be the number of a revision"),
        (lambda: serve.shadow_traffic("app", {1: 0.1}, compare="exact"), OptionTypeError, "must be serve.exact"),
        (lambda: serve.promote("app", "2"), OptionTypeError, "revision='2' must be"),
        (lambda: serve.promote(None), OptionTypeError, "app_name=None must be"),
        (lambda: serve.abort_rollout("app", reason=3), OptionTypeError, "reason=3 must be a text"),
        (lambda: serve.rollback("app", 0), OptionError, "revision=0 must be the number of a revision, from 1"),
        (lambda: serve.rollback("app", 10**12), OptionError, "must be the number of a revision"),
        (lambda: serve.rollback("app", rollout="canery"), OptionError, "did you mean 'canary'"),
        (lambda: serve.wait_for_rollout("app", "soon"), OptionTypeError, "timeout_s='soon' must be a number"),
        (lambda: serve.rollout_status(["app"]), OptionTypeError, "must be the name of an application"),
        (lambda: serve.history(b"app"), OptionTypeError, "must be the name of an application"),
        (lambda: serve.numeric(rtol=-1), OptionError, "rtol=-1 must be a number"),
        (lambda: serve.numeric(atol="1"), OptionTypeError, "atol='1' must be a number"),
        (lambda: comparison(Model), OptionTypeError, "must be serve.exact"),
        (lambda: comparison(int), OptionTypeError, "must be serve.exact"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(use: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        use()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rollout": "canery"}, OptionError, "did you mean 'canary'"),
        ({"rollout": {"strategy": "canary", "step": []}}, OptionTypeError, "canary has no 'step'.*'steps'"),
        ({"rollout": 7}, OptionTypeError, "rollout=7 must be one of"),
        ({"rollout": serve.Shadow(compare="exact")}, OptionTypeError, "must be serve.exact"),  # type: ignore[arg-type]
        ({"sticky": "uid"}, OptionError, "must name where the key is"),
        ({"expected_revision": "3"}, OptionTypeError, "expected_revision='3' must be"),
        ({"revision_history_limit": -1}, OptionError, "revision_history_limit=-1 must be"),
        ({"revision_history_limit": True}, OptionTypeError, "revision_history_limit=True must be"),
        ({"labels": ["x"]}, OptionTypeError, "labels=.* must be a dict of texts"),
        ({"labels": {"commit": 7}}, OptionTypeError, "must be a text for a text"),
        ({"labels": {"": "x"}}, OptionError, "must have 1 to 200 characters"),
        ({"labels": {"x": "y" * 201}}, OptionError, "must have 1 to 200 characters"),
        ({"labels": {str(number): "" for number in range(51)}}, OptionError, "51 are too many"),
    ],
)
def test_a_run_with_options_that_make_no_sense_deploys_nothing(
    headrace_local: LocalTesting, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        headrace_local.run(Model.bind(), **options)
    assert headrace_local.status().applications == {}


def test_comparisons() -> None:
    assert serve.exact() == comparison(None) == Comparison()
    assert serve.numeric(0.5, 2) == Comparison(kind="numeric", rtol=0.5, atol=2)
    assert comparison(serve.numeric()) == serve.numeric()
    made = comparison(lambda primary, shadow: primary == shadow)
    assert made.kind == "user"
    assert made.function is not None
    assert load_code(made.function)(1, 1)


# --- what comes to pass -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(headrace_local: LocalTesting) -> Any:
    """Of whom revision 1 runs."""
    return headrace_local.run(Model.bind(1))


def answers(handle: Any, number: int = 60) -> set[Any]:
    return {handle.remote().result() for _ in range(number)}


def test_a_name_that_is_not_there(model: Any) -> None:
    for use in (serve.history, serve.rollout_status, serve.promote, serve.rollback, serve.wait_for_rollout):
        with pytest.raises(ApplicationNotFound, match="no application is called 'other'"):
            use("other")
    with pytest.raises(ApplicationNotFound):
        serve.set_traffic("other", {1: 1.0})
    with pytest.raises(ApplicationNotFound):
        serve.shadow_traffic("other", {1: 1.0})


def test_without_a_rollout_there_is_nothing_to_tell_it(model: Any) -> None:
    for use in (serve.promote, serve.pause_rollout, serve.resume_rollout, serve.abort_rollout):
        with pytest.raises(RolloutError):
            use("default")


def test_a_rolling_update_is_waited_for(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), labels={"commit": "1f00ba2"})
    assert answers(model) == {2}
    status = serve.rollout_status("default")
    assert (status.revision, status.outcome, status.strategy) == (2, RolloutOutcome.PROMOTED, "rolling_update")
    first, second = serve.history("default").revisions
    assert (first.changes, first.outcome) == (("Model: added",), RolloutOutcome.PROMOTED)
    assert (second.labels, second.outcome) == ({"commit": "1f00ba2"}, RolloutOutcome.PROMOTED)
    assert "@" in second.by
    assert second.source.endswith(":Model")


def test_a_canary_is_promoted(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), rollout=WAITS)
    assert answers(model) == {1, 2}
    status = serve.rollout_status("default")
    assert (status.revision, status.baseline, status.outcome) == (2, 1, "")
    assert status.weights == {1: 0.5, 2: 0.5}
    seen = []
    waiting = threading.Thread(target=lambda: seen.append(serve.wait_for_rollout("default", 30)))
    waiting.start()
    assert serve.promote("default", 2).outcome == RolloutOutcome.PROMOTED
    waiting.join()
    assert seen[0].outcome == RolloutOutcome.PROMOTED
    assert answers(model) == {2}


def test_a_canary_is_paused_resumed_and_aborted(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), rollout=WAITS)
    assert serve.pause_rollout("default").paused
    with pytest.raises(RolloutError, match="paused already"):
        serve.pause_rollout("default")
    assert not serve.resume_rollout("default").paused
    with pytest.raises(RolloutError, match="is of revision 2, not of 1"):
        serve.abort_rollout("default", revision=1)
    status = serve.abort_rollout("default", "it sings")
    assert (status.outcome, status.revision) == (RolloutOutcome.ROLLED_BACK, 2)
    assert "it sings" in status.reason
    assert answers(model) == {1}
    record = serve.history("default").revisions[-1]
    assert record.outcome == RolloutOutcome.ROLLED_BACK
    assert "it sings" in record.reason


def test_waiting_has_an_end(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), rollout=WAITS)
    seen: list[Any] = []
    with pytest.raises(RequestTimeoutError, match=r"revision 2 of application 'default' has not ended within 0\.01 s"):
        serve.wait_for_rollout("default", 0.01, seen.append)
    assert seen[0].revision == 2
    assert len(seen) == 1
    serve.abort_rollout("default")
    assert serve.wait_for_rollout("default", 0, seen.append).outcome == RolloutOutcome.ROLLED_BACK
    assert seen[-1].outcome == RolloutOutcome.ROLLED_BACK


def test_who_waits_is_told_when_it_moves_and_not_more_often(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), rollout=serve.Canary(steps=[(0.5, 0.5)], analysis=[]))
    seen: list[Any] = []
    assert serve.wait_for_rollout("default", 30, seen.append).outcome == RolloutOutcome.PROMOTED
    positions = [(status.stage, status.paused, tuple(status.weights.items())) for status in seen]
    assert len(positions) == len(set(positions)) >= 2


def test_who_waits_for_a_rollout_that_another_replaces_is_told(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), rollout=WAITS)
    began, seen = threading.Event(), []
    waiting = threading.Thread(
        target=lambda: seen.append(serve.wait_for_rollout("default", 30, lambda status: began.set()))
    )
    waiting.start()
    assert began.wait(30)
    headrace_local.run(Model.bind(3), rollout=WAITS)
    waiting.join()
    assert (seen[0].revision, seen[0].outcome) == (2, RolloutOutcome.SUPERSEDED)
    serve.promote("default")


def test_ab_traffic_stays_until_it_is_changed(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2))
    serve.set_traffic("default", {1: 0.5, 2: 0.5}, sticky="header:x-user")
    client = headrace_local.http

    def of(user: int) -> str:
        return client.get("/", headers={"x-user": str(user)}).text

    before = {user: of(user) for user in range(40)}
    assert set(before.values()) == {"1", "2"}
    assert before == {user: of(user) for user in range(40)}
    serve.set_traffic("default", {1: 0.2, 2: 0.8}, expected=2)
    after = {user: of(user) for user in range(40)}
    assert all(after[user] == "2" for user in before if before[user] == "2")  # moves nobody back
    with pytest.raises(RevisionConflictError, match="revision 1 was expected"):
        serve.set_traffic("default", {1: 1.0}, expected=1)
    with pytest.raises(RevisionNotFound, match="no revision 7"):
        serve.set_traffic("default", {7: 1.0})
    serve.set_traffic("default", {1: 1.0}, sticky=None)
    assert answers(model) == {1}


def test_back_to_what_ran_before(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2))
    headrace_local.run(Model.bind(3))
    assert serve.rollback("default").outcome == RolloutOutcome.PROMOTED
    assert answers(model) == {2}
    serve.rollback("default", 1, reason="the oldest is the best")
    assert answers(model) == {1}
    with pytest.raises(RevisionNotFound, match="no revision before 1 that was promoted"):
        serve.rollback("default")
    with pytest.raises(RevisionNotFound, match="keeps no revision 9"):
        serve.rollback("default", 9)
    with pytest.raises(RolloutError, match="has the traffic already"):
        serve.rollback("default", 1)
    reasons = [event.reason for event in serve.history("default").events]
    assert "the oldest is the best" in reasons


def test_what_was_gone_back_from_is_not_gone_back_to(headrace_local: LocalTesting, model: Any) -> None:
    for answer in (2, 3):
        headrace_local.run(Model.bind(answer))
    serve.rollback("default")
    headrace_local.run(Model.bind(4))
    serve.rollback("default")
    assert answers(model) == {2}
    outcomes = [record.outcome for record in serve.history("default").revisions]
    assert outcomes == ["PROMOTED", "PROMOTED", "ROLLED_BACK", "ROLLED_BACK"]


def test_a_revision_that_was_aborted_can_have_the_traffic_later(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), rollout=WAITS)
    serve.abort_rollout("default")
    headrace_local.run(Model.bind(3))
    assert serve.rollback("default", 2).outcome == RolloutOutcome.PROMOTED
    assert answers(model) == {2}


def test_a_deployer_who_does_not_know_of_another_is_refused(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2), expected_revision=1)
    with pytest.raises(RevisionConflictError, match="newest revision is 2"):
        headrace_local.run(Model.bind(3), expected_revision=1)
    with pytest.raises(RevisionConflictError):
        headrace_local.run(Model.bind(3), expected_revision=0)
    headrace_local.run(Model.bind(7), name="other", route_prefix=None, expected_revision=0)
    assert answers(model) == {2}


def test_no_deeper_than_was_asked_for(headrace_local: LocalTesting, model: Any) -> None:
    for answer in (2, 3, 4):
        headrace_local.run(Model.bind(answer), revision_history_limit=1)
    assert [record.number for record in serve.history("default").revisions if record.kept] == [3, 4]
    with pytest.raises(RevisionNotFound, match="keeps no revision 1"):
        serve.rollback("default", 1)


def test_history_outlives_the_application(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.delete("default")
    assert [record.number for record in serve.history("default").revisions] == [1]
    headrace_local.run(Model.bind(2))
    assert [record.number for record in serve.history("default").revisions] == [1, 2]


def test_requests_are_mirrored_and_compared(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(1.5), rollout=serve.Shadow(compare=close, duration_s=0, promote=False))  # type: ignore[arg-type]
    assert answers(model) == {1}

    def compared() -> int:
        mirrored = serve.rollout_status("default").mirrored
        return mirrored.compared if mirrored is not None else 0

    until(lambda: model.remote().result() == 1 and compared() > 0)
    mirrored = serve.rollout_status("default").mirrored
    assert mirrored is not None
    assert mirrored.differed == 0
    assert serve.promote("default").outcome == RolloutOutcome.PROMOTED
    assert answers(model) == {1.5}


def test_a_shadow_beside_any_rollout(headrace_local: LocalTesting, model: Any) -> None:
    headrace_local.run(Model.bind(2))
    serve.shadow_traffic("default", {1: serve.ShadowTraffic(fraction=0.5)})
    serve.shadow_traffic("default", {1: 1.0}, compare=serve.numeric(atol=5))
    assert answers(model) == {2}
    serve.shadow_traffic("default", {})
    with pytest.raises(RevisionNotFound, match="no revision 5"):
        serve.shadow_traffic("default", {5: 0.1})


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


# --- in the event loop of a test --------------------------------------------------------------------------------------


def test_in_an_event_loop() -> None:
    async def body() -> None:
        async with TestInstance() as instance:
            handle = await instance.run(Model.bind(1))
            await instance.run(Model.bind(2), rollout=WAITS)
            status = await instance.call(serve.rollout_status, "default")
            assert status.weights == {1: 0.5, 2: 0.5}
            await instance.call(serve.promote, "default")
            assert await handle.remote() == 2
            with pytest.raises(InstanceError, match="ends with the `async with`"):
                await instance.call(serve.shutdown)

    asyncio.run(body())


def test_a_revision_that_does_not_start_is_told_and_rolled_back(headrace_local: LocalTesting, model: Any) -> None:
    @serve.deployment(name="Model", max_constructor_retry_count=1)
    class Refuses:
        def __init__(self) -> None:
            raise ValueError("no such model")

    with pytest.raises(Exception, match="no such model"):
        headrace_local.run(Refuses.bind(), rollout=WAITS)
    assert answers(model) == {1}
    record = serve.history("default").revisions[-1]
    assert record.outcome == RolloutOutcome.FAILED
    assert "no such model" in record.reason


def test_a_waiter_is_told_that_it_was_rolled_back(headrace_local: LocalTesting, model: Any) -> None:
    began = threading.Event()
    raised: list[BaseException] = []

    def promote() -> None:
        began.set()
        try:
            headrace_local.run(Model.bind(3), rollout=WAITS)
            serve.wait_for_rollout("default")
        except BaseException as error:
            raised.append(error)

    deploying = threading.Thread(target=promote)
    deploying.start()
    until(lambda: serve.rollout_status("default").revision == 2)
    serve.rollback("default", reason="no")
    deploying.join()
    assert answers(model) == {1}
