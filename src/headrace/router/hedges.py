"""The copies of slow calls of one deployment: when one leaves, and whose answer counts.

In, from the pool and its links: calls that were sent, answered, cancelled, refused, or lost with their replica. Out:
copies to other replicas, and the first answer to the call. Whether a copy may leave is `core.hedging`'s to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.router.call import Call

if TYPE_CHECKING:
    from headrace.router.pool import Pool


class Hedges:
    """The hedged calls of one pool. All on the router's loop."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def came(self, call: Call) -> None:
        """A call was submitted that may be hedged (by its own `hedge`, or its deployment's). Sets `call.observed`."""

    def sent(self, call: Call) -> None:
        """An observed call leaves for a replica (`call.link`): maybe for the second time, when a first one died."""

    def answered(self, call: Call, failed: bool) -> None:
        """The answer of an observed call has come, and is about to be told to it: a copy is not wanted any more."""

    def dropped(self, call: Call) -> None:
        """An observed call was cancelled, or failed before any answer: so is its copy."""

    def survives(self, call: Call) -> bool:
        """A call's replica died, or had no slot. True: a copy of it is under way, which goes on in its place (or the
        call is itself a copy, and no more is to be done about it).
        """
        return False
