"""Configurations and states under Ray Serve's names, for `from headrace.serve.schema import ...`.

In: what users declare, as objects or as plain data; the state of an instance. Out: checked configurations, which
`headrace deploy` and the control API take; details of what runs, as Ray Serve's REST API tells them.
"""

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.serve.unsupported import unsupported_class
from headrace.spec.config_schema import (
    DeploymentSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
    TracingConfig,
)
from headrace.spec.listening_schema import HTTPOptionsSchema, gRPCOptionsSchema
from headrace.spec.status import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    ProxyDetails,
    ProxyStatus,
    ReplicaDetails,
    ReplicaState,
    ServeStatus,
)


class EncodingType(enum.StrEnum):
    """How a line of a log is written."""

    TEXT = "TEXT"
    JSON = "JSON"


class APIType(enum.StrEnum):
    """How an application was deployed: by code, or by a configuration."""

    UNKNOWN = "unknown"
    IMPERATIVE = "imperative"
    DECLARATIVE = "declarative"

    @classmethod
    def get_valid_user_values(cls) -> list[str]:
        """Those that a user may name."""
        return [cls.IMPERATIVE.value, cls.DECLARATIVE.value]


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """Something of a running instance. It answers to the methods of pydantic's models that read it."""

    def model_dump(self, *, exclude_none: bool = False) -> dict[str, Any]:
        """Plain data, also inside."""
        found: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        return {name: value for name, value in found.items() if value is not None} if exclude_none else found

    def model_dump_json(self) -> str:
        """As `model_dump`, written as JSON."""
        return msgspec.json.encode(self).decode()


class DeploymentNode(Details, frozen=True, kw_only=True):
    """A deployment in the graph of its application, with the deployments that it calls."""

    name: str
    app_name: str
    outbound_deployments: list[dict[str, str]] = []
    is_ingress: bool = False


class DeploymentTopology(Details, frozen=True, kw_only=True):
    """The graph of an application's deployments."""

    app_name: str
    nodes: dict[str, DeploymentNode] = {}
    ingress_deployment: str | None = None


class ServeActorDetails(Details, frozen=True, kw_only=True):
    """A process of the instance; of Ray's names for it, the instance has none."""

    node_id: str | None = None
    node_ip: str | None = None
    node_instance_id: str | None = None
    actor_id: str | None = None
    actor_name: str | None = None
    worker_id: str | None = None
    log_file_path: str | None = None


class DeploymentDetails(Details, frozen=True, kw_only=True):
    """A deployment: its state, the options that it was declared with, and its replicas."""

    name: str
    status: DeploymentStatus
    status_trigger: str = "UNSPECIFIED"
    message: str = ""
    deployment_config: dict[str, Any] = {}
    target_num_replicas: int = 0
    required_resources: dict[str, float] = {}
    replicas: tuple[ReplicaDetails, ...] = ()


class ApplicationDetails(Details, frozen=True, kw_only=True):
    """An application: its state, the configuration that it was declared by (None: by code), its deployments."""

    name: str
    route_prefix: str | None
    docs_path: str | None = None
    status: ApplicationStatus
    message: str = ""
    last_deployed_time_s: float = 0.0
    deployed_app_config: dict[str, Any] | None = None
    source: APIType = APIType.UNKNOWN
    deployments: dict[str, DeploymentDetails] = {}
    external_scaler_enabled: bool = False
    revision: int = 0
    weights: dict[int, float] = {}

    @classmethod
    def of(cls, name: str, overview: ApplicationStatusOverview) -> "ApplicationDetails":
        """The application as the controller tells of it."""
        config = overview.deployed_app_config
        declared = {each["name"]: each for each in (config or {}).get("deployments", ())}
        return cls(
            name=name,
            route_prefix=overview.route_prefix,
            status=overview.status,
            message=overview.message,
            last_deployed_time_s=overview.last_deployed_time_s,
            deployed_app_config=config,
            source=APIType.IMPERATIVE if config is None else APIType.DECLARATIVE,
            deployments={
                each: DeploymentDetails(
                    name=each,
                    status=found.status,
                    status_trigger=found.status_trigger,
                    message=found.message,
                    deployment_config=declared.get(each, {"name": each}),
                    target_num_replicas=_wanted(declared.get(each, {}), found),
                    replicas=found.replicas,
                )
                for each, found in overview.deployments.items()
            },
            external_scaler_enabled=bool((config or {}).get("external_scaler_enabled")),
            revision=overview.revision,
            weights=overview.weights,
        )


