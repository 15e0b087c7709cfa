"""What `serve.status()` returns, and how logs and traces are set up, for `from headrace.serve.schema import ...`."""

import enum
import logging

import msgspec

from headrace.serve.unsupported import unsupported_class
from headrace.spec.errors import OptionError
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


class LoggingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Ray Serve's options of logs, which have no effect here: who is given them warns. Raises OptionError."""

    encoding: str = EncodingType.TEXT
    log_level: int | str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = []

    def __post_init__(self) -> None:
        if self.encoding not in list(EncodingType):
            raise OptionError(f"encoding={self.encoding!r} must be 'TEXT' or 'JSON'")
        known = logging.getLevelNamesMapping()
        if isinstance(self.log_level, str) and self.log_level.upper() not in known:
            raise OptionError(f"log_level={self.log_level!r} must be one of {', '.join(known)}")


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Ray Serve's options of traces, which have no effect here (`serve.start` warns). Raises OptionError."""

    enabled: bool = False
    exporter_import_path: str = ""
    sampling_ratio: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_ratio <= 1:
            raise OptionError(f"sampling_ratio={self.sampling_ratio!r} must be from 0 to 1")


APIType = unsupported_class("schema", "APIType")
ApplicationDetails = unsupported_class("schema", "ApplicationDetails")
AutoscalingMetricsHealth = unsupported_class("schema", "AutoscalingMetricsHealth")
AutoscalingStatus = unsupported_class("schema", "AutoscalingStatus")
CeleryAdapterConfig = unsupported_class("schema", "CeleryAdapterConfig")
ControllerHealthMetrics = unsupported_class("schema", "ControllerHealthMetrics")
DeploymentAutoscalingDetail = unsupported_class("schema", "DeploymentAutoscalingDetail")
DeploymentDetails = unsupported_class("schema", "DeploymentDetails")
DeploymentNode = unsupported_class("schema", "DeploymentNode")
DeploymentSchema = unsupported_class("schema", "DeploymentSchema")
DeploymentTopology = unsupported_class("schema", "DeploymentTopology")
DurationStats = unsupported_class("schema", "DurationStats")
HTTPOptionsSchema = unsupported_class("schema", "HTTPOptionsSchema")
RayActorOptionsSchema = unsupported_class("schema", "RayActorOptionsSchema")
ReplicaRank = unsupported_class("schema", "ReplicaRank")
ScaleDeploymentRequest = unsupported_class("schema", "ScaleDeploymentRequest")
ScalingDecision = unsupported_class("schema", "ScalingDecision")
ServeActorDetails = unsupported_class("schema", "ServeActorDetails")
ServeApplicationSchema = unsupported_class("schema", "ServeApplicationSchema")
ServeDeploySchema = unsupported_class("schema", "ServeDeploySchema")
ServeInstanceDetails = unsupported_class("schema", "ServeInstanceDetails")
Target = unsupported_class("schema", "Target")
TargetGroup = unsupported_class("schema", "TargetGroup")
TaskProcessorAdapter = unsupported_class("schema", "TaskProcessorAdapter")
TaskProcessorConfig = unsupported_class("schema", "TaskProcessorConfig")
TaskResult = unsupported_class("schema", "TaskResult")
gRPCOptionsSchema = unsupported_class("schema", "gRPCOptionsSchema")

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
