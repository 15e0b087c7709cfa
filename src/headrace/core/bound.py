"""Calls that wait for certain replicas alone: for one replica, or for those that have a model.

In: calls with their key, which says what they wait for. Out: of the keys that a replica serves, the call whose turn it
is. A line that is empty is forgotten, so all that asks "which lines are for this replica" is O(lines with calls).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, NamedTuple, TypeVar

from headrace.core.queue import CallQueue

MOST_LINES = 256  # for models: what is asked of the lines looks at each, and clients may name any number of models

CallT = TypeVar("CallT", bound=Hashable)


class Key(NamedTuple):
    """What a call is bound to: the replica of that id, or those that have that model."""

    kind: str
    name: str


def to_replica(replica_id: str) -> Key:
    return Key("replica", replica_id)


def to_model(model_id: str) -> Key:
    return Key("model", model_id)


class BoundLines(Generic[CallT]):
    """A queue for each key for which calls wait. `count`: of all. `unlimited`: of those for one replica, which are
    never refused because many wait.
    """

    __slots__ = ("_deadlines", "_keys", "_lines", "count", "unlimited")

    def __init__(self) -> None:
        self.count = 0
        self.unlimited = 0
        self._lines: dict[Key, CallQueue[CallT]] = {}
        self._keys: dict[CallT, Key] = {}
        self._deadlines: dict[
            CallT, tuple[float, int]
        ] = {}  # and priority, of those that have one and wait for a model

    def __repr__(self) -> str:
        return f"<BoundLines {self.count} calls for {len(self._lines)} keys>"

    def __contains__(self, key: object) -> bool:
        return key in self._lines

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._lines))

    def wait_for(self, serves: Callable[[Key], bool]) -> bool:
        """Whether calls wait for a key that is served."""
        return any(map(serves, self._lines))

    def has_line_for(self, key: Key) -> bool:
        """Whether a call of this key may wait in a line of its own. There are enough for models at some point."""
        return len(self._lines) < MOST_LINES or key in self._lines or key.kind == "replica"

    def put(
        self, key: Key, call: CallT, since: float, priority: int, deadline: float | None = None, back: bool = False
    ) -> None:
        """`call` waits since then; `back`: before those that were never taken."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = CallQueue()
        (line.put_back if back else line.put)(call, since, priority)
        self._keys[call] = key
        if deadline is not None and key.kind == "model":
            self._deadlines[call] = deadline, priority
        self.count += 1
        self.unlimited += key.kind == "replica"

    def take(self, key: Key) -> CallT | None:
        """The call of this key whose turn it is."""
        line = self._lines.get(key)
        call = None if line is None else line.take()
        if call is not None:
            self._taken(key, call)
        return call

    def take_in_time(self, key: Key, late: Callable[[float, int], bool], shed: list[CallT]) -> CallT | None:
        """As `take`, but those that are `late` by their deadline and priority go to `shed`."""
        while (line := self._lines.get(key)) is not None and (call := line.take()) is not None:
            timed = self._deadlines.get(call)
            self._taken(key, call)
            if timed is None or not late(*timed):
                return call
            shed.append(call)
        return None

    def lowest(self) -> int | None:
        """The lowest priority of which a call waits that is not for one replica; None: none does."""
        levels = [line.lowest() for key, line in self._lines.items() if key.kind != "replica"]
        return min((level for level in levels if level is not None), default=None)

    def longest(self) -> int:
        """How many calls wait in the longest line that is not for one replica."""
        return max((line.count for key, line in self._lines.items() if key.kind != "replica"), default=0)

    def take_lowest(self, below: int | None) -> CallT | None:
        """A young call of a low priority (under `below`), of the longest line that has one; not one for one replica."""
        limited = [key for key in self._lines if key.kind != "replica"]
        for key in sorted(limited, key=lambda key: -self._lines[key].count):
            call = self._lines[key].take_lowest(below)
            if call is not None:
                self._taken(key, call)
                return call
        return None

    def discard(self, call: CallT) -> bool:
        """`call` waits no more. False: it did not wait."""
        key = self._keys.get(call)
        if key is None or not self._lines[key].discard(call):
            return False
        self._taken(key, call)
        return True

    def waiting(self, serves: Callable[[Key], bool]) -> int:
        """How many calls wait for keys that are served."""
        return sum(line.count for key, line in self._lines.items() if serves(key))

    def foremost(self, serves: Callable[[Key], bool]) -> tuple[Key, float] | None:
        """Of the keys that are served, that with the call that became due first, and when it did."""
        found: tuple[Key, float] | None = None
        for key, line in self._lines.items():
            due = line.due()
            if due is not None and (found is None or due < found[1]) and serves(key):
                found = key, due
        return found

    def _taken(self, key: Key, call: CallT) -> None:
        self.count -= 1
        self.unlimited -= key.kind == "replica"
        del self._keys[call]
        self._deadlines.pop(call, None)
        if not self._lines[key].count:
            del self._lines[key]
