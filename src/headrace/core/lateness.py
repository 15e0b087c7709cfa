"""Which calls would be late: how long a call takes once it has left, and how soon one that waits will leave.

In come service times and starts from the queue, as one router sees them, with `now`. Out goes whether a call that has
so much time left is worth starting, and whether one that has come is worth queueing. Only calls with a deadline are
observed, and asked about.

Nothing can lock itself out: a call that finds room is never judged, one that finds nobody before it in the queue is
never refused, and of calls in a row that are too late by what is known, each PROBE_EVERY-th is sent all the same.
"""

from __future__ import annotations

from headrace.core.quantiles import LiveQuantiles

LIKELY, DOUBTFUL = 0.9, 0.5  # quantiles of service times: how likely a call is in time that has so much left
LEAST_OBSERVATIONS = 10  # before that many have been seen, nothing is known
HALF_LIFE_S = 30.0
HALF_LIFE_OBSERVATIONS = 100.0
PROBE_EVERY = 10

STARTS = 16  # in a row, by which their rate is told
SLACK_STARTS = 4  # so many may be overdue before a rate counts as fallen
USUAL_PAUSE = 2.0  # in service times: where calls are answered in batches, none starts for as long as a batch takes


class ServiceTimes(LiveQuantiles):
    """How long calls take. `likely_s` and `doubtful_s` are 0 while not known."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__((LIKELY, DOUBTFUL), LEAST_OBSERVATIONS, HALF_LIFE_S, HALF_LIFE_OBSERVATIONS)

    @property
    def likely_s(self) -> float:
        """A call that has so much time left is likely to be in time."""
        return self.values[0]

    @property
    def doubtful_s(self) -> float:
        """One that has less is likely to be late."""
        return self.values[1]


class StartRate:
    """How many calls a second leave the queue while calls with a deadline wait. Count them by adding to `starts`.

    `begin` and `end` tell when such calls wait, so that no other time is counted. Unknown until STARTS have been seen;
    after that the mean of the last such lot and what was before it. A rate falls when starts fail to come for longer
    than is usual, and the first lot after a change moves it half of the way.
    """

    __slots__ = ("_begun", "_per_s", "_seen", "_waited_s", "starts")

    def __init__(self) -> None:
        self.starts = 0
        self._seen = 0  # `starts`, when the lot was begun
        self._waited_s = 0.0  # in earlier spells of the lot
        self._begun: float | None = None
        self._per_s: float | None = None

    def __repr__(self) -> str:
        return f"<StartRate {self._per_s}/s>"

    def begin(self, now: float) -> None:
        """A call with a deadline waits, and none did."""
        if self._begun is not None:  # when the last spell ended was not told: that lot says nothing
            self._seen, self._waited_s = self.starts, 0.0
        self._begun = now

    def end(self, now: float) -> None:
        """The last such call has been taken from the queue."""
        if self._begun is not None:
            self._waited_s += max(0.0, now - self._begun)
            self._begun = None

    def per_s(self, now: float, usual_s: float = 0.0) -> float | None:
        """Starts a second; None: not known. That none came for `usual_s` says nothing: batches end all at once."""
        starts = self.starts - self._seen
        waited_s = self._waited_s
        if self._begun is not None:
            waited_s += max(0.0, now - self._begun)
        if waited_s <= 0:
            return self._per_s
        if starts >= STARTS:
            seen = starts / waited_s
            self._per_s = seen if self._per_s is None else (self._per_s + seen) / 2
            self._seen, self._waited_s = self.starts, 0.0
            if self._begun is not None:
                self._begun = now
            return self._per_s
        if self._per_s is None:
            return None
        overdue_s = waited_s - usual_s
        return self._per_s if overdue_s <= 0 else min(self._per_s, (starts + SLACK_STARTS) / overdue_s)


class Lateness:
    """Judges calls with a deadline by both."""

    __slots__ = ("_in_a_row", "rate", "times")

    def __init__(self) -> None:
        self.times = ServiceTimes()
        self.rate = StartRate()
        self._in_a_row = 0

    def __repr__(self) -> str:
        return f"<Lateness {self.times} {self.rate}>"

    def too_late(self, remaining_s: float, priority: int = 0) -> bool:
        """Whether a call that could start now, and has so much time left, is not worth it.

        It is when it is likely to be in time; for one of a higher priority it is enough that it may be.
        """
        if remaining_s <= 0:
            return True
        if remaining_s < (self.times.likely_s if priority <= 0 else self.times.doubtful_s):
            self._in_a_row += 1
            if self._in_a_row < PROBE_EVERY:
                return True
        self._in_a_row = 0
        return False

    def hopeless(self, remaining_s: float, ahead: int, now: float) -> bool:
        """Whether a call that has so much time left, and would wait behind `ahead` others, will be too late."""
        if remaining_s <= 0:
            return True
        if not ahead:
            return False
        per_s = self.rate.per_s(now, USUAL_PAUSE * self.times.likely_s)
        return per_s is not None and ahead / per_s + self.times.likely_s > remaining_s
