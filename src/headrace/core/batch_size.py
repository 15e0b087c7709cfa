"""How many items a batch takes, and whether for the sake of the first ones or of the others.

In: the deadlines of items that wait, in the order of their turns, and what a batch costs. Out: a number of items.

A batch is as large as the earliest deadline in it allows, while that helps. It does not always: where more arrives than
small batches can carry, the first always have just so much time left that the batch must be small, the next ones lose
theirs meanwhile, and so on, until all batches are of one. So when the deadlines cut a batch short, and those left over
would not all be in time afterwards, a size is chosen by how many are answered in time for each second of the model, the
most urgent being given up when that is better (early drop: Shen et al., Nexus, SOSP 2019, section 6.3), and it is never
less than what keeps up with the arrivals, if any size does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

HEADROOM = 1.1  # a size keeps up when it carries so much more than arrives
KEPT = 0.8  # of what is known of arrivals, with every batch


class Sizing:
    """Sizes of one batch, at one moment: `cost` of so many items, `most` items at once, `now`."""

    __slots__ = ("cost", "most", "now")

    def __init__(self, now: float, cost: Callable[[int], float], most: int) -> None:
        self.now = now
        self.cost = cost
        self.most = most

    def in_time(self, deadlines: Sequence[float]) -> int:
        """How many of the first, as one batch, meet the deadlines of all of them."""
        earliest = list(accumulate(deadlines[: self.most], min))
        return largest(len(earliest), lambda items: self.now + self.cost(items) <= earliest[items - 1])

    def heals(self, deadlines: Sequence[float], first: int) -> bool:
        """Whether the others, as one batch after the first ones, all meet their deadlines."""
        others = deadlines[first:]
        return self.now + self.cost(first) + self.cost(min(len(others), self.most)) <= min(others)

    def keeping_up(self, arrivals_per_s: float, at_once: int, margin: float) -> int:
        """The least size that carries what arrives, with so many batches at once; 1 when none does.

        By what batches typically cost, which is `margin` less.
        """
        needed = HEADROOM * arrivals_per_s / at_once / margin
        below = largest(self.most, lambda items: items < needed * self.cost(items))
        return below + 1 if below < self.most else 1

    def best(self, deadlines: Sequence[float], waiting: int, least: int, others: int) -> int:
        """The size, from `least` up to those that wait, that has the most in time for each second of the model.

        `deadlines` are sorted; `others` are places of the batch that do not count.
        """
        most = min(waiting, self.most)
        size, best, most_per_s = max(1, min(least, most)), 1, -1.0
        while True:
            seconds = self.cost(size)
            reached = len(deadlines) - bisect_left(deadlines, self.now + seconds)
            in_time = max(0, min(size - others, reached))
            if in_time / seconds >= most_per_s:
                best, most_per_s = size, in_time / seconds
            if size >= most:
                return best
            size = min(most, size + 1 + size // 8)


class ArrivalRate:
    """How many items arrive a second, over the latest batches. `per_s` is 0 until a batch has followed another."""

    __slots__ = ("_arrived", "_at", "_seconds", "_total", "per_s")

    def __init__(self) -> None:
        self.per_s = 0.0
        self._at: float | None = None
        self._total = 0
        self._arrived = 0.0
        self._seconds = 0.0

    def batch(self, total: int, now: float) -> None:
        """A batch starts; so many items have arrived in all."""
        if self._at is not None:
            self._arrived = self._arrived * KEPT + total - self._total
            self._seconds = self._seconds * KEPT + max(0.0, now - self._at)
            if self._seconds > 0:
                self.per_s = self._arrived / self._seconds
        self._at, self._total = now, total


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, by bisection; 0: not even 1 does."""
    if most <= 0 or fits(most):
        return max(0, most)
    low, high = 0, most  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
