"""What the controller knows: applications with their revisions, and the replicas that are or are to be.

Plain mutable records, changed by the controller's shell alone: by what it observes and by what a plan had it do. All
times are monotonic seconds of the controller's loop; versions are versions of the snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace.core import rolling
from headrace.core import rollout as rollouts
from headrace.core.analysis import PASS, Evidence, Verdict
from headrace.core.lifecycle import COUNTED, Event, Phase, advance
from headrace.core.restart import RestartPolicy, Restarts
from headrace.core.rollout import Rollout
from headrace.spec.application import ApplicationSpec, DeploymentSpec
from headrace.spec.errors import GraphError
from headrace.spec.rollout import ShadowTraffic
from headrace.spec.sticky import Sticky


def entry_key(app: str, deployment: DeploymentSpec) -> str:
    """The key by which revisions of one application share a deployment's replicas."""
    return f"{app}/{deployment.name}@{deployment.digest}"


@dataclass(slots=True, kw_only=True)
class Replica:
    """One replica. `level` is how many of its line failed in a row before it; `configured` what its worker was told
    (None: not known to this controller), at `told_at` where that was in place, and `reconfiguring` until it reports
    that it did so. `listed_at` and `unlisted_at` are the first versions with it and then without it. `node` is where it
    runs ("": not known yet, or there is but one), and `near` its address there.
    """

    id: str
    app: str
    key: str
    name: str
    revision: int
    address: str
    node: str = ""
    near: str = ""
    phase: Phase = Phase.LAUNCHING
    level: int = 0
    pid: int = 0
    launched_at: float = 0.0
    ongoing: int = 0
    error: str = ""
    configured: DeploymentSpec | None = None
    told_at: float = 0.0
    reconfiguring: bool = False
    listed: bool = False
    listed_at: int | None = None
    unlisted_at: int | None = None
    stop_by: float = 0.0  # of what drains: when the engine ends it regardless

    @property
    def process_id(self) -> str:
        """The id of its process for the engine and on the control link."""
        return f"{self.id}@{self.app}"

    @property
    def number(self) -> int:
        """Its place in the order of starting within the application."""
        return int(self.id.rpartition("#")[2])

    def on(self, event: Event) -> None:
        """Change the phase. Raises IllegalTransition."""
        self.phase = advance(self.phase, event)


@dataclass(slots=True, kw_only=True)
class Failures:
    """What went wrong with one deployment (by key): `starts` counts failures before ready since the last deploy.

    `final` says that trying again is of no use: the name of the error class that says why. `short`: the last start
    was refused for want of room.
    """

    restarts: Restarts
    starts: int = 0
    error: str = ""
    final: str = ""
    short: bool = False


