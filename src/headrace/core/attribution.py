"""To which revision a request went, long after: by its key, by when it was made, and by the weights of that time.

In: weights of an application each time that they change; the key by which a request was drawn (`core.traffic`), and its
time. Out: a revision, or None where nobody can tell. No request is remembered for this.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import msgspec

from headrace.core.traffic import Split

MOST_ENTRIES = 1000
LONGEST_S = 30 * 24 * 3600.0
MARGIN_S = 2.0  # clocks differ, ids tell their time by the second, and routers learn of weights one after the other


class Weights(msgspec.Struct, frozen=True, array_like=True):
    """From `at` on (seconds since the epoch) traffic was shared so. `keyed`: requests could have a key of their own,
    and then were not drawn by their ids.
    """

    at: float
    weights: dict[int, float]
    keyed: bool = False


class Timeline:
    """The weights of one application since it is known, as far back as `LONGEST_S` and `MOST_ENTRIES`."""

    def __init__(self, app: str, entries: Iterable[Weights] = ()) -> None:
        self.app = app
        self._entries: list[Weights] = sorted(entries, key=_at)
        self._splits: dict[int, Split] = {}  # by the index of the entry, as far as somebody has asked

    def __repr__(self) -> str:
        return f"<Timeline of {self.app}: {len(self._entries)} changes>"

    @property
    def entries(self) -> tuple[Weights, ...]:
        """All that it knows, the eldest first."""
        return tuple(self._entries)

    def note(self, weights: Mapping[int, float], at: float, keyed: bool = False) -> Weights | None:
        """The weights are these from now (`at`) on. What is to be kept of it; None: it is as it was."""
        shares = {number: weight for number, weight in weights.items() if weight > 0}
        entries = self._entries
        if entries and entries[-1].weights == shares and entries[-1].keyed == keyed:
            return None
        if entries:
            at = max(at, entries[-1].at)  # the clock was set back: the order is what counts
        entry = Weights(at, shares, keyed)
        entries.append(entry)
        # The last of those that are too old says how it was from then on.
        stale = max(bisect_right(entries, at - LONGEST_S, key=_at) - 1, len(entries) - MOST_ENTRIES, 0)
        if stale:
            del entries[:stale]
            self._splits.clear()
        return entry

    @property
    def begins(self) -> float | None:
        """Of what is before this, nothing is known; None: nothing is known at all."""
        return self._entries[0].at if self._entries else None

    def revision_of(self, at: float, *, key: str = "", request_id: str = "") -> int | None:
        """The revision of the request that was made then: drawn by this key, or without one by its id.

        None where that is not known: from before the timeline; when the weights changed within `MARGIN_S` of it, and
        it matters; by a time that is no number; and by its id, where it may have had a key.
        """
        entries = self._entries
        if not entries or not isfinite(at) or not (key or request_id):
            return None
        first = bisect_right(entries, at - MARGIN_S, key=_at) - 1
        last = bisect_left(entries, at + MARGIN_S, key=_at)
        if first < 0:
            if at < entries[0].at:
                return None
            first = 0  # made after its first weights, if barely
        # While no revision had any weight, nobody was answered.
        indices = (index for index in range(first, max(last, first + 1)) if entries[index].weights)
        found = {self._drawn(index, key, request_id) for index in indices}
        return found.pop() if len(found) == 1 else None

    def _drawn(self, index: int, key: str, request_id: str) -> int | None:
        split = self._splits.get(index)
        if split is None:
            split = self._splits[index] = Split(self._entries[index].weights.items(), self.app)
        if split.only:
            return split.only
        if not key and self._entries[index].keyed:
            return None
        return split.of(key or request_id) or None


def _at(entry: Any) -> float:
    at: float = entry.at
    return at
