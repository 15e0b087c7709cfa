"""Logarithmic buckets of durations: which bucket a duration falls into, and what a bucket stands for.

Each power of two of seconds is divided into 32 buckets of equal width (HdrHistogram's scheme, hdrhistogram.org), so a
bucket is at most 1/32 wide of what lies in it. Histograms with these buckets merge by adding counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import ldexp

PER_OCTAVE = 32
LOWEST_EXPONENT = -19  # below 2**-20 s, about a microsecond, all is one bucket
HIGHEST_EXPONENT = 13  # from 2**13 s on, more than two hours, too
COUNT = (HIGHEST_EXPONENT - LOWEST_EXPONENT + 1) * PER_OCTAVE


def lower_bound(bucket: int) -> float:
    """The least duration of the bucket, in seconds; 0 for the first one."""
    if bucket <= 0:
        return 0.0
    octave, part = divmod(bucket, PER_OCTAVE)
    return ldexp(0.5 + part / (2 * PER_OCTAVE), octave + LOWEST_EXPONENT)


# Where each bucket but the first begins, in seconds. The hot path looks here by itself: to search 1055 floats takes
# 60 % of the time of computing the bucket by frexp, and a call of `bucket_of` as long again.
BOUNDS = [lower_bound(bucket) for bucket in range(1, COUNT)]


def bucket_of(seconds: float) -> int:
    """The bucket, from 0 to COUNT - 1, that a duration falls into."""
    return bisect_right(BOUNDS, seconds)


def upper_bound(bucket: int) -> float:
    """What durations of the bucket are below, in seconds; the last bucket has no end, and this is where it begins."""
    return lower_bound(min(bucket + 1, COUNT - 1))


def first_from(seconds: float) -> int:
    """The first bucket that holds only durations of at least so many seconds; COUNT when there is none."""
    bucket = bucket_of(seconds)
    return bucket if lower_bound(bucket) >= seconds else bucket + 1


def count_from(histogram: Mapping[int, int], first: int) -> int:
    """How many durations are in this bucket and in those above it."""
    return sum(count for bucket, count in histogram.items() if bucket >= first)


def quantile_bucket(histogram: Mapping[int, int], quantile: float) -> int:
    """The bucket in which the quantile lies; -1 of an empty histogram."""
    left = quantile * sum(histogram.values())
    found = -1
    for found in sorted(histogram):
        left -= histogram[found]
        if left <= 0:
            break
    return found
