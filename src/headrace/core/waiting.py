"""The calls of one router that wait for a replica of a deployment, and whose turn it is.

In, from the balancer: calls that wait, or wait again, or do not any more; slots. Out: the call for a slot; those that
it is too late to send (`shed`); how urgent what waits is. Three kinds wait apart: suspects, which were in work at a
crash, calls that are bound to some replicas (`core.bound`), and all others, in the order of `core.queue`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from headrace.core.bound import BoundLines, Key
from headrace.core.lateness import Lateness
from headrace.core.queue import AGING_S, CallQueue
from headrace.core.room import Replica
from headrace.spec.priority import LOWEST_PRIORITY

_HEAD_START_S = -LOWEST_PRIORITY * AGING_S  # of priority 0 over the lowest

CallT = TypeVar("CallT", bound=Hashable)


class Waiting(Generic[CallT]):
    """`serves` says whether a replica serves a key. `news`: what replicas were told of what waits may be untrue.

    `told_due` is when the most urgent call is due that replicas were told of; None: only plain calls wait.
    """

    __slots__ = (
        "_deadlines",
        "_serves",
        "_urgent",
        "bound",
        "lateness",
        "news",
        "queue",
        "shed",
        "suspects",
        "told_due",
    )

    def __init__(self, serves: Callable[[Replica, Key], bool]) -> None:
        self.queue: CallQueue[CallT] = CallQueue()
        self.suspects: CallQueue[CallT] = CallQueue()
        self.bound: BoundLines[CallT] = BoundLines()
        self.lateness = Lateness()
        self.shed: list[CallT] = []
        self.news = False
        self.told_due: float | None = None
        self._serves = serves
        self._deadlines: dict[CallT, tuple[float, int]] = {}  # and priority, of the calls that wait and have one
        self._urgent = False  # a call has come before those that replicas were told of

    def __repr__(self) -> str:
        return f"<Waiting {self.queue.count} calls, {self.bound.count} bound ones, {self.suspects.count} suspects>"

    @property
    def count(self) -> int:
        """Calls that wait, suspects and bound ones included, but not those for one replica: they are never too many."""
        return self.queue.count + self.suspects.count + self.bound.count - self.bound.unlimited

    # --- calls that come and go ------------------------------------------------------------------------------------

    def put(self, call: CallT, now: float, priority: int, deadline: float | None, key: Key | None) -> None:
        """The call waits."""
        if key is not None and self.bound.has_line_for(key):
            self.bound.put(key, call, now, priority, deadline)
            self.news = True
            return
        self._note(call, now, priority, deadline)
        self.queue.put(call, now, priority)
        if self.queue.count == 1:
            self.news = True

    def put_back(self, call: CallT, since: float, priority: int, deadline: float | None, key: Key | None) -> None:
        """It waits again, before later ones."""
        self.news = True
        if key is not None and self.bound.has_line_for(key):
            self.bound.put(key, call, since, priority, deadline, back=True)
            return
        self._note(call, since, priority, deadline)
        self.queue.put_back(call, since, priority)

    def quarantine(self, call: CallT, since: float, priority: int) -> None:
        """It waits again, for a replica without another suspect."""
        self.suspects.put_back(call, since, priority)
        self.news = True

    def _note(self, call: CallT, since: float, priority: int, deadline: float | None) -> None:
        """A call comes. Where it is due before all that wait, replicas must know."""
        if deadline is not None:
            if not self._deadlines:
                self.lateness.rate.begin(since)
            self._deadlines[call] = (deadline, priority)
        if priority:
            before = self.queue.due()
            if before is None or since - priority * AGING_S < before:
                self.news = self._urgent = True

    def discard(self, call: CallT) -> bool:
        """The call does not wait any more. False: it did not wait."""
        if not self.queue.discard(call) and not self.suspects.discard(call) and not self.bound.discard(call):
            if call in self.shed:
                self.shed.remove(call)
                return True
            return False
        if self._deadlines:
            self._deadlines.pop(call, None)
        self.news = True
        return True

    def evict(self, below: int | None = None) -> CallT | None:
        """The youngest of the calls of the lowest priority, which waits no more; see `Balancer.evict`."""
        queue, bound = self.queue, self.bound
        if not bound.count:
            call = queue.take_lowest(below)
        else:
            levels = [level for level in (queue.lowest(), bound.lowest()) if level is not None]
            if not levels or (below is not None and min(levels) >= below):
                return None
            lowest = min(levels) + 1
            if bound.longest() > queue.count:
                call = bound.take_lowest(lowest) or queue.take_lowest(lowest)
            else:
                call = queue.take_lowest(lowest) or bound.take_lowest(lowest)
        if call is not None:
            self.news = True
            self._deadlines.pop(call, None)
        return call

    def take_all(self) -> list[CallT]:
        """All calls, which wait no more: suspects first, then by age."""
        calls: list[CallT] = []
        for queue in (self.suspects, self.queue):
            while (call := queue.take()) is not None:
                calls.append(call)
        for key in self.bound:
            while (call := self.bound.take(key)) is not None:
                calls.append(call)
        self._deadlines.clear()
        self.news = True
        return calls

    # --- whose turn it is ------------------------------------------------------------------------------------------

    def hopeless(self, now: float, deadline: float, priority: int) -> bool:
        """Whether a call that comes now would be late by what waits before it; see `Balancer.hopeless`."""
        ahead = self.queue.ahead(priority)
        return self.lateness.hopeless(deadline - now, ahead if ahead == self.queue.count else 0, now)

    def take(self, now: float) -> CallT | None:
        """The next call of the queue that is not too late; those before it are shed."""
        queue, deadlines, lateness = self.queue, self._deadlines, self.lateness
        if not deadlines:
            return queue.take()
        while (call := queue.take()) is not None:
            timed = deadlines.pop(call, None)
            if timed is None or not lateness.too_late(timed[0] - now, timed[1]):
                lateness.rate.starts += 1
                break
            self.shed.append(call)
        if not deadlines:
            lateness.rate.end(now)
        return call

    def take_for_slot(self, now: float) -> CallT | None:
        """As `take`, for a slot that was offered."""
        queue = self.queue
        if not queue.count:
            return None
        call = self.take(now)
        if not queue.count or self.told_due is not None:
            self.news = True
        return call

    def take_bound(self, key: Key, now: float) -> CallT | None:
        """The next call of this key that is not too late; those before it are shed."""
        late = self.lateness.too_late
        return self.bound.take_in_time(key, lambda deadline, level: late(deadline - now, level), self.shed)

    def key_before_others(self, replica: Replica) -> Key | None:
        """The key whose call is next at this replica; None: no bound call is, or another has waited longer."""
        foremost = self.bound.foremost(lambda key: self._serves(replica, key))
        if foremost is None:
            return None
        due = self.queue.due()
        return foremost[0] if due is None or foremost[1] <= due else None

    # --- what could go to a replica --------------------------------------------------------------------------------

    def count_for(self, replica: Replica) -> int:
        """How many of the calls could go there."""
        count = self.queue.count + (self.suspects.count > 0 and not replica.suspect)
        if self.bound.count:
            count += self.bound.waiting(lambda key: self._serves(replica, key))
        return count

    def any_for(self, replica: Replica) -> bool:
        """Whether any call could go there."""
        if self.queue.count or (self.suspects.count and not replica.suspect):
            return True
        return self.bound.count > 0 and self.any_bound_for(replica)

    def any_bound_for(self, replica: Replica) -> bool:
        """Whether a bound call could go there."""
        return self.bound.wait_for(lambda key: self._serves(replica, key))

    def urgency_s(self, now: float, replica: Replica | None) -> float | None:
        """How urgent the most urgent call is (of those that could go there); see `Balancer.urgency_s`."""
        due = self.queue.due()
        if self.bound.count and replica is not None:
            foremost = self.bound.foremost(lambda key: self._serves(replica, key))
            if foremost is not None and (due is None or foremost[1] < due):
                due = foremost[1]
        if self.suspects.count and (replica is None or not replica.suspect):
            suspect_due = self.suspects.due()
            if due is None or (suspect_due is not None and suspect_due < due):
                due = suspect_due
        if due is None:
            return None
        urgency_s = now - due + _HEAD_START_S
        return urgency_s if urgency_s > 0.0 else 0.0

    def urgency_changed(self) -> bool:
        """Whether the most urgent call is another than replicas were told of, by one level of priority or more.

        They are told then.
        """
        if not self._urgent and self.told_due is None:
            return False
        due, before = self.queue.due(), self.told_due
        changed = self._urgent or (due is not None and before is not None and due >= before + AGING_S)
        self._urgent = False
        if due is None or self.queue.plain:
            self.told_due = None
        elif changed:
            self.told_due = due
        return changed
