"""A replica that is chosen before the call is made: `handle.choose_replica()`, and `handle.dispatch()` to it.

In: what the choice may go by. Out: to the router, a reservation, which takes a slot at the replica as a call would; to
the user, which replica it is. The call that is dispatched takes the slot over; without one, it is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any

from headrace.handle.call import FAILED, PENDING, REPLIED, HandleCall, until_settled
from headrace.router.reservation import Reservation
from headrace.spec.errors import HeadraceError, InstanceError, LoopBlockedError, OptionError
from headrace.spec.snapshot import ReplicaEntry
from headrace.wire import payload
from headrace.wire.frames import ErrorInfo
from headrace.wire.tcp import parse_address


class SlotCall(Reservation, HandleCall):
    """The reservation behind a ReplicaSelection. REPLIED: a replica keeps a slot, or has kept one."""

    replica_id = ""
    place: ReplicaEntry | None = None  # where the replica is

    def _settled(self) -> bool:
        return self._state != PENDING

    def _send(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Ask for a slot; the arguments stay here, for a router that goes by them."""
        if args or kwargs:
            self.about = payload.encode((args, kwargs))
        runtime = self._runtime
        if runtime.owns_this_thread():
            self._submit(None)
        else:
            runtime.post(self._submit, None)

    def cancel(self) -> None:
        """Do without: while it waits, and also when it has been kept."""
        if self._state == PENDING:
            super().cancel()
        else:
            self.give_back()

    def give_back(self) -> None:
        """The slot is not needed, if no call has used it. From any thread."""
        runtime = self._runtime
        if runtime.owns_this_thread():
            self._give_back(None)
        elif runtime.alive:
            with contextlib.suppress(InstanceError):  # the loop has ended, and the slot with it
                runtime.post(self._give_back, None)

    # ---- on the router's loop

    def on_kept(self) -> None:
        """A replica keeps the slot."""
        if self._state != PENDING:
            return  # it was cancelled, and that is under way
        assert self.link is not None
        self.replica_id = self.link.replica.id
        listed = (each for each in self.link.pool.entry.replicas if each.id == self.replica_id)
        self.place = next(listed, None)
        self._state = REPLIED
        if self._timer is not None:
            self._timer.cancel()  # the replica watches the time from now on
        self._wake()

    def on_over(self) -> None:
        """The slot is kept no more."""
        if self._siblings is not None:
            self._siblings.discard(self)

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        """There is no slot, or it was lost with its replica."""
        self.on_over()
        self._end(FAILED, error)

    def _give_back(self, _: None) -> None:
        self.on_over()
        if self.stands:
            self._runtime.router.cancel(self)


class ReplicaSelection:
    """A replica at which a slot is kept for `handle.dispatch(selection, ...)`, until the `with` block ends."""

    def __init__(self, slot: SlotCall, stream: bool) -> None:
        self._slot = slot
        self._stream = stream
        self._dispatched = False
        self._left = False

    def __repr__(self) -> str:
        slot = self._slot
        state = "dispatched" if self._dispatched else "kept" if slot.stands and not self._left else "over"
        return f"<ReplicaSelection of {slot.app}/{slot._name}: {self.replica_id} {state}>"

    @property
    def replica_id(self) -> str:
        """The replica, such as `Model#3`."""
        return self._slot.replica_id

    @property
    def node_id(self) -> str:
        """The node that it runs on; where there is but one, the name of this machine."""
        place = self._slot.place
        return socket.gethostname() if place is None or not place.node else place.node

    @property
    def node_ip(self) -> str:
        """The address of that node; where there is but one, that of this machine."""
        place = self._slot.place
        if place is None or not place.address.startswith("tcp:"):
            return "127.0.0.1"
        return parse_address(place.address)[0]

    @property
    def port(self) -> int | None:
        """None: replicas are reached by handles."""
        return None

    @property
    def availability_zone(self) -> str | None:
        """None: it is not known."""
        return None

    @property
    def replica_metadata(self) -> dict[str, Any]:
        """Empty: replicas publish none."""
        return {}

    @property
    def address(self) -> str:
        """`node_ip`, for there is no port to name."""
        return self.node_ip

    def to_dict(self) -> dict[str, Any]:
        """What it says, as a dict."""
        names = ("replica_id", "node_ip", "port", "node_id", "availability_zone", "replica_metadata")
        return {name: getattr(self, name) for name in names}

    def _use_for(self, call: HandleCall) -> None:
        """Have the call take over the slot. Raises OptionError when it cannot any more."""
        if self._dispatched:
            raise OptionError(f"a call was dispatched to this selection of {self.replica_id} already: choose again")
        if self._left:
            raise OptionError(
                f"the block of this selection of {self.replica_id} has ended, and its slot was given back: dispatch "
                "inside of `with handle.choose_replica()`"
            )
        self._dispatched = True
        slot = self._slot
        call.slot = slot
        call.target = slot.replica_id
        call.hedge = False
        call.request_id = slot.request_id
        call.revision = slot.revision
        call.deadline = slot.deadline
        call._timed = slot._timed
        call.trace = slot.trace
        call.sticky = slot.sticky
        call.model_id = slot.model_id
        call.priority = slot.priority

    def _leave(self) -> None:
        self._left = True
        self._slot.give_back()


class ReplicaChoice:
    """What `handle.choose_replica()` returns: `async with` it, or `with` it outside of event loops."""

    def __init__(self, begin: Callable[[], SlotCall], stream: bool) -> None:
        self._begin = begin
        self._stream = stream
        self._selection: ReplicaSelection | None = None

    async def __aenter__(self) -> ReplicaSelection:
        slot = self._start()
        if slot._state == PENDING:
            await until_settled(slot)
        return self._selected(slot)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._selection is not None
        self._selection._leave()

    def __enter__(self) -> ReplicaSelection:
        if asyncio._get_running_loop() is not None:
            raise LoopBlockedError(
                "`with handle.choose_replica()` would block the running event loop: use `async with` instead"
            )
        slot = self._start()
        if slot._state == PENDING:
            try:
                slot._block(None)
            except BaseException:  # Ctrl-C, most likely
                slot.cancel()
                raise
        return self._selected(slot)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._selection is not None
        self._selection._leave()

    def _start(self) -> SlotCall:
        if self._selection is not None:
            raise OptionError("what choose_replica() returned was entered already: call it again for another choice")
        return self._begin()

    def _selected(self, slot: SlotCall) -> ReplicaSelection:
        if slot._state != REPLIED:
            raise slot._error()
        self._selection = ReplicaSelection(slot, self._stream)
        return self._selection
