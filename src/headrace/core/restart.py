"""When the successors of failed replicas may start: backoff by line of descent, intensity over a period, escalation.

In: failures of one deployment's replicas, with `now`. Out: how many to start now, and when to look again. The first
successor of a replica starts at once; each that fails soon after in its turn waits twice as long. Too many failures
within a period, whoever's they are, and every successor waits the longest time (the supervisors of Erlang/OTP escalate
by ending; a server goes on trying).
"""

from __future__ import annotations

import heapq
from collections import deque

import msgspec


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. A replica that lived for `quiet_s` failed for the first time; over `intensity` failures (and
    three for each replica wanted) within `period_s` escalate.
    """

    first_wait_s: float = 0.1
    longest_wait_s: float = 30.0
    quiet_s: float = 60.0
    period_s: float = 60.0
    intensity: int = 10

    def wait_s(self, level: int) -> float:
        """How long the successor of `level` failures in a row waits: 0, then doubling from `first_wait_s`."""
        if level <= 1:
            return 0.0
        # Beyond 64 doublings the number only grows out of a float's range.
        return min(self.first_wait_s * 2.0 ** min(level - 2, 64), self.longest_wait_s)


class Restarts:
    """The failures of one deployment. A replica's `level` is how many of its line failed in a row before it."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._waiting: list[tuple[float, int]] = []  # (when due, level): a heap
        self._failures: deque[float] = deque()

    def __repr__(self) -> str:
        return f"<Restarts {len(self._waiting)} waiting, {len(self._failures)} recent failures>"

    def fail(self, now: float, level: int, lived_s: float, wanted: int) -> float:
        """A replica of `level` failed after `lived_s`; `wanted` are to be. Returns the seconds its successor waits."""
        policy = self._policy
        self._failures.append(now)
        level = 1 if lived_s >= policy.quiet_s else level + 1
        wait_s = policy.longest_wait_s if self.escalated(now, wanted) else policy.wait_s(level)
        heapq.heappush(self._waiting, (now + wait_s, level))
        return wait_s

    def postpone(self, due: float, level: int) -> None:
        """The start of a replica of this level could not be tried: let it be tried at `due`."""
        heapq.heappush(self._waiting, (due, level))

    def escalated(self, now: float, wanted: int) -> bool:
        """Whether the failures within the last period are more than the policy takes for chance."""
        while self._failures and self._failures[0] <= now - self._policy.period_s:
            self._failures.popleft()
        return len(self._failures) > max(self._policy.intensity, 3 * wanted)

    def take(self, now: float, missing: int) -> list[int]:
        """The levels of the replicas to start now, when `missing` are; those that must wait are held back."""
        while len(self._waiting) > missing:
            self._waiting.remove(max(self._waiting))
            heapq.heapify(self._waiting)
        levels = [0] * (missing - len(self._waiting))
        while self._waiting and self._waiting[0][0] <= now:
            levels.append(heapq.heappop(self._waiting)[1])
        return levels

    def due(self) -> float | None:
        """When the next that is held back may start; None when none is."""
        return self._waiting[0][0] if self._waiting else None

    def hurry(self, now: float) -> None:
        """What those that are held back waited for may be there now: none waits longer."""
        self._waiting = [(now, level) for _, level in sorted(self._waiting)]

    def forgive(self) -> None:
        """Forget what failed: what follows is new (another deploy, by a person)."""
        self._waiting.clear()
        self._failures.clear()
