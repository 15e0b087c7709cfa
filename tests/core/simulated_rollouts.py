"""Rollouts played with the core's analysis and machine on made-up requests, a second at a time; seeded, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from random import Random

from headrace.core.analysis import PASS, Arm, Evidence, Verdict, add, judge
from headrace.core.buckets import bucket_of
from headrace.core.rollout import Seen, Stage, advance, begin, wanted_weights
from headrace.spec.rollout import Canary, Check
from headrace.spec.status import RolloutOutcome

STEPS = ((0.05, 60.0), (0.25, 60.0), (0.5, 60.0))


def hits(random: Random, count: int, chance: float) -> int:
    """How many of so many trials succeed, by the gaps between those that do."""
    if chance <= 0.0:
        return 0
    found, at = 0, 0
    while True:
        at += 1 + int(log(1.0 - random.random()) / log(1.0 - chance))
        if at > count:
            return found
        found += 1


def latencies(random: Random, count: int, median_s: float) -> dict[int, int]:
    """A histogram of so many log-normal latencies."""
    found: dict[int, int] = {}
    for _ in range(count):
        bucket = bucket_of(random.lognormvariate(log(median_s), 0.5))
        found[bucket] = found.get(bucket, 0) + 1
    return found


@dataclass
class Played:
    """How a rollout ended, and how many requests the canary had until that was decided."""

    rolled_back: bool
    requests: int
    reason: str


def play(
    random: Random,
    analysis: Sequence[Check],
    baseline: Callable[[Random, int, int], Arm],
    candidate: Callable[[Random, int, int], Arm],
    rate: int = 100,
) -> Played:
    """A canary from its first step to its end. Both sides are asked for (number of requests, second)."""
    rollout = begin(2, {1: 1.0}, Canary(steps=STEPS, analysis=tuple(analysis)), 0.0)
    evidence, verdict = Evidence(), Verdict(PASS)
    weights, requests = {1: 1.0}, 0
    for now in range(3600):
        rollout = advance(rollout, Seen(weights=weights, ready={1: 1.0, 2: 1.0}, verdict=verdict), float(now))
        weights = wanted_weights(rollout, weights)
        if rollout.stage in (Stage.FINISHING, Stage.RETREATING, Stage.ENDED):
            return Played(rollout.outcome == RolloutOutcome.ROLLED_BACK, requests, rollout.reason)
        own = hits(random, rate, weights.get(2, 0.0))
        requests += own
        add(evidence, analysis, baseline(random, rate - own, now), candidate(random, own, now))
        verdict = judge(evidence, analysis, 0.05)
    raise AssertionError("the rollout does not end")


def failing(chance: float) -> Callable[[Random, int, int], Arm]:
    """A revision whose requests fail with this chance."""
    return lambda random, count, now: Arm(requests=count, errors=hits(random, count, chance))


def taking(median_s: float) -> Callable[[Random, int, int], Arm]:
    """A revision whose requests take about so long."""
    return lambda random, count, now: Arm(requests=count, latency=latencies(random, count, median_s))
