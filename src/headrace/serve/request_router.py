"""Which replica a call goes to: the routers that there are, and what a router of your own is made from.

Name one in `request_router_config`: `RequestRouterConfig(request_router_class=ConsistentHashRouter)`.
"""

from headrace.router.request_router import (
    ConsistentHashRouter,
    FIFOMixin,
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    PowerOfTwoChoicesRequestRouter,
    PrefixCacheAffinityRouter,
    ReplicaID,
    RequestRouter,
    RoundRobinRouter,
    RunningReplica,
)
from headrace.spec.request_router import RequestRouterConfig

__all__ = [
    "ConsistentHashRouter",
    "FIFOMixin",
    "LocalityMixin",
    "MultiplexMixin",
    "PendingRequest",
    "PowerOfTwoChoicesRequestRouter",
    "PrefixCacheAffinityRouter",
    "ReplicaID",
    "RequestRouter",
    "RequestRouterConfig",
    "RoundRobinRouter",
    "RunningReplica",
]
