"""The hypotheses that checks stand for, and what the evidence says of each.

In: what was counted of baseline and candidate since the last time, from `core.analysis`. Out: whether one is refuted,
and the figures in words. The mathematics is in `core.sequential`.

Baseline and candidate are compared in blocks: what came of both in the same time. So a bad hour that both have does not
speak against the candidate, although it has a larger share of the traffic in some hours than in others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import sqrt

from headrace.core import buckets
from headrace.core.evidence import Arm, Block, Evidence, accumulate, moments_of
from headrace.core.sequential import RATIOS, START, bet, gains_above, gains_between, guess, mean_margin
from headrace.spec.counts import Moments
from headrace.spec.rollout import Check, Disagreement, ErrorRate, Latency, Metric

LEAST_IN_BLOCK = 5  # of each revision, before they are compared
LEAST_FOR_QUANTILE = 20  # latencies of the baseline, before its quantile is guessed
LEAST_FOR_MEAN = 50  # values of a metric, before its mean is judged: the bound holds for many
TYPICAL_ERROR_RATE = 0.01  # guessed before any request was seen


class Test(ABC):
    """One null hypothesis of a check. `key` names its state in the evidence; equal tests have equal keys."""

    key: str

    @abstractmethod
    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        """Bet on what is new, which `evidence` does not have yet."""

    def fails(self, evidence: Evidence, alpha: float) -> bool:
        """Whether the evidence is enough, when false alarms may come with chance `alpha`."""
        return _total(evidence, self.key) >= 1 / alpha

    @abstractmethod
    def text(self, evidence: Evidence, alpha: float) -> str:
        """The figures, in words."""


class ErrorsCompared(Test):
    """The candidate fails no more often than the baseline."""

    key = "error_rate"

    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        block = evidence.blocks.setdefault(self.key, Block())
        baseline_new, candidate_new = (baseline.requests, baseline.errors), (candidate.requests, candidate.errors)
        _compare(evidence, self.key, block, baseline_new, candidate_new, TYPICAL_ERROR_RATE)

    def text(self, evidence: Evidence, alpha: float) -> str:
        old, new = evidence.baseline, evidence.candidate
        beside = f"against {_share(old.errors, old.requests)} of the baseline" if old.requests else "and no baseline"
        return f"error rate {_share(new.errors, new.requests)} {beside}; {_odds(evidence, self.key, alpha)}"


class ErrorsBounded(Test):
    """The candidate fails no more often than `bound`."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.key = f"error_rate<={bound!r}"

    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        _bet_above(evidence, self.key, candidate.requests, candidate.errors, self.bound)

    def text(self, evidence: Evidence, alpha: float) -> str:
        new = evidence.candidate
        said = f"error rate {_share(new.errors, new.requests)}, {_percent(self.bound)} at most"
        return f"{said}; {_odds(evidence, self.key, alpha)}"


