"""Long after, the revision of a request is known by its key, its time, and the weights of then."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.attribution import LONGEST_S, MARGIN_S, MOST_ENTRIES, Timeline
from headrace.core.traffic import Split

START = 1_700_000_000.0
HALVES = {1: 0.5, 2: 0.5}


def timeline(*changes: tuple[float, dict[int, float]], keyed: bool = False) -> Timeline:
    made = Timeline("app")
    for at, weights in changes:
        made.note(weights, START + at, keyed)
    return made


@given(st.text(min_size=1, max_size=40), st.integers(1, 99), st.floats(3, 1000))
def test_it_is_the_revision_that_the_request_went_to(key: str, percent: int, later: float) -> None:
    weights = {1: 1 - percent / 100, 2: percent / 100}
    drawn = Split(weights.items(), "app").of(key)
    assert timeline((0, weights)).revision_of(START + later, key=key) == drawn
    assert timeline((0, weights)).revision_of(START + later, request_id=key) == drawn


def test_by_the_weights_of_then() -> None:
    known = timeline((0, {1: 1.0}), (100, {2: 1.0}), (200, {1: 1.0}))
    assert [known.revision_of(START + at, key="k") for at in (50, 150, 250)] == [1, 2, 1]


def test_nothing_is_known_of_what_was_before_or_of_nothing() -> None:
    assert Timeline("app").revision_of(START, key="k") is None
    assert timeline((0, {1: 1.0})).revision_of(START - 0.1, key="k") is None
    assert timeline((0, {1: 1.0})).revision_of(START + 0.1, key="k") == 1
    assert timeline((0, {1: 1.0})).revision_of(START + 9) is None
    assert timeline((0, {})).revision_of(START + 9, key="k") is None
    for at in (math.nan, math.inf, -math.inf):
        assert timeline((0, {1: 1.0})).revision_of(at, key="k") is None


@pytest.mark.parametrize("apart", [-MARGIN_S + 0.1, 0.0, MARGIN_S - 0.1])
def test_about_when_weights_change_it_is_known_only_where_it_does_not_matter(apart: float) -> None:
    known = timeline((0, {1: 1.0}), (100, HALVES))
    found = {known.revision_of(START + 100 + apart, key=str(i)) for i in range(50)}
    assert found == {1, None}, "those that stayed with revision 1 are known"


def test_a_request_that_was_answered_was_not_made_while_no_revision_had_any_weight() -> None:
    known = timeline((0, {}), (100, {1: 1.0}), (200, {}), (300, {2: 1.0}))
    assert [known.revision_of(START + at, key="k") for at in (99, 101, 199, 201, 301)] == [1, 1, 1, 1, 2]
    assert known.revision_of(START + 250, key="k") is None


def test_by_its_id_alone_a_request_that_may_have_had_a_key_is_not_known() -> None:
    known = timeline((0, {1: 1.0}), (100, HALVES), keyed=True)
    assert known.revision_of(START + 50, request_id="r") == 1, "there was no choice"
    assert known.revision_of(START + 150, request_id="r") is None
    assert known.revision_of(START + 150, request_id="r", key="k") in (1, 2)


def test_what_did_not_change_is_no_entry() -> None:
    known = Timeline("app")
    assert known.note({1: 1.0, 2: 0.0}, START) is not None
    assert known.note({1: 1.0}, START + 1) is None
    assert known.note({1: 1.0}, START + 2, keyed=True) is not None
    assert len(known.entries) == 2


def test_a_clock_that_is_set_back_does_not_disorder_it() -> None:
    known = timeline((0, {1: 1.0}), (100, {2: 1.0}), (50, {3: 1.0}))
    assert [entry.at for entry in known.entries] == [START, START + 100, START + 100]
    assert known.revision_of(START + 103, key="k") == 3
    assert known.revision_of(START + 97, key="k") == 1


@given(st.lists(st.tuples(st.floats(0, LONGEST_S / 10), st.integers(1, 3)), max_size=60))
def test_it_forgets_what_is_old_and_goes_on_from_what_it_kept(changes: list[tuple[float, int]]) -> None:
    known, at, noted = Timeline("app"), START, START
    for step, revision in changes:
        at += step
        if known.note({revision: 1.0}, at) is not None:
            noted = at  # it forgets when there is something new
    entries = known.entries
    assert len(entries) <= MOST_ENTRIES
    assert all(entry.at >= noted - LONGEST_S for entry in entries[1:])
    assert not entries or known.revision_of(at + 3, key="k") == changes[-1][1]
    again = Timeline("app", entries)
    assert again.entries == entries


def test_it_keeps_so_many_changes_and_no_more() -> None:
    known = timeline(*((float(i), {1 + i % 2: 1.0}) for i in range(MOST_ENTRIES + 50)))
    assert len(known.entries) == MOST_ENTRIES
    assert known.begins == START + 50
