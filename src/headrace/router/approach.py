"""A replica of another node to which the connection is being made: what its calls do meanwhile.

In: calls that the pool gives this replica, as it gives them to a link. Out: the calls to the link, once there is one;
or back to the pool, when there is none in time. Nothing has left then, so a call that comes back has not started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.balance import Replica
from headrace.core.places import Question
from headrace.router.call import Call
from headrace.router.link import NONE_WAITS, Link
from headrace.spec.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.router.pool import Pool

# A connection takes a few round trips: whoever has not made it in so long may be cut off, and others may have room.
HELD_S = 1.0


class Approach:
    """Stands in for the link of `replica`, in the slots of which its calls wait: whoever chooses among replicas sees it
    as one with a connection, so it gets its sessions, its models and its share of a burst.
    """

    def __init__(self, pool: Pool, replica: Replica) -> None:
        self.pool = pool
        self.replica = replica
        self.calls: dict[int, Call] = {}
        self._last_stream = 0
        self._models: dict[str, None] = {}
        self._question: Question | None = None
        self._waiting: tuple[int, float] | None = None
        self._timer = pool.loop.call_later(HELD_S, pool.connections.too_slow, replica)

    def __repr__(self) -> str:
        return f"<Approach to {self.replica.id}: {len(self.calls)} calls>"

    # --- as a link -------------------------------------------------------------------------------------------------

    def call(self, call: Call, snapshot: int, flags: int, next_age_ms: int) -> None:
        """The call waits for the connection."""
        self._last_stream += 1
        stream = call.stream = self._last_stream
        call.link = self
        self.calls[stream] = call
        now = call.sent_at = self.pool.loop.time()
        if call.queued_since is None:
            call.queued_since = now
        self.pool.park(call)

    def cancel(self, call: Call) -> None:
        """Nobody waits for it any more."""
        if self.calls.get(call.stream) is call:
            del self.calls[call.stream]
            self.pool.unbook(call, self.replica)

    def load(self, model: str) -> None:
        self._models[model] = None

    def tell_places(self, question: Question) -> None:
        self._question = question

    def tell_waiting(self, count: int, urgency_s: float) -> None:
        self._waiting = count, urgency_s

    def tell_withdrawn(self) -> None:
        self._waiting = None

    def consumed(self, stream: int, count: int) -> None:
        """Nothing has come that could be."""

    def drop_outflow(self, stream: int) -> None:
        """What there is of the body is the call's own, still."""

    def leave(self) -> None:
        """The replica takes no calls any more: they go elsewhere."""
        self.give_up()

    # --- how it ends -----------------------------------------------------------------------------------------------

    def hand_over(self, link: Link) -> None:
        """The connection is there."""
        for call in self._end():
            if link.closed:  # it broke at once, and the pool knows
                self.pool.returned(call)
                continue
            if call.expiry is not None:
                call.expiry.cancel()
                call.expiry = None
            sent_at = call.sent_at
            link.call(call, self.pool.router.snapshot.version, 0, NONE_WAITS)
            call.sent_at = sent_at  # for its caller, it has been under way since then
        for model in self._models:
            link.load(model)
        if self._question is not None:
            link.tell_places(self._question)
        if self._waiting is not None:
            link.tell_waiting(*self._waiting)

    def give_up(self) -> None:
        """There is no connection, or not soon; the balancer has the replica no more."""
        for call in self._end():
            self.pool.returned(call)

    def cut(self, error: HeadraceError) -> None:
        """The router closes: calls end with `error`."""
        for call in self._end():
            if call.expiry is not None:
                call.expiry.cancel()
            call.on_error(error)

    def _end(self) -> list[Call]:
        self._timer.cancel()
        calls, self.calls = self.calls, {}
        return list(calls.values())
