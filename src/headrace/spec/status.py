"""What `serve.status()` and `headrace status` tell: states and the last error of whatever is not well.

States are `str` enumerations and compare equal to their strings, as code written for Ray Serve expects.
"""

from __future__ import annotations

import enum

import msgspec


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
    """One replica: `id` is `deployment#n`. `ongoing` counts calls in work. `error` is its last one ("" when well)."""

    id: str
    state: ReplicaState
    pid: int = 0
    revision: int = 0
    restarts: int = 0
    ongoing: int = 0
    error: str = ""


class DeploymentStatusOverview(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment. `replica_states` counts replicas by state; `message` carries a constructor's traceback."""

    status: DeploymentStatus
    status_trigger: str = "UNSPECIFIED"
    replica_states: dict[str, int] = {}
    message: str = ""
    replicas: tuple[ReplicaDetails, ...] = ()


class ApplicationStatusOverview(msgspec.Struct, frozen=True, kw_only=True):
    """One application. `last_deployed_time_s` is seconds since the epoch; `request_timeout_s` None: no limit."""

    status: ApplicationStatus
    message: str = ""
    last_deployed_time_s: float = 0.0
    route_prefix: str | None = None
    request_timeout_s: float | None = None
    revision: int = 0
    deployments: dict[str, DeploymentStatusOverview] = {}


class ProxyDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One ingress process. `scheme` is "https" where it serves that; `grpc_port` is 0 where it serves no gRPC."""

    status: ProxyStatus
    pid: int = 0
    host: str = ""
    port: int = 0
    restarts: int = 0
    grpc_port: int = 0
    scheme: str = "http"


class ServeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole instance at one moment. `proxies` is by ingress id (`ingress#n`)."""

    instance: str = "default"
    proxies: dict[str, ProxyDetails] = {}
    applications: dict[str, ApplicationStatusOverview] = {}
    target_capacity: float | None = None
