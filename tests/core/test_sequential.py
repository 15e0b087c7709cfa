"""The sequential tests are fair bets: expectations are summed up exactly, and walks stay below their bounds."""

from __future__ import annotations

from math import comb, exp, isfinite
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.sequential import RATIOS, START, bet, gains_above, gains_between, guess, mean_margin

chances = st.floats(0.0, 1.0)
counts = st.integers(0, 2**53)


def binomial(count: int, hits: int, chance: float) -> float:
    return float(comb(count, hits) * chance**hits * (1 - chance) ** (count - hits))


@given(st.integers(0, 5), st.integers(0, 5), chances, chances, chances, chances)
def test_a_block_gains_nothing_in_expectation_while_the_candidate_is_no_worse(
    n: int, m: int, one: float, other: float, rate: float, share: float
) -> None:
    worse, better = max(one, other), min(one, other)
    expected = [0.0] * len(RATIOS)
    for hits in range(n + 1):
        for own in range(m + 1):
            chance = binomial(n, hits, worse) * binomial(m, own, better)
            for i, gain in enumerate(gains_between((n, hits), (m, own), rate, share, weight=100)):
                expected[i] += chance * exp(gain)
    assert all(each <= 1 + 1e-6 for each in expected)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (6, 2), (2, 6)])
def test_a_block_gains_in_expectation_when_the_candidate_is_worse(n: int, m: int) -> None:
    expected = 0.0
    for hits in range(n + 1):
        for own in range(m + 1):
            chance = binomial(n, hits, 0.1) * binomial(m, own, 0.3)
            expected += chance * gains_between((n, hits), (m, own), 0.15, m / (n + m), weight=100)[RATIOS.index(3.0)]
    assert expected > 0


@given(st.integers(0, 8), st.floats(0.001, 1.0), chances)
def test_trials_against_a_bound_gain_nothing_in_expectation_below_it(count: int, bound: float, part: float) -> None:
    for i in range(len(RATIOS)):
        expected = sum(
            binomial(count, hits, bound * part) * exp(gains_above(count, hits, bound)[i]) for hits in range(count + 1)
        )
        assert expected <= 1 + 1e-9
        if part == 1.0:
            assert expected == pytest.approx(1.0)


def test_where_nothing_may_fail_one_failure_is_enough() -> None:
    assert gains_above(100, 0, 0.0) == [0.0] * len(RATIOS)
    assert sum(bet(START, gains_above(100, 1, 0.0), 0, 100)) > 1e6


@given(counts, chances, counts, chances, chances, chances, counts)
def test_gains_are_finite_whatever_is_counted(
    n: int, part: float, m: int, own_part: float, rate: float, share: float, weight: int
) -> None:
    gains = gains_between((n, int(n * part)), (m, int(m * own_part)), rate, share, weight)
    gains += gains_above(n, int(n * part), rate)
    assert all(isfinite(gain) for gain in gains)


def test_a_revision_alone_says_nothing() -> None:
    assert gains_between((0, 0), (10, 9), 0.01, 0.5, 100) == [0.0] * len(RATIOS)
    assert gains_between((10, 9), (0, 0), 0.01, 0.5, 100) == [0.0] * len(RATIOS)


@given(st.lists(st.floats(-1e6, 1e6), min_size=len(RATIOS), max_size=len(RATIOS)), counts, counts)
def test_wealth_stays_finite_and_positive(gains: list[float], before: int, seen: int) -> None:
    wealth: list[float] = list(START)
    for _ in range(5):
        wealth = bet(wealth, gains, before, seen)
        assert all(isfinite(held) and held >= 0 for held in wealth)
    assert sum(wealth) > 0


@given(st.lists(st.floats(0, 100), min_size=len(START), max_size=len(START)), counts, counts)
def test_moving_money_between_bets_makes_none(wealth: list[float], before: int, seen: int) -> None:
    assert sum(bet(wealth, [0.0] * len(RATIOS), before, seen)) == pytest.approx(sum(wealth))


def test_after_a_long_good_while_there_is_something_left_to_bet_with() -> None:
    wealth: list[float] = list(START)
    for i in range(1000):
        wealth = bet(wealth, gains_above(100, 1, 0.02), 100 * i, 100)
    assert 0.01 < sum(wealth) < 1
    assert min(wealth) > 1e-6


def test_a_guess_moves_from_the_prior_to_what_was_seen() -> None:
    assert guess(0, 0, 0.05) == pytest.approx(0.05)
    assert guess(1e6, 2e4, 0.05) == pytest.approx(0.02, rel=0.01)


def test_a_walk_seldom_goes_beyond_its_margin_at_any_time() -> None:
    random = Random(1)
    margins = [mean_margin(step, 0.05) for step in range(1, 1001)]
    beyond = 0
    for _ in range(400):
        walk, crossed = 0.0, False
        for margin in margins:
            walk += random.gauss(0, 1)
            crossed = crossed or walk > margin
        beyond += crossed
    assert beyond <= 24  # 5 % of 400 are 20, in an infinite time


@given(st.floats(1000, 1e9), st.floats(1e-7, 0.2))
def test_margins_grow_with_the_count_and_with_care(count: float, alpha: float) -> None:
    assert 0 < mean_margin(count, alpha) < mean_margin(count * 2, alpha)
    assert mean_margin(count, alpha) < mean_margin(count, alpha / 2)
    assert isfinite(mean_margin(count, 0.5))
