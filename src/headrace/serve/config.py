"""Options of the instance and of deployments, for `from headrace.serve.config import ...`."""

from headrace.spec.config import HTTPOptions
from headrace.spec.options import DeploymentOptions

__all__ = ["DeploymentOptions", "HTTPOptions"]
