"""The calls of one session go to one replica: a hash ring. In: replicas, and calls with the id of a session. Out: the
session's replica, or the next on the ring that has room.

Consistent hashing (Karger et al., "Consistent hashing and random trees", STOC 1997): each replica has points on a ring,
and a session belongs to the replica of the next point. When a replica comes, it takes over its share of the sessions of
each other; when one goes, its sessions alone move, to all others alike. A session whose replica is full goes on along
the ring to the first with room and comes back later, which is how no replica gets more than it can take (Mirrokni,
Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018; the bound here is max_ongoing_requests).

Points are by hashes of ids, so all processes that know of the same replicas agree, without telling each other.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.spec.errors import OptionError

if TYPE_CHECKING:
    from headrace.core.balance import Replica
    from headrace.core.routing import Asked

VIRTUAL_NODES = 100  # points of a replica: the shares of replicas then differ by about 10 %


class ConsistentHash:
    """Calls of a session (`x-session-id`, `session_id` of a handle) go to one replica. Others: no preference.

    `num_virtual_nodes` is how many points on the ring a replica has. `num_fallback_replicas` bounds how many further
    replicas are tried for a session whose own has no room (None: all). O(log replicas) per call; a change of the
    replicas costs O(points) at the next call. Raises OptionError.
    """

    sees_all = True

    def __init__(self, num_virtual_nodes: int = VIRTUAL_NODES, num_fallback_replicas: int | None = None) -> None:
        if not isinstance(num_virtual_nodes, int) or not 1 <= num_virtual_nodes <= 10_000:
            raise OptionError(f"num_virtual_nodes={num_virtual_nodes!r} must be a whole number from 1 to 10000")
        if num_fallback_replicas is not None and (
            not isinstance(num_fallback_replicas, int) or num_fallback_replicas < 1
        ):
            raise OptionError(
                f"num_fallback_replicas={num_fallback_replicas!r} must be a whole number of at least 1, or None for "
                "all: calls of a session whose replica is full go to another, rather than wait for it"
            )
        self._nodes = num_virtual_nodes
        self._fallbacks = num_fallback_replicas
        self._replicas: dict[str, Replica] = {}
        self._points: list[tuple[int, str]] = []  # (place, replica's id), in order
        self._stale = False

    def __repr__(self) -> str:
        return f"<ConsistentHash of {len(self._replicas)} replicas>"

    def choose(self, call: Asked, replicas: Sequence[Replica]) -> Replica | None:
        """The replica of the call's session, or the first after it on the ring that is in `replicas`."""
        if call.sticky is None:
            return None
        if self._stale:
            self._draw_ring()
        points, known = self._points, self._replicas
        if not points:
            return None
        at = bisect_right(points, (place_of(call.sticky), ""))
        passed: set[str] = set()
        limit = len(known) if self._fallbacks is None else self._fallbacks + 1
        for i in range(at, at + len(points)):
            name = points[i % len(points)][1]
            if name in passed:
                continue
            replica = known[name]
            if replica.ours + replica.others < replica.limit and replica in replicas:
                return replica
            passed.add(name)
            if len(passed) >= limit:
                break
        return None

    def sent(self, call: Asked, replica: Replica) -> None:
        """Nothing is remembered: the ring says where a session belongs."""

    def added(self, replica: Replica) -> None:
        """It takes over its share of the sessions."""
        self._replicas[replica.id] = replica
        self._stale = True

    def removed(self, replica: Replica) -> None:
        """Its sessions move to the others, and no others do."""
        if self._replicas.get(replica.id) is replica:
            del self._replicas[replica.id]
            self._stale = True

    def _draw_ring(self) -> None:
        """What has changed since the last time, at once: many replicas that come together cost one sort."""
        known = self._replicas
        kept = [point for point in self._points if point[1] in known]
        drawn = {name for _, name in kept}
        fresh = [name for name in known if name not in drawn]
        kept += [(place_of(f"{name}:{node}"), name) for name in fresh for node in range(self._nodes)]
        kept.sort()  # two runs in order, nearly: the sort merges them
        self._points = kept
        self._stale = False


def place_of(key: str) -> int:
    """The key's place on the ring, the same in every process."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)
