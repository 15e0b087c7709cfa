"""Policies for choosing replicas, by what they go by: nothing (in turn), the session of a call, the text of a call.

In and out: as `core.routing` says. Each is a pure object; `router/policy.py` makes those that a deployment asks for.
"""

from headrace.core.routers.consistent_hash import ConsistentHash
from headrace.core.routers.prefix import PrefixAffinity
from headrace.core.routers.round_robin import RoundRobin

__all__ = ["ConsistentHash", "PrefixAffinity", "RoundRobin"]
