"""How many calls the replicas have in work now: asked of their workers when somebody wants the status.

In: who was asked, whose report came, whose connection broke. Out: the moment when all have answered, or have had their
time: a loop that user code stalls holds up nobody's status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

PATIENCE_S = 0.25


class Census:
    """One question to all workers at a time. `ask` sends it, and tells whom it reached."""

    def __init__(self, ask: Callable[[], Iterable[str]]) -> None:
        self._ask = ask
        self._missing: set[str] = set()
        self._over: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<Census {len(self._missing)} missing>"

    async def take(self) -> None:
        """Ask, unless that was done a moment ago, and wait for the answers for `PATIENCE_S` at most."""
        if self._over is None:
            self._over = asyncio.Event()
            self._missing = set(self._ask())
        over = self._over
        if self._missing:
            try:
                await asyncio.wait_for(over.wait(), PATIENCE_S)
            except TimeoutError:
                over.set()  # for those who asked later: it was this question's time
        if self._over is over:
            self._over = None
            self._missing.clear()

    def heard(self, process_id: str) -> None:
        """The worker has reported, or is not connected any more."""
        self._missing.discard(process_id)
        if not self._missing and self._over is not None:
            self._over.set()