@dataclass(slots=True, kw_only=True)
class Application:
    """One application. `target` is the revision that was deployed last, or gone back to; `current` the last one that
    was given the traffic for good (0: none yet), `newest` the highest number there was.

    `weights` share the traffic among revisions, `former` are those of before while some router may go by them still;
    `weights_at` is the first version with the present ones (None: not published). `rollout` is under way, `ended` the
    last one that was. `split` are the weights that somebody asked for, `fallback` what they were before, `shadows` what
    is mirrored, `sticky` what requests keep to a revision by, where that is not as the revision says.

    `failure` says why the target was given up ("" while it was not); `rolled_back` that it had come up before.
    `idle` says since when no router gives a revision new requests (infinity: some may do) of those that ever got any;
    `held` are the keys of deployments that requests given to them before may still call.

    `leaving` are nodes from which replicas should move.

    `deploying` lasts from a deploy until the target runs as specified or is given up. `before` is what the target was
    before its options were changed in place, while that is not settled.
    """

    name: str
    revisions: dict[int, ApplicationSpec] = field(default_factory=dict)
    target: int = 0
    current: int = 0
    newest: int = 0
    weights: dict[int, float] = field(default_factory=dict)
    former: dict[int, float] = field(default_factory=dict)
    rollout: Rollout | None = None
    ended: Rollout | None = None
    split: dict[int, float] = field(default_factory=dict)
    fallback: dict[int, float] = field(default_factory=dict)
    shadows: dict[int, ShadowTraffic] = field(default_factory=dict)
    sticky: Sticky | None = None
    keyless: bool = False
    evidence: Evidence = field(default_factory=Evidence)
    verdict: Verdict = field(default_factory=lambda: Verdict(PASS))
    failure: str = ""
    rolled_back: bool = False
    deleting: bool = False
    deploying: bool = False
    next_replica: int = 1
    deployed_at: float = 0.0  # seconds since the epoch
    weights_at: int | None = None
    idle: dict[int, float] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    before: ApplicationSpec | None = None
    replicas: dict[str, Replica] = field(default_factory=dict)
    failures: dict[str, Failures] = field(default_factory=dict)
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    leaving: frozenset[str] = frozenset()

    @property
    def spec(self) -> ApplicationSpec:
        """As it was deployed last."""
        return self.revisions[self.target]

    def capacity(self) -> dict[int, float]:
        """The share of its replicas that each revision needs, for the traffic that it has or is to have."""
        if self.deleting:
            return {}
        held = dict(self.weights)
        for number, weight in self.former.items():
            held[number] = max(held.get(number, 0.0), weight)
        if self.rollout is not None:
            needed = rollouts.capacity(self.rollout, held)
            for number in rolling.handed_over(self):
                needed.pop(number, None)
        else:
            needed = held
            for number, weight in (self.split or {self.current: 1.0}).items():
                needed[number] = max(needed.get(number, 0.0), weight)
        for number, shadow in self.shadows.items():
            needed[number] = max(needed.get(number, 0.0), shadow.fraction)
        return {number: min(1.0, share) for number, share in needed.items() if number in self.revisions}

    def live(self) -> list[int]:
        """The revisions that should have replicas: those with the most traffic first."""
        weights = self.weights
        return sorted(self.capacity(), key=lambda number: (-weights.get(number, 0.0), number))

    def base(self) -> dict[int, float]:
        """The weights that a new rollout begins with, and that it goes back to when it fails."""
        if self.rollout is not None:
            return dict(self.rollout.base)
        return dict(self.split) if self.split else {self.current: 1.0} if self.current else {}

    def wanted(self) -> dict[str, DeploymentSpec]:
        """Key -> specification of each deployment that should have replicas, callees before callers.

        Where revisions share a deployment, the one with the traffic says its options: a target changes nothing before
        its turn.
        """
        wanted: dict[str, DeploymentSpec] = {}
        for number in self.live():
            for deployment in callees_first(self.revisions[number]):
                wanted.setdefault(entry_key(self.name, deployment), deployment)
        return wanted

    def number_wanted(self, key: str) -> int:
        """How many replicas a deployment should have, for all live revisions that share it."""
        number, wanted = self.by_share(key)
        rollout = self.rollout
        if not number or rollout is None or not rollout.base:
            return wanted
        moving = rolling.sides(self)
        if moving is not None:
            return rolling.number_in_turn(self, moving, key, number, wanted)
        # Of a revision that is there until the end of the rollout something stays to the last.
        return wanted if self.deployment_of(rollout.revision, key) is not None else max(1, wanted)

    def by_share(self, key: str) -> tuple[int, int]:
        """The number of replicas of a deployment, and how many of them its live revisions need for their traffic."""
        number, share = 0, 0.0
        for revision, needed in self.capacity().items():
            deployment = self.deployment_of(revision, key)
            if deployment is not None:
                number = max(number, deployment.options.num_replicas)
                share += needed
        return number, math.ceil(number * min(1.0, share) - 1e-6)

    def keys_of(self, revision: int) -> dict[str, str]:
        """Name -> key of each deployment of the revision."""
        spec = self.revisions.get(revision)
        return {each.name: entry_key(self.name, each) for each in spec.deployments} if spec is not None else {}

    def deployment_of(self, revision: int, key: str) -> DeploymentSpec | None:
        """The deployment of this key in the revision, if it is part of it."""
        spec = self.revisions.get(revision)
        for deployment in spec.deployments if spec is not None else ():
            if entry_key(self.name, deployment) == key:
                return deployment
        return None

    def of(self, key: str) -> Iterator[Replica]:
        """The replicas of a deployment, in order of starting."""
        return (replica for replica in self.replicas.values() if replica.key == key)

    def counted(self, key: str) -> list[Replica]:
        """The replicas that count towards the number wanted, in order of starting."""
        return [replica for replica in self.of(key) if replica.phase in COUNTED]

    def staying(self, key: str) -> list[Replica]:
        """Those of them that run where they can stay: the others move, and count only until others serve for them."""
        return [replica for replica in self.counted(key) if replica.node not in self.leaving]

    def moving(self, key: str) -> list[Replica]:
        """Those of them that run on a node that leaves."""
        return [replica for replica in self.counted(key) if replica.node in self.leaving]

    def failures_of(self, key: str) -> Failures:
        """The record of the deployment's failures, made when first asked for."""
        if key not in self.failures:
            self.failures[key] = Failures(restarts=Restarts(self.policy))
        return self.failures[key]


def callees_first(spec: ApplicationSpec) -> list[DeploymentSpec]:
    """The deployments, each after those that it uses, else in their own order.

    Raises GraphError for a name that is there twice, is used but not there, or uses itself through others.
    """
    by_name = {deployment.name: deployment for deployment in spec.deployments}
    if len(by_name) < len(spec.deployments):
        names = [deployment.name for deployment in spec.deployments]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise GraphError(f"application {spec.name!r} has more than one deployment named {', '.join(twice)}")
    ordered: dict[str, DeploymentSpec] = {}
    entered: set[str] = set()
    # Without recursion: a chain may be longer than Python's stack.
    stack = [(deployment.name, False) for deployment in reversed(spec.deployments)]
    while stack:
        name, done = stack.pop()
        if name in ordered:
            continue
        if done:
            ordered[name] = by_name[name]
            continue
        if name in entered:
            raise GraphError(f"application {spec.name!r}: deployment {name!r} uses itself through the others")
        entered.add(name)
        stack.append((name, True))
        for used in reversed(by_name[name].uses):
            if used not in by_name:
                raise GraphError(f"application {spec.name!r}: {name!r} uses {used!r}, which is not part of it")
            if used not in ordered:
                stack.append((used, False))
    return list(ordered.values())
