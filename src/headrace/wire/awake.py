"""Keeps an event loop from sleeping for a moment, while what it waits for is near. The shell of `core.busywait`.

In: from a link, that it begins to wait, and that what it waited for came. Out: turns of the event loop that do nothing
but let it look at its sockets again at once. Whatever else comes meanwhile is served as ever.
"""

from __future__ import annotations

import asyncio
import os
from time import perf_counter

from headrace.core.busywait import LONGEST_S, BusyWait

SWITCH = "HEADRACE_BUSY_WAIT"  # "0": never wait awake


class Awake:
    """One process's waiting for one thing at a time. `since` is when it began (0: it does not wait)."""

    __slots__ = ("_loop", "_turning", "_wait", "since")

    def __init__(self, loop: asyncio.AbstractEventLoop, wait: BusyWait) -> None:
        self._loop = loop
        self._wait = wait
        self._turning = False
        self.since = 0.0

    def begin(self) -> None:
        """From now on the loop has nothing to do but wait."""
        self.since = perf_counter()
        if not self._turning and self._wait.worthwhile():
            self._turning = True
            self._loop.call_soon(self._turn)

    def crowded(self) -> None:
        """There is more than one thing to wait for: do not, until it has been quiet again for some time."""
        self.since = 0.0
        self._wait.crowded()

    def came(self) -> None:
        """What was waited for is here."""
        self._wait.heard(perf_counter() - self.since)
        self.since = 0.0

    def _turn(self) -> None:
        if self.since and perf_counter() - self.since < LONGEST_S:
            self._loop.call_soon(self._turn)
        else:
            self._turning = False


def awake_for(loop: asyncio.AbstractEventLoop) -> Awake | None:
    """What a process of this machine waits with; None where waiting awake could only do harm."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processors < 2 or os.environ.get(SWITCH) == "0":
        return None
    return Awake(loop, BusyWait())
