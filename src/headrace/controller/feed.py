"""The snapshots on their way to those who route by them, and what each of them has acknowledged.

In: snapshots from the reconciler, subscriptions and acknowledgements from the control socket. Out: a whole snapshot or
a difference to each subscriber; to the reconciler, the oldest version that some router may still route by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from headrace.spec.snapshot import Snapshot, diff
from headrace.wire.control import DeltaMessage, Message, SnapshotMessage

ACK_TIMEOUT_S = 5.0
_REMEMBERED = 32


@dataclass(slots=True)
class _Subscriber:
    send: Callable[[Message], bool] | None  # None: expected to come, not there yet
    acked: int
    sent: int
    since: float  # when it was first behind


class Feed:
    """Who was told which version. A subscriber that does not acknowledge for `ACK_TIMEOUT_S` is not waited for."""

    def __init__(self, instance: str) -> None:
        self.snapshot = Snapshot(instance=instance)
        self._recent: dict[int, Snapshot] = {}
        self._subscribers: dict[str, _Subscriber] = {}

    def __repr__(self) -> str:
        return f"<Feed at {self.snapshot.version}, {len(self._subscribers)} subscribers>"

    def begin(self, published: Snapshot | None, version: int) -> None:
        """Go on from the snapshot that routers know already (None: not known which), at no lower version than this."""
        if published is not None:
            self.snapshot = msgspec.structs.replace(published, version=max(version, published.version))
            if published.version == self.snapshot.version:
                self._recent[published.version] = self.snapshot
        else:
            self.snapshot = msgspec.structs.replace(self.snapshot, version=version)

    def expect(self, id: str, now: float) -> None:
        """The process routes by some older snapshot and will come back: wait for it as for one that is behind."""
        self._subscribers[id] = _Subscriber(None, 0, 0, now)

    def subscribe(self, id: str, have: int, send: Callable[[Message], bool], now: float) -> None:
        """Send the present snapshot, unless it is the one that the subscriber has, and every one to come."""
        version = self.snapshot.version
        known = self._recent.get(have)
        if known is self.snapshot:
            pass
        elif known is not None:
            send(DeltaMessage(diff(known, self.snapshot)))
        else:
            send(SnapshotMessage(self.snapshot))
        self._subscribers[id] = _Subscriber(send, have if known is not None else 0, version, now)

    def leave(self, id: str) -> None:
        """The subscriber is gone; nobody waits for it."""
        self._subscribers.pop(id, None)

    def acknowledge(self, id: str, version: int, now: float) -> None:
        """The subscriber routes by this version."""
        subscriber = self._subscribers.get(id)
        if subscriber is not None and version > subscriber.acked:
            subscriber.acked = min(version, subscriber.sent)
            subscriber.since = now

    def publish(self, snapshot: Snapshot, now: float) -> None:
        """Make this the present snapshot, and send it to all."""
        before, self.snapshot = self.snapshot, snapshot
        self._recent[snapshot.version] = snapshot
        while len(self._recent) > _REMEMBERED:
            del self._recent[next(iter(self._recent))]
        delta = DeltaMessage(diff(before, snapshot))
        for subscriber in self._subscribers.values():
            if subscriber.send is not None:
                if subscriber.acked >= subscriber.sent:
                    subscriber.since = now
                subscriber.send(delta)
                subscriber.sent = snapshot.version

    def routed(self, now: float) -> int:
        """The oldest version that some router may still route by, those aside that have been silent for too long."""
        awaited = (each.acked for each in self._subscribers.values() if now < each.since + ACK_TIMEOUT_S)
        return min(awaited, default=self.snapshot.version)

    def next_timeout(self, now: float) -> float | None:
        """When the next of those that are behind is given up; None when all know the present snapshot."""
        version = self.snapshot.version
        behind = (
            each.since + ACK_TIMEOUT_S
            for each in self._subscribers.values()
            if each.acked < version and now < each.since + ACK_TIMEOUT_S
        )
        return min(behind, default=None)
