"""How calls of mirrored requests get a replica: from what the calls leave that somebody waits for.

In, from the pool: calls whose answers nobody gets, when they are submitted and when they come back. Out: to replicas,
those that there is room for; errors for the rest. They are never hedged, never repeated, and of the lowest priority.

Where the replicas serve requests of others too (`Pool.serving`), such a call is sent when nothing waits and room for
one more call remains after it, and is refused at once otherwise. Where they are the shadow's alone, those that the
shadow's own code makes may wait, as long as no others do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.router.call import Call
from headrace.spec.errors import NoSpareCapacityError, ReplicaDiedError
from headrace.spec.priority import LOWEST_PRIORITY

if TYPE_CHECKING:
    from headrace.core.balance import Replica
    from headrace.router.pool import Pool


class SpareCall(Call):
    """A call of the router itself for a shadow: it is sent at once or not at all."""

    mirrored = True
    hedge = False
    near = False
    priority = LOWEST_PRIORITY


def send_spare(pool: Pool, call: Call) -> bool:
    """Send the call to a replica that can do without the slot. False: there is none, and nothing has happened."""
    balancer = pool.balancer
    if pool.serving and not balancer.has_spare():
        return False
    now = pool.loop.time()
    key = pool.key_of(call)
    replica = balancer.choose(call) if key is None else balancer.choose_bound(call, key, now)
    balancer.to_load.clear()  # more replicas with its model are not for its sake
    if replica is None:
        return False
    if pool.link_to(replica) is None:  # it has died, and the snapshot does not say so yet
        balancer.loader_ended(call, started=False)
        return False
    call.pool = pool
    call.priority = LOWEST_PRIORITY
    call.queued_since = now  # only the metadata of calls that waited says that they are mirrored
    pool.send(replica, call)
    return True


def submit_mirrored(pool: Pool, call: Call) -> None:
    """Send the call, or let it wait where that is in nobody's way, or refuse it."""
    if not send_spare(pool, call) and not refused(pool, call):
        pool.wait(call, pool.key_of(call))


def refused(pool: Pool, call: Call) -> bool:
    """There was no slot for the call. False: it may wait for one; else it has been told."""
    call.priority = LOWEST_PRIORITY
    if not (pool.serving or isinstance(call, SpareCall) or pool.balancer.queued or pool.entry.failed):
        return False
    call.on_error(
        NoSpareCapacityError(
            f"deployment {pool.entry.name} of application {pool.entry.app} has no spare capacity for mirrored requests"
        )
    )
    return True


def died(call: Call, replica: Replica) -> None:
    """The replica is lost, and the call with it: another is not to be risked for its sake."""
    call.on_error(ReplicaDiedError(f"replica {replica.id} died while it worked on mirrored request {call.request_id}"))
