"""Options of the instance and of deployments, for `from headrace.serve.config import ...`."""

import enum

from headrace.spec.config import HTTPOptions
from headrace.spec.options import DeploymentOptions


class ProxyLocation(enum.StrEnum):
    """Where HTTP is accepted, in Ray Serve's words: on one machine, either everywhere or nowhere."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


__all__ = ["DeploymentOptions", "HTTPOptions", "ProxyLocation"]
