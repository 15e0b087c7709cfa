"""The feed: who is sent what, and which version all routers know."""

from __future__ import annotations

from headrace.controller.feed import ACK_TIMEOUT_S, Feed
from headrace.spec.snapshot import ApplicationEntry, Snapshot, apply
from headrace.wire.control import DeltaMessage, Message, SnapshotMessage


def snapshot(version: int) -> Snapshot:
    entry = ApplicationEntry(name=f"a{version}", route_prefix=None, ingress="D")
    return Snapshot(version=version, applications={entry.name: entry})


class Router:
    """A subscriber that keeps what it is sent."""

    def __init__(self, feed: Feed, id: str, have: Snapshot | None = None, now: float = 0.0) -> None:
        self.snapshot = have or Snapshot()
        self.kinds: list[str] = []
        feed.subscribe(id, self.snapshot.version, self.send, now)

    def send(self, message: Message) -> bool:
        self.kinds.append(type(message).__name__)
        match message:
            case SnapshotMessage(snapshot=whole):
                self.snapshot = whole
            case DeltaMessage(delta=delta):
                self.snapshot = apply(self.snapshot, delta)
        return True


def test_a_subscriber_gets_the_whole_and_then_differences() -> None:
    feed = Feed("default")
    feed.publish(snapshot(1), 0.0)
    router = Router(feed, "r")
    feed.publish(snapshot(2), 0.0)
    assert router.snapshot == snapshot(2)
    assert router.kinds == ["SnapshotMessage", "DeltaMessage"]


def test_who_has_a_recent_one_gets_the_difference_and_who_has_this_one_nothing() -> None:
    feed = Feed("default")
    for version in range(1, 5):
        feed.publish(snapshot(version), 0.0)
    assert Router(feed, "two", snapshot(2)).kinds == ["DeltaMessage"]
    assert Router(feed, "four", snapshot(4)).kinds == []
    assert Router(feed, "future", snapshot(9)).snapshot == snapshot(4)
    for version in range(5, 100):
        feed.publish(snapshot(version), 0.0)
    late = Router(feed, "two", snapshot(2))
    assert late.kinds == ["SnapshotMessage"]
    assert late.snapshot == snapshot(99)


def test_the_oldest_acknowledged_counts() -> None:
    feed = Feed("default")
    assert feed.routed(0.0) == 0
    feed.publish(snapshot(1), 0.0)
    assert feed.routed(0.0) == 1
    Router(feed, "a", snapshot(1))
    Router(feed, "b")
    assert feed.routed(0.0) == 0
    feed.acknowledge("b", 1, 0.0)
    feed.publish(snapshot(2), 1.0)
    feed.acknowledge("a", 2, 1.0)
    assert feed.routed(1.0) == 1
    feed.acknowledge("b", 99, 1.0)  # more than it was sent
    assert feed.routed(1.0) == 2
    feed.publish(snapshot(3), 1.0)
    feed.leave("a")
    feed.leave("b")
    assert feed.routed(1.0) == 3


def test_one_that_is_silent_for_too_long_is_not_waited_for() -> None:
    feed = Feed("default")
    Router(feed, "mute", now=0.0)
    feed.publish(snapshot(1), 100.0)
    feed.publish(snapshot(2), 101.0)
    assert feed.routed(102.0) == 0
    assert feed.next_timeout(102.0) == 100.0 + ACK_TIMEOUT_S
    assert feed.routed(100.0 + ACK_TIMEOUT_S) == 2
    assert feed.next_timeout(100.0 + ACK_TIMEOUT_S) is None
    feed.acknowledge("mute", 2, 200.0)
    feed.publish(snapshot(3), 300.0)
    assert feed.routed(300.0) == 2  # it is counted again


def test_those_who_are_to_come_back_are_waited_for() -> None:
    feed = Feed("default")
    feed.begin(snapshot(7), 7)
    feed.expect("a", 10.0)
    assert feed.routed(10.0) == 0
    Router(feed, "a", snapshot(7), 10.0)
    assert feed.routed(10.0) == 7
    feed.expect("b", 10.0)
    assert feed.routed(10.0 + ACK_TIMEOUT_S) == 7


def test_versions_go_on_from_the_higher_of_disk_and_database() -> None:
    for published, kept, version in [(snapshot(7), 5, 7), (snapshot(5), 7, 7), (None, 7, 7), (None, 0, 0)]:
        feed = Feed("default")
        feed.begin(published, kept)
        assert feed.snapshot.version == version
    feed = Feed("default")
    feed.begin(snapshot(5), 7)  # nobody knows what was in 7: who has it is sent the whole
    assert Router(feed, "r", snapshot(7)).kinds == ["SnapshotMessage"]
