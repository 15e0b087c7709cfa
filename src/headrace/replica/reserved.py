"""Slots of a replica that are kept for calls to come: the callee's side, of one connection.

In, from the link: CALLs that ask for a slot, and those that take one over. Out, to the caller: a REPLY that the slot is
kept, and a last one when it is not any more: it was taken over, given back (CANCEL), its time is over, the replica
drains, or (nobody hears it) the connection broke.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from headrace.spec.errors import ProtocolError
from headrace.wire.frames import HELD, LEASED, MORE, REPLY, RESERVED

if TYPE_CHECKING:
    from headrace.replica.callee import CalleeLink
    from headrace.replica.incoming import Incoming


class ReservedSlots:
    """The reservations of one router, by their streams. Each counts as a call in work until it is over."""

    def __init__(self, link: CalleeLink) -> None:
        self._link = link
        self._kept: dict[int, tuple[Incoming, Callable[[], None]]] = {}

    def __repr__(self) -> str:
        return f"<ReservedSlots {list(self._kept)}>"

    def keep(self, stream: int, incoming: Incoming) -> None:
        """The slot that this has is kept for a call to come. Raises ProtocolError for what is a call in itself."""
        link = self._link
        if incoming.flags & ~(RESERVED | LEASED):
            incoming.reply(b"")
            raise ProtocolError(f"a reservation on stream {stream} with flags {incoming.flags:#x}")
        release = partial(self._release, stream)
        self._kept[stream] = incoming, release
        incoming.on_cancel = release
        link.send(stream, REPLY, MORE | HELD, link.load)
        remaining_s = incoming.meta.remaining_s
        if remaining_s >= 0:
            incoming.expire_at(link.loop.time() + remaining_s)
        incoming.when_draining(release)

    def take(self, stream: int) -> bool:
        """A call takes over the slot that this reservation keeps. False: there is none, any more or ever."""
        found = self._kept.pop(stream, None)
        if found is None:
            return False
        incoming, release = found
        incoming.forget_draining(release)
        incoming.on_cancel = None
        if incoming.timer is not None:
            incoming.timer.cancel()
        del self._link.calls[stream]
        self._link.send(stream, REPLY, load=self._link.load)
        return True

    def _release(self, stream: int) -> None:
        found = self._kept.pop(stream, None)
        if found is not None:
            incoming, release = found
            incoming.forget_draining(release)
            incoming.reply(b"")
