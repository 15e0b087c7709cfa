"""Routers and replicas under any interleaving of messages, deaths, broken connections and stalled routers."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated_routing import World

from headrace.core.bound import to_model, to_replica

numbers = st.integers(0, 1 << 16)


def bustle(world: World, random: Random, steps: int) -> None:
    """Ordinary life for so many events: calls come and are answered, messages arrive, time passes."""
    arrivals = random.uniform(0.3, 2.0)
    for _ in range(steps):
        routers = [router for router in world.routers if not router.stalled]
        ready = world.inboxes()
        work = [(replica, job) for replica in world.replicas for job in replica.running()]
        event = random.uniform(0, 10)
        if event < arrivals and routers:
            world.submit(random.choice(routers))
        elif event < 5 and ready:
            who, connection = random.choice(ready)
            who.receive(connection)
        elif event < 7 and work:
            replica, job = random.choice(work)
            replica.finish(job)
        elif event < 9:
            for router in routers:
                router.end_tick()
        else:
            world.advance(random.choice([0.0001, 0.001, 0.004]))
        world.check()


class RoutingMachine(RuleBasedStateMachine):
    """Nothing is lost, nothing is answered twice, no limit is exceeded, no slot idles that a known call waits for."""

    @initialize(
        routers=st.integers(1, 3),
        replicas=st.integers(0, 3),
        limit=st.integers(1, 3),
        max_queued=st.sampled_from([-1, 2]),
        nodes=st.sampled_from([("",), ("a", "b")]),
        seed=numbers,
    )
    def start(
        self, routers: int, replicas: int, limit: int, max_queued: int, nodes: tuple[str, ...], seed: int
    ) -> None:
        self.world = World(limit, max_queued, seed)
        self.nodes = nodes
        for i in range(replicas):
            self.world.add_replica(nodes[i % len(nodes)])
        for i in range(routers):
            self.world.add_router(nodes[i % len(nodes)])

    @rule(
        n=numbers,
        count=st.integers(1, 4),
        priority=st.sampled_from([0, 0, 0, 1, 10, -10]),
        time_s=st.sampled_from([None, None, 0.002, 10.0]),
    )
    def submit(self, n: int, count: int, priority: int, time_s: float | None) -> None:
        world = self.world
        router = world.routers[n % len(world.routers)]
        if not router.stalled:
            for _ in range(count):
                deadline = None if time_s is None else world.now + time_s
                world.submit(router, priority=priority, deadline=deadline)

    @rule(
        n=numbers,
        count=st.integers(1, 6),
        model=st.sampled_from("AAABC"),
        priority=st.sampled_from([0, 0, 1]),
        time_s=st.sampled_from([None, None, 0.002, 10.0]),
    )
    def submit_for_a_model(self, n: int, count: int, model: str, priority: int, time_s: float | None) -> None:
        world = self.world
        router = world.routers[n % len(world.routers)]
        if not router.stalled:
            for _ in range(count):
                deadline = None if time_s is None else world.now + time_s
                world.submit(router, priority=priority, deadline=deadline, key=to_model(model))

    @rule(n=numbers)
    def hedge(self, n: int) -> None:
        under_way = [
            (call, connection)
            for connection in self.world.connections
            for call in connection.calls
            if not (call.outcome or call.suspect or call.copy or connection.router_knows or connection.router.stalled)
            and (call.key is None or call.model)
        ]
        if under_way:
            call, connection = under_way[n % len(under_way)]
            connection.router.hedge(call, connection)

    @rule(n=numbers)
    def heed_no_hints(self, n: int) -> None:
        if self.world.replicas:
            replica = self.world.replicas[n % len(self.world.replicas)]
            replica.heeds_hints = not replica.heeds_hints

    @rule(n=numbers, count=st.integers(1, 3))
    def submit_for_a_replica(self, n: int, count: int) -> None:
        world = self.world
        router = world.routers[n % len(world.routers)]
        if not router.stalled and world.replicas:
            for _ in range(count):
                world.submit(router, key=to_replica(world.replicas[n % len(world.replicas)].name))

    @rule(n=numbers, well=st.booleans())
    def end_a_load(self, n: int, well: bool) -> None:
        loads = [(replica, model) for replica in self.world.replicas for model in replica.loading()]
        if loads:
            replica, model = loads[n % len(loads)]
            replica.end_load(model, well)

    @rule(n=numbers)
    def expire(self, n: int) -> None:
        """The timers of a router have come to run, sooner or later."""
        router = self.world.routers[n % len(self.world.routers)]
        if not router.stalled:
            for call in self.world.calls:
                if call.router is router and call.deadline is not None and call.deadline <= self.world.now:
                    router.expire(call)

    @rule(seed=numbers, steps=st.integers(1, 80))
    def bustle(self, seed: int, steps: int) -> None:
        bustle(self.world, Random(seed), steps)

    @rule(n=numbers)
    def cancel(self, n: int) -> None:
        open_calls = [call for call in self.world.calls if not call.outcome and not call.router.stalled]
        if open_calls:
            call = open_calls[n % len(open_calls)]
            call.router.cancel(call)

    @rule(picks=st.lists(numbers, min_size=1, max_size=8), tick=st.booleans())
    def deliver(self, picks: list[int], tick: bool) -> None:
        for n in picks:
            ready = self.world.inboxes()
            if not ready:
                break
            who, connection = ready[n % len(ready)]
            who.receive(connection)
        if tick:
            self.end_ticks()

    @rule()
    def end_ticks(self) -> None:
        for router in self.world.routers:
            if not router.stalled:
                router.end_tick()

    @rule(n=numbers)
    def learn(self, n: int) -> None:
        router = self.world.routers[n % len(self.world.routers)]
        if router.news and not router.stalled:
            router.learn()

    @rule(picks=st.lists(numbers, min_size=1, max_size=4))
    def finish(self, picks: list[int]) -> None:
        for n in picks:
            work = [(replica, job) for replica in self.world.replicas for job in replica.running()]
            if work:
                replica, job = work[n % len(work)]
                replica.finish(job)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.005, 0.010, 0.1]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def add_replica(self) -> None:
        if len(self.world.replicas) < 4:
            self.world.add_replica(self.nodes[len(self.world.replicas) % len(self.nodes)])

    @rule(n=numbers)
    def kill(self, n: int) -> None:
        if self.world.replicas:
            self.world.kill(self.world.replicas[n % len(self.world.replicas)])

    @rule(n=numbers)
    def disconnect(self, n: int) -> None:
        connections = [connection for connection in self.world.connections if not connection.broken]
        if connections:
            self.world.disconnect(connections[n % len(connections)])

    @rule(n=numbers)
    def stall(self, n: int) -> None:
        self.world.routers[n % len(self.world.routers)].stalled = True

    @rule()
    def resume(self) -> None:
        for router in self.world.routers:
            router.stalled = False

    @precondition(lambda self: hasattr(self, "world"))
    @rule(seed=numbers)
    def come_to_rest(self, seed: int) -> None:
        self.world.settle(Random(seed).randrange)
        self.world.check_at_rest()

    @invariant()
    def limits_hold(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        self.resume()
        if not world.replicas:
            world.add_replica()
        for _ in range(10_000):
            world.settle()
            world.check()
            world.check_at_rest()
            loads = [(replica, model) for replica in world.replicas for model in replica.loading()]
            for replica, model in loads:
                replica.end_load(model, True)
            work = [(replica, job) for replica in world.replicas for job in replica.running()]
            if not work and not loads:
                break
            for replica, job in work:
                if job in replica.work:
                    replica.finish(job)
        for call in world.calls:
            assert call.outcome, f"{call} was lost"
        for replica in world.replicas:
            assert replica.gate.load == 0
        for router in world.routers:
            assert not router.balancer.queued
            for record in router.balancer.replicas.values():
                assert record.ours == 0
                assert record.shelf is not None, "it would never get a call again"


TestRouting = RoutingMachine.TestCase
TestRouting.settings = settings(
    max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("seed", range(60))
def test_ordinary_life_of_a_small_and_busy_deployment(seed: int) -> None:
    random = Random(seed)
    world = World(limit=random.choice([1, 1, 2]), seed=seed)
    for _ in range(random.choice([1, 1, 2])):
        world.add_replica()
    for _ in range(random.choice([1, 2])):
        world.add_router()
    for _ in range(4):
        bustle(world, random, 100)
        world.settle(random.randrange)
        world.check_at_rest()
    while work := [(replica, job) for replica in world.replicas for job in replica.running()]:
        for replica, job in work:
            replica.finish(job)
        world.settle(random.randrange)
        world.check_at_rest()
    assert {call.outcome for call in world.calls} == {"answered"}


@pytest.mark.parametrize("seed", range(60))
def test_one_poisonous_request_fails_alone_whatever_the_order_of_things(seed: int) -> None:
    random = Random(seed)
    world = World(limit=random.choice([1, 3, 8]), seed=seed)
    for _ in range(random.choice([1, 2, 4])):
        world.add_replica()
    for _ in range(random.choice([1, 2, 3])):
        world.add_router()
    calls = [
        world.submit(random.choice(world.routers), poisonous=i == 20)
        for i in range(60)
    ]  # fmt: skip
    for _ in range(100_000):
        for router in world.routers:
            while router.news:
                router.learn()
            router.end_tick()
        ready = world.inboxes()
        work = [(replica, job) for replica in world.replicas for job in replica.running()]
        if not ready and not work:
            break
        at = random.randrange(len(ready) + len(work))
        if at < len(ready):
            who, connection = ready[at]
            who.receive(connection)
        elif (found := work[at - len(ready)])[1].call.poisonous:
            world.kill(found[0])
            world.add_replica()
        else:
            found[0].finish(found[1])
        world.check()
        world.advance(random.choice([0.0, 0.0, 0.001]))
    assert [call.outcome for call in calls] == ["answered"] * 20 + ["poisonous"] + ["answered"] * 39
