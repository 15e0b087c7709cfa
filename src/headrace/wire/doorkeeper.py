"""Who stands at the door of a listener and has not proved yet who they are: how many, and what is said of them.

In: newcomers by their source (an IP address), and how it ended with them. Out: those to be turned away; log lines. No
socket and no clock here: whoever listens has each of them turned away after PATIENCE_S.

What holds here: of one source at most LIMIT_A_SOURCE newcomers are kept, and of all strangers at most LIMIT, whatever
comes; the eldest is turned away for a new one, so that those who prove at once who they are get in however many others
stand there; a source that fails is logged once, and of the first SOURCES such sources alone.

A stranger is of a source of which none has proved yet that it belongs. Where one has, others of it do too, as the
processes of a node that all come anew when a controller is back: they stand beside the strangers, and neither keeps out
the other, however many nodes there are. At most KIN such sources are remembered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("headrace.wire")

LIMIT = 128
LIMIT_A_SOURCE = 32
PATIENCE_S = 5.0  # a handshake takes two round trips
SOURCES = 1000
KIN = 1000


class Newcomer:
    """One that has not proved yet who it is. `turn_away` closes its connection."""

    __slots__ = ("source", "turn_away")

    def __init__(self, source: str, turn_away: Callable[[], object]) -> None:
        self.source = source
        self.turn_away = turn_away

    def __repr__(self) -> str:
        return f"<Newcomer from {self.source}>"


class Doorkeeper:
    """The newcomers of one listener, which `where` names in log lines."""

    def __init__(self, where: str, limit: int = LIMIT, limit_a_source: int = LIMIT_A_SOURCE) -> None:
        self._where = where
        self._limit = limit
        self._limit_a_source = limit_a_source
        self._waiting: dict[str, dict[Newcomer, None]] = {}  # by source, each in the order in which they came
        self._count = 0
        self._strangers = 0
        self._kin: dict[str, None] = {}  # those of longest ago first
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"<Doorkeeper of {self._where}: {self._count} newcomers of {len(self._waiting)} sources>"

    def __len__(self) -> int:
        return self._count

    def enter(self, source: str, turn_away: Callable[[], object]) -> Newcomer:
        """One has come. Others may be turned away for it; say of each, that one included, when it has `left`."""
        same = self._waiting.get(source, {})
        if len(same) >= self._limit_a_source:
            self._make_room(source)
        elif source not in self._kin and self._strangers >= self._limit:
            strangers = (each for each in self._waiting if each not in self._kin)
            self._make_room(max(strangers, key=lambda each: len(self._waiting[each])))
        newcomer = Newcomer(source, turn_away)
        self._waiting.setdefault(source, {})[newcomer] = None
        self._count += 1
        self._strangers += source not in self._kin
        return newcomer

    def proved(self, source: str) -> None:
        """One of this source has proved that it belongs to the instance."""
        if source in self._kin:
            del self._kin[source]
        else:
            self._strangers -= len(self._waiting.get(source, ()))
        self._kin[source] = None
        if len(self._kin) > KIN:
            eldest = next(iter(self._kin))
            del self._kin[eldest]
            self._strangers += len(self._waiting.get(eldest, ()))

    def left(self, newcomer: Newcomer) -> None:
        """It has proved who it is, or is gone. No more than once is needed."""
        same = self._waiting.get(newcomer.source)
        if same is not None and newcomer in same:
            del same[newcomer]
            self._count -= 1
            self._strangers -= newcomer.source not in self._kin
            if not same:
                del self._waiting[newcomer.source]

    def failed(self, source: str, reason: str) -> None:
        """One of this source did not prove who it is: say so, if this source was not named before."""
        if source in self._told or len(self._told) >= SOURCES:
            return
        self._told.add(source)
        log.warning("%s: refused a connection from %s: %s (not logged again for it)", self._where, source, reason)
        if len(self._told) == SOURCES:
            log.warning("%s: %d sources were refused; no other will be logged", self._where, SOURCES)

    def close(self) -> None:
        """Turn all away."""
        for same in list(self._waiting.values()):
            for newcomer in list(same):
                self.left(newcomer)
                newcomer.turn_away()

    def _make_room(self, source: str) -> None:
        eldest = next(iter(self._waiting[source]))
        self.left(eldest)
        self.failed(source, "too many at once that did not prove who they are")
        eldest.turn_away()
