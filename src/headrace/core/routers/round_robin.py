"""One replica after the other, in turn. In: replicas and calls. Out: the next in the cycle that has room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core.balance import Replica
    from headrace.core.routing import Asked


class RoundRobin:
    """Replicas in the order in which they came, those without room passed over. Usually O(1), at worst O(replicas).

    `start` is where in the cycle it begins, from 0 to below 1: each process at another place, or the first replica
    would get the first call of all of them.
    """

    sees_all = False

    def __init__(self, start: float = 0.0) -> None:
        self._cycle: list[Replica] = []
        self._start = start
        self._next = -1  # its place in the cycle; -1: it has not begun

    def __repr__(self) -> str:
        return f"<RoundRobin of {len(self._cycle)} at {self._next}>"

    def choose(self, call: Asked, replicas: Sequence[Replica]) -> Replica | None:
        """The next in turn of `replicas`."""
        cycle = self._cycle
        count = len(cycle)
        at = self._next if self._next >= 0 else int(self._start * count)
        for place in range(at, at + count):
            replica = cycle[place % count]
            if replica.ours + replica.others < replica.limit and replica in replicas:
                self._next = (place + 1) % count
                return replica
        return None

    def sent(self, call: Asked, replica: Replica) -> None:
        """Nothing is remembered: the next call goes to the next replica, wherever this one went."""

    def added(self, replica: Replica) -> None:
        """It is the last in the cycle."""
        self._cycle.append(replica)

    def removed(self, replica: Replica) -> None:
        """It has no turn any more; that of the others stays."""
        if replica in self._cycle:
            place = self._cycle.index(replica)
            del self._cycle[place]
            if place < self._next:
                self._next -= 1
