"""What running code knows of its replica and its request, for `from headrace.serve.context import ...`."""

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
