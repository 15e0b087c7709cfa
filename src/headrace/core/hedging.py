"""Which slow calls may have a copy on another replica, and when: hedged requests, within a budget.

In: calls of one method that leave and end, with `now`; what became of copies. Out: the calls that have been under way
for longer than most take, the eldest first, and whether one of them may have a copy now or why not. Where the copy
goes is `Balancer.choose_beside`'s to say.

Dean and Barroso (The Tail at Scale, CACM 56(2), 2013) send the second request after the 95th percentile of latencies,
so that it costs 5 % of load at most. Latencies are not what they were a minute ago, and where all calls are slow a
second one helps nobody. So there are two more bounds: a budget in calls, and a throttle after gRPC's (proposal A6,
"Throttling Retry Attempts and Hedged RPCs"). That one earns by every success; here a copy costs one, and only a copy
that has *helped* earns: it answered first, and was itself no slower than most calls.

What holds:
- since the beginning there were at most `budget` copies for each call, and for any n calls in a row at most
  budget * n + max(1, budget * BURST_CALLS);
- after MOST_CREDIT copies in a row that did not help, of one method, there is at most one for each PROBE_EVERY / budget
  calls, and only of a call that takes PROBE_PATIENCE times as long as is usual; one that helps ends that;
- no call has a copy before as many latencies are known as the quantile needs to mean something.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable
from math import ceil
from typing import Any, Generic, TypeVar

from headrace.core.quantiles import LiveQuantiles
from headrace.spec.hedging import HedgingConfig

BURST_CALLS = 200  # what these earned can be saved for a bad moment
MOST_CREDIT = 30  # a copy costs one
GAIN = 10  # one that helps earns so much: one in eleven has to help, or they stop
PROBE_EVERY = 10
PROBE_PATIENCE = 2.0

MOST_LINES = 256  # methods whose latencies are kept: their names may come from anywhere
LEAST_LATENCIES = 20
HALF_LIFE_S = 600.0
TRIES = 4  # so many of the calls that are due are looked at in one go, when the eldest finds no replica
LEAST_PAUSE_S = 0.001  # between two looks
MOST_PAUSE_S = 0.05  # if calls are quicker than that

_COPY = 1_000_000  # the cost of a copy in what calls deposit: integers, so that the budget is exact

CallT = TypeVar("CallT", bound=Hashable)


class Refusal(enum.Enum):
    """Why a call that is due has no copy. It may have one later, if it takes that long."""

    WAITING = "calls wait for a replica"
    BUDGET = "the budget is spent"
    USELESS = "copies have not helped lately"
    NO_REPLICA = "no other replica has room and less to do"


class CopyBudget:
    """Copies in hand: each call deposits a share of one."""

    __slots__ = ("_deposit", "_most", "_saved")

    def __init__(self, share: float) -> None:
        self._deposit = int(share * _COPY)
        self._most = max(_COPY, self._deposit * BURST_CALLS)
        self._saved = 0

    def __repr__(self) -> str:
        return f"<CopyBudget {self._saved / _COPY:.2f} copies>"

    def deposit(self) -> None:
        """A call has left for the first time."""
        self._saved = min(self._saved + self._deposit, self._most)

    def enough(self) -> bool:
        """Whether a copy may leave."""
        return self._saved >= _COPY

    def withdraw(self) -> None:
        """A copy leaves."""
        self._saved -= _COPY


class Line(Generic[CallT]):
    """The calls of one method that are under way, in the order in which they left, but for those that were passed over.
    `timer` is the shell's own.
    """

    __slots__ = ("_budget", "_calls", "_config", "_copied_at", "_latencies", "_least", "_out", "credit", "timer")

    def __init__(self, config: HedgingConfig, budget: CopyBudget) -> None:
        self._config = config
        self._budget = budget
        share_above = 1 - config.quantile
        # So many that some lie above the quantile; and those that are known fade when ten times as many have come.
        self._least = max(LEAST_LATENCIES, ceil(1 / share_above))
        self._latencies = LiveQuantiles((config.quantile,), self._least, HALF_LIFE_S, 10 / share_above)
        self._out: OrderedDict[CallT, float] = OrderedDict()
        self._calls = 0
        self._copied_at = 0  # `_calls`, when the last copy left
        self.credit = MOST_CREDIT
        self.timer: Any = None

    def __repr__(self) -> str:
        delay_s = self.delay_s
        after = "not known" if delay_s is None else f"{delay_s:.6f} s"
        return f"<Line out={len(self._out)} delay={after} credit={self.credit}>"

    @property
    def delay_s(self) -> float | None:
        """What is longer than most calls take; None: too little is known of them."""
        if self._latencies.recent < self._least:
            return None
        return max(self._latencies.values[0], self._config.least_delay_s)

    # --- calls -----------------------------------------------------------------------------------------------------

    def sent(self, call: CallT, now: float, again: bool = False) -> None:
        """The call leaves for a replica; `again`: a replica has refused it, or died before it started."""
        if not again:
            self._calls += 1
            self._budget.deposit()
        if self.delay_s is not None:
            self._out[call] = now

    def answered(self, call: CallT, seconds: float, now: float) -> None:
        """The call's answer has come after so long, from whichever replica."""
        self._out.pop(call, None)
        self._latencies.observe(seconds, now)

    def given_up(self, call: CallT, seconds: float, now: float) -> None:
        """Nobody waits for the call any more. That it took longer than most is known all the same."""
        self._out.pop(call, None)
        delay_s = self.delay_s
        if delay_s is not None and seconds >= delay_s:
            self._latencies.observe(seconds, now)

    def taken_back(self, call: CallT) -> None:
        """The call is not under way any more: it failed, or waits again. Nothing is learned."""
        self._out.pop(call, None)

    # --- copies ----------------------------------------------------------------------------------------------------

    def _patience_s(self) -> float:
        """How long a call may be under way before it is due."""
        delay_s = self.delay_s or self._config.least_delay_s
        return delay_s if self.credit else delay_s * PROBE_PATIENCE

    def due(self, now: float) -> list[CallT]:
        """The first calls that have been under way for too long; so many as are worth a look."""
        patience_s, calls = self._patience_s(), []
        for call, sent_at in self._out.items():
            if now - sent_at < patience_s:
                break
            calls.append(call)
            if len(calls) == TRIES:
                break
        return calls

    def refusal(self, waiting: int) -> Refusal | None:
        """Why no call may have a copy now, with so many that wait for a replica; None: one may."""
        if waiting:
            return Refusal.WAITING
        if not self._budget.enough():
            return Refusal.BUDGET
        if not self.credit and (self._calls - self._copied_at) * self._config.budget < PROBE_EVERY:
            return Refusal.USELESS
        return None

    def passed_over(self, call: CallT) -> None:
        """No replica can take a copy of this call now: those behind it, which are elsewhere, are to have their turn."""
        if call in self._out:
            self._out.move_to_end(call)

    def copied(self, call: CallT) -> None:
        """A copy of the call leaves."""
        del self._out[call]
        self._budget.withdraw()
        self._copied_at = self._calls
        self.credit = max(0, self.credit - 1)

    def won(self, seconds: float) -> None:
        """A copy has answered first, so long after it left."""
        delay_s = self.delay_s
        if delay_s is not None and seconds <= delay_s:
            self.credit = min(self.credit + GAIN, MOST_CREDIT)

    def look_at(self, now: float) -> float | None:
        """When to look again which calls are `due`; None: when the next has been `sent`."""
        if not self._out:
            return None
        patience_s = self._patience_s()
        sent_at = next(iter(self._out.values()))
        due = sent_at + patience_s
        if due > now:
            return max(due, now + LEAST_PAUSE_S)
        # It was refused. One that hangs where no other replica is must not keep us busy.
        hanging_s = min((now - sent_at) / 64, MOST_PAUSE_S)
        return now + max(patience_s / 4, LEAST_PAUSE_S, hanging_s)


class Hedger(Generic[CallT]):
    """The lines of all methods that are hedged alike, within one budget."""

    __slots__ = ("_budget", "_lines", "config")

    def __init__(self, config: HedgingConfig) -> None:
        self.config = config
        self._budget = CopyBudget(config.budget)
        self._lines: OrderedDict[str, Line[CallT]] = OrderedDict()  # those used longest ago first

    def __repr__(self) -> str:
        return f"<Hedger {self._budget} {self._lines}>"

    def line(self, method: str) -> Line[CallT]:
        """That of this method."""
        lines = self._lines
        line = lines.get(method)
        if line is not None:
            lines.move_to_end(method)
            return line
        if len(lines) >= MOST_LINES:
            lines.popitem(last=False)  # with what is known of it; calls that are under way keep it
        line = lines[method] = Line(self.config, self._budget)
        return line

    def lines(self) -> list[Line[CallT]]:
        """All there are."""
        return list(self._lines.values())
