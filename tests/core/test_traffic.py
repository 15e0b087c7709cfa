"""Traffic: which revision a request belongs to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.traffic import draw_revision, sticky_draw


def test_revisions_get_their_share() -> None:
    random = Random(1)
    counts = Counter(draw_revision([(1, 0.9), (2, 0.1)], random.random()) for _ in range(10_000))
    assert counts[2] == pytest.approx(1000, abs=120)
    assert counts[1] + counts[2] == 10_000


def test_weights_need_not_add_up_to_one() -> None:
    assert draw_revision([(1, 30.0), (2, 10.0)], 0.24) == 2
    assert draw_revision([(1, 30.0), (2, 10.0)], 0.26) == 1


def test_a_revision_without_weight_gets_nothing() -> None:
    assert {draw_revision([(1, 1.0), (2, 0.0), (3, 0.0)], i / 100) for i in range(100)} == {1}
    assert draw_revision([(1, 0.0)], 0.5) is None
    assert draw_revision([], 0.5) is None


def test_a_sticky_key_stays_where_it_is() -> None:
    weights = [(1, 0.5), (2, 0.5)]
    for i in range(50):
        assert len({draw_revision(weights, draw / 10, f"user{i}") for draw in range(10)}) == 1


def test_sticky_keys_spread_by_weight() -> None:
    counts = Counter(draw_revision([(1, 0.9), (2, 0.1)], 0.0, f"user{i}") for i in range(10_000))
    assert counts[2] == pytest.approx(1000, abs=120)


def test_experiments_of_different_applications_are_independent() -> None:
    in_both = sum(sticky_draw(f"user{i}", "a") < 0.1 and sticky_draw(f"user{i}", "b") < 0.1 for i in range(10_000))
    assert in_both == pytest.approx(100, abs=50)


def test_the_place_of_a_key_is_the_same_in_every_process_and_release() -> None:
    assert sticky_draw("user-1") == pytest.approx(0.0062810057, abs=1e-9)


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
def test_when_weight_moves_to_the_newer_revision_no_key_goes_back(key: str, before: int, after: int) -> None:
    before, after = sorted((before, after))
    was = draw_revision([(1, 100.0 - before), (2, float(before))], 0.0, key)
    now = draw_revision([(1, 100.0 - after), (2, float(after))], 0.0, key)
    assert was is not None
    assert now is not None
    assert now >= was


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_has_weight(weights: list[float], draw: float) -> None:
    chosen = draw_revision(list(enumerate(weights, 1)), draw)
    if chosen is None:
        assert sum(weights) == 0
    else:
        assert weights[chosen - 1] > 0
