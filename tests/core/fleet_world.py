"""A world around plans for tests: it carries actions out as the controller does, without processes, sockets or time."""

from __future__ import annotations

from typing import Any

from headrace.core import plan
from headrace.core import rollout as rollouts
from headrace.core.analysis import PASS, Evidence, Verdict
from headrace.core.fleet import Application, Replica, entry_key
from headrace.core.lifecycle import COUNTED, Event, Phase
from headrace.core.publication import build_snapshot, note_published, same_routes
from headrace.core.restart import RestartPolicy
from headrace.spec.application import ApplicationSpec, DeploymentSpec, ImportedCode
from headrace.spec.options import DeploymentOptions
from headrace.spec.rollout import Command, RollingUpdate, Strategy
from headrace.spec.snapshot import Snapshot
from headrace.spec.status import RolloutOutcome


def deployment(name: str, *, digest: str = "1", uses: tuple[str, ...] = (), **options: Any) -> DeploymentSpec:
    return DeploymentSpec(
        name=name,
        code=ImportedCode("m", name),
        arguments=b"",
        options=DeploymentOptions(**options),
        digest=digest,
        max_ongoing_requests=10,
        uses=uses,
    )


def application(*deployments: DeploymentSpec, name: str = "app") -> ApplicationSpec:
    return ApplicationSpec(name=name, route_prefix="/", ingress=deployments[0].name, deployments=deployments)


