"""How many batches it takes until requests are in time again, after a step in their number or in what they cost.

In: what came of the requests, and which of them each batch had. Out: a number of batches, shares, quantiles. No clock
and no socket here.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.arrivals import Outcome, quantile

ALLOWED = 0.01  # of requests may miss once it has settled


@dataclass(frozen=True)
class Phase:
    """Part of a run, from a step (`name`) to the next."""

    name: str
    begins_s: float
    ends_s: float


@dataclass(frozen=True)
class Seen:
    """What a phase came to: the share of its requests that missed, in all and from its middle on, latencies of those
    answered, batches, requests in one of them, and after how many batches it had settled (all: it never did).
    """

    missed: float
    missed_late: float
    p50_s: float
    p99_s: float
    batches: int
    batch: float
    settled_after: int


def look(phase: Phase, outcomes: Sequence[Outcome], batches: Sequence[Sequence[float]], limit_s: float) -> Seen:
    """What the phase came to. `batches` are the `due_s` of the requests in each, in the order of their start.

    It has settled at the first batch from whose eldest request on, to the end of the phase, at most ALLOWED of the
    requests miss: are late, refused, or never answered. Requests due within two limits of the next step are left
    out, for it is that step which may make them late.
    """
    end = phase.ends_s - 2 * limit_s
    within = sorted(
        (one for one in outcomes if phase.begins_s <= one.arrival.due_s < end), key=lambda one: one.arrival.due_s
    )
    dues = [one.arrival.due_s for one in within]
    misses_before = [0]
    for one in within:
        misses_before.append(misses_before[-1] + (not one.in_time(limit_s)))

    def missed_from(due_s: float) -> float:
        place = bisect.bisect_left(dues, due_s)
        count = len(dues) - place
        return (misses_before[-1] - misses_before[place]) / count if count else 0.0

    within_phase = [batch for batch in batches if batch and phase.begins_s <= min(batch) < end]
    eldest = [min(batch) for batch in within_phase]
    settled_after = next((number for number, due_s in enumerate(eldest) if missed_from(due_s) <= ALLOWED), len(eldest))
    took_s = [one.took_s for one in within if one.status == 200]
    return Seen(
        missed_from(phase.begins_s),
        missed_from((phase.begins_s + phase.ends_s) / 2),
        quantile(took_s, 0.5),
        quantile(took_s, 0.99),
        len(eldest),
        sum(map(len, within_phase)) / len(eldest) if eldest else math.nan,
        settled_after,
    )
