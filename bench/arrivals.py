"""When the requests of an open loop are due, and what came of them, as numbers.

In: a rate, a seed; outcomes. Out: a schedule, shares, quantiles and bins. No clock and no socket here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NEVER = 0  # the status of a request that got no answer


@dataclass(frozen=True)
class Arrival:
    """A request: due so many seconds after the beginning; `high` when it has the high priority."""

    due_s: float
    high: bool


@dataclass(frozen=True)
class Outcome:
    """What came of an arrival: a status, and the seconds from when it was due to the end of its answer."""

    arrival: Arrival
    status: int
    took_s: float

    def in_time(self, deadline_s: float) -> bool:
        return self.status == 200 and self.took_s <= deadline_s


def poisson(rate: float, seconds: float, high_share: float, seed: int) -> list[Arrival]:
    """Independent arrivals: gaps drawn from the exponential distribution with mean 1/rate, in order of time."""
    chance = random.Random(seed)
    arrivals, due_s = [], chance.expovariate(rate)
    while due_s < seconds:
        arrivals.append(Arrival(due_s, chance.random() < high_share))
        due_s += chance.expovariate(rate)
    return arrivals


def stepped(steps: Iterable[tuple[float, float]], seed: int) -> list[Arrival]:
    """Arrivals at a rate for so many seconds, then at the next rate for as many as it has, and so on."""
    chance, begins_s, schedule = random.Random(seed), 0.0, list[Arrival]()
    for rate, seconds in steps:
        due_s = begins_s + chance.expovariate(rate)
        while due_s < begins_s + seconds:
            schedule.append(Arrival(due_s, False))
            due_s += chance.expovariate(rate)
        begins_s += seconds
    return schedule


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that so large a share of them does not exceed. nan without values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summary(outcomes: Sequence[Outcome], seconds: float, capacity: float, deadline_s: float) -> dict[str, float]:
    """What came of a run that lasted `seconds`, against what the server can do in that time (`capacity` a second)."""
    answered = [outcome.took_s for outcome in outcomes if outcome.status == 200]
    good = sum(outcome.in_time(deadline_s) for outcome in outcomes)
    high = [outcome for outcome in outcomes if outcome.arrival.high]
    refused = [outcome.took_s for outcome in outcomes if outcome.status not in (200, NEVER)]
    figures = {
        "offered": len(outcomes) / seconds,
        "in_time": good / seconds,
        "in_time_share": good / (capacity * seconds),
        "late": (len(answered) - good) / seconds,
        "refused": len(refused) / seconds,
        "unanswered": sum(outcome.status == NEVER for outcome in outcomes) / seconds,
        "high_in_time_share": sum(outcome.in_time(deadline_s) for outcome in high) / len(high) if high else math.nan,
        "p50_ms": quantile(answered, 0.5) * 1e3,
        "p99_ms": quantile(answered, 0.99) * 1e3,
        "high_p99_ms": quantile([outcome.took_s for outcome in high if outcome.status == 200], 0.99) * 1e3,
        "refused_p99_ms": quantile(refused, 0.99) * 1e3,
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


KINDS = ("high priority, in time", "in time", "late", "refused", "unanswered")


def kind_of(outcome: Outcome, deadline_s: float) -> str:
    """Which of KINDS it is."""
    if outcome.in_time(deadline_s):
        return KINDS[0] if outcome.arrival.high else KINDS[1]
    if outcome.status == 200:
        return KINDS[2]
    return KINDS[4] if outcome.status == NEVER else KINDS[3]


def course(outcomes: Iterable[Outcome], seconds: float, deadline_s: float, bin_s: float) -> dict[str, list[float]]:
    """Requests a second of each kind over time, by when they were due, in bins of `bin_s`."""
    bins = max(1, math.ceil(seconds / bin_s))
    found = {kind: [0.0] * bins for kind in KINDS}
    for outcome in outcomes:
        place = min(bins - 1, int(outcome.arrival.due_s / bin_s))
        found[kind_of(outcome, deadline_s)][place] += 1 / min(bin_s, seconds - place * bin_s)
    return found
