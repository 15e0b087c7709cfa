"""Which calls would be late: quantiles of service times, the rate of starts, and what is judged by them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.lateness import (
    DOUBTFUL,
    HALF_LIFE_S,
    LEAST_OBSERVATIONS,
    LIKELY,
    PROBE_EVERY,
    STARTS,
    Lateness,
    ServiceTimes,
    StartRate,
)


def learn(times: ServiceTimes, seconds: list[float], now: float = 0.0, gap_s: float = 0.001) -> None:
    for i, each in enumerate(seconds):
        times.observe(each, now + i * gap_s)


def test_nothing_is_known_of_few() -> None:
    times = ServiceTimes()
    learn(times, [1.0] * (LEAST_OBSERVATIONS - 1))
    assert times.likely_s == times.doubtful_s == 0.0
    learn(times, [1.0])
    assert times.likely_s == times.doubtful_s
    assert 1.0 <= times.likely_s <= 1.1


@given(st.lists(st.floats(1e-5, 1000.0), min_size=LEAST_OBSERVATIONS, max_size=60))
def test_quantiles_are_those_of_what_was_seen_and_at_most_a_bucket_too_high(seconds: list[float]) -> None:
    """All at one moment, and so few that the decay by number hardly matters: at most a tenth in rank."""
    times = ServiceTimes()
    learn(times, seconds, gap_s=0.0)
    for found, quantile in ((times.likely_s, LIKELY), (times.doubtful_s, DOUBTFUL)):
        below = sum(each <= found * 1.0001 for each in seconds) / len(seconds)
        far_below = sum(each <= found / 1.1001 for each in seconds) / len(seconds)
        assert far_below - 0.1 <= quantile <= below + 0.1


def test_what_is_out_of_all_range_counts_as_its_end() -> None:
    times = ServiceTimes()
    learn(times, [-1.0, 0.0, 0.0, 1e300] * 10)
    assert times.doubtful_s == pytest.approx(1e-5)
    assert times.likely_s >= 1e4


@pytest.mark.parametrize(("before", "after"), [(0.01, 1.0), (1.0, 0.01)])
def test_a_change_is_learned_up_and_down(before: float, after: float) -> None:
    times = ServiceTimes()
    learn(times, [before] * 1000)
    assert before <= times.likely_s <= before * 1.1
    seen = 0
    while not after <= times.likely_s <= after * 1.1:
        times.observe(after, 1.0)
        seen += 1
        assert seen <= 350
    assert seen > 3, "but one or two that are out of the ordinary change nothing"


def test_what_is_old_weighs_little_though_few_have_come_since() -> None:
    times = ServiceTimes()
    learn(times, [5.0] * 1000)
    learn(times, [0.1] * 20, now=100 * HALF_LIFE_S)
    assert times.likely_s <= 0.11
    times.observe(0.1, 0.0)  # a clock that goes back is no harm
    assert times.likely_s <= 0.11


def test_weights_are_scaled_down_without_a_trace() -> None:
    times, random = ServiceTimes(), Random(1)
    for i in range(20_000):
        times.observe(random.expovariate(1.0), i * 0.1)
    assert 1.9 < times.likely_s < 3.1
    assert 0.5 < times.doubtful_s < 0.95


def test_a_rate_counts_only_time_in_which_calls_wait() -> None:
    rate = StartRate()
    now = 0.0
    for _ in range(STARTS):
        rate.begin(now)
        now += 0.1
        rate.starts += 1
        rate.end(now)
        now += 5.0  # nobody waits
    assert rate.per_s(now) == pytest.approx(10.0)


def test_a_rate_falls_when_starts_fail_to_come_and_rises_again() -> None:
    rate = StartRate()
    rate.begin(0.0)
    rate.starts += STARTS
    assert rate.per_s(1.0) == STARTS
    assert rate.per_s(1.1) == STARTS, "a few may be late"
    fallen = rate.per_s(9.0)
    assert fallen is not None
    assert fallen <= 0.5
    rate.starts += STARTS * 1000
    risen = rate.per_s(10.0)
    assert risen is not None
    assert risen > 800


def test_a_spell_whose_end_was_not_told_says_nothing() -> None:
    rate = StartRate()
    rate.begin(0.0)
    rate.starts += STARTS - 1
    rate.begin(1000.0)  # all that waited were cancelled, some time ago
    rate.starts += STARTS
    assert rate.per_s(1001.0) == STARTS


def test_a_call_that_would_be_late_is_not_worth_it_unless_it_is_a_probe_or_urgent() -> None:
    lateness = Lateness()
    learn(lateness.times, [0.1] * 50 + [1.0] * 30)
    assert not lateness.too_late(1.2)
    assert [lateness.too_late(0.5) for _ in range(PROBE_EVERY)] == [True] * (PROBE_EVERY - 1) + [False]
    assert not lateness.too_late(0.5, priority=1), "it may be in time"
    assert lateness.too_late(0.05, priority=1)
    assert all(lateness.too_late(0.0) for _ in range(100)), "what has expired is no probe"


def test_what_waits_ahead_makes_a_call_hopeless() -> None:
    lateness = Lateness()
    learn(lateness.times, [0.1] * 50)
    assert not lateness.hopeless(0.2, ahead=1000, now=0.0), "the rate is not known yet"
    lateness.rate.begin(0.0)
    lateness.rate.starts += STARTS
    assert not lateness.hopeless(1.2, ahead=STARTS, now=1.0)
    assert lateness.hopeless(1.0, ahead=STARTS, now=1.0)
    assert not lateness.hopeless(0.01, ahead=0, now=1.0), "with nobody before it, it is never refused"
    assert lateness.hopeless(0.0, ahead=0, now=1.0)


def test_a_pause_as_long_as_calls_take_says_nothing_of_their_rate() -> None:
    lateness = Lateness()
    for i in range(50):
        lateness.times.observe(0.2, i * 0.01)  # answered in batches of 64, five a second
    lateness.rate.begin(0.0)
    lateness.rate.starts += 64
    assert not lateness.hopeless(5.0, 200, 0.2)
    assert not lateness.hopeless(5.0, 200, 0.39), "the next batch is under way"
    assert lateness.hopeless(5.0, 200, 3.0), "it should have come long ago"
