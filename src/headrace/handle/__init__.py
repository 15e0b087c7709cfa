"""Handles: what code calls deployments by, and what it gets from them."""

from headrace.handle.call import cancel_calls
from headrace.handle.generator import DeploymentResponseGenerator
from headrace.handle.handle import DeploymentHandle, new_request_id
from headrace.handle.options import HandleOptions
from headrace.handle.response import DeploymentResponse

__all__ = [
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "HandleOptions",
    "cancel_calls",
    "new_request_id",
]