class Differences(Test):
    """Answers of the candidate differ from the baseline's no more often than `bound`."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.key = f"disagreement<={bound!r}"

    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        _bet_above(evidence, self.key, compared, differed, self.bound)

    def text(self, evidence: Evidence, alpha: float) -> str:
        said = f"answers differ in {_share(evidence.differed, evidence.compared)}, {_percent(self.bound)} at most"
        return f"{said}; {_odds(evidence, self.key, alpha)}"


class LatencyCompared(Test):
    """The candidate takes no longer than `ratio` times what the baseline takes, at the baseline's quantile.

    Where x is the baseline's quantile, as guessed before each block: the candidate takes `ratio` times x or longer no
    more often than the baseline takes x. That is so, for every x, of a candidate whose latencies are those of the
    baseline, or up to `ratio` times as long; so the test is valid for these, however well x is guessed. A candidate
    whose quantile alone is within the ratio may fail only for what x is off.
    """

    def __init__(self, quantile: float, ratio: float) -> None:
        self.quantile = quantile
        self.ratio = ratio
        self.key = f"latency:{quantile!r}<={ratio!r}x"

    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        block = evidence.blocks.setdefault(self.key, Block())
        if not block.baseline.count and not block.candidate.count:
            known = evidence.baseline.latency
            enough = sum(known.values()) >= LEAST_FOR_QUANTILE
            block.bucket = buckets.quantile_bucket(known, self.quantile) if enough else -1
        if block.bucket < 0:
            return
        first = block.bucket + 1
        own_first = max(first, buckets.first_from(self.ratio * buckets.lower_bound(first)))
        baseline_new, candidate_new = _slow(baseline, first), _slow(candidate, own_first)
        _compare(evidence, self.key, block, baseline_new, candidate_new, 1 - self.quantile)

    def text(self, evidence: Evidence, alpha: float) -> str:
        old, new = evidence.baseline.latency, evidence.candidate.latency
        beside = f"against {_time(old, self.quantile)} of the baseline" if old else "and no baseline"
        said = f"{_name(self.quantile)} latency {_time(new, self.quantile)} {beside}, {self.ratio:g} times at most"
        return f"{said}; {_odds(evidence, self.key, alpha)}"


class LatencyBounded(Test):
    """The share of requests that take `bound` or longer is at most 1 - quantile."""

    def __init__(self, quantile: float, bound: float) -> None:
        self.quantile = quantile
        self.bound = bound
        self.first = buckets.first_from(bound)
        self.key = f"latency:{quantile!r}<={bound!r}s"

    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        count, slow = _slow(candidate, self.first)
        _bet_above(evidence, self.key, count, slow, 1 - self.quantile)

    def text(self, evidence: Evidence, alpha: float) -> str:
        time = _time(evidence.candidate.latency, self.quantile)
        said = f"{_name(self.quantile)} latency {time}, {_seconds(self.bound)} at most"
        return f"{said}; {_odds(evidence, self.key, alpha)}"


class MeanCompared(Test):
    """The mean of a metric is not worse than the baseline's by more than `tolerance`.

    The sum of the differences of means in each block, weighted by n m/(n + m) for n and m values; the standard
    deviation is the larger one of both revisions', which only makes the test more careful.
    """

    def __init__(self, check: Metric) -> None:
        self.name = check.name
        self.sign = -1.0 if check.better == "higher" else 1.0
        self.tolerance = check.tolerance
        self.least = max(LEAST_FOR_MEAN, check.min_samples)
        self.key = f"metric:{check.name}:{check.better}:{check.tolerance!r}:{self.least}"

    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        old, new = moments_of(baseline, self.name), moments_of(candidate, self.name)
        block = evidence.blocks.setdefault(self.key, Block())
        accumulate(block.baseline, old)
        accumulate(block.candidate, new)
        if not _is_full(block, old.count):
            return
        n, m = block.baseline.count, block.candidate.count
        weight = n * m / (n + m)
        worse = self.sign * weight * (block.candidate.total / m - block.baseline.total / n)
        before, weights = self._state(evidence)
        evidence.wealth[f"{self.key}:sum"] = before + worse
        evidence.wealth[f"{self.key}:weight"] = weights + weight
        block.baseline, block.candidate = Moments(), Moments()

    def _state(self, evidence: Evidence) -> tuple[float, float]:
        return evidence.wealth.get(f"{self.key}:sum", 0.0), evidence.wealth.get(f"{self.key}:weight", 0.0)

    def fails(self, evidence: Evidence, alpha: float) -> bool:
        old, new = moments_of(evidence.baseline, self.name), moments_of(evidence.candidate, self.name)
        worse, weight = self._state(evidence)
        if min(old.count, new.count) < self.least or not weight:
            return False
        deviation = max(_deviation(old), _deviation(new))
        return worse - self.tolerance * weight > deviation * mean_margin(weight, alpha)

    def text(self, evidence: Evidence, alpha: float) -> str:
        old, new = moments_of(evidence.baseline, self.name), moments_of(evidence.candidate, self.name)
        beside = f"against {_mean(old)} of the baseline" if old.count else "and no baseline"
        said = f"{self.name} {_mean(new)} {beside}"
        worse, weight = self._state(evidence)
        if not weight or new.count < LEAST_FOR_MEAN:
            return said
        margin = max(_deviation(old), _deviation(new)) * mean_margin(weight, alpha)
        found = f"worse by {worse / weight:.4g} give or take {margin / weight:.4g}"
        return f"{said}; {found}, {self.tolerance:g} allowed"


class MeanBounded(Test):
    """The mean of a metric is at most `bound`; with `sign` -1, at least.

    The standard deviation is the larger one of both revisions', here too: values that are large and rare may not have
    come to the candidate yet, which then looks as if it had a small mean that does not vary.
    """

    def __init__(self, check: Metric, bound: float, sign: float) -> None:
        self.name = check.name
        self.bound = bound
        self.sign = sign
        self.least = max(LEAST_FOR_MEAN, check.min_samples)
        self.key = f"metric:{check.name}:{sign:g}:{bound!r}:{self.least}"

    def take(self, evidence: Evidence, baseline: Arm, candidate: Arm, compared: int, differed: int) -> None:
        """All that it needs is in the arms."""

    def fails(self, evidence: Evidence, alpha: float) -> bool:
        new = moments_of(evidence.candidate, self.name)
        if new.count < self.least:
            return False
        beyond = self.sign * (new.total - self.bound * new.count)
        return beyond > self._margin(evidence, new, alpha)

    def _margin(self, evidence: Evidence, new: Moments, alpha: float) -> float:
        deviation = max(_deviation(new), _deviation(moments_of(evidence.baseline, self.name)))
        return deviation * mean_margin(new.count, alpha)

    def text(self, evidence: Evidence, alpha: float) -> str:
        new = moments_of(evidence.candidate, self.name)
        said = f"{self.name} {_mean(new)}, {self.bound:g} at {'most' if self.sign > 0 else 'least'}"
        if new.count < LEAST_FOR_MEAN:
            return said
        return f"{said}; give or take {self._margin(evidence, new, alpha) / new.count:.4g}"


@lru_cache(maxsize=256)
def tests_of(check: Check) -> tuple[Test, ...]:
    """The hypotheses that a check stands for."""
    found: list[Test] = []
    match check:
        case ErrorRate():
            if check.against_baseline:
                found.append(ErrorsCompared())
            if check.max is not None:
                found.append(ErrorsBounded(check.max))
        case Latency():
            if check.max_ratio is not None:
                found.append(LatencyCompared(check.quantile, check.max_ratio))
            if check.max_s is not None:
                found.append(LatencyBounded(check.quantile, check.max_s))
        case Disagreement():
            found.append(Differences(check.max))
        case Metric():
            if check.better is not None:
                found.append(MeanCompared(check))
            if check.max is not None:
                found.append(MeanBounded(check, check.max, 1.0))
            if check.min is not None:
                found.append(MeanBounded(check, check.min, -1.0))
    return tuple(found)


def _compare(
    evidence: Evidence, key: str, block: Block, old: tuple[int, int], new: tuple[int, int], prior: float
) -> None:
    """Add (requests, hits) of both to the open block, and bet on it when it is full."""
    before, own_before = block.earlier_baseline, block.earlier_candidate
    baseline = block.baseline = _added(block.baseline, old, before.count)
    candidate = block.candidate = _added(block.candidate, new, own_before.count)
    if not _is_full(block, old[0]):
        return
    # An answer may break off after it was counted: such a hit may come without a trial, and waits for the next.
    hits, own_hits = min(int(baseline.total), baseline.count), min(int(candidate.total), candidate.count)
    weight = before.count + own_before.count
    rate = guess(weight, before.total + own_before.total, prior)
    share = own_before.count / weight if weight else 0.0
    gains = gains_between((baseline.count, hits), (candidate.count, own_hits), rate, share, weight)
    _bet(evidence, key, gains, candidate.count)
    accumulate(before, Moments(baseline.count, float(hits)))
    accumulate(own_before, Moments(candidate.count, float(own_hits)))
    block.baseline = Moments(0, baseline.total - hits)
    block.candidate = Moments(0, candidate.total - own_hits)


def _added(moments: Moments, new: tuple[int, int], before: int) -> Moments:
    """With (requests, hits) that are new; no more hits than there were requests, `before` of them in earlier blocks."""
    count = moments.count + new[0]
    return Moments(count, min(moments.total + new[1], float(count + before)))


def _is_full(block: Block, new_of_baseline: int) -> bool:
    """Whether there is enough of both to compare: by how many there are, never by what became of them.

    While the baseline gets nothing, as after a switch to blue-green, its last requests wait for as many of the
    candidate: they are the last that there is to compare with.
    """
    n, m = block.baseline.count, block.candidate.count
    return n >= LEAST_IN_BLOCK and m >= LEAST_IN_BLOCK and (new_of_baseline > 0 or m >= n)


def _bet_above(evidence: Evidence, key: str, count: int, hits: int, bound: float) -> None:
    """Bet on so many new trials, and on hits that came without one before: bets made in between have not paid for the
    trial that such a hit belongs to, and must not gain by it, so it waits for the next.
    """
    seen, late = evidence.wealth.get(f"{key}:seen", 0.0), evidence.wealth.get(f"{key}:late", 0.0)
    hits = min(hits + int(late), count + int(seen))
    if count:
        _bet(evidence, key, gains_above(count, min(hits, count), bound), count)
    evidence.wealth[f"{key}:late"] = float(max(hits - count, 0))


def _bet(evidence: Evidence, key: str, gains: Sequence[float], seen: int) -> None:
    names, wealth = _names(key), evidence.wealth
    held = [wealth.get(name, start) for name, start in zip(names, START, strict=True)]
    before = wealth.get(f"{key}:seen", 0.0)
    wealth.update(zip(names, bet(held, gains, before, seen), strict=True))
    wealth[f"{key}:seen"] = before + seen


@lru_cache(maxsize=256)
def _names(key: str) -> tuple[str, ...]:
    return (f"{key}:kept", *(f"{key}:{ratio:g}" for ratio in RATIOS))


def _total(evidence: Evidence, key: str) -> float:
    return sum(evidence.wealth.get(name, start) for name, start in zip(_names(key), START, strict=True))


def _slow(arm: Arm, first: int) -> tuple[int, int]:
    """How many latencies there are, and how many from this bucket on."""
    return sum(arm.latency.values()), buckets.count_from(arm.latency, first)


def _deviation(moments: Moments) -> float:
    """The standard deviation. What rounding may have eaten of it counts as deviation."""
    if not moments.count:
        return 0.0
    square = moments.squares / moments.count
    variance = square - (moments.total / moments.count) ** 2
    return sqrt(max(variance, 1e-12 * square))


def _odds(evidence: Evidence, key: str, alpha: float) -> str:
    total, enough = _total(evidence, key), 1 / alpha
    if total > 1e6:
        shown = "over a million"
    elif total < 0.01:
        shown = "under 0.01"
    else:
        shown = f"{total:,.0f}" if total >= 10 else f"{total:.2g}"
    return f"evidence {shown}:1, too much from {enough:,.0f}:1"


def _percent(share: float) -> str:
    value = 100 * share
    return f"{value:.0f} %" if value >= 99.5 else f"{value:.2g} %"


def _share(part: int, count: int) -> str:
    return f"{_percent(min(part / count, 1.0))} ({part:,} of {count:,})" if count else "– (0 of 0)"


def _name(quantile: float) -> str:
    return f"p{100 * quantile:g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _time(histogram: Mapping[int, int], quantile: float) -> str:
    if not histogram:
        return "–"
    return _seconds(buckets.upper_bound(buckets.quantile_bucket(histogram, quantile)))


def _mean(moments: Moments) -> str:
    return f"{moments.total / moments.count:.4g} (mean of {moments.count:,})" if moments.count else "– (mean of 0)"
