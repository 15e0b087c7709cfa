"""Twice as many calls as can be served, each with a deadline of three to five service times, on a clock of its own.

Open loop: calls come at random (Poisson) whatever becomes of those before. Counted is what is answered in time, as a
share of what the replicas could serve at all. Beside it, in the same runs, a queue without deadlines and priorities.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from simulated_cluster import SERVICE_S, Cluster
from simulated_routing import Call, Job, ReplicaProcess

OVERLOAD = 2.0
HIGH_SHARE, HIGH = 0.1, 5
CALLS = 3000
WARM_UP = 0.1  # of the time, which is not counted: routers learn, and queues fill

SHAPES = [(1, 1, 8), (1, 8, 1), (4, 8, 1), (10, 20, 2)]  # routers, replicas, slots of each


@dataclass
class Outcome:
    """Shares: calls answered in time, of what could be served; of calls of high priority, of all of them."""

    in_time: float
    high_in_time: float
    never_sent: float  # of the calls that were not answered in time


def overload(
    routers: int, replicas: int, limit: int, exponential: bool, informed: bool = True, seed: int = 1
) -> Outcome:
    """`informed`: routers are told deadlines and priorities."""
    cluster = Cluster(routers, replicas, limit, seed)
    world, random = cluster.world, Random(seed)
    due: dict[Call, float] = {}
    high: set[Call] = set()

    def start(replica: ReplicaProcess, job: Job) -> None:
        seconds = random.expovariate(1 / SERVICE_S) if exponential else SERVICE_S
        cluster.at(world.now + seconds, lambda: replica.finish(job))

    def arrive() -> None:
        router = random.choice(world.routers)
        deadline = world.now + random.uniform(3, 5) * SERVICE_S
        priority = HIGH if random.random() < HIGH_SHARE else 0
        call = world.submit(router, priority=priority * informed, deadline=deadline if informed else None)
        due[call] = deadline
        if priority:
            high.add(call)
        if informed:
            cluster.at(deadline, lambda: expire(call))
        router.end_tick()

    def expire(call: Call) -> None:
        call.router.expire(call)
        call.router.end_tick()

    world.on_start = start
    rate = OVERLOAD * replicas * limit / SERVICE_S
    until = 0.0
    for _ in range(CALLS):
        cluster.at(until, arrive)
        until += random.expovariate(rate)
    warm = until * WARM_UP
    cluster.run(until + 1.0)
    world.check()

    counted = [call for call in world.calls if call.since >= warm]
    in_time = {call for call in counted if cluster.answered_at.get(call, until + 1.0) <= due[call]}
    capacity = (until - warm) * replicas * limit / SERVICE_S
    others = [call for call in counted if call not in in_time]
    return Outcome(
        in_time=len(in_time) / capacity,
        high_in_time=len(in_time & high) / len(high & set(counted)),
        never_sent=sum(call.outcome != "answered" for call in others) / len(others),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_that_take_equally_long(shape: tuple[int, int, int]) -> None:
    found = overload(*shape, exponential=False)
    assert found.in_time >= 0.90
    assert found.high_in_time == 1.0
    assert found.never_sent >= 0.98, "hardly a slot is spent on what comes too late"


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_whose_time_varies_exponentially(shape: tuple[int, int, int]) -> None:
    """One in 20 takes longer than three service times, and is late even where nothing else runs."""
    found = overload(*shape, exponential=True)
    assert found.in_time >= 0.88
    assert found.high_in_time >= 0.92


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_deadlines_hardly_any_is_in_time(shape: tuple[int, int, int], exponential: bool) -> None:
    found = overload(*shape, exponential=exponential, informed=False)
    assert found.in_time < 0.1
    assert found.high_in_time < 0.1


def test_one_slot_serves_most_in_time_too() -> None:
    """With one slot a call of high priority may find two before it and one in work: then no order helps it."""
    found = overload(1, 1, 1, exponential=False)
    assert found.in_time >= 0.95
    assert found.high_in_time >= 0.98


def test_when_service_becomes_slower_than_any_deadline_calls_still_get_through_and_it_is_noticed_when_it_recovers() -> (
    None
):
    cluster = Cluster(routers=1, replicas=4, limit=1)
    world, random = cluster.world, Random(1)
    service_s = SERVICE_S

    def start(replica: ReplicaProcess, job: Job) -> None:
        cluster.at(world.now + service_s, lambda: replica.finish(job))

    def arrive() -> None:
        (router,) = world.routers
        call = world.submit(router, deadline=world.now + 4 * SERVICE_S)
        cluster.at(world.now + 4 * SERVICE_S, lambda: router.expire(call))
        router.end_tick()

    def share_in_time(calls: int) -> float:
        first, began = len(world.calls), world.now
        until = began
        for _ in range(calls):
            cluster.at(until, arrive)
            until += random.expovariate(2 * 4 / SERVICE_S)
        cluster.run(until)
        in_time = [
            call
            for call in world.calls[first:]
            if call in cluster.answered_at and cluster.answered_at[call] <= call.since + 4 * SERVICE_S
        ]
        return len(in_time) / ((until - began) * 4 / SERVICE_S)

    world.on_start = start
    assert share_in_time(1000) > 0.9
    service_s = 10 * SERVICE_S
    answered = len(cluster.answered_at)
    assert share_in_time(2000) < 0.1
    assert len(cluster.answered_at) - answered > 50, "slots are used all the same"
    assert world.routers[0].balancer.lateness.times.likely_s > 4 * SERVICE_S
    service_s = SERVICE_S
    share_in_time(1000)
    assert share_in_time(1000) > 0.9