def _wanted(config: Mapping[str, Any], overview: DeploymentStatusOverview) -> int:
    """How many replicas are wanted, as far as that is declared; else how many there are."""
    declared = config.get("num_replicas")
    return declared if isinstance(declared, int) else sum(overview.replica_states.values())


class ServeInstanceDetails(Details, frozen=True, kw_only=True):
    """A whole instance, as Ray Serve's `GET /api/serve/applications/` tells of it."""

    controller_info: ServeActorDetails = ServeActorDetails()
    proxy_location: str | None = None
    http_options: dict[str, Any] | None = None
    grpc_options: dict[str, Any] | None = None
    proxies: dict[str, ProxyDetails] = {}
    applications: dict[str, ApplicationDetails] = {}
    target_capacity: float | None = None

    @classmethod
    def of(cls, status: ServeStatus) -> "ServeInstanceDetails":
        """The instance as the controller tells of it."""
        proxy = next(iter(status.proxies.values()), None)
        return cls(
            proxy_location="Disabled" if proxy is None else "EveryNode",
            http_options=None if proxy is None else {"host": proxy.host, "port": proxy.port},
            grpc_options={"port": proxy.grpc_port} if proxy is not None and proxy.grpc_port else None,
            proxies=status.proxies,
            applications={name: ApplicationDetails.of(name, app) for name, app in status.applications.items()},
            target_capacity=status.target_capacity,
        )

    @staticmethod
    def get_empty_schema_dict() -> dict[str, Any]:
        """An instance that does not run."""
        return {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}


AutoscalingMetricsHealth = unsupported_class("schema", "AutoscalingMetricsHealth")
AutoscalingStatus = unsupported_class("schema", "AutoscalingStatus")
CeleryAdapterConfig = unsupported_class("schema", "CeleryAdapterConfig")
ControllerHealthMetrics = unsupported_class("schema", "ControllerHealthMetrics")
DeploymentAutoscalingDetail = unsupported_class("schema", "DeploymentAutoscalingDetail")
DurationStats = unsupported_class("schema", "DurationStats")
ReplicaRank = unsupported_class("schema", "ReplicaRank")
ScaleDeploymentRequest = unsupported_class("schema", "ScaleDeploymentRequest")
ScalingDecision = unsupported_class("schema", "ScalingDecision")
Target = unsupported_class("schema", "Target")
TargetGroup = unsupported_class("schema", "TargetGroup")
TaskProcessorAdapter = unsupported_class("schema", "TaskProcessorAdapter")
TaskProcessorConfig = unsupported_class("schema", "TaskProcessorConfig")
TaskResult = unsupported_class("schema", "TaskResult")

__all__ = [
    "APIType",
    "ApplicationDetails",
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "AutoscalingMetricsHealth",
    "AutoscalingStatus",
    "CeleryAdapterConfig",
    "ControllerHealthMetrics",
    "DeploymentAutoscalingDetail",
    "DeploymentDetails",
    "DeploymentNode",
    "DeploymentSchema",
    "DeploymentStatus",
    "DeploymentStatusOverview",
    "DeploymentTopology",
    "DurationStats",
    "EncodingType",
    "HTTPOptionsSchema",
    "LoggingConfig",
    "ProxyDetails",
    "ProxyStatus",
    "RayActorOptionsSchema",
    "ReplicaDetails",
    "ReplicaRank",
    "ReplicaState",
    "ScaleDeploymentRequest",
    "ScalingDecision",
    "ServeActorDetails",
    "ServeApplicationSchema",
    "ServeDeploySchema",
    "ServeInstanceDetails",
    "ServeStatus",
    "Target",
    "TargetGroup",
    "TaskProcessorAdapter",
    "TaskProcessorConfig",
    "TaskResult",
    "TracingConfig",
    "gRPCOptionsSchema",
]
