"""Models as they are loaded, used and closed, and what is to be done about that: the nouns of `core.models`.

In and out: nothing; `core.models` changes them, the shell around it reads them.
"""

from __future__ import annotations

import enum
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Standing(enum.Enum):
    """Of a model that was loaded."""

    READY = "ready"
    CONDEMNED = "condemned"  # it goes when its last request has ended
    CLOSING = "closing"
    CLOSED = "closed"


class Loaded(Generic[T]):
    """One model in memory. `users` counts the requests that were given it and have not ended."""

    __slots__ = ("model", "size_bytes", "standing", "users", "value")

    def __init__(self, model: str, value: T, size_bytes: int, users: int) -> None:
        self.model = model
        self.value = value
        self.size_bytes = size_bytes
        self.users = users
        self.standing = Standing.READY

    def __repr__(self) -> str:
        return f"<Loaded {self.model!r} {self.standing.value} users={self.users} {self.size_bytes} B>"


class Load:
    """One load of a model, for which `waiters` wait. `hinted`: nobody had asked for it when it began."""

    __slots__ = ("expected_bytes", "hinted", "kept", "model", "since", "started_at", "urgent", "waiters", "waits_for")

    def __init__(self, model: str, now: float, expected_bytes: int, hinted: bool = False) -> None:
        self.model = model
        self.since = now
        self.started_at: float | None = None
        self.expected_bytes = expected_bytes
        self.hinted = hinted
        self.waiters = 0
        self.urgent = False  # it must not wait for room
        self.kept = hinted  # it goes on when nobody waits for it
        self.waits_for: list[Load] = []  # loads that its own loader waits for

    def __repr__(self) -> str:
        state = "waits" if self.started_at is None else "loads"
        return f"<Load {self.model!r} {state} for {self.waiters}{' hinted' if self.hinted else ''}>"

    def leads_to(self, other: Load) -> bool:
        """Whether `other` is waited for by this load's loader, by the loader of one that it waits for, and so on."""
        return self is other or any(load.leads_to(other) for load in self.waits_for)


class Start(NamedTuple):
    """Start this load; `overdue`: though there is no room, for it has waited for long enough."""

    load: Load
    overdue: bool = False


class Cancel(NamedTuple):
    """Nobody wants this load any more."""

    load: Load


class Refuse(NamedTuple):
    """This load will not start any more: nobody waits for it, or all ends."""

    load: Load


class Give(NamedTuple):
    """Those who wait for this load get a model that need not go after all."""

    load: Load
    loaded: Loaded[object]


class Close(NamedTuple):
    """Close this model, and say when it is `closed`."""

    loaded: Loaded[object]


class Changed(NamedTuple):
    """This model is ready, being loaded, or gone now: `standing_of` says which."""

    model: str


Step = Start | Cancel | Refuse | Give | Close | Changed
