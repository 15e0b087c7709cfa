"""The errors that users meet, under the names that code written for Ray Serve imports them by."""

from headrace.spec.errors import (
    ApplicationNotFound,
    BackPressureError,
    CallerError,
    DeployFailedError,
    DeploymentNotFound,
    DeploymentUnavailableError,
    GeneratorError,
    GraphError,
    HeadraceError,
    ImportPathError,
    InstanceError,
    LoopBlockedError,
    MethodNotFound,
    NotServableError,
    OptionError,
    OptionTypeError,
    PayloadError,
    PoisonousRequestError,
    PortBusyError,
    RemoteTraceback,
    ReplicaDiedError,
    RequestCancelledError,
    RequestTimeoutError,
    ResourcesShortError,
    ServingError,
    UserCodeError,
)

RayServeException = HeadraceError
ReplicaUnavailableError = ReplicaDiedError


class gRPCStatusError(HeadraceError):
    """Never raised here: what user code raises in a gRPC call arrives as it is. For code that names it in `except`."""


__all__ = [
    "ApplicationNotFound",
    "BackPressureError",
    "CallerError",
    "DeployFailedError",
    "DeploymentNotFound",
    "DeploymentUnavailableError",
    "GeneratorError",
    "GraphError",
    "HeadraceError",
    "ImportPathError",
    "InstanceError",
    "LoopBlockedError",
    "MethodNotFound",
    "NotServableError",
    "OptionError",
    "OptionTypeError",
    "PayloadError",
    "PoisonousRequestError",
    "PortBusyError",
    "RayServeException",
    "RemoteTraceback",
    "ReplicaDiedError",
    "ReplicaUnavailableError",
    "RequestCancelledError",
    "RequestTimeoutError",
    "ResourcesShortError",
    "ServingError",
    "UserCodeError",
    "gRPCStatusError",
]
