"""What `serve.status()` and `headrace status` tell: states and the last error of whatever is not well.

States are `str` enumerations and compare equal to their strings, as code written for Ray Serve expects.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from headrace.spec.counts import Mirrored


class ApplicationStatus(enum.StrEnum):
    """What an application does, and whether it is well."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    RUNNING = "RUNNING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStatus(enum.StrEnum):
    """What a deployment does, and whether it is well."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UPSCALING = "UPSCALING"
    DOWNSCALING = "DOWNSCALING"


class ReplicaState(enum.StrEnum):
    """How far a replica is in its life."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class ProxyStatus(enum.StrEnum):
    """How far an ingress process is in its life."""

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"


class ReplicaDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: `id` is `deployment#n`. `ongoing` counts calls in work. `error` is its last one ("" when well).

    `node` is where it runs ("" where there is but one, or it is not known yet).
    """

    id: str
    state: ReplicaState
    pid: int = 0
    revision: int = 0
    restarts: int = 0
    ongoing: int = 0
    error: str = ""
    node: str = ""


class DeploymentStatusOverview(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment. `replica_states` counts replicas by state; `message` carries a constructor's traceback."""

    status: DeploymentStatus
    status_trigger: str = "UNSPECIFIED"
    replica_states: dict[str, int] = {}
    message: str = ""
    replicas: tuple[ReplicaDetails, ...] = ()


class RolloutOutcome(enum.StrEnum):
    """How a rollout ended."""

    PROMOTED = "PROMOTED"
    FAILED = "FAILED"  # it never became ready
    ROLLED_BACK = "ROLLED_BACK"
    SUPERSEDED = "SUPERSEDED"  # another revision was deployed meanwhile


class CheckStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One check of an analysis: `says` is "pass", "hold" (not enough was seen) or "fail", `text` the figures of it."""

    check: str
    says: str
    text: str


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The rollout of one application, under way or the last one (`outcome` "" while it is under way).

    `stage` is one of core.rollout.Stage. `weights` are those that routers go by, by revision. `since` and `next_at`
    are seconds since the epoch: when the stage began, and when the next step is due at the earliest (0: not by time).
    `reason` says why it is where it is, or ended so. `ready` is the share of the revision's replicas that take calls.
    `requests` and `errors` are those that were counted since it began, by revision.
    """

    app: str
    revision: int
    baseline: int = 0
    strategy: str = ""
    stage: str = ""
    step: int = 0
    steps: int = 0
    paused: bool = False
    weights: dict[int, float] = {}
    shadow: float = 0.0
    ready: float = 0.0
    since: float = 0.0
    next_at: float = 0.0
    outcome: str = ""
    reason: str = ""
    checks: tuple[CheckStatus, ...] = ()
    mirrored: Mirrored | None = None
    requests: dict[int, int] = {}
    errors: dict[int, int] = {}


class RevisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One revision in the history of its application. `at` and `ended_at` are seconds since the epoch.

    `by` is who deployed it, `changes` what changed against the revision before, a line each. `kept`: its code is there,
    and it can have traffic again. `outcome` is a RolloutOutcome, "" while it is under way.
    """

    number: int
    at: float
    by: str = ""
    source: str = ""
    changes: tuple[str, ...] = ()
    strategy: str = ""
    outcome: str = ""
    reason: str = ""
    ended_at: float = 0.0
    kept: bool = True
    labels: dict[str, str] = {}


class HistoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to the traffic of an application, and why. `at` is seconds since the epoch."""

    at: float
    revision: int
    what: str
    reason: str = ""
    by: str = ""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an application's revisions, the newest last."""

    app: str
    revisions: tuple[RevisionRecord, ...] = ()
    events: tuple[HistoryEvent, ...] = ()


class ApplicationStatusOverview(msgspec.Struct, frozen=True, kw_only=True):
    """One application. `last_deployed_time_s` is seconds since the epoch; `request_timeout_s` None: no limit.

    `revision` is the one that its traffic was last given to for good, `newest` the one that was deployed last,
    `weights` say how the traffic is shared, `shadows` what is mirrored; `rollout` is the one under way, or the last.
    `deployed_app_config` is the declarative configuration that it was deployed by; None: by code.
    """

    status: ApplicationStatus
    message: str = ""
    last_deployed_time_s: float = 0.0
    route_prefix: str | None = None
    request_timeout_s: float | None = None
    revision: int = 0
    newest: int = 0
    weights: dict[int, float] = {}
    shadows: dict[int, float] = {}
    rollout: RolloutStatus | None = None
    deployments: dict[str, DeploymentStatusOverview] = {}
    deployed_app_config: dict[str, Any] | None = None


class ProxyDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One ingress process. `scheme` is "https" where it serves that; `grpc_port` is 0 where it serves no gRPC.

    `node` is where it runs ("" where there is but one).
    """

    status: ProxyStatus
    pid: int = 0
    host: str = ""
    port: int = 0
    restarts: int = 0
    grpc_port: int = 0
    scheme: str = "http"
    node: str = ""


class NodeStatus(enum.StrEnum):
    """What the controller makes of a node."""

    COMING = "COMING"  # nothing was heard of it yet
    ALIVE = "ALIVE"
    SUSPECT = "SUSPECT"  # it cannot be reached just now
    LEAVING = "LEAVING"  # what runs there moves
    LOST = "LOST"  # it cannot be reached: what ran there counts as gone


class NodeDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a cluster. `host` is its address; `head`: it is the one that the cluster was started on."""

    status: NodeStatus
    host: str = ""
    head: bool = False


class ServeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole instance at one moment. `proxies` is by ingress id (`ingress#n`, `ingress#n@node`), `nodes` by id: none
    where there is but one machine.
    """

    instance: str = "default"
    proxies: dict[str, ProxyDetails] = {}
    applications: dict[str, ApplicationStatusOverview] = {}
    nodes: dict[str, NodeDetails] = {}
    target_capacity: float | None = None
