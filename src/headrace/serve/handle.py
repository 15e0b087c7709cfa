"""Handles to deployments and the responses of their calls, for `from headrace.serve.handle import ...`."""

from headrace.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator
from headrace.serve.unsupported import unsupported_class

DeploymentBroadcastResponse = unsupported_class("handle", "DeploymentBroadcastResponse")

__all__ = [
    "DeploymentBroadcastResponse",
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
]
