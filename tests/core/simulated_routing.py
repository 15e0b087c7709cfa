"""Routers and replicas in one process: the pure halves (Balancer, Gate, Repeats) with small shells around them.

Messages lie in one queue per connection and direction, and are delivered when, and as many as, the test says, in their
order. Time is a number that the test owns. Where shells could go wrong (a call started twice, an answer given twice,
more calls in work than allowed), they assert.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from headrace.core.balance import Balancer, Replica
from headrace.core.bound import Key
from headrace.core.gate import Gate
from headrace.core.repeat import Repeats, RetryBudget, Verdict
from headrace.core.turns import Turns


@dataclass(eq=False)
class Call:
    """A request on its way. `outcome` is what its caller was told, or 'cancelled'."""

    number: int
    router: Router
    since: float
    poisonous: bool = False
    key: Key | None = None
    priority: int = 0
    deadline: float | None = None
    sent_at: float = 0.0
    suspect: bool = False
    started: bool = True  # as far as the router knows; of a suspect, the replica tells when it starts
    outcome: str = ""
    copy: bool = False  # a hedge copy: it is never sent again

    @property
    def model(self) -> str:
        return self.key.name if self.key is not None and self.key.kind == "model" else ""

    def __repr__(self) -> str:
        return f"<call {self.number} {self.outcome or 'open'}{' suspect' if self.suspect else ''}>"

    def end(self, outcome: str) -> None:
        assert not self.outcome, f"{self} is told {outcome} as well"
        self.outcome = outcome


@dataclass(eq=False)
class Connection:
    """One connection. `to_replica` and `to_router` are in the order of sending; EOF is a message, the last one."""

    router: Router
    replica: ReplicaProcess
    record: Replica
    to_replica: deque[tuple[Any, ...]] = field(default_factory=deque)
    to_router: deque[tuple[Any, ...]] = field(default_factory=deque)
    calls: dict[Call, None] = field(default_factory=dict)  # what the router has there, in order
    broken: bool = False
    router_knows: bool = False
    replica_knows: bool = False

    def __repr__(self) -> str:
        return f"<{self.router.name}-{self.replica.name}{' broken' if self.broken else ''}>"


@dataclass(eq=False)
class Job:
    """A call at a replica."""

    call: Call
    connection: Connection

    def __repr__(self) -> str:
        return repr(self.call)


class ReplicaProcess:
    """The replica's side: a gate, and calls in work."""

    def __init__(self, world: World, name: str, limit: int, node: str = "") -> None:
        self.world = world
        self.name = name
        self.node = node
        self.gate: Gate[Connection] = Gate(limit)
        self.limit = limit
        self.work: dict[Job, None] = {}
        self.suspects: Turns[Job] = Turns()
        self.alive = True
        self.models: dict[str, bool] = {}  # whether it is ready, or being loaded; the least recently used first
        self.room_for_models = 2
        self.heeds_hints = True

    def __repr__(self) -> str:
        return f"<{self.name} {self.gate} work={list(self.work)}>"

    def receive(self, connection: Connection) -> None:
        kind, *rest = connection.to_replica.popleft()
        if connection.replica_knows:
            return
        now = self.world.now
        if kind == "call":
            self._start(connection, *rest)
        elif kind == "waiting":
            self._offer(self.gate.waiting(connection, *rest, now))
        elif kind == "withdraw":
            self._offer(self.gate.withdraw(connection, now))
        elif kind == "decline":
            self._offer(self.gate.decline(connection, now))
        elif kind == "load":
            if self.heeds_hints:
                self._load(rest[0])
        elif kind == "eof":
            connection.replica_knows = True
            self._offer(self.gate.disconnect(connection, now))

    def _start(self, connection: Connection, call: Call, leased: bool, next_age_s: float | None, suspect: bool) -> None:
        now = self.world.now
        if self.gate.enter(connection, leased, now, next_age_s):
            job = Job(call, connection)
            self.work[job] = None
            if not suspect or self.suspects.enter(job):
                self._run(job, suspect)
        else:
            self.world.post_to_router(connection, ("reject", call, self.gate.load))
        if leased:
            while (chosen := self.gate.offer(now)) is not None:
                self._offer([chosen])

    def _run(self, job: Job, suspect: bool) -> None:
        if suspect and not job.connection.replica_knows:
            self.world.post_to_router(job.connection, ("started", job.call))
        model = job.call.model
        if model:
            self._load(model)
        self.world.on_start(self, job)

    def running(self) -> list[Job]:
        """The calls in work but for suspects that wait for their turn, and those that wait for their model."""
        return [
            job
            for job in self.work
            if not self.suspects.waits(job) and (not job.call.model or self.models.get(job.call.model))
        ]

    def _load(self, model: str) -> None:
        ready = self.models.pop(model, None)
        self.models[model] = bool(ready)
        if ready is None:
            self._tell(loading=[model])

    def loading(self) -> list[str]:
        return [model for model, ready in self.models.items() if not ready]

    def end_load(self, model: str, well: bool) -> None:
        """It is loaded, and others that nobody uses make room; or it fails, and with it those that wait for it."""
        if well:
            self.models[model] = True
            in_use = {job.call.model for job in self.work}
            idle = [name for name, ready in self.models.items() if ready and name not in in_use and name != model]
            gone = idle[: max(0, len(self.models) - self.room_for_models)]
            for name in gone:
                del self.models[name]
            self._tell(ready=[model], gone=gone)
            return
        del self.models[model]
        self._tell(gone=[model])
        for job in [job for job in self.work if job.call.model == model and not self.suspects.waits(job)]:
            if job in self.work:
                self.finish(job)

    def greet(self, connection: Connection) -> None:
        self._tell_one(connection, [n for n, ready in self.models.items() if ready], self.loading(), [])

    def _tell(self, ready: Sequence[str] = (), loading: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
        for connection in self.world.connections:
            if connection.replica is self and not connection.replica_knows:
                self._tell_one(connection, list(ready), list(loading), list(gone))

    def _tell_one(self, connection: Connection, *told: list[str]) -> None:
        if any(told):
            self.world.post_to_router(connection, ("models", *told))

    def finish(self, job: Job) -> None:
        del self.work[job]
        call, connection = job.call, job.connection
        following = self.suspects.leave(job)
        if following is not None:
            self._run(following, True)
        if call.model and self.models.get(call.model):
            self.models[call.model] = self.models.pop(call.model)
        chosen = self.gate.leave(self.world.now)
        if not connection.replica_knows:
            self.world.post_to_router(connection, ("reply", call, self.gate.load, chosen is connection))
        if chosen is not None and chosen is not connection:
            self._offer([chosen])

    def expire(self) -> None:
        self._offer(self.gate.expire(self.world.now))

    def _offer(self, connections: list[Connection]) -> None:
        for connection in connections:
            assert not connection.replica_knows
            self.world.post_to_router(connection, ("offer", self.gate.load))
        if connections:
            self.world.on_lease(self)


class Router:
    """The caller's side: a balancer, and what a router makes of its choices."""

    def __init__(self, world: World, name: str, limit: int, max_queued: int, rng: Random, node: str = "") -> None:
        self.world = world
        self.name = name
        self.balancer: Balancer[Call] = Balancer(limit, max_queued, rng, node)
        self.repeats = Repeats(RetryBudget(initial=1e9, capacity=1e9))
        self.connections: dict[str, Connection] = {}
        self.stalled = False
        self.news: deque[ReplicaProcess] = deque()  # replicas that the snapshot tells it of

    def __repr__(self) -> str:
        return f"<{self.name} {self.balancer}>"

    def learn(self) -> None:
        """The next news of the snapshot: a replica to call."""
        replica = self.news.popleft()
        if replica.alive and replica.name not in self.balancer.replicas:
            record = self.balancer.add(replica.name, node=replica.node)
            record.link = self.connections[replica.name] = self.world.connect(self, replica, record)
            self._drain()

    def submit(self, call: Call) -> None:
        balancer, key = self.balancer, call.key
        if key is not None and key.kind == "replica" and key.name not in balancer.replicas:
            call.end("no such replica")
            return
        replica = balancer.choose() if key is None else balancer.choose_bound(call, key, self.world.now)
        for model, other in balancer.to_load:
            assert other is not replica
            self.world.post_to_replica(other.link, ("load", model))
        balancer.to_load.clear()
        if replica is not None:
            self._send(call, replica.link)
        else:
            self._wait(call)

    def _wait(self, call: Call) -> None:
        balancer, now = self.balancer, self.world.now
        if call.deadline is not None and call.key is None and balancer.hopeless(now, call.deadline, call.priority):
            call.end("hopeless")
            return
        # More may wait than are allowed, for some have come back: then several give way.
        while not balancer.enqueue(call, now, call.priority, call.deadline, call.key):
            other = balancer.evict(below=call.priority)
            if other is None:
                call.end("refused")
                return
            other.end("evicted")

    def expire(self, call: Call) -> None:
        """Its deadline has come."""
        if not call.outcome and self.balancer.discard(call):
            call.end("expired")

    def cancel(self, call: Call) -> None:
        call.end("cancelled")
        if self.balancer.loader_ended(call):
            self._drain()
        self.balancer.discard(call)

    def hedge(self, call: Call, connection: Connection) -> None:
        """A copy of the call leaves, if another replica has room and less to do."""
        other = self.balancer.choose_beside(connection.record, call.key)
        if other is not None:
            assert other is not connection.record
            self._send(Call(call.number, self, call.since, key=call.key, copy=True), other.link)

    def end_tick(self) -> None:
        balancer = self.balancer
        for replica in balancer.announce():
            count = balancer.waiting_for(replica)
            urgency_s = balancer.urgency_s(self.world.now, replica)
            assert (count > 0) == (urgency_s is not None)
            message = ("withdraw",) if urgency_s is None else ("waiting", count, urgency_s)
            self.world.post_to_replica(replica.link, message)

    def receive(self, connection: Connection) -> None:
        kind, *rest = connection.to_router.popleft()
        if connection.router_knows:
            return
        if kind == "started":
            rest[0].started = True
        elif kind == "reply":
            self._replied(connection, *rest)
        elif kind == "reject":
            self._rejected(connection, *rest)
        elif kind == "offer":
            self._offered(connection, *rest)
        elif kind == "models":
            self.balancer.models_changed(connection.record, *rest)
            self._drain()
        elif kind == "eof":
            self._lost(connection)

    def _replied(self, connection: Connection, call: Call, load: int, offered: bool) -> None:
        del connection.calls[call]
        self.balancer.finished(connection.record, load)
        loaded = self.balancer.loader_ended(call)
        if call.deadline is not None:
            self.balancer.lateness.times.observe(self.world.now - call.sent_at, self.world.now)
        if call.suspect:
            self.balancer.suspect_ended(connection.record)
        if offered:
            self._offered(connection, load)
        if call.suspect or loaded:
            self._drain()
        if call.outcome != "cancelled":
            call.end("answered")

    def _rejected(self, connection: Connection, call: Call, load: int) -> None:
        del connection.calls[call]
        self.balancer.rejected(connection.record, load)
        if call.suspect:
            self.balancer.suspect_ended(connection.record)
        self.balancer.loader_ended(call, started=False)
        if call.copy:
            call.end("refused")
        elif call.outcome != "cancelled":
            self._wait_again(call)
        self._drain()

    def _offered(self, connection: Connection, load: int) -> None:
        call = self.balancer.offered(connection.record, load, self.world.now)
        if call is None:
            self.world.post_to_replica(connection, ("decline",))
        else:
            self._send(call, connection, leased=True)
        self._answer_shed()

    def _lost(self, connection: Connection) -> None:
        connection.router_knows = True
        del self.connections[connection.replica.name]
        self.balancer.remove(connection.replica.name)
        for call in connection.calls:
            self.balancer.loader_ended(call)
            if call.outcome == "cancelled":
                continue
            if call.copy or (call.key is not None and call.key.kind == "replica"):
                call.end("died")
                continue
            verdict = self.repeats.judge(self.world.now, started=call.started, suspect=call.suspect)
            if verdict is Verdict.REPEAT or verdict is Verdict.MOVE:
                call.suspect = True
                self._wait_again(call)
            else:
                call.end(verdict.value)
        self._drain()
        if connection.replica.alive:
            self.news.append(connection.replica)

    def _wait_again(self, call: Call) -> None:
        if call.suspect:
            self.balancer.quarantine(call, call.since, call.priority)
        else:
            self.balancer.requeue(call, call.since, call.priority, call.deadline, call.key)

    def _drain(self) -> None:
        for call in self.balancer.stranded():
            call.end("stranded")
        for call, replica in self.balancer.drain(self.world.now):
            self._send(call, replica.link)
        self._answer_shed()

    def _answer_shed(self) -> None:
        shed = self.balancer.shed
        while shed:
            shed.pop().end("shed")

    def _send(self, call: Call, connection: Connection, leased: bool = False) -> None:
        assert not call.outcome
        connection.calls[call] = None
        call.started = not call.suspect
        call.sent_at = self.world.now
        urgency_s = self.balancer.urgency_s(self.world.now, connection.record) if leased else None
        self.world.post_to_replica(connection, ("call", call, leased, urgency_s, call.suspect))


class World:
    """All of them, and the connections between. `on_post` and the like let a simulation put messages on its clock."""

    def __init__(self, limit: int, max_queued: int = -1, seed: int = 0) -> None:
        self.now = 0.0
        self.limit = limit
        self.max_queued = max_queued
        self.random = Random(seed)
        self.routers: list[Router] = []
        self.replicas: list[ReplicaProcess] = []
        self.connections: list[Connection] = []
        self.calls: list[Call] = []
        self.on_post: Callable[[Connection, bool], None] = lambda connection, to_router: None
        self.on_start: Callable[[ReplicaProcess, Job], None] = lambda replica, job: None
        self.on_lease: Callable[[ReplicaProcess], None] = lambda replica: None
        self._numbers = 0

    def add_router(self, node: str = "") -> Router:
        name, rng = f"router{len(self.routers)}", Random(self.random.random())
        router = Router(self, name, self.limit, self.max_queued, rng, node)
        self.routers.append(router)
        router.news.extend(replica for replica in self.replicas if replica.alive)
        return router

    def add_replica(self, node: str = "") -> ReplicaProcess:
        self._numbers += 1
        replica = ReplicaProcess(self, f"replica#{self._numbers}", self.limit, node)
        self.replicas.append(replica)
        for router in self.routers:
            router.news.append(replica)
        return replica

    def submit(
        self,
        router: Router,
        poisonous: bool = False,
        priority: int = 0,
        deadline: float | None = None,
        key: Key | None = None,
    ) -> Call:
        call = Call(len(self.calls), router, self.now, poisonous, key, priority, deadline)
        self.calls.append(call)
        router.submit(call)
        return call

    def connect(self, router: Router, replica: ReplicaProcess, record: Replica) -> Connection:
        connection = Connection(router, replica, record)
        self.connections.append(connection)
        replica.greet(connection)
        return connection

    def post_to_replica(self, connection: Connection, message: tuple[Any, ...]) -> None:
        if not connection.broken:
            connection.to_replica.append(message)
            self.on_post(connection, False)

    def post_to_router(self, connection: Connection, message: tuple[Any, ...]) -> None:
        if not connection.broken:
            connection.to_router.append(message)
            self.on_post(connection, True)

    def disconnect(self, connection: Connection) -> None:
        """The connection breaks: what was sent arrives still, then its end."""
        self.post_to_replica(connection, ("eof",))
        self.post_to_router(connection, ("eof",))
        connection.broken = True

    def kill(self, replica: ReplicaProcess) -> None:
        """The process dies: what it had sent arrives still, then the end of its connections."""
        replica.alive = False
        replica.work.clear()
        for connection in self.connections:
            if connection.replica is replica and not connection.broken:
                self.post_to_router(connection, ("eof",))
                connection.broken = True
                connection.to_replica.clear()
        self.replicas.remove(replica)

    def advance(self, seconds: float) -> None:
        """Time passes, and leases end when they must."""
        until = self.now + seconds
        while True:
            expiries = [e for replica in self.replicas if (e := replica.gate.next_expiry()) is not None]
            if not expiries or min(expiries) > until:
                break
            self.now = max(self.now, min(expiries))
            for replica in self.replicas:
                replica.expire()
        self.now = until

    def inboxes(self) -> list[tuple[Any, Connection]]:
        """Who could receive something now, and from which connection."""
        ready: list[tuple[Any, Connection]] = []
        for connection in self.connections:
            if connection.to_replica and connection.replica.alive:
                ready.append((connection.replica, connection))
            if connection.to_router and not connection.router.stalled:
                ready.append((connection.router, connection))
        return ready

    def settle(self, pick: Callable[[int], int] | None = None) -> None:
        """Deliver all messages, let all leases end, finish no work: until nothing happens any more.

        `pick(n)` says which of n messages comes next (the first, when left out).
        """
        for _ in range(10_000):
            routers = [router for router in self.routers if not router.stalled]
            for router in routers:
                while router.news:
                    router.learn()
                router.end_tick()
            ready = self.inboxes()
            if ready:
                who, connection = ready[pick(len(ready)) if pick else 0]
                who.receive(connection)
            elif any(replica.gate.next_expiry() is not None for replica in self.replicas):
                self.advance(0.010)
            elif not any(router.news for router in routers):
                self.forget_closed()
                return
        raise AssertionError("it never comes to rest")

    def forget_closed(self) -> None:
        self.connections = [c for c in self.connections if not (c.broken and c.router_knows)]

    def check(self) -> None:
        """What must hold at every moment."""
        for replica in self.replicas:
            gate = replica.gate
            assert len(replica.work) == gate.ongoing <= gate.load <= replica.limit, replica

    def check_at_rest(self) -> None:
        """What must hold with all messages delivered and no lease left: no slot is free that a call waits for."""
        for replica in self.replicas:
            for router in self.routers:
                if router.stalled or len(replica.work) >= replica.limit:
                    continue
                record = router.balancer.replicas[replica.name]
                count = router.balancer.waiting_for(record)
                assert not count, f"{router} has {count} calls waiting for {replica}"
