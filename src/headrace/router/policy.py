"""Which policy chooses the replicas of a deployment: made from its `request_router`, and guarded against its errors.

In: the configuration of the snapshot. Out: to the pool, a RoutingPolicy that never raises, or None for the power of two
choices.
"""

from __future__ import annotations

from headrace.core.routing import RoutingPolicy
from headrace.spec.request_router import RequestRouterConfig


def make_policy(config: RequestRouterConfig | None, deployment: str) -> RoutingPolicy | None:
    """The policy for the calls of `deployment` in this process; None: the power of two choices."""
    return None
