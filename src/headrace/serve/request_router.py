"""Routers of Ray Serve's, which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class

FIFOMixin = unsupported_class("request_router", "FIFOMixin", "the less loaded of two random replicas is chosen")
LocalityMixin = unsupported_class("request_router", "LocalityMixin", "the less loaded of two random replicas is chosen")
MultiplexMixin = unsupported_class(
    "request_router", "MultiplexMixin", "the less loaded of two random replicas is chosen"
)
PendingRequest = unsupported_class(
    "request_router", "PendingRequest", "the less loaded of two random replicas is chosen"
)
ReplicaID = unsupported_class("request_router", "ReplicaID", "the less loaded of two random replicas is chosen")
RequestRouter = unsupported_class("request_router", "RequestRouter", "the less loaded of two random replicas is chosen")
RunningReplica = unsupported_class(
    "request_router", "RunningReplica", "the less loaded of two random replicas is chosen"
)

__all__ = [
    "FIFOMixin",
    "LocalityMixin",
    "MultiplexMixin",
    "PendingRequest",
    "ReplicaID",
    "RequestRouter",
    "RunningReplica",
]
