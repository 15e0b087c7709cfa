"""When a batch leaves, and what is in it.

In: items that wait for one batched function of one servable, with `now`, and batches that ended. Out: the batches to
start, each with its reason; when to ask again; the items to refuse. All times are seconds on one clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Generic, TypeVar

from headrace.spec.batching import BatchOptions

ItemT = TypeVar("ItemT", bound=Hashable)


class Reason(Enum):
    """Why a batch left when it did."""

    IDLE = "idle"  # fewer batches ran than may: what waited left at once
    FULL = "full"
    TIMEOUT = "timeout"  # the eldest had waited for batch_wait_timeout_s
    DEADLINE = "deadline"  # later, its earliest deadline would have been missed
    FREED = "freed"  # a running batch ended, and this had gathered meanwhile


class Batch(Generic[ItemT]):
    """Items to be worked on together. `size` counts rows; `padded_size` is the next allowed size, or `size`."""

    __slots__ = ("items", "key", "padded_size", "reason", "size", "started_at")

    def __init__(self, items: list[ItemT], key: Hashable, size: int, reason: Reason, started_at: float) -> None:
        self.items = items
        self.key = key
        self.size = size
        self.padded_size = size
        self.reason = reason
        self.started_at = started_at

    def __repr__(self) -> str:
        return f"<Batch of {len(self.items)}, {self.size} rows, key {self.key!r}, {self.reason.value}>"


class Batcher(Generic[ItemT]):
    """The batches of one function. After every event, ask `next` until it answers None, then empty `shed` and `failed`.

    `measure` counts the rows of items as one batch (None: one each); it is the user's code, and may raise anything:
    the items for which it does come to `failed`, with the error.
    """

    def __init__(self, options: BatchOptions, measure: Callable[[Sequence[ItemT]], int] | None = None) -> None:
        self.options = options
        self.measure = measure
        self.shed: list[ItemT] = []  # out of the queue: their own deadline cannot be met
        self.failed: list[tuple[ItemT, Exception]] = []  # out of the queue: they could not be measured
        self.releases: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.waiting = 0
        self.running = 0
        self._lines: dict[Hashable, OrderedDict[ItemT, float]] = {}
        self._keys: dict[ItemT, Hashable] = {}
        self._freed = False

    def __repr__(self) -> str:
        return f"<Batcher {self.waiting} waiting, {self.running} running>"

    @property
    def attainable(self) -> bool:
        """Whether an item that finds the model idle can be answered within `target_latency_s`, by what is known."""
        return True

    def configure(self, options: BatchOptions) -> None:
        """Other options from now on; batches that run are not touched."""
        self.options = options

    def add(
        self,
        item: ItemT,
        key: Hashable,
        now: float,
        *,
        waited_s: float = 0.0,
        deadline: float | None = None,
        priority: int = 0,
    ) -> None:
        """`item` waits; only items of the same key share a batch. It has waited `waited_s` already, elsewhere."""
        self._lines.setdefault(key, OrderedDict())[item] = now - waited_s
        self._keys[item] = key
        self.waiting += 1

    def discard(self, item: ItemT) -> bool:
        """`item` waits no more. False: it did not."""
        if item not in self._keys:
            return False
        key = self._keys.pop(item)
        del self._lines[key][item]
        if not self._lines[key]:
            del self._lines[key]
        self.waiting -= 1
        return True

    def next(self, now: float) -> Batch[ItemT] | None:
        """A batch to start now; it counts as running. None: none is due."""
        if self.running >= self.options.max_concurrent_batches or not self.waiting:
            return None
        for key, line in self._lines.items():
            full = len(line) >= self.options.max_batch_size
            over = now >= next(iter(line.values())) + self.options.batch_wait_timeout_s
            if full or over:
                return self._start(key, line, full, now)
        return None

    def _start(self, key: Hashable, line: OrderedDict[ItemT, float], full: bool, now: float) -> Batch[ItemT]:
        items = []
        while line and len(items) < self.options.max_batch_size:
            item = line.popitem(last=False)[0]
            del self._keys[item]
            items.append(item)
        if not line:
            del self._lines[key]
        self.waiting -= len(items)
        self.running += 1
        if full:
            reason = Reason.FULL
        elif self.options.batch_wait_timeout_s:
            reason = Reason.TIMEOUT
        else:
            reason = Reason.FREED if self._freed else Reason.IDLE
        self.releases[reason] += 1
        return Batch(items, key, len(items) if self.measure is None else self.measure(items), reason, now)

    def due(self) -> float | None:
        """When `next` must be asked again if nothing else happens; None: not before something else happens."""
        if self.running >= self.options.max_concurrent_batches or not self.waiting:
            return None
        return min(next(iter(line.values())) for line in self._lines.values()) + self.options.batch_wait_timeout_s

    def ended(self, batch: Batch[ItemT], now: float, learn: bool = True) -> None:
        """`batch` runs no more. `learn` False: it failed or was cancelled, so its duration says nothing."""
        self.running -= 1
        self._freed = bool(self.waiting)
