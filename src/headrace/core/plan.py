"""What to do next for one application, by comparing what should be with what is.

In: the application's record, `routed` (the oldest snapshot version that some router may still route by), and `now`.
Out: actions, for the controller's shell to carry out, and when to look again if nothing happens before. Every action
changes the record at once when it is taken up, so that no plan repeats what is in flight.

Order that holds: new replicas before old ones stop; callees start before callers, and stop after them; weight moves
only to a revision that is wholly ready and known to every router; a replica is told to drain only when no router lists
it any more. A replica on a node that leaves goes once those elsewhere that every router knows are enough without it,
and after those of its callers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from headrace.core import pinned, rolling
from headrace.core import rollout as rollouts
from headrace.core.fleet import Application, Replica, callees_first, entry_key
from headrace.core.lifecycle import Phase
from headrace.core.rollout import Rollout, Seen, Stage
from headrace.spec.application import DeploymentSpec
from headrace.spec.status import RolloutOutcome

DRAIN_MARGIN_S = 5.0  # beyond its deadline, for a draining process to exit by itself
KILL_GRACE_S = 2.0


class Start(msgspec.Struct, frozen=True):
    """Start a replica of the deployment."""

    key: str
    spec: DeploymentSpec
    revision: int
    level: int


class Retire(msgspec.Struct, frozen=True):
    """Take the replica out of the snapshot."""

    id: str


class Drain(msgspec.Struct, frozen=True):
    """Tell the replica, which no router lists any more, to finish within `deadline_s` and exit."""

    id: str
    deadline_s: float


class Stop(msgspec.Struct, frozen=True):
    """Have the engine end the replica's process. `error`: it failed, and why."""

    id: str
    grace_s: float
    error: str = ""


class Reconfigure(msgspec.Struct, frozen=True):
    """Tell the replica its options anew."""

    id: str
    spec: DeploymentSpec


class Share(msgspec.Struct, frozen=True):
    """Share the traffic so among the revisions."""

    weights: dict[int, float]


class Advance(msgspec.Struct, frozen=True):
    """The rollout has come this far."""

    rollout: Rollout


class Promote(msgspec.Struct, frozen=True):
    """The rollout has ended well: the target is the revision to go back to from now on."""

    rollout: Rollout


class Abandon(msgspec.Struct, frozen=True):
    """Give the target up; what had the traffic has it again. `kind` names the class of the error.

    `rollout` is how it ended, None where the options of a deployment were to change in place.
    """

    error: str
    kind: str = "DeployFailedError"
    rollout: Rollout | None = None


class Settle(msgspec.Struct, frozen=True):
    """The target runs as specified, and every router knows."""


class Forget(msgspec.Struct, frozen=True):
    """The revision has no replica of its own any more."""

    revision: int


class Vanish(msgspec.Struct, frozen=True):
    """The application was to be deleted and has no replica left."""


Action = Start | Retire | Drain | Stop | Reconfigure | Share | Advance | Promote | Abandon | Settle | Forget | Vanish


class Plan(msgspec.Struct, frozen=True):
    """What to do now, in this order, and the time to plan again at the latest (None: when something happens)."""

    actions: list[Action]
    wake_at: float | None


def start_limit(spec: DeploymentSpec) -> int:
    """How many failed starts a deploy of the deployment stands (at least one, or nothing would be tried)."""
    options = spec.options
    return max(1, min(3 * options.num_replicas, options.max_constructor_retry_count))


def plan_application(app: Application, routed: int, now: float) -> Plan:
    """The actions that bring the application nearer to what it should be. Changes nothing but due restarts, which it
    takes up, and forgets the former weights that no router goes by any more.
    """
    if app.former and app.weights_at is not None and app.weights_at <= routed:
        app.former = {}
    pinned.note_idle(app, routed, now)
    planner = _Planner(app, routed, now)
    planner.plan()
    return Plan(planner.actions, planner.wake_at)


