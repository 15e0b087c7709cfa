"""What running code knows of its replica and its request, for `from headrace.serve.context import ...`."""

from typing import Any

from headrace.context import ReplicaContext, RequestContext, get_replica_context, get_request_context
from headrace.serve.unsupported import unsupported_class, unsupported_function

_INSTEAD = "make what replicas share a deployment of its own, and bind it"
DeploymentActorContext = unsupported_class("context", "DeploymentActorContext", _INSTEAD)
get_deployment_actor = unsupported_function("", "get_deployment_actor", _INSTEAD)
get_deployment_actor_context = unsupported_function("", "get_deployment_actor_context", _INSTEAD)
get_trace_context = unsupported_function(
    "", "get_trace_context", "serve.get_request_context().trace is the traceparent"
)

__all__ = [
    "DeploymentActorContext",
    "ReplicaContext",
    "RequestContext",
    "get_deployment_actor",
    "get_deployment_actor_context",
    "get_replica_context",
    "get_request_context",
    "get_trace_context",
]


def __getattr__(name: str) -> Any:
    """What code of 2020 asks for: `web`, whether its request came by HTTP, and the `batch_size` that it works on."""
    if name not in ("web", "batch_size"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headrace.serve.older import kinds

    return getattr(kinds, name).get()