class World:
    """One application, its replicas, and one router that acknowledges when it is told to."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = list(nodes or [""])
        self.app = Application(name="app", policy=RestartPolicy(first_wait_s=1.0, longest_wait_s=8.0))
        self.now = 0.0
        self.snapshot = Snapshot()
        self.published = {0: self.snapshot}
        self.routed = 0
        self.log: list[plan.Action] = []
        self.vanished = False
        self.wake_at: float | None = None

    # --- what a controller does -------------------------------------------------------------------------------------

    def deploy(self, spec: ApplicationSpec, strategy: Strategy | None = None) -> None:
        app = self.app
        same = (
            app.target
            and not app.failure
            and {d.name: d.digest for d in app.spec.deployments} == {d.name: d.digest for d in spec.deployments}
        )
        if not same:
            if app.deploying and app.fallback:
                self.fall_back()
            base = app.base()
            app.newest += 1
            app.target = app.newest
            app.rollout = rollouts.begin(app.target, base, strategy or RollingUpdate(), self.now)
            app.evidence, app.verdict, app.rolled_back = Evidence(), Verdict(PASS), False
        app.revisions[app.target] = spec
        app.failure, app.deploying, app.weights_at = "", True, None
        for failures in app.failures.values():
            failures.starts, failures.final = 0, ""
            failures.restarts.forgive()

    def split(self, weights: dict[int, float]) -> None:
        """What `serve.set_traffic` has the controller do, among revisions that are there."""
        app = self.app
        app.fallback, app.split = app.fallback or app.base(), dict(weights) if len(weights) > 1 else {}
        app.current = app.target = rollouts.heaviest(weights)
        app.failure, app.rolled_back, app.deploying, app.weights_at = "", False, True, None
        for failures in app.failures.values():
            failures.starts, failures.final = 0, ""
            failures.restarts.forgive()

    def weigh(self, weights: dict[int, float]) -> None:
        app = self.app
        for number, weight in app.weights.items():
            app.former[number] = max(app.former.get(number, 0.0), weight)
        app.weights, app.weights_at = weights, None

    def fall_back(self) -> None:
        app = self.app
        app.current = app.target = rollouts.heaviest(app.fallback)
        app.split = app.fallback if len(app.fallback) > 1 else {}
        app.fallback, app.weights_at = {}, None
        assert app.current in app.revisions

    def command(self, given: Command) -> None:
        assert self.app.rollout is not None
        self.app.rollout = rollouts.command(self.app.rollout, given, self.now)

    def delete(self) -> None:
        self.app.deleting = True
        self.app.weights_at = None

    def round(self) -> list[plan.Action]:
        """Plan and act once, then publish."""
        if self.vanished:
            return []
        planned = plan.plan_application(self.app, self.routed, self.now)
        self.wake_at = planned.wake_at
        for action in planned.actions:
            self.perform(action)
        self.log += planned.actions
        self.publish()
        return planned.actions

    def settle(self, rounds: int = 60) -> None:
        """Rounds until there is nothing to do; the router keeps up."""
        for _ in range(rounds):
            self.routed = self.snapshot.version
            before = self.snapshot
            if not self.round() and self.snapshot is before and self.routed == before.version:
                return
        raise AssertionError(f"no end of actions: {self.log[-5:]}")

    def publish(self) -> None:
        apps = [] if self.vanished else [self.app]
        snapshot = build_snapshot(apps, "default", self.snapshot.version + 1, ingress_workers=1)
        if not same_routes(self.snapshot, snapshot):
            self.snapshot = self.published[snapshot.version] = snapshot
        note_published(apps, self.snapshot)

    def perform(self, action: plan.Action) -> None:
        app = self.app
        match action:
            case plan.Start():
                replica = Replica(
                    id=f"{action.spec.name}#{app.next_replica}",
                    app=app.name,
                    key=action.key,
                    name=action.spec.name,
                    revision=action.revision,
                    address="unix:/x",
                    level=action.level,
                    launched_at=self.now,
                    configured=action.spec,
                    node=self.place(),
                )
                app.next_replica += 1
                app.replicas[replica.id] = replica
                assert len(app.staying(action.key)) <= max(app.number_wanted(action.key), action.key in app.held)
            case plan.Retire(id=id):
                replica = app.replicas[id]
                if replica.key in self.weighted_keys(self.published[self.routed]):
                    # Of those that some router still sends new requests to something stays.
                    assert replica.key in app.wanted()
                    assert any(each.phase is Phase.RUNNING for each in app.of(replica.key) if each is not replica)
                replica.on(Event.RETIRE)
            case plan.Drain(id=id, deadline_s=deadline_s):
                # The invariant of draining: no router lists it any more.
                assert not self.is_routed(id)
                app.replicas[id].on(Event.DRAIN)
                app.replicas[id].stop_by = self.now + deadline_s + plan.DRAIN_MARGIN_S
            case plan.Stop(id=id, error=error):
                replica = app.replicas[id]
                replica.on(Event.STOP)
                if error:
                    self.fail(replica)
            case plan.Reconfigure(id=id, spec=spec):
                app.replicas[id].configured = spec
            case plan.Share(weights=weights):
                self.check_weights(weights)
                self.weigh(weights)
            case plan.Advance(rollout=rollout):
                app.rollout = rollout
            case plan.Promote(rollout=rollout):
                known = self.published[self.routed].deployments
                shared = {key for number in rollout.base for key in self.keys(number)}
                for key, spec in self.keys(app.target).items():
                    if key not in shared:
                        assert len(known[key].replicas) >= spec.options.num_replicas
                assert app.weights == {rollout.revision: 1.0}
                app.current, app.weights_at = rollout.revision, None
                app.rollout, app.ended, app.split = None, rollout, {}
            case plan.Abandon(error=error, rollout=rollout):
                app.failure, app.deploying = error, False
                if rollout is None and app.fallback:
                    self.fall_back()
                if rollout is not None:
                    app.rollout, app.ended = None, rollout
                    app.rolled_back = rollout.outcome == RolloutOutcome.ROLLED_BACK
                    if not rollout.base:
                        self.weigh({})
            case plan.Settle():
                app.failure, app.deploying, app.fallback = "", False, {}
            case plan.Forget(revision=revision):
                # What is pinned to a revision resolves its deployments while one of its own replicas lives.
                own = self.keys(revision).keys() - app.wanted().keys()
                assert not any(replica.key in own for replica in app.replicas.values())
                del app.revisions[revision]
            case plan.Vanish():
                assert not app.replicas
                self.vanished = True

    def place(self) -> str:
        """The node that has the fewest replicas, of those that may have more."""
        count = {node: 0 for node in self.nodes if node not in self.app.leaving}
        for replica in self.app.replicas.values():
            if replica.node in count:
                count[replica.node] += 1
        return min(count, key=count.__getitem__)

    def check_weights(self, weights: dict[int, float]) -> None:
        """They add up to 1, and none grows beyond what all routers know to be ready for it, unless all is given."""
        app = self.app
        assert abs(sum(weights.values()) - 1.0) < 1e-9
        assert all(weight > 0 for weight in weights.values())
        if app.rollout is not None and getattr(app.rollout.strategy, "max_unavailable", 0):
            assert weights == rollouts.wanted_weights(app.rollout, app.weights) or self.are_ready(weights)
        else:
            assert self.are_ready(weights)

    def are_ready(self, weights: dict[int, float]) -> bool:
        app = self.app
        ready = plan.shares_ready(app, self.routed)
        base = app.base() or {app.target: 1.0}
        trusted = rollouts.heaviest(base)
        return all(number == trusted or weight <= ready[number] + 1e-9 for number, weight in weights.items())

    def weighted_keys(self, snapshot: Snapshot) -> set[str]:
        """The deployments that new requests go to, by this snapshot."""
        return {
            key
            for entry in snapshot.applications.values()
            for revision in entry.revisions
            if revision.weight
            for key in revision.deployments.values()
        }

    def is_routed(self, id: str) -> bool:
        """Whether a router that is as far behind as it may be sends calls to the replica."""
        known = self.published[self.routed].deployments.values()
        return any(replica.id == id for entry in known for replica in entry.replicas)

    # --- what happens -----------------------------------------------------------------------------------------------

    def fail(self, replica: Replica, starting: bool = True) -> None:
        failures = self.app.failures_of(replica.key)
        failures.error = f"{replica.id} failed"
        failures.starts += starting
        lived_s = self.now - replica.launched_at
        failures.restarts.fail(self.now, replica.level, lived_s, self.app.number_wanted(replica.key))

    def ready(self, id: str) -> None:
        self.app.replicas[id].on(Event.READY)

    def exit(self, id: str) -> None:
        replica = self.app.replicas[id]
        before = replica.phase
        replica.on(Event.EXITED)
        if before in COUNTED:
            self.fail(replica, starting=before in (Phase.LAUNCHING, Phase.STARTING))
        del self.app.replicas[id]

    def lose(self, node: str) -> None:
        """All that runs there is gone, and is no failure of its own."""
        self.nodes.remove(node)
        self.app.leaving -= {node}
        for replica in [replica for replica in self.app.replicas.values() if replica.node == node]:
            replica.on(Event.EXITED)
            del self.app.replicas[replica.id]

    def all_become_ready_and_the_leaving_leave(self) -> None:
        for replica in list(self.app.replicas.values()):
            if replica.phase in (Phase.LAUNCHING, Phase.STARTING):
                replica.on(Event.READY)
            elif replica.phase in (Phase.DRAINING, Phase.STOPPING):
                self.exit(replica.id)

    def run(self) -> None:
        """To the end, all going well."""
        for _ in range(20):
            self.settle()
            self.all_become_ready_and_the_leaving_leave()
            if self.wake_at is not None:
                self.now = max(self.now, self.wake_at)
        self.settle()

    def phases(self) -> dict[str, Phase]:
        return {replica.id: replica.phase for replica in self.app.replicas.values()}

    def serving(self, key: str) -> int:
        """How many replicas of the deployment the present snapshot lists."""
        entry = self.snapshot.deployments.get(key)
        return 0 if entry is None else len(entry.replicas)

    def keys(self, number: int) -> dict[str, DeploymentSpec]:
        return {entry_key("app", each): each for each in self.app.revisions[number].deployments}