class _Planner:
    """One plan in the making."""

    def __init__(self, app: Application, routed: int, now: float) -> None:
        self.app = app
        self.routed = routed
        self.now = now
        self.actions: list[Action] = []
        self.wake_at: float | None = None
        self.wanted = app.wanted()
        self.reconfiguring = {replica.key for replica in app.replicas.values() if replica.reconfiguring}

    def plan(self) -> None:
        app = self.app
        held, until = pinned.held(app, self.wanted, self.now)
        # Where the target moves, what was wanted until now is published once more: it may be held from then on.
        app.held = held | self.wanted.keys()
        self.plan_target()
        if self.actions:
            return  # what is wanted changes with it: plan again
        app.held = held
        if until is not None:
            self.at(until)
        for key, spec in self.wanted.items():
            self.plan_number(key, spec)
        self.plan_unwanted()
        for replica in app.replicas.values():
            self.plan_replica(replica)
        self.plan_end()

    def at(self, when: float) -> None:
        """Plan again at `when`, or earlier."""
        if self.wake_at is None or when < self.wake_at:
            self.wake_at = when

    def plan_target(self) -> None:
        """How far the rollout of the target may go, or whether the target runs as specified."""
        app = self.app
        if app.deleting:
            return
        if app.rollout is not None:
            self.plan_rollout(app.rollout)
            return
        error, kind = self.failure_of_target()
        if error:
            self.actions.append(Abandon(error, kind))
        elif app.split:
            self.plan_weights(app.split, rollouts.heaviest(app.split))
        elif app.current:
            self.plan_weights({app.current: 1.0}, app.current)
        if not self.actions and app.deploying and self.is_settled():
            self.actions.append(Settle())

    def failure_of_target(self) -> tuple[str, str]:
        """Why the target that is being deployed will not come up, and the class of the error; "" while it may."""
        app = self.app
        # What a rollout began with is not to come up, but to be gone back to.
        asked = app.split if app.rollout is None else {}
        numbers = dict.fromkeys((app.target, *asked)) if app.deploying else {}
        specs = [app.revisions[number] for number in numbers if number in app.revisions]
        for deployment in (each for spec in specs for each in callees_first(spec)):
            failures = app.failures.get(entry_key(app.name, deployment))
            if failures is not None and failures.final:
                return f"deployment {deployment.name}: {failures.error}", failures.final
            if failures is not None and failures.starts >= start_limit(deployment):
                error = f"deployment {deployment.name} failed to start {failures.starts} times; its last error:"
                return f"{error}\n{failures.error}", "DeployFailedError"
        return "", ""

    def plan_rollout(self, rollout: Rollout) -> None:
        """What the rollout wants next, as far as it can be had."""
        app = self.app
        error, kind = self.failure_of_target()
        seen = Seen(
            weights=app.weights if app.weights_at is not None and app.weights_at <= self.routed else None,
            ready=shares_ready(self.app, self.routed),
            verdict=app.verdict,
            failure=error,
            kind=kind,
        )
        further = rollouts.advance(rollout, seen, self.now)
        if further.stage is Stage.ENDED:
            if further.outcome == RolloutOutcome.PROMOTED:
                self.actions.append(Promote(further))
            else:
                self.actions.append(Abandon(further.reason, further.kind, further))
            return
        if further != rollout:
            self.actions.append(Advance(further))
        due = rollouts.due_at(further)
        if due is not None and due > self.now:
            self.at(due)
        wanted = rollouts.wanted_weights(further, app.weights)
        if not self.actions and not rollout.paused and rolling.hands_over(app, self.known):
            if app.weights != wanted:
                self.actions.append(Share(wanted))
            return
        trusted = rollouts.heaviest(further.base) or further.revision
        self.plan_weights(wanted, trusted, seen.ready, rollouts.is_gradual(further))

    def plan_weights(
        self, wanted: dict[int, float], trusted: int, ready: Mapping[int, float] | None = None, gradual: bool = False
    ) -> None:
        """Share the traffic as it is wanted, as far as replicas are ready for it."""
        app = self.app
        if len(wanted) == 1 and app.weights == wanted:
            return
        able = dict(shares_ready(app, self.routed) if ready is None else ready)
        # What a revision has it keeps while its replicas serve. To have more, every router must know them: those of a
        # controller that has just come back have not said yet what they know.
        serving = shares_ready(app, math.inf)
        for number, weight in app.weights.items():
            able[number] = max(able.get(number, 0.0), min(weight, serving.get(number, 0.0)))
        weights = rollouts.blend(wanted, app.weights, able, trusted=trusted, gradual=gradual)
        if weights != app.weights:
            self.actions.append(Share(weights))

    def known(self, key: str) -> int:
        """How many replicas of the deployment take calls, and every router knows it."""
        return known(self.app, key, self.routed)

    def is_known(self, replica: Replica) -> bool:
        """Whether the replica takes calls, and every router knows it."""
        return is_known(replica, self.routed)

    def is_settled(self) -> bool:
        """Whether the traffic is as it should be, and the replicas that it needs, no more, are ready and configured."""
        app = self.app
        if app.weights_at is None or app.weights_at > self.routed or not _same(app.weights, app.base()):
            return False
        for key, spec in self.wanted.items():
            counted, staying, wanted = app.counted(key), app.staying(key), app.number_wanted(key)
            # What moves may have nowhere to go; where it serves, all is as it should be.
            if len(staying) > wanted or len(counted) < wanted or self.known(key) < wanted:
                return False
            for replica in counted:
                if replica.phase in (Phase.LAUNCHING, Phase.STARTING) and len(counted) > wanted:
                    continue
                if replica.reconfiguring or replica.configured is None or differs(replica.configured, spec):
                    return False
        return True

    def plan_number(self, key: str, spec: DeploymentSpec) -> None:
        """Start what is missing of a deployment, retire what is too many."""
        app = self.app
        wanted = app.number_wanted(key)
        staying = app.staying(key)
        if len(staying) < wanted:
            self.start(key, spec, wanted - len(staying), max(self.revisions_with(key)))
        # What does not serve yet goes first, then the youngest; one that this controller has not heard from yet is
        # left alone until it has.
        able = [replica for replica in staying if replica.phase is not Phase.RECOVERING]
        able.sort(key=lambda replica: (replica.phase is Phase.RUNNING, -replica.number))
        for replica in able[: max(0, len(staying) - wanted)]:
            self.leave(replica)
        moving = app.moving(key)
        if moving:
            self.plan_move(key, moving, wanted)

    def plan_move(self, key: str, moving: list[Replica], wanted: int) -> None:
        """Let those go that run on a node that leaves, as far as enough others serve."""
        serving = [replica for replica in moving if replica.phase in (Phase.RUNNING, Phase.RECOVERING)]
        for replica in moving:
            if replica not in serving:
                self.leave(replica)
        others = self.known(key) - sum(self.is_known(replica) for replica in moving)
        able = [replica for replica in serving if replica.phase is Phase.RUNNING]
        enough = max(0, others + len(serving) - wanted)
        if enough and not any(self.app.moving(caller) for caller in self.callers_among(set(self.wanted))[key]):
            for replica in able[:enough]:
                self.leave(replica)

    def start(self, key: str, spec: DeploymentSpec, missing: int, revision: int) -> None:
        """Start so many replicas of the deployment, or those of them whose time has come."""
        restarts = self.app.failures_of(key).restarts
        for level in restarts.take(self.now, missing):
            self.actions.append(Start(key, spec, revision, level))
        due = restarts.due()
        if due is not None:
            self.at(due)

    def revisions_with(self, key: str) -> list[int]:
        """The live revisions that the deployment belongs to."""
        app = self.app
        return [
            number
            for number in app.live()
            if any(entry_key(app.name, deployment) == key for deployment in app.revisions[number].deployments)
        ]

    def leave(self, replica: Replica) -> None:
        """Let the replica go: through the snapshot if it serves, at once if it does not yet."""
        if replica.phase in (Phase.LAUNCHING, Phase.STARTING):
            self.actions.append(Stop(replica.id, KILL_GRACE_S))
        elif replica.phase in (Phase.RUNNING, Phase.RECOVERING):
            self.actions.append(Retire(replica.id))

    def plan_unwanted(self) -> None:
        """Retire the replicas of no live revision, callers before callees, once no router sends them new requests, and
        none that came before can need them. Where the last of those that may be needed has died, there is another.
        """
        app = self.app
        for key in app.held:
            revisions = [number for number in app.revisions if app.deployment_of(number, key) is not None]
            spec = specification(app, key)
            if spec is not None and not app.counted(key):
                self.start(key, spec, 1, max(revisions))
        unwanted = [replica for replica in app.replicas.values() if replica.key not in self.wanted]
        if not unwanted or app.weights_at is None or app.weights_at > self.routed:
            return
        callers = self.callers_among({replica.key for replica in unwanted})
        for replica in unwanted:
            if not callers[replica.key] and replica.key not in app.held:
                self.leave(replica)

    def callers_among(self, keys: set[str]) -> dict[str, set[str]]:
        """For each of the keys, those of the others that use it, in whatever revision."""
        app = self.app
        callers: dict[str, set[str]] = {key: set() for key in keys}
        for spec in app.revisions.values():
            named = {deployment.name: entry_key(app.name, deployment) for deployment in spec.deployments}
            for deployment in spec.deployments:
                caller = named[deployment.name]
                for used in deployment.uses:
                    if caller in keys and named.get(used) in keys:
                        callers[named[used]].add(caller)
        return callers

    def plan_replica(self, replica: Replica) -> None:
        """What one replica needs in its phase, whatever its deployment needs."""
        match replica.phase:
            case Phase.STARTING:
                spec = self.spec_of(replica)
                if spec is not None:
                    self.plan_patience(replica, replica.launched_at, spec, "was not ready", "constructor")
            case Phase.RUNNING if replica.reconfiguring:
                spec = replica.configured
                if spec is not None:
                    self.plan_patience(replica, replica.told_at, spec, "has not taken its options", "reconfigure()")
            case Phase.RUNNING:
                self.plan_options(replica)
            case Phase.RETIRING:
                unlisted = replica.unlisted_at is not None and replica.unlisted_at <= self.routed
                if unlisted or (replica.listed_at is None and not replica.listed):
                    self.actions.append(Drain(replica.id, self.drain_s(replica)))
            case Phase.DRAINING:
                if replica.stop_by > self.now:
                    self.at(replica.stop_by)
                else:
                    self.actions.append(Stop(replica.id, KILL_GRACE_S))
            case Phase.FAILED:
                self.actions.append(Stop(replica.id, KILL_GRACE_S))
            case _:
                pass

    def plan_patience(self, replica: Replica, since: float, spec: DeploymentSpec, what: str, where: str) -> None:
        """Wait for user code of the replica, which runs since then, for as long as its options say, then stop it."""
        timeout_s = spec.options.start_timeout_s
        if since + timeout_s > self.now:
            self.at(since + timeout_s)
        else:
            reason = f"within start_timeout_s={timeout_s:g}; its {where} may hang, or need longer"
            self.actions.append(Stop(replica.id, KILL_GRACE_S, f"{replica.id} {what} {reason}"))

    def plan_options(self, replica: Replica) -> None:
        """Tell one replica of a deployment after the other: where one cannot take its options, the rest live on."""
        wanted = self.wanted.get(replica.key)
        failures = self.app.failures.get(replica.key)
        if wanted is None or replica.key in self.reconfiguring or (failures is not None and failures.final):
            return
        if replica.configured is None or differs(replica.configured, wanted):
            self.actions.append(Reconfigure(replica.id, wanted))
            self.reconfiguring.add(replica.key)

    def spec_of(self, replica: Replica) -> DeploymentSpec | None:
        """The newest specification of the replica's deployment that is kept; None when none is."""
        if replica.key in self.wanted:
            return self.wanted[replica.key]
        return specification(self.app, replica.key)

    def drain_s(self, replica: Replica) -> float:
        """How long the replica may go on with what it has in work."""
        spec = self.spec_of(replica)
        return spec.options.graceful_shutdown_timeout_s if spec is not None else 0.0

    def plan_end(self) -> None:
        """Forget the revisions that are over, and an application that was deleted."""
        app = self.app
        if app.deleting:
            if not app.replicas and app.weights_at is not None and app.weights_at <= self.routed:
                self.actions.append(Vanish())
            return
        present = {replica.key for replica in app.replicas.values()}
        kept = {app.target, app.current, *app.capacity(), *app.base(), *app.former, *app.fallback}
        for number, spec in app.revisions.items():
            keys = {entry_key(app.name, deployment) for deployment in spec.deployments}
            if number in kept or (keys - self.wanted.keys()) & present:
                continue
            if not pinned.is_called(app, number, self.wanted, self.now):
                self.actions.append(Forget(number))


