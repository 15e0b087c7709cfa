"""The replica's door: which call gets a slot, and to whom a slot that comes free is offered.

In come, from `replica/server.py`: calls, ended calls, what callers say of their queues, broken connections, the time.
Out go the choice itself (started or refused) and the callers to send an OFFER to. A caller is any hashable object that
stands for one connection; what it says arrives in the order in which it was said. The age of a call is how long it has
waited plus the head start of its priority (`Balancer.urgency_s`), so the eldest is the most urgent.

Invariants, true after each method when `offer` is called until it gives None:
- `load`, the calls in work and the slots on lease, never exceeds `limit`;
- when a slot is free, no caller is known to wait for more slots than it was offered;
- an offer is answered once (by a leased call or a decline), in the order of the offers, or its connection breaks.
  So an answer that comes after its lease ended is known for what it is and never mistaken for that of a later lease.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

LEASE_S = 0.010

CallerT = TypeVar("CallerT", bound=Hashable)


class _Waiter(Generic[CallerT]):
    """What is known of one caller. The counts only grow: offers made, ended (used, declined, void), and answered."""

    __slots__ = ("answered", "caller", "ended", "entry", "offered", "wants")

    def __init__(self, caller: CallerT) -> None:
        self.caller = caller
        self.wants = 0  # slots to offer it still, beyond its leases; 0: it does not wait, as far as is known
        # Its place in the heap while it wants: the arrival of its eldest call, then a number that breaks ties.
        self.entry: tuple[float, int, _Waiter[CallerT]] | None = None
        self.offered = 0
        self.ended = 0
        self.answered = 0


class Gate(Generic[CallerT]):
    """Slots of one replica, leased to the caller whose call waits longest. Times are seconds on one clock, `now`.

    `load` is the number of calls in work plus the slots on lease: what replies tell to callers.
    """

    __slots__ = (
        "_heap",
        "_leased",
        "_leases",
        "_serial",
        "_waiters",
        "lease_s",
        "limit",
        "load",
        "wanted",
    )

    def __init__(self, limit: int, lease_s: float = LEASE_S) -> None:
        self.limit = limit
        self.lease_s = lease_s
        self.load = 0
        self._leased = 0
        self._waiters: dict[CallerT, _Waiter[CallerT]] = {}
        self.wanted = 0  # callers that want a slot: while there are any, no new call overtakes them
        # May hold stale entries: one is live when it is its waiter's `entry`.
        self._heap: list[tuple[float, int, _Waiter[CallerT]]] = []
        # Expiry, whose, its number; in order of expiry.
        self._leases: deque[tuple[float, _Waiter[CallerT], int]] = deque()
        self._serial = 0

    def __repr__(self) -> str:
        return f"<Gate {self.ongoing}+{self._leased} of {self.limit}, {self.wanted} waiting>"

    @property
    def ongoing(self) -> int:
        """Calls in work."""
        return self.load - self._leased

    def enter(self, caller: CallerT, leased: bool, now: float, next_age_s: float | None = None) -> bool:
        """Whether the call starts now. False: it was not started and is to be rejected.

        A leased call uses the caller's oldest lease; where that has ended meanwhile, it is treated as a new call. With
        a leased call the caller says how long its next call has waited (None: none waits any more); send then what
        `offer` gives, until it gives None. Of a call without a lease, `now` does not matter. Where there is no slot for
        it but one on lease to its caller, the two have crossed, and it gets that one: refused, it would wait at the
        caller, which would be offered a slot, and could meet the next offer in the same way, for ever.
        """
        if leased:
            return self._enter_leased(caller, now, next_age_s)
        if self.load >= self.limit or self.wanted:
            return self._take_lease(caller)
        self.load += 1
        return True

    def leave(self, now: float) -> CallerT | None:
        """A call ended and frees its slot. The caller to offer it to, if any; `now` matters where one is `wanted`."""
        self.load -= 1
        return self.offer(now) if self.wanted else None

    def offer(self, now: float) -> CallerT | None:
        """The caller to offer a free slot to now (the lease is booked), or None. That with the eldest call goes first.

        A caller that was offered a slot goes behind all that wait now, until it says how old its next call is.
        """
        if not self.wanted or self.load >= self.limit:
            return None
        heap = self._heap
        while heap[0][2].entry is not heap[0]:
            heappop(heap)
        waiter = heap[0][2]
        waiter.wants -= 1
        if waiter.wants:
            self._serial += 1
            waiter.entry = (now + self.lease_s, self._serial, waiter)
            heapreplace(heap, waiter.entry)
        else:
            self._stop_wanting(waiter)
        return self._lease(waiter, now)

    def waiting(self, caller: CallerT, count: int, eldest_age_s: float, now: float) -> list[CallerT]:
        """`count` calls wait at `caller`, the eldest for so long. Whom to offer slots to now: once per slot."""
        waiter = self._waiter(caller)
        self._want(waiter, count - (waiter.offered - waiter.ended), now - eldest_age_s)
        return self._offers(now)

    def withdraw(self, caller: CallerT, now: float) -> list[CallerT]:
        """No call waits at `caller` any more; its leases end. Whom to offer slots to now."""
        waiter = self._waiters.get(caller)
        if waiter is not None:
            self._stop_wanting(waiter)
            self._end_leases(waiter)
        return self._offers(now)

    def decline(self, caller: CallerT, now: float) -> list[CallerT]:
        """`caller` does not want the slot it was offered, so no call waits there. Whom to offer slots to now."""
        waiter = self._waiters.get(caller)
        if waiter is not None:
            if self._answer(waiter):
                self.load -= 1
            self._stop_wanting(waiter)
        return self._offers(now)

    def disconnect(self, caller: CallerT, now: float) -> list[CallerT]:
        """The connection is gone, and with it its leases. Its calls in work keep their slots until each leaves."""
        waiter = self._waiters.pop(caller, None)
        if waiter is not None:
            self._stop_wanting(waiter)
            self._end_leases(waiter)
        return self._offers(now)

    def expire(self, now: float) -> list[CallerT]:
        """End the leases whose time is over. Whom to offer their slots to now.

        A caller that let a lease expire is not offered another before it says something: a stopped process holds up
        each slot once at most.
        """
        leases = self._leases
        while leases:
            expiry, waiter, number = leases[0]
            if number > waiter.ended:
                if expiry > now:
                    break
                waiter.ended = number
                self._leased -= 1
                self.load -= 1
                self._stop_wanting(waiter)
            leases.popleft()
        return self._offers(now)

    def next_expiry(self) -> float | None:
        """When `expire` is to be called next; None while nothing is on lease."""
        leases = self._leases
        while leases and leases[0][2] <= leases[0][1].ended:
            leases.popleft()
        return leases[0][0] if leases else None

    def close(self) -> None:
        """Start no more calls and offer no more slots: the replica drains. Those in work leave as ever."""
        self.limit = 0
        for waiter in self._waiters.values():
            self._stop_wanting(waiter)
            self._end_leases(waiter)

    def _enter_leased(self, caller: CallerT, now: float, next_age_s: float | None) -> bool:
        waiter = self._waiter(caller)
        started = self._answer(waiter) or self.enter(caller, False, now)
        if next_age_s is None:
            self._stop_wanting(waiter)
        else:
            # How many wait is not said, only that one does. Two offers for each one used find out in few round trips.
            self._want(waiter, max(waiter.wants, 2), now - next_age_s)
        return started

    def _waiter(self, caller: CallerT) -> _Waiter[CallerT]:
        waiter = self._waiters.get(caller)
        if waiter is None:
            waiter = self._waiters[caller] = _Waiter(caller)
        return waiter

    def _want(self, waiter: _Waiter[CallerT], wants: int, since: float) -> None:
        if wants <= 0 or not self.limit:
            self._stop_wanting(waiter)
            return
        if waiter.entry is None:
            self.wanted += 1
        waiter.wants = wants
        self._serial += 1
        entry = waiter.entry = (since, self._serial, waiter)
        heap = self._heap
        if self.wanted == 1:
            heap.clear()
        elif len(heap) > 2 * self.wanted + 8:
            heap[:] = [old for old in heap if old[2].entry is old]
            heapify(heap)
        heappush(heap, entry)

    def _stop_wanting(self, waiter: _Waiter[CallerT]) -> None:
        if waiter.entry is not None:
            waiter.entry = None
            waiter.wants = 0
            self.wanted -= 1
            if not self.wanted:
                self._heap.clear()

    def _lease(self, waiter: _Waiter[CallerT], now: float) -> CallerT:
        leases = self._leases
        while leases and leases[0][2] <= leases[0][1].ended:
            leases.popleft()
        waiter.offered += 1
        leases.append((now + self.lease_s, waiter, waiter.offered))
        self._leased += 1
        self.load += 1
        return waiter.caller

    def _answer(self, waiter: _Waiter[CallerT]) -> bool:
        """Its oldest offer is answered. True: the lease held, and its slot is the answer's to use or to free."""
        if waiter.answered == waiter.offered:
            return False  # nothing was offered: the other end does not keep to the protocol
        waiter.answered += 1
        if waiter.answered <= waiter.ended:
            return False
        waiter.ended = waiter.answered
        self._leased -= 1
        return True

    def _take_lease(self, caller: CallerT) -> bool:
        """Have a call in work instead of the caller's oldest lease. False: it has none."""
        waiter = self._waiters.get(caller)
        if waiter is None or waiter.ended == waiter.offered:
            return False
        waiter.ended += 1  # the answer to come finds it void
        self._leased -= 1
        return True

    def _end_leases(self, waiter: _Waiter[CallerT]) -> None:
        held = waiter.offered - waiter.ended
        waiter.ended = waiter.offered
        self._leased -= held
        self.load -= held

    def _offers(self, now: float) -> list[CallerT]:
        callers: list[CallerT] = []
        while (caller := self.offer(now)) is not None:
            callers.append(caller)
        return callers
