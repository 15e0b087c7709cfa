"""How many items a batch takes, and whether for the sake of the first ones or of the others.

In: the items of a key that wait, and what a batch of so many costs. Out: those that go, and those that are given up.

A batch is as large as the earliest deadline in it allows, while that helps. It does not always: where more arrives than
small batches can carry, the first always have just so much time left that the batch must be small, the next ones lose
theirs meanwhile, and so on, until all batches are of one. So when the deadlines cut a batch short, and those left over
would not all be in time afterwards, a size is chosen by how many are answered in time for each second of the model, the
most urgent being given up when that is better (the early drop of Nexus: Shen et al., SOSP 2019). And it is never less
than what keeps up with the arrivals, if any size does: a queue that grows makes everybody late.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from headrace.core.batch_line import Line, Waiting

HEADROOM = 1.1  # a size keeps up when it carries so much more than arrives
KEPT = 0.8  # of what is known of arrivals, with every batch

DEADLINE: Callable[[Waiting], float] = attrgetter("deadline")
EXPIRES: Callable[[Waiting], float] = attrgetter("expires")


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


class Sizing(NamedTuple):
    """What the size of a batch of one key is chosen by, at one moment."""

    now: float
    cost: Callable[[int], float]  # the seconds that nearly all batches of so many items stay below
    margin: float  # so many times what they typically take
    most: int  # items of a batch
    arrivals_per_s: float
    at_once: int  # batches that may run
    deadline: Callable[[Waiting], float]  # DEADLINE, or EXPIRES where the objective does not count

    def choose(self, line: Line, share: int, patient: bool) -> tuple[list[Waiting], list[Waiting]]:
        """(those that go, those given up: they are late, as others go before them.)

        None that waits in `line` is late already but those of its lane, of which the first `share` have their place.
        `patient`: nobody is late anywhere, so that the others may wait for a batch that is made small for the first.
        """
        most, deadline = self.most, self.deadline
        candidates = (line.late[:share] + line.entries[:most] + line.late[share : share + most])[:most]
        deadlines = list(map(deadline, candidates))
        count = self.in_time(deadlines)
        if count == len(candidates) or (patient and self.heals(deadlines, count)):
            return candidates[: max(1, count)], []
        least = self.keeping_up()
        # Where some size keeps up, those may try who are more likely in time than not. Where none does, the model has
        # no time to lose on them.
        margin = self.margin if least else 1.0
        size = self.best(sorted(map(deadline, line.entries)), len(line), max(1, least), share, margin)
        bound = self.now + self.cost(size) / margin
        kept: list[Waiting] = []
        given_up: list[Waiting] = []
        for entry in line.entries:
            if deadline(entry) >= bound:
                kept.append(entry)
                if len(kept) >= size - share:
                    break
            elif entry.expires >= bound:
                given_up.append(entry)
        late = [entry for entry in line.late if entry.expires >= bound]
        chosen = late[:share] + kept + late[share:]
        # Given up for this batch's sake, they may still fill it.
        chosen = (chosen + given_up)[:size]
        return chosen or candidates[: max(1, count)], given_up

    def in_time(self, deadlines: Sequence[float]) -> int:
        """How many of the first, as one batch, meet the deadlines of all of them."""
        earliest = list(accumulate(deadlines[: self.most], min))
        return largest(len(earliest), lambda items: self.now + self.cost(items) <= earliest[items - 1])

    def heals(self, deadlines: Sequence[float], first: int) -> bool:
        """Whether the others, with what arrives meanwhile as one batch after the first ones, meet their deadlines."""
        others = deadlines[first:]
        seconds = self.cost(first)
        following = min(self.most, len(others) + int(self.arrivals_per_s * seconds))
        return self.now + seconds + self.cost(following) <= min(others)

    def keeping_up(self) -> int:
        """The least size that carries what arrives, by what batches typically take; 0: none does."""
        needed = HEADROOM * self.arrivals_per_s / self.at_once / self.margin
        below = largest(self.most, lambda items: items < needed * self.cost(items))
        return below + 1 if below < self.most else 0

    def best(self, deadlines: Sequence[float], waiting: int, least: int, others: int, margin: float) -> int:
        """The size, from `least` up to those that wait, that has the most in time for each second of the model.

        `deadlines` are sorted; `others` are places of the batch that do not count. Costs are `margin` less.
        """
        most = min(waiting, self.most)
        size, best, most_per_s = min(least, most), 1, -1.0
        while True:
            seconds = self.cost(size) / margin
            reached = len(deadlines) - bisect_left(deadlines, self.now + seconds)
            per_s = max(0, min(size - others, reached)) / seconds
            if per_s >= most_per_s:
                best, most_per_s = size, per_s
            if size >= most:
                return best
            size = min(most, size + 1 + size // 8)


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
