"""What becomes of a call whose replica died: it moves, is repeated, or fails. In come facts, out goes the verdict.

The rule that keeps one poisonous request from taking its neighbours along: a call that was in work at a crash is a
*suspect*. Suspects run again one at a time per replica (of one router by `Balancer.quarantine`, over all routers by
`core.turns`), so at most one call in work at a crash was in work at an earlier one, and that one is poisonous. The
calls around it, new to crashes, become suspects in their turn and run again without it.
"""

from __future__ import annotations

import enum


class Verdict(enum.Enum):
    """What becomes of a call whose replica died."""

    MOVE = "move"  # it had not started: it waits in its old place
    REPEAT = "repeat"  # it starts again, as a suspect, with the next `attempt`
    FAIL_DIED = "died"  # ReplicaDiedError, 502
    POISONOUS = "poisonous"  # PoisonousRequestError, 500


class RetryBudget:
    """A token bucket that bounds repeats to a share of the calls, so that trouble is not multiplied by repeating.

    Each call deposits `ratio`, time deposits `per_second`; `initial` are in hand at the start and never more than
    `capacity`. (Finagle's RetryBudget: a share of the traffic, and a floor for where there is little of it.)
    """

    __slots__ = ("_at", "_tokens", "calls", "capacity", "per_second", "ratio")

    def __init__(
        self, ratio: float = 0.1, initial: float = 100.0, per_second: float = 10.0, capacity: float = 1000.0
    ) -> None:
        self.ratio = ratio
        self.per_second = per_second
        self.capacity = capacity
        self.calls = 0  # since the last look: the caller's path adds one and nothing more
        self._tokens = initial
        self._at: float | None = None
        self.tune(ratio, per_second)

    def __repr__(self) -> str:
        return f"<RetryBudget {self._tokens:.1f} of {self.capacity:g}, {self.calls} calls to count>"

    def tune(self, ratio: float, per_second: float) -> None:
        """Deposit so much from now on. With neither there are no repeats at all, whatever was in hand."""
        self.ratio = ratio
        self.per_second = per_second
        if not ratio and not per_second:
            self._tokens = 0.0

    def deposit(self) -> None:
        """A call came for the first time."""
        self.calls += 1

    def balance(self, now: float) -> float:
        """How many repeats are in hand."""
        elapsed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now if self._at is None else max(now, self._at)
        tokens = self._tokens + self.calls * self.ratio + elapsed * self.per_second
        self.calls = 0
        self._tokens = min(tokens, self.capacity)
        return self._tokens

    def withdraw(self, now: float) -> bool:
        """Take one repeat. False: there is none in hand."""
        if self.balance(now) < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Repeats:
    """Judges calls whose replica died, within one budget."""

    __slots__ = ("budget",)

    def __init__(self, budget: RetryBudget | None = None) -> None:
        self.budget = RetryBudget() if budget is None else budget

    def judge(
        self,
        now: float,
        *,
        started: bool = True,
        suspect: bool = False,
        repeatable: bool = True,
        kept: bool = True,
        answered: bool = False,
    ) -> Verdict:
        """What becomes of the call.

        `started`: the replica may have begun to work on it. `suspect`: it had been in work at an earlier crash.
        `repeatable`: the deployment allows that its calls run twice. `kept`: the body can be sent again from its start.
        `answered`: a part of its result has gone to the caller already.
        """
        if answered:
            return Verdict.POISONOUS if suspect else Verdict.FAIL_DIED
        if not started:
            return Verdict.MOVE if kept else Verdict.FAIL_DIED
        if suspect:
            return Verdict.POISONOUS
        if not repeatable or not kept or not self.budget.withdraw(now):
            return Verdict.FAIL_DIED
        return Verdict.REPEAT