def shares_ready(app: Application, routed: float) -> dict[int, float]:
    """The share of its replicas that take calls, and that all routers know, of each revision that has or may get
    traffic: of the deployment that has the least. What all of them share tells nothing about one of them.
    """
    numbers = [number for number in {*app.capacity(), *app.weights, app.target} if number in app.revisions]
    keys = {
        number: {entry_key(app.name, each): each.options.num_replicas for each in app.revisions[number].deployments}
        for number in numbers
    }
    common = set.intersection(*map(set, keys.values())) if len(keys) > 1 else set()
    return {
        number: min(
            (min(1.0, known(app, key, routed) / count) for key, count in mine.items() if key not in common),
            default=1.0,
        )
        for number, mine in keys.items()
    }


def known(app: Application, key: str, routed: float) -> int:
    """How many replicas of the deployment take calls, and every router knows it."""
    return sum(is_known(replica, routed) for replica in app.of(key))


def is_known(replica: Replica, routed: float) -> bool:
    """Whether the replica takes calls, and every router knows it."""
    return (
        (replica.phase is Phase.RUNNING or (replica.phase is Phase.RECOVERING and replica.listed))
        and replica.listed_at is not None
        and replica.listed_at <= routed
    )


def _same(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether the weights are the same, but for how numbers are rounded."""
    return all(abs(one.get(number, 0.0) - other.get(number, 0.0)) < 1e-6 for number in {*one, *other})


def specification(app: Application, key: str) -> DeploymentSpec | None:
    """The newest specification of the deployment of this key in any revision that is kept."""
    for number in sorted(app.revisions, reverse=True):
        for deployment in app.revisions[number].deployments:
            if entry_key(app.name, deployment) == key:
                return deployment
    return None


def differs(told: DeploymentSpec, wanted: DeploymentSpec) -> bool:
    """Whether a replica that was told the one must be told the other.

    What only those who call it go by (repeats, backpressure) is not among it: they know it from the snapshot.
    """
    ours, theirs = told.options, wanted.options
    return (
        ours.user_config != theirs.user_config
        or told.max_ongoing_requests != wanted.max_ongoing_requests
        or ours.graceful_shutdown_timeout_s != theirs.graceful_shutdown_timeout_s
        or ours.max_queued_requests != theirs.max_queued_requests
    )
