"""Which replicas of a large deployment a router keeps connections to. In: names; out: the router's share of replicas.

The aim is that of 'deterministic subsetting' (Site Reliability Engineering, chapter 20): few connections, each replica
in as many subsets as any other. Its shuffle by rounds deals all of them anew when one replica comes or goes; rendezvous
hashing does not, but is as uneven as dice (with 20 subsets to a replica on average, some have 8 and some 36). Here:

- replicas stand on a ring in the order of a hash of their ids, which a change does not disturb;
- routers of a family (`ingress#0`, `ingress#1`; the replicas of one deployment) have points on it by the van der Corput
  sequence of their numbers, which spreads any run of consecutive numbers evenly over the ring;
- a router takes the replicas that follow its point.

So a replica that comes or goes changes at most two places in a subset, and coverage differs by a few. Where there are
several nodes, a router has a subset of those of its own node beside that of all: it calls them first, and the others
when those have no room.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from headrace.spec.snapshot import ReplicaEntry

SUBSET_SIZE = 20
COVERAGE = 3  # subsets that a replica is to be in, at least, on average

_NUMBERED = re.compile(r"(.*)#(\d+)(.*)", re.DOTALL)
_RING = 1 << 32


def choose_subset(
    router: str, replicas: Sequence[ReplicaEntry], size: int = SUBSET_SIZE, routers: int = 1, node: str = ""
) -> Sequence[ReplicaEntry]:
    """The replicas that `router` (its id) connects to, of the `replicas` of one deployment: all, where they are few.

    `routers` is how many share the work of calling them, about: where they are few, subsets are larger than `size`, so
    that all replicas together get calls. First come `size` of those on the router's own `node` ("": not known).
    """
    count = len(replicas)
    share = max(size, -(-COVERAGE * count // max(routers, 1)))
    if share >= count:
        return replicas
    chosen = _following(router, replicas, share)
    near = [replica for replica in replicas if node and replica.node == node]
    if near:
        near = near if len(near) <= size else _following(router, near, size)
        named = {replica.id for replica in near}
        chosen = near + [replica for replica in chosen if replica.id not in named]
    return chosen


def _following(router: str, replicas: Sequence[ReplicaEntry], share: int) -> list[ReplicaEntry]:
    """The `share` of them that follow the router's point."""
    count = len(replicas)
    ring = sorted(replicas, key=lambda replica: (_hash(replica.id), replica.id))
    start = _point(router) * count // _RING
    return [ring[(start + i) % count] for i in range(share)]


def _point(router: str) -> int:
    """The router's point on the ring, in [0, 2**32)."""
    match = _NUMBERED.fullmatch(router)
    if match is None:
        return _hash(router)
    family, number, rest = match.groups()
    reversed_bits = int(f"{int(number) % _RING:032b}"[::-1], 2)
    return (_hash(f"{family}#{rest}") + reversed_bits) % _RING


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
