"""A slot at a replica that is kept for a call to come: the caller's side.

In: a Reservation, which the router places as it places calls, and later the call that uses it. Out: frames of the link:
a CALL that asks for the slot, a CANCEL that gives it back, or the CALL that takes it over. The replica ends the
reservation by a last REPLY, whatever the reason: it was used, given back, its time was over, or the replica drains.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from headrace.router.call import Call
from headrace.router.link import NONE_WAITS
from headrace.wire.frames import MORE, RESERVED

if TYPE_CHECKING:
    from headrace.router.pool import Pool


class Reservation(Call):
    """Submit it to the router; `on_kept` says that there is a slot, `on_over` that there is none any more."""

    kind = RESERVED
    whole = False
    hedge = False
    near = False
    counts = False
    used = False  # the call that it is for has left

    def count(self, flags: int) -> None:
        """It is no request."""

    def count_failure(self, status: int) -> None:
        """Likewise."""

    @property
    def stands(self) -> bool:
        """Whether there is a slot now that no call has used."""
        link = self.link
        return self.held and not self.used and link is not None and link.calls.get(self.stream) is self

    def unstarted(self) -> bool:
        """As long as it has no slot, it can wait for one elsewhere."""
        return not self.answered

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """First that the slot is kept, then that it is not any more."""
        if flags & MORE:
            self.on_kept()
        else:
            self.on_over()

    @abstractmethod
    def on_kept(self) -> None:
        """The slot is there."""

    @abstractmethod
    def on_over(self) -> None:
        """The slot is kept no more."""


def send_in_slot(pool: Pool, call: Call, slot: Reservation) -> bool:
    """Send the call to the replica that keeps the slot. False: it is kept no more, and the call goes as any other.

    The call is booked at the replica beside its reservation, whose end the replica tells as soon as it has both.
    """
    link = slot.link
    if not slot.stands or link is None or link.pool is not pool:
        return False
    slot.used = True
    pool.balancer.book(link.replica)
    call.reservation = slot.stream
    call.kind |= RESERVED
    link.call(call, pool.router.snapshot.version, 0, NONE_WAITS)
    return True
