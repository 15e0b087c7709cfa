"""How many rows items make as one batch, and how many of them fit.

In: items that wait, in order, and the user's `batch_size_fn`, which may raise or answer anything. Out: a number of
rows; the first items that have no more than so many; or Unmeasured, which says whose error it was.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from headrace.core.batch_line import Waiting
from headrace.core.batch_size import largest
from headrace.spec.errors import OptionError, OptionTypeError

MOST_ROWS = 1 << 53  # that a measure may answer: what a float can count


class Unmeasured(Exception):
    """The measure failed over these: `errors` has for each the error that ends it."""

    def __init__(self, errors: list[tuple[Waiting, Exception]]) -> None:
        super().__init__(f"{len(errors)} items could not be measured")
        self.errors = errors


class Rows:
    """Counts rows by `measure`, None for one each, and pads them to `allowed` sizes, which grow, if there are any."""

    __slots__ = ("allowed", "measure")

    def __init__(self, measure: Callable[[Sequence[Any]], int] | None, allowed: tuple[int, ...]) -> None:
        self.measure = measure
        self.allowed = allowed

    def count(self, entries: list[Waiting]) -> int:
        """The rows of these as one batch. Raises Unmeasured."""
        if self.measure is None:
            return len(entries)
        try:
            return _checked(self.measure([entry.item for entry in entries]))
        except Exception as error:  # the user's code: whatever it raises ends these items' requests and no more
            failed = error
        # Out here the error of all is no context of that of one.
        raise Unmeasured(self._whose(entries, failed)) from failed

    def fit(self, entries: list[Waiting], limit: int) -> list[Waiting]:
        """The first of `entries`, as many as make no more rows than `limit`, at least one; that may make more.

        Fewer, where a few rows more than an allowed size would be padded to more than twice their number: those few are
        better off in another batch. Raises Unmeasured.
        """
        if self.measure is None and not self.allowed:
            return entries[: max(1, limit)]
        chosen = self._first(entries, limit)
        if self.allowed and len(chosen) > 1:
            rows = self.count(chosen)
            lower = bisect_left(self.allowed, rows) - 1
            if lower >= 0 and self.padded(rows) > 2 * rows:
                fewer = self._first(chosen, self.allowed[lower])
                return fewer if self.count(fewer) <= self.allowed[lower] else chosen
        return chosen

    def padded(self, rows: int) -> int:
        """The least allowed size for so many rows; what exceeds all of them stays as it is."""
        place = bisect_left(self.allowed, rows)
        return self.allowed[place] if place < len(self.allowed) else rows

    def unpadded(self, rows: int) -> int:
        """The most rows that are padded to no more than `rows`; 0: not even one row is."""
        if not self.allowed or rows >= self.allowed[-1]:
            return rows
        place = bisect_right(self.allowed, rows)
        return self.allowed[place - 1] if place else 0

    def _first(self, entries: list[Waiting], limit: int) -> list[Waiting]:
        if self.measure is None:
            return entries[: max(1, limit)]
        most = min(len(entries), max(1, limit))
        while most < len(entries) and self.count(entries[:most]) < limit:
            most = min(len(entries), 2 * most)  # some make no rows
        return entries[: max(1, largest(most, lambda count: self.count(entries[:count]) <= limit))]

    def _whose(self, entries: list[Waiting], error: Exception) -> list[tuple[Waiting, Exception]]:
        """Those that cannot be measured alone either, each with its own error; or all, if each of them can."""
        alone: list[tuple[Waiting, Exception]] = []
        for entry in entries if len(entries) > 1 else ():
            try:
                self.count([entry])
            except Unmeasured as unmeasured:
                alone += unmeasured.errors
        return alone or [(entry, error) for entry in entries]


def _checked(answer: object) -> int:
    """What a measure answered, when it is a number of rows. Raises OptionTypeError, OptionError."""
    if isinstance(answer, bool) or not hasattr(answer, "__index__"):
        kind = type(answer).__name__
        raise OptionTypeError(f"batch_size_fn answered {answer!r:.100}: it must be a whole number of rows, not {kind}")
    rows = int(answer.__index__())
    if not 0 <= rows <= MOST_ROWS:
        raise OptionError(f"batch_size_fn answered {rows!r:.100}: it must be a number of rows, 0 or more")
    return rows
