"""The table of a replica's life: what may follow what, and that some things can never follow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.lifecycle import COUNTED, TRANSITIONS, Event, IllegalTransition, Phase, advance

PATHS = [
    ([Event.LAUNCHED, Event.CONSTRUCTING, Event.READY], Phase.RUNNING),
    ([Event.CONSTRUCTING, Event.LAUNCHED, Event.READY], Phase.RUNNING),  # the worker was quicker than the engine
    ([Event.READY, Event.LAUNCHED], Phase.RUNNING),
    ([Event.LAUNCHED, Event.READY, Event.RETIRE, Event.DRAIN, Event.LEAVING, Event.EXITED], Phase.GONE),
    ([Event.LAUNCHED, Event.READY, Event.RETIRE, Event.READY], Phase.RETIRING),
    ([Event.LAUNCHED, Event.BROKEN, Event.STOP, Event.EXITED], Phase.GONE),
    ([Event.EXITED], Phase.GONE),
    ([Event.STOP, Event.LAUNCHED], Phase.STOPPING),
    ([Event.LAUNCHED, Event.READY, Event.LEAVING], Phase.DRAINING),
]


@pytest.mark.parametrize(("events", "end"), PATHS)
def test_lives(events: list[Event], end: Phase) -> None:
    phase = Phase.LAUNCHING
    for event in events:
        phase = advance(phase, event)
    assert phase is end


@pytest.mark.parametrize(
    ("phase", "event"),
    [
        (Phase.GONE, Event.READY),
        (Phase.GONE, Event.EXITED),
        (Phase.STARTING, Event.RETIRE),  # what never served is stopped, not drained
        (Phase.RUNNING, Event.DRAIN),  # first out of the snapshot
        (Phase.RUNNING, Event.CONSTRUCTING),
        (Phase.FAILED, Event.READY),
        (Phase.RECOVERING, Event.LAUNCHED),
        (Phase.DRAINING, Event.RETIRE),
    ],
)
def test_what_cannot_happen_raises(phase: Phase, event: Event) -> None:
    with pytest.raises(IllegalTransition, match=f"{phase.value} cannot become {event.value}"):
        advance(phase, event)


def test_the_table_is_whole_and_every_process_can_exit_and_be_stopped() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for phase in set(Phase) - {Phase.GONE}:
        assert advance(phase, Event.EXITED) is Phase.GONE
        assert advance(phase, Event.STOP) is Phase.STOPPING


@given(st.lists(st.sampled_from(list(Event))))
def test_what_has_left_the_path_of_requests_never_comes_back(events: list[Event]) -> None:
    phase, left = Phase.LAUNCHING, False
    for event in events:
        try:
            phase = advance(phase, event)
        except IllegalTransition:
            continue
        assert not (left and phase in COUNTED)
        left = left or phase not in COUNTED


def test_every_phase_can_be_reached() -> None:
    reached = {Phase.LAUNCHING, Phase.RECOVERING}
    while True:
        more = {advance(p, e) for p, e in itertools.product(reached, Event) if e in TRANSITIONS[p]} | reached
        if more == reached:
            break
        reached = more
    assert reached == set(Phase)
