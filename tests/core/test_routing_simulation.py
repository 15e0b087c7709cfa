"""A cluster on a clock of its own: 50 routers, up to 1,000 replicas, messages that take time.

What routing costs is counted in executed lines of the pure halves, so that the count is the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from types import FrameType
from typing import Any

import pytest
from simulated_cluster import LATENCY_S, Cluster
from simulated_routing import ReplicaProcess, World

from headrace.core import balance, gate, queue, room, waiting
from headrace.core.gate import LEASE_S

PURE = {balance.__file__, gate.__file__, queue.__file__, room.__file__, waiting.__file__}


@dataclass
class Counter:
    lines: int = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        def trace_lines(frame: FrameType, event: str, arg: Any) -> Any:
            self.lines += event == "line"
            return trace_lines

        def trace_calls(frame: FrameType, event: str, arg: Any) -> Any:
            return trace_lines if frame.f_code.co_filename in PURE else None

        before = sys.gettrace()
        sys.settrace(trace_calls)
        try:
            yield
        finally:
            sys.settrace(before)


def cost_per_request(replicas: int, utilization: float, requests: int = 4000) -> tuple[float, float]:
    """Executed lines of the pure halves and messages for each request, in the steady state."""
    cluster = Cluster(routers=50, replicas=replicas, limit=2)
    warm = cluster.arrive(replicas * 6, utilization)
    cluster.run(warm)
    before = cluster.messages
    counter = Counter()
    until = cluster.arrive(requests, utilization)
    with counter.counting():
        cluster.run(until)
    messages = cluster.messages - before
    cluster.run(until + 1000.0)
    assert all(call.outcome == "answered" for call in cluster.world.calls)
    return counter.lines / requests, messages / requests


@pytest.fixture(scope="module")
def costs() -> dict[int, tuple[float, float]]:
    return {replicas: cost_per_request(replicas, utilization=0.75, requests=1500) for replicas in (50, 250, 1000)}


def test_routing_costs_no_more_with_a_thousand_replicas_than_with_fifty(costs: dict[int, tuple[float, float]]) -> None:
    lines = {replicas: cost[0] for replicas, cost in costs.items()}
    assert lines[1000] <= lines[50]
    assert lines[1000] <= 1.2 * lines[250]


def test_a_request_takes_no_more_messages_with_a_thousand_replicas(costs: dict[int, tuple[float, float]]) -> None:
    messages = {replicas: cost[1] for replicas, cost in costs.items()}
    assert messages[1000] <= messages[50]
    assert messages[1000] < 6, "a call and a reply, and now and then a refusal and an offer"


def lines_to_choose(replicas: int) -> int:
    """Executed lines of 1,000 calls, each sent and answered, half of the slots being taken."""
    router: balance.Balancer[int] = balance.Balancer(4, -1, Random(1))
    for i in range(replicas):
        router.add(f"d#{i}")
    sent = [router.choose() for _ in range(replicas * 2)]
    counter = Counter()
    with counter.counting():
        for i in range(1000):
            replica = sent[i % len(sent)]
            assert replica is not None
            router.finished(replica, replica.ours - 1)
            sent[i % len(sent)] = router.choose()
            router.announce()
    return counter.lines


def test_choosing_among_a_thousand_replicas_is_the_same_work_as_among_ten() -> None:
    assert lines_to_choose(1000) <= 1.05 * lines_to_choose(10)


def lines_to_offer(callers: int) -> int:
    """Executed lines of 1,000 slots that come free and are offered, while so many callers wait."""
    door: gate.Gate[int] = gate.Gate(1)
    door.enter(-1, False, 0.0)
    for caller in range(callers):
        door.waiting(caller, 5, 1.0 - caller / callers, 1.0)
    counter = Counter()
    with counter.counting():
        for i in range(1000):
            chosen = door.leave(1.0 + i)
            assert chosen is not None
            door.enter(chosen, True, 1.0 + i, next_age_s=0.0)
    return counter.lines


def test_offering_a_slot_is_the_same_work_with_a_thousand_callers_as_with_ten() -> None:
    assert lines_to_offer(1000) <= 1.05 * lines_to_offer(10)


class IdleWatch:
    """How long a slot stays free at a replica for which a call waits at a router that runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.since: dict[str, float] = {}
        self.longest = 0.0

    def look(self) -> None:
        now = self.world.now
        for replica in self.world.replicas:
            if replica.gate.ongoing < replica.limit and self._wanted(replica):
                self.longest = max(self.longest, now - self.since.setdefault(replica.name, now))
            else:
                self.since.pop(replica.name, None)

    def _wanted(self, replica: ReplicaProcess) -> bool:
        return any(
            router.balancer.waiting_for(router.balancer.replicas[replica.name])
            for router in self.world.routers
            if not router.stalled
        )


@pytest.mark.parametrize(("limit", "nodes"), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("stopped", [False, True])
def test_no_slot_idles_longer_than_one_lease_while_a_call_waits_for_it(limit: int, nodes: int, stopped: bool) -> None:
    cluster = Cluster(routers=5, replicas=8, limit=limit, seed=7, nodes=nodes)
    world = cluster.world
    watch = IdleWatch(world)
    until = cluster.arrive(1500, utilization=0.95)
    if stopped:
        cluster.at(until / 3, lambda: setattr(world.routers[0], "stalled", True))
    cluster.run(until, watch.look)
    # Now and then a slot is offered to some that have been served elsewhere meanwhile, and decline.
    assert 0 < watch.longest <= (LEASE_S if stopped else 0.0) + 10 * LATENCY_S

    cluster.resume()
    cluster.run(until + 1000.0)
    assert all(call.outcome == "answered" for call in world.calls)
    assert all(replica.gate.load == 0 for replica in world.replicas)


def test_a_stopped_router_delays_the_others_by_little() -> None:
    waits = []
    for stopped in (False, True):
        cluster = Cluster(routers=5, replicas=8, limit=1, seed=3)
        until = cluster.arrive(2000, utilization=0.8)
        if stopped:
            cluster.run(until / 4)
            cluster.world.routers[0].stalled = True
        cluster.run(until + 5.0)
        done = [call for call in cluster.world.calls if call.router is not cluster.world.routers[0]]
        assert all(call.outcome == "answered" for call in done)
        waits.append(sum(cluster.answered_at[call] - call.since for call in done) / len(done))
    assert waits[1] <= waits[0] + LEASE_S
