"""Buckets of durations: each holds what lies in it, and they are in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.buckets import COUNT, PER_OCTAVE, bucket_of, lower_bound, upper_bound

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
