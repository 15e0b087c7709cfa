"""What a rollout has seen of its revisions, kept so that a new controller goes on from it.

In: what processes counted, from `core.analysis`. Out: the same, added up, without what cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headrace.core.buckets import COUNT
from headrace.spec.counts import Moments

MOST = 2**53  # counts above it are not exact as floats
_MOST_SUM = 1e150  # sums of reported values above it are not used


class Arm(msgspec.Struct):
    """What was seen of one revision at the door: requests that ended, those that failed, latencies by bucket
    (`core.buckets`), reported metrics by name.
    """

    requests: int = 0
    errors: int = 0
    latency: dict[int, int] = {}
    metrics: dict[str, Moments] = {}


class Block(msgspec.Struct):
    """What a comparison has seen of both since it last made its bets, and in all blocks before. Of requests, `total` is
    how many failed, or took longer than the baseline's quantile, which was in `bucket` when the block began.
    """

    baseline: Moments = msgspec.field(default_factory=Moments)
    candidate: Moments = msgspec.field(default_factory=Moments)
    earlier_baseline: Moments = msgspec.field(default_factory=Moments)
    earlier_candidate: Moments = msgspec.field(default_factory=Moments)
    bucket: int = -1


class Evidence(msgspec.Struct):
    """All that a rollout has seen. `wealth` is the state of the sequential tests, by check (see `core.sequential`), and
    `blocks` what they have not bet on yet.

    `compared` and `differed` count mirrored requests.
    """

    baseline: Arm = msgspec.field(default_factory=Arm)
    candidate: Arm = msgspec.field(default_factory=Arm)
    compared: int = 0
    differed: int = 0
    wealth: dict[str, float] = {}
    blocks: dict[str, Block] = {}


def sound_count(value: int) -> int:
    return min(max(value, 0), MOST)


def sound(arm: Arm) -> Arm:
    """The arm without what cannot be."""
    return Arm(
        requests=sound_count(arm.requests),
        errors=sound_count(arm.errors),
        latency={
            bucket: sound_count(count) for bucket, count in arm.latency.items() if count > 0 and 0 <= bucket < COUNT
        },
        metrics={name: _count_moments(each) for name, each in arm.metrics.items() if _is_sound(each)},
    )


def _is_sound(moments: Moments) -> bool:
    return moments.count > 0 and abs(moments.total) <= _MOST_SUM and 0 <= moments.squares <= _MOST_SUM  # false for NaN


def _count_moments(moments: Moments) -> Moments:
    return Moments(sound_count(moments.count), float(moments.total), float(moments.squares))


def merge(arm: Arm, new: Arm) -> None:
    arm.requests = min(arm.requests + new.requests, MOST)
    arm.errors = min(arm.errors + new.errors, MOST)
    for bucket, count in new.latency.items():
        arm.latency[bucket] = min(arm.latency.get(bucket, 0) + count, MOST)
    for name, moments in new.metrics.items():
        accumulate(arm.metrics.setdefault(name, Moments()), moments)


def accumulate(moments: Moments, new: Moments) -> None:
    moments.count += new.count
    moments.total += new.total
    moments.squares += new.squares


def moments_of(arm: Arm, name: str) -> Moments:
    return arm.metrics.get(name) or Moments()


def difference(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    """The counts by bucket that came since `before`."""
    return {bucket: count - before.get(bucket, 0) for bucket, count in now.items() if count > before.get(bucket, 0)}
