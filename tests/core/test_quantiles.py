"""Quantiles that follow the times: any share may be asked for, and what is old counts little."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.quantiles import LiveQuantiles


@given(st.floats(0.5, 0.99), st.integers(1, 40))
def test_a_quantile_is_that_of_what_was_seen_and_at_most_a_bucket_too_high(quantile: float, seed: int) -> None:
    random = Random(seed)
    seconds = [random.lognormvariate(-4, 1) for _ in range(1000)]
    quantiles = LiveQuantiles((quantile,), 1, 1e9, 1e9)
    for each in seconds:
        quantiles.observe(each, 0.0)
    (found,) = quantiles.values
    assert sum(each > found * 1.0001 for each in seconds) / len(seconds) <= 1 - quantile + 1e-9
    assert sum(each > found / 1.1001 for each in seconds) / len(seconds) >= 1 - quantile - 1e-9


def test_nothing_is_said_of_fewer_than_were_asked_for() -> None:
    quantiles = LiveQuantiles((0.5, 0.9), 3, 30.0, 100.0)
    for _ in range(2):
        quantiles.observe(1.0, 0.0)
        assert quantiles.values == [0.0, 0.0]
    quantiles.observe(1.0, 0.0)
    assert quantiles.values == pytest.approx([1.0, 1.0], rel=0.1)
    assert repr(quantiles).startswith("<LiveQuantiles 1.0")


def test_what_is_recent_fades_by_time_and_by_number() -> None:
    quantiles = LiveQuantiles((0.5,), 1, 30.0, 100.0)
    assert quantiles.recent == 0.0
    for _ in range(2000):
        quantiles.observe(1.0, 0.0)
    assert quantiles.recent == pytest.approx(100 / 0.693, rel=0.01)
    quantiles.observe(1.0, 90.0)
    assert quantiles.recent == pytest.approx(1 + 100 / 0.693 / 8, rel=0.05)
