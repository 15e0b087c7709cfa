"""The items of one key that wait for a batch, in the order of their turns.

In: items with their times. Out: those that go, those whose turn it is. Items that are late whatever one does stand in a
lane of their own, so that they delay nobody who can be in time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from typing import Any

import msgspec

NEVER = float("inf")


class Waiting(msgspec.Struct, order=True):
    """An item that waits. The order is that of turns: the least `urgency` first, of equals who came first.

    `deadline` is the earlier of objective and `expires`; that of a late item is `expires` alone, after which nobody
    wants its answer.
    """

    urgency: float
    serial: int
    item: Any
    line: Line
    since: float
    deadline: float
    expires: float
    priority: int
    late: bool = False


class Line:
    """`entries` and `late` are in order. Putting an item in or out takes O(log n) comparisons, and moves pointers."""

    __slots__ = ("_eldest", "_expires", "_stale", "_tightest", "entries", "key", "late", "rows", "timed")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.entries: list[Waiting] = []
        self.late: list[Waiting] = []
        self.timed = False  # whether any item has had a deadline
        self.rows: int | None = None  # of all entries as one batch, while known
        self._eldest = self._tightest = self._expires = NEVER
        self._stale = False  # whether these three may be too early

    def __repr__(self) -> str:
        return f"<Line {self.key!r}: {len(self.entries)} waiting, {len(self.late)} late>"

    def __len__(self) -> int:
        return len(self.entries) + len(self.late)

    def put(self, entry: Waiting) -> bool:
        """`entry` waits here. True: it is the first."""
        entries = self.entries
        if not entries or entry.urgency >= entries[-1].urgency:
            entries.append(entry)
        else:
            insort(entries, entry)
        self.rows = None
        if entry.since < self._eldest:
            self._eldest = entry.since
        if entry.deadline < NEVER:
            self.timed = True
            self._tightest = min(self._tightest, entry.deadline)
            self._expires = min(self._expires, entry.expires)
        return entries[0] is entry

    def remove(self, entry: Waiting) -> bool:
        """`entry`, which waits here, leaves. True: it was the first of those that are not late."""
        lane = self.late if entry.late else self.entries
        place = bisect_left(lane, entry)
        del lane[place]
        self.rows, self._stale = None, True
        return not place and not entry.late

    def take(self, chosen: list[Waiting]) -> None:
        """These leave."""
        self.rows, self._stale = None, True
        if self.entries[: len(chosen)] == chosen:
            del self.entries[: len(chosen)]
            return
        leaving = {entry.serial for entry in chosen}
        for lane in (self.entries, self.late):
            last = max([entry for entry in chosen if entry.late is (lane is self.late)], default=None)
            if last is not None:
                reach = bisect_left(lane, last) + 1
                lane[:reach] = [entry for entry in lane[:reach] if entry.serial not in leaving]

    def make_late(self, entry: Waiting) -> None:
        """`entry` goes into the lane of the late ones."""
        del self.entries[bisect_left(self.entries, entry)]
        entry.late = True
        entry.deadline = entry.expires
        insort(self.late, entry)
        self.rows, self._stale = None, True

    def excuse(self, entry: Waiting) -> None:
        """`entry` has no deadline from now on; its turn stays."""
        entry.deadline = entry.expires = NEVER
        self._stale = True

    def eldest(self) -> float:
        """Since when the one that waits longest does."""
        self._refresh()
        return self._eldest

    def tightest(self, objective: bool) -> float:
        """The earliest deadline, or of request deadlines alone."""
        self._refresh()
        return self._tightest if objective else self._expires

    def not_before(self, objective: bool) -> float:
        """No deadline is earlier; less work than `tightest`."""
        return self._tightest if objective else self._expires

    def _refresh(self) -> None:
        if self._stale:
            entries = self.entries
            self._eldest = min([entry.since for entry in entries], default=NEVER)
            if self.timed:
                self._tightest = min([entry.deadline for entry in entries], default=NEVER)
                self._expires = min([entry.expires for entry in entries], default=NEVER)
            self._stale = False
