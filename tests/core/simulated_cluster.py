"""A cluster on a clock of its own: routers and replicas as in `simulated_routing`, and messages that take time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from simulated_routing import Call, Connection, Job, ReplicaProcess, World

from headrace.core.gate import LEASE_S
from headrace.core.subset import choose_subset
from headrace.spec.snapshot import ReplicaEntry

LATENCY_S = 0.0001
SERVICE_S = 0.02


@dataclass
class Cluster:
    """A world on a clock: calls arrive at random, messages take LATENCY_S, calls take SERVICE_S on average.

    Routers and replicas are dealt out to `nodes`, which routers know where they are `aware`; calls take longer on some
    nodes by the factors in `slow`.
    """

    routers: int
    replicas: int
    limit: int
    seed: int = 1
    nodes: int = 1
    aware: bool = True
    slow: dict[str, float] = field(default_factory=dict)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    messages: int = 0
    answered_at: dict[Call, float] = field(default_factory=dict)
    started_on: dict[Call, str] = field(default_factory=dict)  # the node

    def __post_init__(self) -> None:
        self._serial = count()
        self.random = Random(self.seed)
        self.world = World(self.limit, seed=self.seed)
        self.world.on_post = self._on_post
        self.world.on_start = self._on_start
        self.world.on_lease = self._on_lease
        for i in range(self.replicas):
            self.world.add_replica(self.node_of(i) if self.nodes > 1 else "")
        entries = [ReplicaEntry(replica.name, "", replica.node) for replica in self.world.replicas]
        by_name = {replica.name: replica for replica in self.world.replicas}
        for i in range(self.routers):
            node = self.node_of(i) if self.nodes > 1 and self.aware else ""
            router = self.world.add_router(node)
            router.news.clear()
            for entry in choose_subset(f"ingress#{i}", entries, routers=self.routers, node=node):
                router.news.append(by_name[entry.id])
            while router.news:
                router.learn()

    def node_of(self, number: int) -> str:
        """The node of the router or replica of this number."""
        return f"node{number % self.nodes}"

    def local_share(self) -> float:
        """The share of the calls that were worked on where they came from."""
        own = {router: self.node_of(i) for i, router in enumerate(self.world.routers)}
        return sum(own[call.router] == node for call, node in self.started_on.items()) / len(self.started_on)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heappush(self.events, (when, next(self._serial), what))

    def run(self, until: float, look: Callable[[], None] = lambda: None) -> None:
        """Let time pass; `look` after each event."""
        while self.events and self.events[0][0] <= until:
            when, _, what = heappop(self.events)
            self.world.now = when
            what()
            look()
        self.world.now = until

    def resume(self) -> None:
        """Routers that were stopped run again, and find all that was sent to them meanwhile."""
        for router in self.world.routers:
            router.stalled = False
        for connection in self.world.connections:
            while connection.to_router:
                connection.router.receive(connection)
        for router in self.world.routers:
            router.end_tick()

    def arrive(self, calls: int, utilization: float, routers: int = 0) -> float:
        """`calls` arrive, the first now, each at a random router that runs, of the first so many (0: of all).

        When the last does.
        """
        rate = utilization * self.replicas * self.limit / SERVICE_S
        when = self.world.now
        for _ in range(calls):
            self.at(when, lambda: self._arrive(routers or len(self.world.routers)))
            when += self.random.expovariate(rate)
        return when

    def _arrive(self, routers: int) -> None:
        router = self.random.choice([router for router in self.world.routers[:routers] if not router.stalled])
        self.world.submit(router)
        router.end_tick()

    def _on_post(self, connection: Connection, to_router: bool) -> None:
        self.messages += 1

        def deliver() -> None:
            if not to_router:
                connection.replica.receive(connection)
            elif connection.to_router and not connection.router.stalled:
                self._note_answer(connection)
                connection.router.receive(connection)
                connection.router.end_tick()

        self.at(self.world.now + LATENCY_S, deliver)

    def _note_answer(self, connection: Connection) -> None:
        kind, *rest = connection.to_router[0]
        if kind == "reply":
            self.answered_at[rest[0]] = self.world.now

    def _on_start(self, replica: ReplicaProcess, job: Job) -> None:
        self.started_on[job.call] = replica.node
        takes_s = self.random.expovariate(1 / SERVICE_S) * self.slow.get(replica.node, 1.0)
        self.at(self.world.now + takes_s, lambda: replica.finish(job))

    def _on_lease(self, replica: ReplicaProcess) -> None:
        self.at(self.world.now + LEASE_S, replica.expire)
