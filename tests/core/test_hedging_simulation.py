"""Hedging on a clock of its own: a router, four replicas, calls that come at random, and a tail that is to be cut.

The real Balancer and Hedger decide; what a call costs is drawn for each replica that works on it, and the time of a
loser is spent to its end, as that of a thread which cannot be interrupted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from headrace.core.balance import Balancer, Replica
from headrace.core.hedging import BURST_CALLS, GAIN, MOST_CREDIT, Hedger, Line
from headrace.spec.hedging import HedgingConfig

SERVICE_S = 0.010
STALL = 20

Cost = Callable[[str, Random], float]


@dataclass(eq=False)
class Call:
    came_at: float
    replica: Replica | None = None
    sent_at: float = 0.0
    copy_sent_at: float | None = None
    took_s: float | None = None


@dataclass
class Cluster:
    """Replicas with some slots each, one router, and a heap of what happens when."""

    cost: Cost
    replicas: int = 4
    slots: int = 1
    seed: int = 1
    config: HedgingConfig | None = field(default_factory=HedgingConfig)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = 0
        self.balancer: Balancer[Call] = Balancer(self.slots, -1, self.random)
        for i in range(self.replicas):
            self.balancer.add(f"r{i}")
        self.line: Line[Call] | None = None if self.config is None else Hedger[Call](self.config).line("f")
        self.calls: list[Call] = []
        self.copies: list[tuple[float, int]] = []  # when each left, and how many calls had come
        self.won = 0
        self.looking = False

    def at(self, when: float, act: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, act))

    def run(self, rate: float, calls: int) -> None:
        """So many more calls a second, until all of them are answered."""
        when = self.now
        for _ in range(calls):
            when += self.random.expovariate(rate)
            self.at(when, self.arrive)
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            act()

    # --- calls

    def arrive(self) -> None:
        call = Call(self.now)
        self.calls.append(call)
        replica = self.balancer.choose()
        if replica is None:
            assert self.balancer.enqueue(call, self.now)
        else:
            self.send(call, replica)

    def send(self, call: Call, replica: Replica) -> None:
        call.replica, call.sent_at = replica, self.now
        if self.line is not None:
            self.line.sent(call, self.now)
            self.look_later(self.line)
        self.at(self.now + self.cost(replica.id, self.random), lambda: self.end(call, replica, None))

    def end(self, call: Call, replica: Replica, copy_sent_at: float | None) -> None:
        if call.took_s is None:
            call.took_s = self.now - call.came_at
            if self.line is not None:
                self.line.answered(call, self.now - call.sent_at, self.now)
                if copy_sent_at is not None:
                    self.won += 1
                    self.line.won(self.now - copy_sent_at)
        self.balancer.finished(replica, replica.ours - 1)
        for waiting, other in self.balancer.drain(self.now):
            self.send(waiting, other)

    # --- copies

    def look_later(self, line: Line[Call]) -> None:
        if not self.looking and (when := line.look_at(self.now)) is not None:
            self.looking = True
            self.at(when, lambda: self.look(line))

    def look(self, line: Line[Call]) -> None:
        self.looking = False
        for call in line.due(self.now):
            if line.refusal(self.balancer.queued) is not None:
                break
            assert call.replica is not None
            other = self.balancer.choose_beside(call.replica)
            if other is not None:
                assert other is not call.replica
                self.copy(line, call, other)
            else:
                line.passed_over(call)
        self.look_later(line)

    def copy(self, line: Line[Call], call: Call, other: Replica) -> None:
        line.copied(call)
        self.copies.append((self.now, len(self.calls)))
        sent_at = self.now
        self.at(self.now + self.cost(other.id, self.random), lambda: self.end(call, other, sent_at))

    # --- what came of it

    def latency_s(self, quantile: float, since: int = 0) -> float:
        latencies = sorted(call.took_s or 0.0 for call in self.calls[since:])
        return latencies[int(quantile * len(latencies))]


def steady(replica: str, random: Random) -> float:
    return max(0.001, random.gauss(SERVICE_S, SERVICE_S / 20))


def varied(replica: str, random: Random) -> float:
    return SERVICE_S * random.lognormvariate(0, 0.3)


def one_stalls(base: Cost) -> Cost:
    """One replica of four takes twenty times as long for 2 % of its calls."""

    def cost(replica: str, random: Random) -> float:
        seconds = base(replica, random)
        return STALL * seconds if replica == "r0" and random.random() < 0.02 else seconds

    return cost


@dataclass
class Slow:
    """All replicas are `factor` times as slow, and one may stall besides."""

    base: Cost = steady
    factor: float = 1.0
    stalls: bool = True

    def __call__(self, replica: str, random: Random) -> float:
        return self.factor * (one_stalls(self.base) if self.stalls else self.base)(replica, random)


def assert_within_budget(cluster: Cluster) -> None:
    assert cluster.config is not None
    share = cluster.config.budget
    for i, (_, calls) in enumerate(cluster.copies):
        assert i + 1 <= share * calls
        first, calls_before = max(0, i - 20), cluster.copies[max(0, i - 20)][1]
        assert i - first <= share * (calls - calls_before) + max(1, share * BURST_CALLS)


@pytest.mark.parametrize("base", [steady, varied])
@pytest.mark.parametrize(("slots", "rate"), [(1, 120), (100, 400), (100, 2000)])
def test_a_tail_that_one_replica_makes_is_cut(base: Cost, slots: int, rate: int) -> None:
    tails = []
    for config in (None, HedgingConfig()):
        cluster = Cluster(one_stalls(base), slots=slots, config=config)
        cluster.run(rate, 12_000)
        tails.append(cluster.latency_s(0.999, since=1000))
    assert tails[1] <= tails[0] / 5
    assert len(cluster.copies) <= 0.05 * len(cluster.calls)
    assert_within_budget(cluster)


@pytest.mark.parametrize("base", [steady, varied])
def test_when_all_are_slow_it_stops_and_it_comes_back_when_it_helps(base: Cost) -> None:
    slow = Slow(base)
    cluster = Cluster(slow, slots=100)
    cluster.run(400, 4000)
    assert cluster.won > 5

    slow.factor, slow.stalls = STALL, False
    before = len(cluster.copies)
    cluster.run(400, 1000)
    assert len(cluster.copies) - before <= MOST_CREDIT + 10
    before = len(cluster.copies)
    cluster.run(400, 4000)
    assert len(cluster.copies) - before <= 4000 * 0.01, "but probes, and what one of them that is lucky earns"

    slow.factor, slow.stalls = 1.0, True
    cluster.run(400, 2000)  # until it knows that calls are quick again
    cluster.run(400, 8000)
    assert cluster.latency_s(0.999, since=11_000) <= 5 * SERVICE_S
    assert_within_budget(cluster)


def test_it_adds_nothing_to_an_overload() -> None:
    cluster = Cluster(one_stalls(varied), slots=2)
    cluster.run(300, 1000)
    before, when = len(cluster.copies), cluster.now
    cluster.run(4 * 2 / SERVICE_S * 1.5, 3000)
    waiting_since = when + 0.2  # a queue has grown
    last_came = cluster.calls[-1].came_at
    assert not [at for at, _ in cluster.copies[before:] if waiting_since < at < last_came]


def test_where_nothing_is_gained_next_to_nothing_is_spent() -> None:
    cluster = Cluster(varied, slots=100)
    cluster.run(400, 8000)
    assert len(cluster.copies) <= MOST_CREDIT + GAIN + 8000 * 0.05 / 10
