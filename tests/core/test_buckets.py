"""Buckets of durations: each holds what lies in it, and they are in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.buckets import (
    COUNT,
    PER_OCTAVE,
    bucket_of,
    count_from,
    first_from,
    lower_bound,
    quantile_bucket,
    upper_bound,
)

DURATIONS = st.floats(2.0**-20, 2.0**13, exclude_max=True)


@given(DURATIONS)
def test_a_duration_lies_in_its_bucket(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert 0 <= bucket < COUNT
    assert lower_bound(bucket) <= seconds
    assert seconds < upper_bound(bucket) or bucket == COUNT - 1


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_what_lasts_longer_is_in_no_lower_bucket(one: float, other: float) -> None:
    assert (bucket_of(one) <= bucket_of(other)) == (one <= other) or bucket_of(one) == bucket_of(other)
    assert 0 <= bucket_of(one) < COUNT


@given(st.integers(1, COUNT - 2))
def test_a_bucket_is_narrow(bucket: int) -> None:
    assert upper_bound(bucket) - lower_bound(bucket) <= lower_bound(bucket) / PER_OCTAVE
    assert bucket_of(lower_bound(bucket)) == bucket


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (-1.0, 0), (1e-9, 0), (1e9, COUNT - 1), (2.0**13, COUNT - 1)]
)
def test_what_is_beyond_them_is_in_the_first_or_the_last(seconds: float, bucket: int) -> None:
    assert bucket_of(seconds) == bucket


@given(DURATIONS)
def test_buckets_from_a_duration_on_hold_nothing_shorter(seconds: float) -> None:
    first = first_from(seconds)
    assert lower_bound(first) >= seconds
    assert first == 0 or lower_bound(first - 1) < seconds


def test_no_bucket_begins_after_the_last() -> None:
    assert first_from(1e9) == COUNT
    assert first_from(0.0) == 0


def test_counts_from_a_bucket_on_and_quantiles() -> None:
    histogram = {3: 50, 1: 40, 7: 10}
    assert [count_from(histogram, first) for first in (0, 1, 2, 7, 8)] == [100, 100, 60, 10, 0]
    assert [quantile_bucket(histogram, part) for part in (0.01, 0.4, 0.5, 0.9, 0.95, 1.0)] == [1, 1, 3, 3, 7, 7]
    assert quantile_bucket({}, 0.5) == -1
