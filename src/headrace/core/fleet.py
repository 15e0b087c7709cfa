"""What the controller knows: applications with their revisions, and the replicas that are or are to be.

Plain mutable records, changed by the controller's shell alone: by what it observes and by what a plan had it do. All
times are monotonic seconds of the controller's loop; versions are versions of the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace.core.lifecycle import COUNTED, Event, Phase, advance
from headrace.core.restart import RestartPolicy, Restarts
from headrace.spec.application import ApplicationSpec, DeploymentSpec
from headrace.spec.errors import GraphError


def entry_key(app: str, deployment: DeploymentSpec) -> str:
    """The key by which revisions of one application share a deployment's replicas."""
    return f"{app}/{deployment.name}@{deployment.digest}"


@dataclass(slots=True, kw_only=True)
class Replica:
    """One replica. `level` is how many of its line failed in a row before it; `configured` what its worker was told
    (None: not known to this controller), at `told_at` where that was in place, and `reconfiguring` until it reports
    that it did so. `listed_at` and `unlisted_at` are the first versions with it and then without it.
    """

    id: str
    app: str
    key: str
    name: str
    revision: int
    address: str
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

    `final` says that trying again is of no use: the name of the error class that says why.
    """

    restarts: Restarts
    starts: int = 0
    error: str = ""
    final: str = ""


@dataclass(slots=True, kw_only=True)
class Application:
    """One application. `target` is the revision that was deployed last, `current` the one with the traffic (0: none).

    `failure` says why the target was given up ("" while it was not). `deploying` lasts from a deploy until the target
    runs as specified or is given up. `weights_at` is the first version with the present weights (None: not published).
    `before` is what the target was before its options were changed in place, while that is not settled.
    """

    name: str
    revisions: dict[int, ApplicationSpec] = field(default_factory=dict)
    target: int = 0
    current: int = 0
    failure: str = ""
    deleting: bool = False
    deploying: bool = False
    next_replica: int = 1
    deployed_at: float = 0.0  # seconds since the epoch
    weights_at: int | None = None
    before: ApplicationSpec | None = None
    replicas: dict[str, Replica] = field(default_factory=dict)
    failures: dict[str, Failures] = field(default_factory=dict)
    policy: RestartPolicy = field(default_factory=RestartPolicy)

    @property
    def spec(self) -> ApplicationSpec:
        """As it was deployed last."""
        return self.revisions[self.target]

    def live(self) -> list[int]:
        """The revisions that should have their replicas: the one with the traffic first, then the target."""
        if self.deleting:
            return []
        numbers = [self.current] if self.failure or self.current == self.target else [self.current, self.target]
        return [number for number in numbers if number]

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
        """How many replicas a deployment should have: the most that a live revision asks for."""
        return max(
            (
                deployment.options.num_replicas
                for number in self.live()
                for deployment in self.revisions[number].deployments
                if entry_key(self.name, deployment) == key
            ),
            default=0,
        )

    def of(self, key: str) -> Iterator[Replica]:
        """The replicas of a deployment, in order of starting."""
        return (replica for replica in self.replicas.values() if replica.key == key)

    def counted(self, key: str) -> list[Replica]:
        """The replicas that count towards the number wanted, in order of starting."""
        return [replica for replica in self.of(key) if replica.phase in COUNTED]

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
