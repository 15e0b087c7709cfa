"""Calls that wait for a replica, in the order in which they go. In: calls; out: the one whose turn it is.

Of two calls, the one of higher priority goes first, unless the other has waited longer by AGING_S for each level
between them: a level is worth that much waiting, so nothing starves. In numbers: the call with the least
`since - priority * AGING_S` goes first, which is when it became *due*.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

from headrace.spec.priority import LOWEST_PRIORITY

AGING_S = 1.0

CallT = TypeVar("CallT", bound=Hashable)


class Line(Generic[CallT]):
    """The calls of one priority: first in, first out, but a call that comes back takes its old place."""

    __slots__ = ("_back", "_serial", "fresh", "head_start_s", "returned")

    def __init__(self, priority: int) -> None:
        self.head_start_s = priority * AGING_S
        self.fresh: OrderedDict[CallT, float] = OrderedDict()  # call -> since, in order of arrival
        self.returned: dict[CallT, int] = {}  # call -> the number of its live place in the heap
        self._back: list[tuple[float, int, CallT]] = []  # heap; a place is stale when `returned` says otherwise
        self._serial = 0

    def __len__(self) -> int:
        return len(self.fresh) + len(self.returned)

    def put_back(self, call: CallT, since: float) -> None:
        self._serial += 1
        self.returned[call] = self._serial
        heappush(self._back, (since, self._serial, call))

    def take(self) -> CallT:
        """The call whose turn it is, which leaves; there is one."""
        if not self.returned:
            return self.fresh.popitem(last=False)[0]
        self._drop_stale()
        call = heappop(self._back)[2]
        del self.returned[call]
        return call

    def take_youngest(self) -> CallT:
        """The call whose turn is last, which leaves; there is one. O(those put back) when there are no others."""
        if self.fresh:
            return self.fresh.popitem(last=True)[0]
        call = max(place for place in self._back if self.returned.get(place[2]) == place[1])[2]
        self.discard(call)
        return call

    def discard(self, call: CallT) -> bool:
        if self.fresh.pop(call, None) is None and self.returned.pop(call, None) is None:
            return False
        if not self.returned:
            self._back.clear()
        return True

    def due(self) -> float:
        """When the call whose turn it is became due; there is one."""
        if not self.returned:
            return next(iter(self.fresh.values())) - self.head_start_s
        self._drop_stale()
        return self._back[0][0] - self.head_start_s

    def _drop_stale(self) -> None:
        back = self._back
        while self.returned.get(back[0][2]) != back[0][1]:
            heappop(back)


class CallQueue(Generic[CallT]):
    """`count` calls wait, in one line for each priority.

    With calls of priority 0 alone every operation is O(1), but `put_back` and the taking of what was put back:
    O(log of those put back). With others: O(priorities in use) besides.
    """

    __slots__ = ("_fresh", "_others", "_plain", "_returned", "count")

    def __init__(self) -> None:
        self.count = 0
        self._plain: Line[CallT] = Line(0)
        self._others: dict[int, Line[CallT]] = {}  # priority -> its line, which is not empty
        # Parts of the plain line, at hand: nearly all calls go through it alone.
        self._fresh = self._plain.fresh
        self._returned = self._plain.returned

    @property
    def plain(self) -> bool:
        """Whether all calls that wait are of priority 0."""
        return not self._others

    def put(self, call: CallT, since: float, priority: int = 0) -> None:
        """`call`, which does not wait yet, waits since `since`, not before any other fresh call of its priority."""
        if priority:
            self._line(priority).fresh[call] = since
        else:
            self._fresh[call] = since
        self.count += 1

    def put_back(self, call: CallT, since: float, priority: int = 0) -> None:
        """`call` was taken and waits again: of its priority, before the fresh ones, and by `since` among those put
        back.
        """
        self._line(priority).put_back(call, since)
        self.count += 1

    def take(self) -> CallT | None:
        """The call whose turn it is, which leaves the queue; None when none waits."""
        if not self.count:
            return None
        self.count -= 1
        if self._returned or self._others:
            priority = self._foremost()
            line = self._others[priority] if priority else self._plain
            call = line.take()
            if priority and not line:
                del self._others[priority]
            return call
        return self._fresh.popitem(last=False)[0]

    def take_lowest(self, below: int | None = None) -> CallT | None:
        """The youngest call of the lowest priority that waits, which leaves the queue.

        None when none waits, or none of a priority under `below`.
        """
        lowest = self.lowest()
        if lowest is None or (below is not None and lowest >= below):
            return None
        self.count -= 1
        line = self._line(lowest)
        call = line.take_youngest()
        if lowest and not line:
            del self._others[lowest]
        return call

    def lowest(self) -> int | None:
        """The lowest priority of which a call waits; None: none waits."""
        if not self.count:
            return None
        lowest = min(self._others, default=0)
        return 0 if lowest > 0 and self._plain else lowest

    def discard(self, call: CallT) -> bool:
        """`call` leaves the queue. False: it was not in it."""
        if not self._plain.discard(call) and not self._discard_from_others(call):
            return False
        self.count -= 1
        return True

    def due(self) -> float | None:
        """When the call whose turn it is became due (it waits since then, give or take its head start); None: none
        waits.
        """
        if not self.count:
            return None
        if self._returned or self._others:
            priority = self._foremost()
            return (self._others[priority] if priority else self._plain).due()
        return next(iter(self._fresh.values()))

    def ahead(self, priority: int) -> int:
        """How many calls of this priority or a higher one wait."""
        ahead = len(self._plain) if priority <= 0 else 0
        if self._others:
            ahead += sum(len(line) for level, line in self._others.items() if level >= priority)
        return ahead

    def _line(self, priority: int) -> Line[CallT]:
        if not priority:
            return self._plain
        line = self._others.get(priority)
        if line is None:
            line = self._others[priority] = Line(priority)
        return line

    def _foremost(self) -> int:
        """The priority of the call whose turn it is; of two that are due at once, the higher."""
        due, foremost = (self._plain.due(), 0) if self._plain else (float("inf"), LOWEST_PRIORITY)
        for priority, line in self._others.items():
            other = line.due()
            if other < due or (other == due and priority > foremost):
                due, foremost = other, priority
        return foremost

    def _discard_from_others(self, call: CallT) -> bool:
        for priority, line in self._others.items():
            if line.discard(call):
                if not line:
                    del self._others[priority]
                return True
        return False
