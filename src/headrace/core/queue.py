"""Calls that wait for a replica, eldest first. In come calls from the balancer; out goes the one whose turn it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

CallT = TypeVar("CallT", bound=Hashable)


class CallQueue(Generic[CallT]):
    """First in, first out, but a call that comes back takes its old place. `count` calls wait.

    Every operation is O(1), but `put_back` and the taking of what was put back: O(log of those put back).
    """

    __slots__ = ("_back", "_fresh", "_returned", "_serial", "count")

    def __init__(self) -> None:
        self.count = 0
        self._fresh: OrderedDict[CallT, float] = OrderedDict()  # call -> since, in order of arrival
        self._returned: dict[CallT, int] = {}  # call -> the number of its live place in the heap
        self._back: list[tuple[float, int, CallT]] = []  # heap; a place is stale when `_returned` says otherwise
        self._serial = 0

    def put(self, call: CallT, since: float) -> None:
        """`call`, which does not wait yet, waits since `since`, which is not before that of any other fresh call."""
        self._fresh[call] = since
        self.count += 1

    def put_back(self, call: CallT, since: float) -> None:
        """`call` was taken and waits again, before the fresh ones and in order of `since` among those put back."""
        self._serial += 1
        self._returned[call] = self._serial
        heappush(self._back, (since, self._serial, call))
        self.count += 1

    def take(self) -> CallT | None:
        """The call whose turn it is, which leaves the queue; None when none waits."""
        if not self.count:
            return None
        self.count -= 1
        if self._returned:
            self._drop_stale()
            call = heappop(self._back)[2]
            del self._returned[call]
            return call
        return self._fresh.popitem(last=False)[0]

    def discard(self, call: CallT) -> bool:
        """`call` leaves the queue. False: it was not in it."""
        if self._fresh.pop(call, None) is None and self._returned.pop(call, None) is None:
            return False
        self.count -= 1
        if not self._returned:
            self._back.clear()
        return True

    def since(self) -> float | None:
        """Since when the call whose turn it is waits; None when none waits."""
        if not self.count:
            return None
        if self._returned:
            self._drop_stale()
            return self._back[0][0]
        return next(iter(self._fresh.values()))

    def _drop_stale(self) -> None:
        back = self._back
        while self._returned.get(back[0][2]) != back[0][1]:
            heappop(back)
