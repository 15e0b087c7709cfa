"""Quantiles of times as they are now: what came late counts most, and nothing is kept but a histogram.

In: how long things took, with `now`. Out: the quantiles that were asked for, at most a tenth too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp2, log

_LEAST_S, _MOST_S = 1e-5, 1e4
_GAMMA = 1.1  # from one bucket to the next
_LOG_GAMMA = log(_GAMMA)
_BUCKETS = ceil(log(_MOST_S / _LEAST_S) / _LOG_GAMMA) + 1
_UPPER_S = [_LEAST_S * _GAMMA**bucket for bucket in range(_BUCKETS)]
_HEAVY = 1e12  # weights are scaled down when they have grown so far
_MOST_HALVINGS = 60.0  # at once: what is older weighs nothing


class LiveQuantiles:
    """Quantiles of times, those of late counting most. `values` stands beside `quantiles`, and is 0 before `least`
    times have been seen.

    A histogram over buckets that grow by 10 %, so a quantile is at most that much too high (DDSketch: Masson, Rim and
    Lee, VLDB 2019), under forward decay (Cormode, Shkapenyuk, Srivastava and Xu, ICDE 2009): the weight of an
    observation halves in `half_life_s`, and with every `half_life_observations` that follow. A mark in the histogram
    moves with each quantile, so an observation costs O(1), amortised.
    """

    __slots__ = (
        "_at",
        "_growth",
        "_half_life_s",
        "_least",
        "_marks",
        "_step",
        "_total",
        "_weight",
        "_weights",
        "count",
        "values",
    )

    def __init__(
        self, quantiles: Sequence[float], least: int, half_life_s: float, half_life_observations: float
    ) -> None:
        self.count = 0
        self.values = [0.0 for _ in quantiles]
        self._least = least
        self._half_life_s = half_life_s
        self._step = 1 / half_life_observations
        self._growth = exp2(self._step)
        self._weights = [0.0] * _BUCKETS
        self._marks = [_Mark(quantile) for quantile in quantiles]
        self._total = 0.0
        self._weight = 1.0  # of the next observation
        self._at: float | None = None

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.6f} s" for value in self.values)
        return f"<{type(self).__name__} {values} from {self.count}>"

    @property
    def recent(self) -> float:
        """How many observations there are, each counted by what it still weighs."""
        return self._total / self._weight

    def observe(self, seconds: float, now: float) -> None:
        """Something has taken so long; or at least so long, when it was given up."""
        if self._at is None:
            self._at = now
        if now <= self._at:
            self._weight *= self._growth
        else:
            self._weight *= exp2(min((now - self._at) / self._half_life_s, _MOST_HALVINGS) + self._step)
            self._at = now
        if self._weight > _HEAVY:
            self._scale_down()
        weight, weights = self._weight, self._weights
        bucket = 0 if seconds <= _LEAST_S else min(ceil(log(seconds / _LEAST_S) / _LOG_GAMMA), _BUCKETS - 1)
        weights[bucket] += weight
        self._total = total = self._total + weight
        self.count += 1
        known = self.count >= self._least
        for i, mark in enumerate(self._marks):
            if bucket > mark.bucket:
                mark.above += weight
            mark.settle(weights, total)
            if known:
                self.values[i] = _UPPER_S[mark.bucket]

    def _scale_down(self) -> None:
        scale = 1 / self._weight
        self._weights = [weight * scale for weight in self._weights]
        self._weight = 1.0
        # Sums anew: what rounding had added up to is gone.
        self._total = sum(self._weights)
        for mark in self._marks:
            mark.above = sum(self._weights[mark.bucket + 1 :])


class _Mark:
    """Where a quantile is in the histogram: in `bucket`, with `above` the weight of all higher ones."""

    __slots__ = ("above", "bucket", "share_above")

    def __init__(self, quantile: float) -> None:
        self.share_above = 1 - quantile
        self.bucket = 0
        self.above = 0.0

    def settle(self, weights: list[float], total: float) -> None:
        """The weights have changed: move to where the quantile is now."""
        most, bucket = self.share_above * total, self.bucket
        while self.above > most and bucket + 1 < len(weights):
            bucket += 1
            self.above -= weights[bucket]
        while bucket and self.above + weights[bucket] <= most:
            self.above += weights[bucket]
            bucket -= 1
        self.bucket = bucket
