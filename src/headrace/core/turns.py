"""One at a time: the order in which a replica runs suspects, the calls that were in work at a crash.

In come suspects that have a slot; out goes the one to start. At most one suspect is in work, so that a crash convicts
one call at most of having been in work at two.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

CallT = TypeVar("CallT", bound=Hashable)


class Turns(Generic[CallT]):
    """`current` is in work; others wait in the order in which they came."""

    __slots__ = ("_waiting", "current")

    def __init__(self) -> None:
        self.current: CallT | None = None
        self._waiting: dict[CallT, None] = {}

    def __repr__(self) -> str:
        return f"<Turns current={self.current} waiting={len(self._waiting)}>"

    def enter(self, call: CallT) -> bool:
        """Whether the call starts now; else it waits for its turn, which `leave` gives."""
        if self.current is None:
            self.current = call
            return True
        self._waiting[call] = None
        return False

    def leave(self, call: CallT) -> CallT | None:
        """The call has ended, or waits no more. The one to start now, if any."""
        if call is not self.current:
            self._waiting.pop(call, None)
            return None
        self.current = next(iter(self._waiting), None)
        if self.current is not None:
            del self._waiting[self.current]
        return self.current

    def waits(self, call: CallT) -> bool:
        """Whether the call is here and has not started."""
        return call in self._waiting
