"""The places of one pool's queue: the shell of `core.places.Allowance`.

In: calls that found no place, what the keeper grants, its loss, changes of the snapshot, time. Out: questions to the
keeper of places, the first of the deployment's replicas by number; to the balancer, how many calls may wait; to the
pool, calls that are to be refused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.core.places import TICK_S, Allowance, Question
from headrace.spec.snapshot import DeploymentEntry

if TYPE_CHECKING:
    from headrace.router.approach import Approach
    from headrace.router.link import Link
    from headrace.router.pool import Pool


class Places:
    """How many calls may wait in the pool's queue. `make_room` before one is refused for lack of a place."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._allowance = Allowance(*_limits(pool.entry))
        self._keeper = ""  # id of the replica that keeps the places
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False  # the last tick came late

    def __repr__(self) -> str:
        return f"<Places of {self._pool.key}: {self._allowance}, kept by {self._keeper or 'none'}>"

    def update(self, entry: DeploymentEntry) -> None:
        """Adopt the entry: its maximum, and who keeps the places."""
        keeper = min((replica.id for replica in entry.replicas), key=_by_number, default="")
        self._allowance.resize(*_limits(entry), self._pool.balancer.queued)
        if keeper != self._keeper:
            self._keeper = keeper
            self._forget_keeper()
        self._adopt()

    def make_room(self) -> bool:
        """A call finds as many waiting as may: ask for more places. True: it may wait, at least until the answer."""
        balancer, now = self._pool.balancer, self._pool.loop.time()
        link = self._link()
        question = self._allowance.want(balancer.queued, now, link is not None)
        self._adopt(link, question)
        return not 0 <= balancer.max_queued <= balancer.queued

    def come_back(self) -> None:
        """More calls wait than may, for some have come back: see what becomes of them."""
        if self._keeper not in self._pool.balancer.replicas:  # it died, or the connection to it takes long
            self._forget_keeper()
            self._adopt()
        self.watch()

    def watch(self) -> None:
        """Look soon what becomes of the calls that wait."""
        if self._timer is None:
            self._timer = self._pool.loop.call_later(TICK_S, self._tick)

    def granted(self, keeper: str, number: int, places: int, more: bool) -> None:
        """The replica of this id says how many may wait here."""
        if keeper == self._keeper:
            pool = self._pool
            question = self._allowance.grant(number, places, more, pool.balancer.queued, pool.loop.time())
            self._adopt(self._link(), question)

    def lost(self, replica_id: str) -> None:
        """The connection to this replica is gone."""
        if replica_id == self._keeper:
            self._forget_keeper()
            self._adopt()

    def close(self) -> None:
        """The pool takes no more calls."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        assert self._timer is not None
        due, self._timer = self._timer.when(), None
        pool, allowance = self._pool, self._allowance
        if pool.router.closed:
            return
        # After a pause of this process the answer may be there, and be read next: its keeper was not silent for that.
        self._paused = not self._paused and pool.loop.time() - due > TICK_S
        if self._paused:
            self.watch()
            return
        link = None if allowance.idle and not pool.balancer.queued else self._link()
        question = allowance.tick(pool.balancer.queued, pool.loop.time(), link is not None)
        self._adopt(link, question)

    def _forget_keeper(self) -> None:
        self._allowance.lost(self._pool.balancer.queued, self._pool.loop.time())

    def _adopt(self, link: Link | Approach | None = None, question: Question | None = None) -> None:
        """Do as the allowance says now."""
        allowance, pool = self._allowance, self._pool
        if question is not None and link is not None:
            link.tell_places(question)
        pool.balancer.max_queued = allowance.limit
        if not allowance.idle:
            self.watch()
        while allowance.excess(pool.balancer.queued) and pool.refuse_lowest():
            pass  # one at a time: whoever is told may cancel others

    def _link(self) -> Link | Approach | None:
        """The way to the keeper; None when there is none, or it cannot be reached from here."""
        replica = self._pool.balancer.replicas.get(self._keeper)
        return None if replica is None else self._pool.link_to(replica)


def _limits(entry: DeploymentEntry) -> tuple[int, int]:
    """The maximum, and the share of one router."""
    maximum = entry.max_queued_requests
    return maximum, max(1, maximum // entry.routers)


def _by_number(replica_id: str) -> tuple[int, str]:
    """Replicas in the order in which they were made: `Model#9` before `Model#10`."""
    number = replica_id.rpartition("#")[2]
    return (int(number) if number.isdecimal() else 0, replica_id)
