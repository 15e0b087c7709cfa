"""Handles to deployments and the responses of their calls, for `from headrace.serve.handle import ...`."""

from headrace.handle import DeploymentHandle, DeploymentResponse

__all__ = ["DeploymentHandle", "DeploymentResponse", "DeploymentResponseGenerator"]
