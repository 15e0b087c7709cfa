"""One deployment as a router knows it: its replicas, the links to them, the calls that wait for a slot.

In: calls of the router; what the links tell (replies, offers, refusals, losses); changes of the snapshot. Out: calls to
links, answers to calls that cannot be sent. All choices are `core`'s: Balancer (where, wait or refuse) and Repeats (what
becomes of a call whose replica died); this is their shell.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from headrace.core.balance import Balancer, Replica
from headrace.core.repeat import Repeats, Verdict
from headrace.router.call import Call
from headrace.router.link import NONE_WAITS, Link, connect
from headrace.spec.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    HeadraceError,
    PoisonousRequestError,
    ReplicaDiedError,
    RequestTimeoutError,
)
from headrace.spec.snapshot import DeploymentEntry, ReplicaEntry
from headrace.wire.frames import LEASED

if TYPE_CHECKING:
    from headrace.router.router import Router

log = logging.getLogger("headrace.router")

RECONNECT_S = 0.5  # a replica that the snapshot lists is tried again so long after its connection broke


class Pool:
    """The replicas of one deployment entry, and the calls on their way to them."""

    def __init__(self, router: Router, entry: DeploymentEntry) -> None:
        self.router = router
        self.loop = router.loop
        self.key = entry.key
        self.entry = entry
        self.balancer: Balancer[Call] = Balancer(
            limit=entry.max_ongoing_requests, max_queued=entry.max_queued_requests, rng=router.rng
        )
        self.repeats = Repeats()
        self._addresses: dict[str, str] = {}
        self._told = 0  # how many calls waited when the replicas were last told; 0: they know of none
        self._settling = False

    def __repr__(self) -> str:
        return f"<Pool {self.key} replicas={len(self.balancer.replicas)} queued={self.balancer.queued}>"

    # --- what the snapshot says ------------------------------------------------------------------------------------

    def update(self, entry: DeploymentEntry) -> None:
        """Adopt the entry: new replicas take calls, those that are gone from it finish what they have."""
        self.entry = entry
        self.balancer.max_queued = entry.max_queued_requests
        listed = {replica.id: replica.address for replica in self.router.subset(entry)}
        for replica_id in [known for known in self._addresses if known not in listed]:
            self._forget(replica_id)
        for replica_id, address in listed.items():
            if replica_id not in self._addresses:
                self._addresses[replica_id] = address
                self._add(replica_id)
        if entry.failed:
            self.fail_queued(DeploymentUnavailableError(f"deployment {entry.name} of {entry.app}: {entry.failed}"))

    def close(self) -> list[Call]:
        """The entry is gone. Answers the calls that had not started: they are the caller's to place elsewhere."""
        for replica_id in list(self._addresses):
            self._forget(replica_id)
        return self._take_queue()

    def cut(self) -> None:
        """Close all connections at once; calls in work are not answered any more."""
        for replica in list(self.balancer.replicas.values()):
            if replica.link is not None:
                replica.link.close()

    def _add(self, replica_id: str) -> None:
        replica = self.balancer.add(replica_id)
        if self.balancer.queued:
            self._open(replica)
            self._pump()

    def _forget(self, replica_id: str) -> None:
        self._addresses.pop(replica_id, None)
        replica = self.balancer.remove(replica_id)
        if replica is not None and replica.link is not None:
            replica.link.leave()

    # --- calls -----------------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Send the call to a replica now, or let it wait, or refuse it."""
        call.pool = self
        replica = self.balancer.choose()
        if replica is not None:
            self._send(replica, call)
        elif self.entry.failed:
            call.on_error(
                DeploymentUnavailableError(f"deployment {self.entry.name} of {self.entry.app}: {self.entry.failed}")
            )
        else:
            self._wait(call)

    def cancel(self, call: Call) -> None:
        """Forget a call that waits, or tell the replica that works on it."""
        if call.expiry is not None:
            call.expiry.cancel()
        if call.link is not None:
            call.link.cancel(call)
            self._after_suspect(call)
        else:
            self.balancer.discard(call)
            self._settle_soon()

    def _send(self, replica: Replica, call: Call, flags: int = 0, next_age_ms: int = NONE_WAITS) -> None:
        link: Link | None = replica.link
        if link is None:
            link = self._open(replica)
            if link is None:  # it died, and the router did not know yet
                self.balancer.requeue(call, self._since(call))
                self._pump()
                return
        if call.expiry is not None:
            call.expiry.cancel()
            call.expiry = None
        call.replica = replica
        link.call(call, self.router.snapshot.version, flags, next_age_ms)

    def _open(self, replica: Replica) -> Link | None:
        """Connect to the replica. None when nobody is there: it is out of the pool then."""
        if replica.link is not None:
            return replica.link
        try:
            sock = connect(self._addresses[replica.id])
        except OSError as error:
            log.info("replica %s does not take connections: %s", replica.id, error)
            self._out_of_reach(replica)
            return None
        link = replica.link = Link(self.loop, sock, self, replica, self.router.role, self.router.identity)
        link.start()
        if self._told:
            link.tell_waiting(self.balancer.queued, self.balancer.eldest_age_s(self.loop.time()) or 0.0)
        return link

    def _out_of_reach(self, replica: Replica) -> None:
        self.balancer.remove(replica.id)
        self.loop.call_later(RECONNECT_S, self._try_again, replica.id)

    def _try_again(self, replica_id: str) -> None:
        if replica_id in self._addresses and replica_id not in self.balancer.replicas and not self.router.closed:
            self._add(replica_id)

    # --- waiting ---------------------------------------------------------------------------------------------------

    def _since(self, call: Call) -> float:
        if call.queued_since is None:
            call.queued_since = self.loop.time()
        return call.queued_since

    def _wait(self, call: Call) -> None:
        now = self.loop.time()
        if not self.balancer.enqueue(call, now):
            call.on_error(
                BackPressureError(
                    f"deployment {self.entry.name} of {self.entry.app} has {self.balancer.queued} calls waiting, "
                    f"max_queued_requests is {self.entry.max_queued_requests}"
                )
            )
            return
        call.queued_since = now
        call.link = None
        if call.buffers:
            call.buffers = [bytes(buffer) for buffer in call.buffers]  # the caller may change its arrays from now on
        if call.deadline is not None:
            call.expiry = self.loop.call_at(call.deadline, self._expire, call)
        self._tell()

    def _expire(self, call: Call) -> None:
        call.expiry = None
        if call.link is None:
            self.balancer.discard(call)
            self._settle_soon()
            call.on_error(RequestTimeoutError(f"request {call.request_id} waited until its deadline had passed"))

    def _tell(self) -> None:
        """Tell the replicas that calls wait, again each time their number has doubled."""
        queued = self.balancer.queued
        if queued < 2 * self._told or not queued:
            return
        self._told = queued
        age = self.balancer.eldest_age_s(self.loop.time()) or 0.0
        for replica in list(self.balancer.replicas.values()):
            link = replica.link
            if link is not None:
                link.tell_waiting(queued, age)
            else:
                self._open(replica)  # says so itself

    def _settle_soon(self) -> None:
        if self._told and not self._settling:
            self._settling = True
            self.loop.call_soon(self._settle)

    def _settle(self) -> None:
        """When nothing waits any more, say so once: the queue may have come and gone several times in this tick."""
        self._settling = False
        if self._told and not self.balancer.queued:
            self._told = 0
            for replica in self.balancer.replicas.values():
                if replica.link is not None and replica.link.waits:
                    replica.link.tell_withdrawn()

    def _pump(self) -> None:
        """Send what waits to replicas that have room: after a replica has come, or a call has come back."""
        for call, replica in self.balancer.drain():
            self._send(replica, call)
        if self.balancer.queued:
            self._tell()
        else:
            self._settle_soon()

    def _take_queue(self) -> list[Call]:
        calls: list[Call] = []
        while (call := self.balancer.take(self.loop.time())) is not None:
            if call.expiry is not None:
                call.expiry.cancel()
            calls.append(call)
        self._settle_soon()
        return calls

    def fail_queued(self, error: HeadraceError) -> None:
        for call in self._take_queue():
            call.on_error(error)

    # --- what the links tell ---------------------------------------------------------------------------------------

    def replied(self, replica: Replica, load: int, offered: int) -> None:
        """An answer of the replica freed a slot; `offered`: it is held for a call of ours."""
        self.balancer.finished(replica, load)
        if offered:
            self.offered(replica)

    def offered(self, replica: Replica) -> None:
        """The replica holds a slot for us: send the eldest call that waits, or decline."""
        now = self.loop.time()
        call = self.balancer.take(now)
        link = replica.link
        if call is None:
            if link is not None:
                link.decline()
            self._settle_soon()
            return
        self.balancer.book(replica)
        age = self.balancer.eldest_age_s(now)
        if age is None:
            if link is not None:
                link.waits = False
            self._settle_soon()
        self._send(replica, call, LEASED, NONE_WAITS if age is None else min(int(age * 1000), NONE_WAITS - 1))

    def rejected(self, replica: Replica, load: int, call: Call | None) -> None:
        """The replica had no slot: the call, which has not started, waits in its old place."""
        self.balancer.rejected(replica, load)
        if call is not None:
            call.link = None
            self.balancer.requeue(call, self._since(call))
            self._pump()
