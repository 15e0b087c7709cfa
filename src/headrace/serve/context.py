"""What running code knows of its replica and its request, for `from headrace.serve.context import ...`."""

from headrace.context import ReplicaContext, RequestContext, get_replica_context

__all__ = ["ReplicaContext", "RequestContext", "get_replica_context"]
