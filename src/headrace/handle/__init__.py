"""Handles: what code calls deployments by, and what it gets from them."""

from headrace.handle.broadcast import DeploymentBroadcastResponse
from headrace.handle.call import cancel_calls
from headrace.handle.generator import DeploymentResponseGenerator
from headrace.handle.handle import DeploymentHandle
from headrace.handle.options import HandleOptions
from headrace.handle.origin import new_request_id
from headrace.handle.response import DeploymentResponse
from headrace.handle.selection import ReplicaSelection

__all__ = [
    "DeploymentBroadcastResponse",
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "HandleOptions",
    "ReplicaSelection",
    "cancel_calls",
    "new_request_id",
]
