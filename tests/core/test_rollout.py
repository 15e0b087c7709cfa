"""The rollout machine: what follows what for each strategy, what commands do, which weights can be had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.analysis import FAIL, HOLD, PASS, Verdict
from headrace.core.rollout import (
    Rollout,
    Seen,
    Stage,
    advance,
    begin,
    blend,
    capacity,
    command,
    describe,
    due_at,
    is_gradual,
    shadow_of,
    waits_for_word,
    wanted_weight,
    wanted_weights,
    why,
)
from headrace.spec.errors import RolloutError
from headrace.spec.rollout import BlueGreen, Canary, Command, RollingUpdate, Shadow, Strategy
from headrace.spec.status import RolloutOutcome

OLD, NEW = 1, 2
CANARY = Canary(steps=((0.1, 60.0), (0.5, None)))


def seen(weight: float | None = 0.0, ready: float = 1.0, says: str = PASS, failure: str = "") -> Seen:
    weights = None if weight is None else {OLD: 1.0 - weight, NEW: weight}
    return Seen(
        weights=weights, ready={OLD: 1.0, NEW: ready}, verdict=Verdict(says, "too many errors"), failure=failure
    )


def started(strategy: Strategy) -> Rollout:
    return begin(NEW, {OLD: 1.0}, strategy, 0.0)


def test_a_canary_goes_step_by_step() -> None:
    rollout = started(CANARY)
    assert (rollout.stage, wanted_weight(rollout), capacity(rollout, {OLD: 1.0})) == (
        Stage.MOVING,
        0.1,
        {1: 1.0, 2: 0.1},
    )
    assert advance(rollout, seen(0.0), 5.0) is rollout
    assert advance(rollout, seen(None), 5.0) is rollout  # some router does not know the weights yet
    rollout = advance(rollout, seen(0.1), 5.0)
    assert (rollout.stage, due_at(rollout)) == (Stage.WATCHING, 65.0)
    assert advance(rollout, seen(0.1), 64.0) is rollout
    assert advance(rollout, seen(0.1, says=HOLD), 100.0) is rollout  # not enough was seen
    rollout = advance(rollout, seen(0.1), 65.0)
    assert (rollout.stage, rollout.step, wanted_weight(rollout)) == (Stage.MOVING, 1, 0.5)
    rollout = advance(rollout, seen(0.5), 70.0)
    assert waits_for_word(rollout)
    assert advance(rollout, seen(0.5), 1e9) is rollout
    rollout = command(rollout, Command.RESUME, 80.0)
    assert (rollout.stage, wanted_weight(rollout)) == (Stage.FINISHING, 1.0)
    assert capacity(rollout, {OLD: 0.5, NEW: 0.5}) == {OLD: 1.0, NEW: 1.0}
    assert advance(rollout, seen(1.0, ready=0.9), 80.0) is rollout
    rollout = advance(rollout, seen(1.0), 80.0)
    assert (rollout.stage, rollout.outcome) == (Stage.ENDED, RolloutOutcome.PROMOTED)
    assert advance(rollout, seen(1.0, says=FAIL), 90.0) is rollout


def test_a_rolling_update_moves_with_what_is_ready_and_needs_what_it_has() -> None:
    rollout = started(RollingUpdate())
    assert (rollout.stage, is_gradual(rollout)) == (Stage.FINISHING, True)
    assert capacity(rollout, {OLD: 0.75, NEW: 0.25}) == {OLD: 0.75, NEW: 1.0}
    assert advance(rollout, seen(0.25, ready=0.5), 0.0) is rollout
    assert advance(rollout, seen(1.0), 0.0).outcome == RolloutOutcome.PROMOTED


def test_blue_and_green_change_places_at_once_and_one_waits() -> None:
    rollout = started(BlueGreen(hold_s=30.0))
    assert (wanted_weight(rollout), is_gradual(rollout)) == (1.0, False)
    rollout = advance(rollout, seen(1.0), 10.0)
    assert (rollout.stage, due_at(rollout)) == (Stage.WATCHING, 40.0)
    assert capacity(rollout, {NEW: 1.0}) == {OLD: 1.0, NEW: 1.0}
    assert advance(rollout, seen(1.0, says=FAIL), 39.0).stage is Stage.RETREATING
    assert advance(rollout, seen(1.0), 40.0).outcome == RolloutOutcome.PROMOTED


def test_a_shadow_gets_copies_and_then_the_traffic_or_a_word() -> None:
    for promote in (True, False):
        rollout = started(Shadow(fraction=0.2, duration_s=30.0, promote=promote))
        assert (wanted_weight(rollout), shadow_of(rollout)) == (0.0, None)
        assert capacity(rollout, {OLD: 1.0}) == {OLD: 1.0, NEW: 0.2}
        assert advance(rollout, seen(ready=0.1), 1.0) is rollout
        rollout = advance(rollout, seen(), 1.0)
        mirrored = shadow_of(rollout)
        assert mirrored is not None
        assert mirrored.fraction == 0.2
        later = advance(rollout, seen(), 31.0)
        assert later.stage is (Stage.FINISHING if promote else Stage.WATCHING)
        assert command(rollout, Command.PROMOTE, 2.0).stage is Stage.FINISHING
        assert shadow_of(command(rollout, Command.PAUSE, 2.0)) is None


def test_a_first_revision_has_no_strategy_and_nothing_to_go_back_to() -> None:
    rollout = begin(NEW, {}, CANARY, 0.0)
    assert rollout.stage is Stage.FINISHING
    assert advance(rollout, seen(0.0, says=FAIL), 0.0) is rollout
    failed = advance(rollout, Seen(weights=None, ready={}, failure="it raises"), 0.0)
    assert (failed.stage, failed.outcome, failed.reason) == (Stage.ENDED, RolloutOutcome.FAILED, "it raises")


@pytest.mark.parametrize("strategy", [RollingUpdate(), CANARY, BlueGreen(), Shadow()])
def test_whatever_fails_goes_back_to_what_was(strategy: Strategy) -> None:
    rollout = started(strategy)
    for failed, outcome in (
        (advance(rollout, seen(0.5, says=FAIL), 1.0), RolloutOutcome.ROLLED_BACK),
        (advance(rollout, seen(0.5, failure="it raises"), 1.0), RolloutOutcome.FAILED),
        (command(rollout, Command.ABORT, 1.0), RolloutOutcome.ROLLED_BACK),
    ):
        assert failed.outcome == outcome
        assert wanted_weights(failed, {OLD: 0.5, NEW: 0.5}) == {OLD: 1.0}
        assert capacity(failed, {OLD: 0.5, NEW: 0.5}) == {OLD: 1.0, NEW: 0.5}
        assert advance(failed, seen(0.5), 1.0).stage is Stage.RETREATING
        assert advance(failed, seen(0.0), 1.0).stage is Stage.ENDED
        with pytest.raises(RolloutError, match="too late"):
            command(failed, Command.PROMOTE, 2.0)


def test_a_pause_keeps_weights_as_they_are_but_not_those_of_a_bad_revision() -> None:
    rollout = command(started(CANARY), Command.PAUSE, 0.0)
    assert wanted_weights(rollout, {OLD: 0.97, NEW: 0.03}) == {OLD: 0.97, NEW: 0.03}
    assert advance(rollout, seen(0.1), 100.0) is rollout
    with pytest.raises(RolloutError, match="paused already"):
        command(rollout, Command.PAUSE, 0.0)
    failed = advance(rollout, seen(0.03, says=FAIL), 100.0)
    assert (failed.stage, failed.paused) == (Stage.RETREATING, False)
    resumed = command(rollout, Command.RESUME, 0.0)
    assert resumed == started(CANARY)
    with pytest.raises(RolloutError, match="nothing to resume"):
        command(resumed, Command.RESUME, 0.0)


def test_a_rollout_over_a_split_keeps_the_split_in_the_rest() -> None:
    rollout = begin(3, {1: 0.75, 2: 0.25}, CANARY, 0.0)
    assert wanted_weights(rollout, {}) == pytest.approx({1: 0.675, 2: 0.225, 3: 0.1})
    again = begin(2, {1: 0.75, 2: 0.25}, RollingUpdate(), 0.0)
    assert wanted_weights(again, {}) == {2: 1.0}
    assert wanted_weights(command(again, Command.ABORT, 0.0), {}) == {1: 0.75, 2: 0.25}


@pytest.mark.parametrize(
    ("wanted", "present", "ready", "gradual", "weights"),
    [
        ({1: 1.0}, {}, {1: 0.5}, False, {}),
        ({1: 1.0}, {}, {1: 1.0}, False, {1: 1.0}),
        ({1: 0.9, 2: 0.1}, {1: 1.0}, {1: 1.0, 2: 0.25}, False, {1: 0.9, 2: 0.1}),
        ({1: 0.5, 2: 0.5}, {1: 0.9, 2: 0.1}, {1: 1.0, 2: 0.25}, False, {1: 0.9, 2: 0.1}),
        ({1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5}, {1: 1.0, 2: 0.25}, False, {1: 0.75, 2: 0.25}),
        ({1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5}, {1: 1.0, 2: 0.0}, False, {1: 1.0}),
        ({1: 0.9, 2: 0.1}, {1: 0.9, 2: 0.1}, {1: 0.5, 2: 1.0}, False, {1: 0.9, 2: 0.1}),
        ({2: 1.0}, {1: 1.0}, {1: 1.0, 2: 0.25}, True, {1: 0.75, 2: 0.25}),
        ({2: 1.0}, {1: 1.0}, {1: 1.0, 2: 0.25}, False, {1: 1.0}),
        ({1: 1.0}, {1: 0.25, 2: 0.75}, {1: 0.5, 2: 1.0}, True, {1: 0.5, 2: 0.5}),
        ({1: 1.0}, {1: 0.25, 2: 0.75}, {1: 0.25, 2: 0.0}, True, {1: 1.0}),
        ({3: 1.0}, {1: 0.5, 2: 0.5}, {1: 1.0, 2: 1.0, 3: 0.5}, True, {1: 0.25, 2: 0.25, 3: 0.5}),
    ],
)
def test_weights_that_can_be_had(
    wanted: dict[int, float],
    present: dict[int, float],
    ready: dict[int, float],
    gradual: bool,
    weights: dict[int, float],
) -> None:
    assert blend(wanted, present, ready, trusted=1, gradual=gradual) == pytest.approx(weights)


shares = st.dictionaries(st.integers(1, 4), st.floats(0.01, 1.0), min_size=1).map(
    lambda given: {number: share / sum(given.values()) for number, share in given.items()}
)


@given(wanted=shares, present=shares, ready=st.dictionaries(st.integers(1, 4), st.floats(0, 1)), gradual=st.booleans())
def test_weights_add_up_and_are_for_those_who_are_ready(
    wanted: dict[int, float], present: dict[int, float], ready: dict[int, float], gradual: bool
) -> None:
    weights = blend(wanted, present, ready, trusted=1, gradual=gradual)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert set(weights) <= {1, *wanted, *present}
    for number, weight in weights.items():
        if number != 1:
            assert weight <= ready.get(number, 0.0) + 1e-9
            assert weight <= max(wanted.get(number, 0.0), present.get(number, 0.0)) + 1e-9
    if all(ready.get(number, 0.0) >= weight for number, weight in wanted.items()):
        assert weights == pytest.approx(wanted)


def test_a_person_is_told_what_goes_on() -> None:
    rollout = started(CANARY)
    assert describe(rollout) == "step 1 of 2: moves to 10.0% of the traffic"
    assert why(rollout, seen(ready=0.05), 0.0) == "waits for replicas: 5% of them are ready"
    rollout = advance(rollout, seen(0.1), 0.0)
    assert why(rollout, seen(0.1), 20.0) == "goes on in 40 s, if all is well"
    assert why(rollout, seen(0.1, says=HOLD), 61.0) == "too many errors"
    assert describe(command(rollout, Command.ABORT, 0.0, "aborted by eve")) == "gives back its traffic: aborted by eve"
