"""The replicas of one pool: where they are, and the connections to them.

In: the replicas that the snapshot lists, and which of them are this router's share; calls for one that is not; sockets
of `router.dialing`. Out: to the balancer, replicas that calls can go to; to the pool, links; calls whose replica could
not be reached.

One on this node, by its Unix socket, is connected to when the first call goes there: that takes no time. Those of other
nodes are connected to all at once when the pool is in use: when its first call leaves, or before where the door leads
to it. Until then they are in the balancer as if they were there, and calls wait at each (`router.approach`); but one
that comes later, while others are there, only where it matters who is known, not only who is there: where a policy
chooses, or models have homes.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from headrace.core.balance import Replica
from headrace.router.approach import Approach
from headrace.router.dialing import Dialing, TcpLink
from headrace.router.link import Link, connect
from headrace.spec.errors import HeadraceError
from headrace.spec.snapshot import ReplicaEntry

if TYPE_CHECKING:
    from headrace.router.pool import Pool

log = logging.getLogger("headrace.router")

RECONNECT_S = 0.5  # a replica that the snapshot lists is tried again so long after its connection broke


class Connections:
    """The replicas of `pool` to which calls may go, by id."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._entries: dict[str, ReplicaEntry] = {}
        self._dialing = Dialing(pool)
        self._in_use = False

    def __repr__(self) -> str:
        return f"<Connections to {list(self._entries)}, {self._dialing}>"

    def __contains__(self, replica_id: object) -> bool:
        return replica_id in self._entries

    # --- which there are -------------------------------------------------------------------------------------------

    def update(self, share: Iterable[ReplicaEntry]) -> None:
        """These of the pool's entry are the ones to keep connections to. Those that are gone finish what they have."""
        balancer = self._pool.balancer
        listed = {replica.id: replica for replica in self._pool.entry.replicas}
        wanted = {replica.id: replica for replica in share}
        for replica_id, before in list(self._entries.items()):
            now = listed.get(replica_id)
            if now is not None and replica_id not in wanted and balancer.awaited(replica_id):
                wanted[replica_id] = now  # one beyond this router's share, for which calls wait all the same
            if replica_id not in wanted or wanted[replica_id] != before:
                self.forget(replica_id)
        fresh = [replica for replica in wanted.values() if replica.id not in self._entries]
        fresh.sort(key=self._is_far)  # stable: so it is known of the far ones whether anybody is there without them
        for replica in fresh:
            self._entries[replica.id] = replica
            self._add(replica)

    def knows(self, replica_id: str) -> bool:
        """Whether calls can go to this replica, also where this router has a share of the replicas that it is not of.

        A replica whose connection broke a moment ago is tried again.
        """
        if replica_id not in self._entries:
            for listed in self._pool.entry.replicas:
                if listed.id == replica_id:
                    self._entries[replica_id] = listed
        entry = self._entries.get(replica_id)
        if entry is None:
            return False
        if replica_id not in self._pool.balancer.replicas and replica_id not in self._dialing:
            self._add(entry)
        return True

    def forget(self, replica_id: str) -> None:
        """The replica takes no more calls: those that it has it finishes."""
        if self._entries.pop(replica_id, None) is not None:
            self._dialing.forget(replica_id)
            self._pool.balancer.expected.discard(replica_id)
            replica = self._pool.balancer.remove(replica_id)
            if replica is not None and replica.link is not None:
                replica.link.leave()

    def going(self, replica_id: str) -> None:
        """It says itself that it takes no more; its link ends by itself."""
        self._entries.pop(replica_id, None)
        self._dialing.forget(replica_id)
        self._pool.balancer.expected.discard(replica_id)
        self._pool.balancer.remove(replica_id)

    def close(self) -> None:
        """The pool's entry is gone."""
        for replica_id in list(self._entries):
            self.forget(replica_id)

    def cut(self, error: HeadraceError) -> None:
        """The router closes: connect to none any more."""
        self._dialing.close()
        for replica in self._pool.balancer.replicas.values():
            if isinstance(replica.link, Approach):
                replica.link.cut(error)

    # --- connections -----------------------------------------------------------------------------------------------

    def use(self) -> None:
        """The pool is in use, or is about to be: connect to all replicas of other nodes."""
        if not self._in_use and not self._pool.router.closed:
            self._in_use = True
            for replica in list(self._pool.balancer.replicas.values()):
                if replica.link is None and self._is_far(self._entries[replica.id]):
                    self.open(replica)

    def open(self, replica: Replica) -> Link | Approach | None:
        """Connect to the replica. None when nobody is there: it is out of the pool then."""
        pool = self._pool
        entry = self._entries.get(replica.id)
        if entry is None or pool.balancer.replicas.get(replica.id) is not replica:
            return None  # the call before this one has found that out
        if not self._in_use:
            pool.loop.call_soon(self.use)  # this one first
        address = self._address(entry)
        if self._is_far(entry):
            approach = replica.link = Approach(pool, replica)
            self._dialing.dial(replica.id, address)
            return approach
        try:
            sock = connect(address)
        except OSError as error:
            log.info("replica %s does not take connections: %s", replica.id, error)
            self.out_of_reach(replica)
            return None
        return self._adopt(replica, Link(pool.loop, sock, pool, replica, pool.router.role, pool.router.identity))

    def reached(self, replica_id: str, sock: socket.socket) -> None:
        """The connection to a replica of another node is there."""
        pool = self._pool
        balancer, router = pool.balancer, pool.router
        balancer.expected.discard(replica_id)
        entry = self._entries.get(replica_id)
        if entry is None or router.closed:
            sock.close()
            return
        replica = balancer.replicas.get(replica_id)
        approach = None if replica is None else replica.link
        if replica is None:
            replica = balancer.add(replica_id, node=entry.node)
        link = self._adopt(replica, TcpLink(pool.loop, sock, pool, replica, router.role, router.identity))
        if approach is not None:
            approach.hand_over(link)
        pool.pump()

    def unreached(self, replica_id: str) -> None:
        """There is none. What waits for that replica alone is told so."""
        balancer = self._pool.balancer
        balancer.expected.discard(replica_id)
        replica = balancer.replicas.get(replica_id)
        if replica is not None:
            self.out_of_reach(replica)
            self._give_up(replica)
        elif replica_id in self._entries:
            self._try_again_later(replica_id)
        self._pool.pump()

    def too_slow(self, replica: Replica) -> None:
        """The connection takes long. Calls that may go elsewhere do, until it is there."""
        balancer = self._pool.balancer
        if balancer.replicas.get(replica.id) is replica and isinstance(replica.link, Approach):
            balancer.expected.add(replica.id)
            balancer.remove(replica.id)
            self._give_up(replica)
            self._pool.pump()

    def _give_up(self, replica: Replica) -> None:
        if isinstance(replica.link, Approach):
            self._pool.places.lost(replica.id)  # what it was asked has not left
            replica.link.give_up()

    def out_of_reach(self, replica: Replica) -> None:
        """There is no connection any more. The snapshot lists it as yet, maybe: then it is tried again."""
        self._pool.balancer.remove(replica.id)
        if replica.id in self._entries:
            self._try_again_later(replica.id)

    def _adopt(self, replica: Replica, link: Link) -> Link:
        replica.link = link
        self._pool.router.links.add(link)
        link.start()
        return link

    def _add(self, entry: ReplicaEntry) -> None:
        """Calls can go to the replica from now on, or when there is a connection."""
        balancer = self._pool.balancer
        if not self._is_far(entry) or not self._in_use:
            balancer.add(entry.id, node=entry.node)
        elif balancer.policy is not None or self._pool.entry.multiplexed or not self._anybody_there():
            self.open(balancer.add(entry.id, node=entry.node))
        else:
            self._dial(entry)

    def _dial(self, entry: ReplicaEntry) -> None:
        self._pool.balancer.expected.add(entry.id)
        self._dialing.dial(entry.id, self._address(entry))

    def _anybody_there(self) -> bool:
        return any(not isinstance(replica.link, Approach) for replica in self._pool.balancer.replicas.values())

    def _try_again_later(self, replica_id: str) -> None:
        self._pool.loop.call_later(RECONNECT_S, self._try_again, replica_id)

    def _try_again(self, replica_id: str) -> None:
        pool = self._pool
        entry = self._entries.get(replica_id)
        known = replica_id in pool.balancer.replicas or replica_id in self._dialing
        if entry is None or known or pool.router.closed:
            return
        if self._is_far(entry):
            self._dial(entry)  # whether it is there has to be seen first
        else:
            pool.balancer.add(replica_id, node=entry.node)
            pool.pump()

    def _is_far(self, entry: ReplicaEntry) -> bool:
        return self._address(entry).startswith("tcp:")

    def _address(self, entry: ReplicaEntry) -> str:
        return entry.address_from(self._pool.router.node)
