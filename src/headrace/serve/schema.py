"""What `serve.status()` returns, for `from headrace.serve.schema import ...`."""

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

__all__ = [
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "DeploymentStatus",
    "DeploymentStatusOverview",
    "ProxyDetails",
    "ProxyStatus",
    "ReplicaDetails",
    "ReplicaState",
    "ServeStatus",
]
