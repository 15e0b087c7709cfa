"""Options of the instance and of deployments, for `from headrace.serve.config import ...`."""

import enum

import msgspec

from headrace.serve.unsupported import unsupported_class
from headrace.spec.backpressure import BackpressureConfig
from headrace.spec.config import HTTPOptions
from headrace.spec.grpc import gRPCOptions
from headrace.spec.hedging import HedgingConfig
from headrace.spec.options import NOT_YET, DeploymentOptions
from headrace.spec.request_router import RequestRouterConfig
from headrace.spec.retries import RetryBudgetConfig


class ProxyLocation(enum.StrEnum):
    """Where HTTP is accepted, in Ray Serve's words: on one machine, either everywhere or nowhere."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


class ControllerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Ray Serve's options of its controller, which have no effect here (`serve.start` warns)."""

    runtime_env: dict[str, object] | None = None


_AUTOSCALING = NOT_YET["autoscaling_config"]
AggregationFunction = unsupported_class("config", "AggregationFunction", _AUTOSCALING)
AutoscalingConfig = unsupported_class("config", "AutoscalingConfig", _AUTOSCALING)
AutoscalingContext = unsupported_class("config", "AutoscalingContext", _AUTOSCALING)
AutoscalingPolicy = unsupported_class("config", "AutoscalingPolicy", _AUTOSCALING)
DeploymentActorConfig = unsupported_class("config", "DeploymentActorConfig", NOT_YET["deployment_actors"])
GangPlacementStrategy = unsupported_class("config", "GangPlacementStrategy", NOT_YET["gang_scheduling_config"])
GangRuntimeFailurePolicy = unsupported_class("config", "GangRuntimeFailurePolicy", NOT_YET["gang_scheduling_config"])
GangSchedulingConfig = unsupported_class("config", "GangSchedulingConfig", NOT_YET["gang_scheduling_config"])

__all__ = [
    "AggregationFunction",
    "AutoscalingConfig",
    "AutoscalingContext",
    "AutoscalingPolicy",
    "BackpressureConfig",
    "ControllerOptions",
    "DeploymentActorConfig",
    "DeploymentOptions",
    "GangPlacementStrategy",
    "GangRuntimeFailurePolicy",
    "GangSchedulingConfig",
    "HTTPOptions",
    "HedgingConfig",
    "ProxyLocation",
    "RequestRouterConfig",
    "RetryBudgetConfig",
    "gRPCOptions",
]
