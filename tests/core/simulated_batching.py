"""A model, its batcher and its clients on a clock of their own: open loop, at random (Poisson).

The shell is as the real one: after every arrival, end of a batch and due moment it asks for batches until there is
none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from headrace.core.batching import Batch, Batcher
from headrace.spec.batching import BatchOptions

NEVER = float("inf")


@dataclass(eq=False, slots=True)
class Request:
    """`started_at` and `answered_at` are NEVER, and `batch` -1, for one that was refused."""

    arrived_at: float
    key: Hashable = None
    deadline: float | None = None
    started_at: float = NEVER
    answered_at: float = NEVER
    batch: int = -1  # the number of its batch

    @property
    def latency_s(self) -> float:
        return self.answered_at - self.arrived_at


class World:
    """`cost(rows, now)` is how long a batch takes that starts now; batches that run at once do not slow each other."""

    def __init__(self, options: BatchOptions, cost: Callable[[int, float], float]) -> None:
        self.batcher: Batcher[Request] = Batcher(options)
        self.cost = cost
        self.starting: Hashable = None  # the key of the batch that starts
        self.now = 0.0
        self.requests: list[Request] = []
        self.refused: list[Request] = []
        self.batches: list[Batch[Request]] = []
        self._ends: list[tuple[float, int, Batch[Request]]] = []

    def run(self, arrivals: Iterable[Request]) -> None:
        """Until all have arrived and are answered or refused."""
        for request in arrivals:
            self._until(request.arrived_at)
            self.requests.append(request)
            self.batcher.add(request, request.key, self.now, deadline=request.deadline)
            self._start()
        self._until(NEVER)

    def in_time(self, within_s: float, since: float = 0.0, until: float = NEVER) -> float:
        """The share of those arrived in this time that were answered within so many seconds."""
        counted = [request for request in self.requests if since <= request.arrived_at < until]
        return sum(request.latency_s <= within_s for request in counted) / max(1, len(counted))

    def answered_per_s(self, since: float, until: float) -> float:
        return sum(since <= request.answered_at < until for request in self.requests) / (until - since)

    def _until(self, moment: float) -> None:
        while True:
            due = self.batcher.due()
            end = self._ends[0][0] if self._ends else NEVER
            following = min(end, NEVER if due is None else due)
            if following > moment or following == NEVER:
                break
            self.now = max(self.now, following)
            if end <= self.now:
                _, _, batch = heappop(self._ends)
                self.batcher.ended(batch, self.now)
                for request in batch.items:
                    request.answered_at = self.now
            self._start()
        if moment < NEVER:
            self.now = moment

    def _start(self) -> None:
        while (batch := self.batcher.next(self.now)) is not None:
            for request in batch.items:
                request.started_at, request.batch = self.now, len(self.batches)
            self.starting = batch.key
            heappush(self._ends, (self.now + self.cost(batch.padded_size, self.now), len(self.batches), batch))
            self.batches.append(batch)
        self.refused += self.batcher.shed
        self.batcher.shed.clear()


def poisson(
    per_s: Callable[[float], float], until: float, random: Random, deadline_s: float | None = None
) -> list[Request]:
    """Arrivals at a rate that may change with time, none after `until`."""
    found, now = [], 0.0
    while (now := now + random.expovariate(per_s(now))) < until:
        found.append(Request(now, deadline=None if deadline_s is None else now + deadline_s))
    return found
