"""Which replicas of a deployment have room, as one router knows it, and the draw of one among them.

In, from the balancer: replicas that come and go, and word that their books have changed. Out: the replica that a call
goes to, booked. Every operation is O(1), whatever the number of replicas.

Invariants: a replica is on `open` while it has room, on `silent` while it has none though no call of ours is there,
from whose end we would hear of room, else on neither; those on `open` that are near come first there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SPILL_FACTOR = 2  # so many times as busy as a far one, and
SPILL_MARGIN = 2  # so many calls more, a near replica is before a call goes far
FADE_EVERY = 16  # of what was heard of far replicas, which are seldom heard of: once in so many times that they lose


class Replica:
    """A replica as one router knows it. `ours`: calls that this router has there; `others`: those of all others.

    `others` is what the last reply said, and fades while nothing newer is heard. `near`: it is on the router's own node
    (`node` ""; not known, so it is not). `suspect`: one of our calls there was in work at a crash. `link` is the
    shell's own.
    """

    __slots__ = ("id", "index", "limit", "link", "near", "node", "others", "ours", "shelf", "suspect", "told")

    def __init__(self, replica_id: str, limit: int, link: Any = None, node: str = "", near: bool = False) -> None:
        self.id = replica_id
        self.limit = limit
        self.link = link
        self.node = node
        self.near = near
        self.ours = 0
        self.others = 0
        self.shelf: list[Replica] | None = None  # the list that it is on, and its place there
        self.index = 0
        self.told = False  # it knows that calls wait here
        self.suspect = False

    def __repr__(self) -> str:
        where = " near" * self.near
        return f"<Replica {self.id}{where} ours={self.ours} others={self.others} of {self.limit}{' told' * self.told}>"


class Room:
    """The replicas with room, and those that may have some. `split`: there are both near and far replicas."""

    __slots__ = ("_compared", "_count", "_count_near", "_near", "_random", "open", "silent", "split")

    def __init__(self, random: Callable[[], float]) -> None:
        self.open: list[Replica] = []
        self.silent: list[Replica] = []
        self.split = False
        self._near = 0  # how many of `open` are near: the first ones
        self._count = self._count_near = 0  # of all replicas
        self._compared = 0
        self._random = random

    def __repr__(self) -> str:
        return f"<Room at {len(self.open)} of {self._count} replicas, {self._near} of them near>"

    def add(self, replica: Replica) -> None:
        """A replica that takes calls from now on."""
        self._census(replica, 1)
        self.refresh(replica)

    def remove(self, replica: Replica) -> None:
        """It takes no more."""
        self._census(replica, -1)
        replica.limit = 0
        self.refresh(replica)

    def _census(self, replica: Replica, step: int) -> None:
        self._count += step
        self._count_near += step * replica.near
        self.split = 0 < self._count_near < self._count

    def refresh(self, replica: Replica) -> None:
        """Put the replica on the list where its books say that it belongs."""
        shelf: list[Replica] | None = None
        if replica.ours + replica.others < replica.limit:
            shelf = self.open
        elif not replica.ours and replica.limit:
            shelf = self.silent
        before = replica.shelf
        if shelf is before:
            return
        if before is not None:
            if replica.near and before is self.open:
                self._near -= 1
                self._swap(replica, self._near)
            last = before.pop()
            if last is not replica:
                before[replica.index] = last
                last.index = replica.index
        replica.shelf = shelf
        if shelf is not None:
            replica.index = len(shelf)
            shelf.append(replica)
            if replica.near and shelf is self.open:
                self._swap(replica, self._near)
                self._near += 1

    def _swap(self, replica: Replica, index: int) -> None:
        """Have it and the one at `index` of `open` change places."""
        other, place = self.open[index], replica.index
        self.open[place], self.open[index] = other, replica
        other.index, replica.index = place, index

    def book(self, replica: Replica) -> None:
        """A call of ours goes there."""
        replica.ours += 1
        self.refresh(replica)

    def draw(self) -> Replica:
        """Two random replicas with room, the lesser load wins and is booked (the power of two choices, Mitzenmacher).

        What was heard of a loser without a call of ours only gets older, so it fades: then its turn comes, and news.
        """
        replicas = self.open
        count = len(replicas)
        if count == 1:
            replica = replicas[0]
        else:
            first = int(self._random() * count)
            second = first + 1 + int(self._random() * (count - 1)) if count > 2 else first + 1
            replica = replicas[first]
            other = replicas[second if second < count else second - count]
            if other.ours + other.others < replica.ours + replica.others:
                replica, other = other, replica
            if not other.ours and other.others:
                other.others -= 1
        replica.ours = ours = replica.ours + 1
        if ours + replica.others >= replica.limit:
            self.refresh(replica)
        return replica

    def draw_nearby(self) -> Replica:
        """As `draw`, of the near ones that have room, until load says otherwise: the lesser of two near ones against
        the lesser of two far ones, which wins where the near one has more than twice its calls and two.

        A way to another node costs a call little beside most work, so a far replica counts as a slower one: that is
        the rule of Balanced-Pandas for data locality (Xie, Yekkehkhany and Lu, Scheduling with Multi-level Data
        Locality, INFOCOM 2016; with drawn candidates Moaddeli, Ahmadi and Abhar, arXiv:1904.00447): the least load by
        the rate at which it is worked off. Twice is more than chance makes of equal nodes with a few calls each, and
        less than a node has that is slow, or alone in getting calls; by a factor, it holds for ten calls at once and
        for a thousand. No call waits for a near slot while a far one is free: near ones without room do not count. As
        with Envoy's zone-aware routing, all is as without nodes where callers and replicas are not spread alike.
        """
        near, count = self._near, len(self.open)
        if not near or near == count:
            return self.draw()
        replica = self._lesser(0, near)
        if replica.ours + replica.others > SPILL_MARGIN:
            other = self._lesser(near, count)
            if replica.ours + replica.others > SPILL_FACTOR * (other.ours + other.others) + SPILL_MARGIN:
                replica = other
            elif not other.ours and other.others:
                self._compared += 1
                if not self._compared % FADE_EVERY:
                    other.others -= 1
        replica.ours = ours = replica.ours + 1
        if ours + replica.others >= replica.limit:
            self.refresh(replica)
        return replica

    def draw_beside(self, replica: Replica) -> Replica | None:
        """As `draw`, for a copy of a call that `replica` has, and not booked: another replica; None: there is none.

        Rather one on another node, which fails by itself: of a far one's call a near one, and the other way round.
        """
        near, count = self._near, len(self.open)
        apart = (near, count) if replica.near else (0, near)
        if apart[0] < apart[1]:
            other = self._lesser(*apart)
            if other.ours + other.others < replica.ours + replica.others:
                return other
        return self._other(replica)

    def _lesser(self, start: int, stop: int) -> Replica:
        """The lesser load of two random ones of `open` from `start` up to `stop`, of which there is one at least.

        What was heard of the other fades, as in `draw`, where it is near.
        """
        replicas, count = self.open, stop - start
        first = int(self._random() * count)
        replica = replicas[start + first]
        if count > 1:
            second = first + 1 + int(self._random() * (count - 1))
            other = replicas[start + (second if second < count else second - count)]
            if other.ours + other.others < replica.ours + replica.others:
                replica, other = other, replica
            if other.near and not other.ours and other.others:
                other.others -= 1
        return replica

    def _other(self, replica: Replica) -> Replica | None:
        """Of two random ones with room that are not this one, the lesser load; of another node, where only one is."""
        replicas = self.open
        is_open = replica.shelf is replicas
        count = len(replicas) - is_open
        if not count:
            return None
        first = int(self._random() * count)
        second = int(self._random() * (count - 1)) if count > 1 else first
        second += second >= first and count > 1
        if is_open:  # all places but its own
            first += first >= replica.index
            second += second >= replica.index
        one, two = replicas[first], replicas[second]
        if replica.node and (one.node == replica.node) is not (two.node == replica.node):
            apart = two if one.node == replica.node else one
            if apart.ours + apart.others < replica.ours + replica.others:
                return apart
        return two if two.ours + two.others < one.ours + one.others else one

    def fade(self) -> None:
        """Time has passed: one of those that we hear nothing of may have room. There is one."""
        replica = self.silent[int(self._random() * len(self.silent))]
        replica.others -= 1
        self.refresh(replica)
