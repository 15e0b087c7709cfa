"""When a batch leaves, and what is in it.

In: items that wait for one batched function of one servable, with `now`, and batches that ended. Out: the batches to
start, each with its reason; when to ask again; the items to refuse. All times are seconds on one clock.

Work-conserving: while fewer batches run than may, whatever waits leaves, unless `batch_wait_timeout_s` asks to wait;
even so a full batch leaves, and one whose earliest deadline would else be missed. Of several keys the one goes first
whose first item is the most urgent.

The order within a key is that of arrival, a level of priority being worth AGING_S of waiting; with `target_latency_s`
that of deadlines, the earlier of the objective and of the request's own. Items that cannot meet the objective even
alone are late whatever one does: they fill what room the others leave, and while those leave none they have LATE_SHARE
of it. Where the objective is less than what a batch of one costs, it is no objective (`attainable`): batches are as
large as they may be, by arrival. Only items whose own deadline cannot be met are refused, and of those in a row each
PROBE_EVERY-th is tried all the same, so that nothing believed wrongly is believed for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Generic, TypeVar

from headrace.core.batch_cost import BatchCost, Curve
from headrace.core.batch_line import NEVER, Line, Waiting
from headrace.core.batch_rows import Rows, Unmeasured
from headrace.core.batch_size import DEADLINE, EXPIRES, ArrivalRate, Sizing
from headrace.core.lateness import PROBE_EVERY
from headrace.core.queue import AGING_S
from headrace.spec.batching import BatchOptions

ItemT = TypeVar("ItemT", bound=Hashable)

LATE_SHARE = 0.25  # of the places, for late items, while others want them all

_STALE = 64  # places in the heap of turns, before it is made anew


class Reason(Enum):
    """Why a batch left when it did."""

    IDLE = "idle"  # fewer batches ran than may: what waited left at once
    FULL = "full"
    TIMEOUT = "timeout"  # the eldest had waited for batch_wait_timeout_s
    DEADLINE = "deadline"  # before that: its earliest deadline would have been missed
    FREED = "freed"  # a running batch ended, and this had gathered meanwhile

    __hash__ = object.__hash__  # Enum's own is slow, and every batch counts its reason


class Batch(Generic[ItemT]):
    """Items to be worked on together. `size` counts rows; `padded_size` is the next allowed size, or `size`."""

    __slots__ = ("items", "key", "padded_size", "reason", "size", "started_at")

    def __init__(
        self, items: list[ItemT], key: Hashable, size: int, padded_size: int, reason: Reason, started_at: float
    ) -> None:
        self.items = items
        self.key = key
        self.size = size
        self.padded_size = padded_size
        self.reason = reason
        self.started_at = started_at

    def __repr__(self) -> str:
        return f"<Batch of {len(self.items)}, {self.size} rows, key {self.key!r}, {self.reason.value}>"


class Batcher(Generic[ItemT]):
    """The batches of one function. After every event, ask `next` until it answers None, then empty `shed` and `failed`.

    `measure` counts the rows of items as one batch (None: one each), and counts no fewer for more items; it is the
    user's code, and may raise anything.
    """

    def __init__(self, options: BatchOptions, measure: Callable[[Sequence[ItemT]], int] | None = None) -> None:
        self.options = options
        self.cost = BatchCost()
        self.running = 0
        self.releases: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.shed: list[ItemT] = []  # out of the queue: their own deadline cannot be met
        self.failed: list[tuple[ItemT, Exception]] = []  # out of the queue: they could not be measured
        self._rows = Rows(measure, options.allowed_batch_sizes)
        self._rows_each = 1.0  # of late, the mean
        self._entries: dict[ItemT, Waiting] = {}
        self._lines: dict[Hashable, Line] = {}  # none is empty
        self._turns: list[tuple[float, int, Line]] = []  # heap of first entries; stale where they are first no more
        self._serial = 0
        self._freed = False  # the last slot came free, and nobody has asked since
        self._arrivals = ArrivalRate()
        self._late = 0  # items that wait and are late
        self._owed = 0.0  # places of batches, to late items
        self._hopeless = 0  # in a row

    def __repr__(self) -> str:
        late = f", {self._late} of them late" if self._late else ""
        return f"<Batcher {self.waiting} waiting{late}, {self.running} running, {self.cost}>"

    @property
    def waiting(self) -> int:
        return len(self._entries)

    @property
    def attainable(self) -> bool:
        """Whether an item that finds the model idle can be answered within `target_latency_s`, by what is known."""
        return self._attainable(self.cost.curve(None) if self.cost.known else None)

    def configure(self, options: BatchOptions) -> None:
        """Other options from now on; batches that run are not touched."""
        self.options = options
        self._rows = Rows(self._rows.measure, options.allowed_batch_sizes)
        entries = sorted(self._entries.values(), key=lambda entry: entry.serial)
        self._entries.clear()
        self._lines.clear()
        self._turns.clear()
        self._late, self._owed = 0, 0.0
        for entry in entries:
            deadline = None if entry.expires == NEVER else entry.expires
            self.add(entry.item, entry.line.key, entry.since, deadline=deadline, priority=entry.priority)

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
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        since = now - waited_s
        expires = NEVER if deadline is None else deadline
        target = self.options.target_latency_s
        if target is None:
            urgency, until = since, expires
        else:
            urgency = until = min(since + target, expires)
        if priority:
            urgency -= priority * AGING_S
        self._serial += 1
        entry = Waiting(urgency, self._serial, item, line, since, until, expires, priority)
        if self._entries.setdefault(item, entry) is not entry:
            self._tidy(line)
            raise ValueError(f"{item!r} waits already")
        if line.put(entry):
            self._note_first(line)

    def discard(self, item: ItemT) -> bool:
        """`item` waits no more. False: it did not."""
        entry = self._entries.get(item)
        if entry is None:
            return False
        self._remove(entry)
        return True

    def next(self, now: float) -> Batch[ItemT] | None:
        """A batch to start now; it counts as running. None: none is due."""
        while self._entries and self.running < self.options.max_concurrent_batches:
            turn = self._turn(now)
            if turn is None:
                break
            line, reason = turn
            try:
                chosen = self._choose(line, now)
                if chosen:
                    return self._start(line, chosen, reason, now)
            except Unmeasured as unmeasured:
                for entry, error in unmeasured.errors:
                    self._remove(entry)
                    self.failed.append((entry.item, error))
            self._tidy(line)
        self._freed = False
        return None

    def due(self) -> float | None:
        """When `next` must be asked again if nothing else happens; None: not before something else happens."""
        if not self._entries or self.running >= self.options.max_concurrent_batches:
            return None
        return min(self._leaves(line)[0] for line in self._lines.values())

    def ended(self, batch: Batch[ItemT], now: float, learn: bool = True) -> None:
        """`batch` runs no more. `learn` False: it failed or was cancelled, so its duration says nothing."""
        if self.running >= self.options.max_concurrent_batches and self._entries:
            self._freed = True
        self.running -= 1
        if learn and batch.padded_size > 0:  # what a batch without rows takes says nothing of rows
            self.cost.observe(batch.padded_size, now - batch.started_at, batch.key)

    # Waiting

    def _remove(self, entry: Waiting) -> None:
        line = entry.line
        del self._entries[entry.item]
        self._late -= entry.late
        first = line.remove(entry)
        self._tidy(line, first)

    def _tidy(self, line: Line, first_left: bool = True) -> None:
        """Items have left `line`."""
        if line.entries:
            if first_left:
                self._note_first(line)
        elif not line.late and self._lines.get(line.key) is line:
            del self._lines[line.key]

    def _note_first(self, line: Line) -> None:
        """Another item is the first of `line`."""
        first = line.entries[0]
        heappush(self._turns, (first.urgency, first.serial, line))
        if len(self._turns) > 2 * len(self._lines) + _STALE:
            firsts = [(each.entries[0], each) for each in self._lines.values() if each.entries]
            self._turns = [(first.urgency, first.serial, each) for first, each in firsts]
            heapify(self._turns)

    # Turns

    def _turn(self, now: float) -> tuple[Line, Reason] | None:
        """The line that a batch is due of, and why."""
        reason = Reason.FREED if self._freed else Reason.IDLE
        line = None
        if self.options.batch_wait_timeout_s == 0:
            line = self._foremost()
        else:
            for each in self._lines.values():
                if each.entries and (line is None or each.entries[0] < line.entries[0]):
                    leaves, why = self._leaves(each)
                    if leaves <= now:
                        line, reason = each, why
            if self._freed and reason is not Reason.FULL:
                reason = Reason.FREED
        if self._late:
            eldest = min([each for each in self._lines.values() if each.late], key=lambda each: each.late[0])
            share = min(len(eldest.late), self.options.max_batch_size)
            if line is None or (line is not eldest and self._owed >= share):
                return eldest, Reason.FREED if self._freed else self._leaves(eldest)[1]
        return None if line is None else (line, reason)

    def _foremost(self) -> Line | None:
        """The line whose first item is the most urgent of those that are not late."""
        turns = self._turns
        while turns:
            _, serial, line = turns[0]
            if line.entries and line.entries[0].serial == serial:
                return line
            heappop(turns)
        return None

    def _leaves(self, line: Line) -> tuple[float, Reason]:
        """When a batch of `line` leaves that nothing is added to, and why."""
        window_s = self.options.batch_wait_timeout_s
        if line.late or not window_s:
            return -NEVER, Reason.DEADLINE if window_s else Reason.IDLE
        over = line.eldest() + window_s
        curve = None if self._unhurried(line, over) else self._curve(line)
        if self._full(line, self._limit(curve)):
            return -NEVER, Reason.FULL
        if curve is not None:
            forced = line.tightest(self._attainable(curve)) - self._cost(curve, self._rows_each)(len(line))
            if forced < over:
                return forced, Reason.DEADLINE
        return over, Reason.TIMEOUT

    def _full(self, line: Line, limit: int) -> bool:
        if self._rows.measure is None:
            return len(line) >= limit
        if line.rows is None:
            try:
                line.rows = self._rows.count(line.entries)
            except Unmeasured:
                return True  # whose fault it is will be found when the batch is made
        return line.rows >= limit

    # Size

    def _curve(self, line: Line) -> Curve | None:
        """What batches of this key cost, if that is known."""
        return self.cost.curve(line.key) if self.cost.known else None

    def _unhurried(self, line: Line, now: float) -> bool:
        """Whether all deadlines are so far away that nothing need be known."""
        if not line.timed:
            return True
        if line.late or not self.cost.known:
            return False
        rows = self._rows.padded(min(ceil(len(line) * self._rows_each), self.options.max_batch_size))
        return line.not_before(True) - now >= self.cost.bound_s(rows, line.key)

    def _attainable(self, curve: Curve | None) -> bool:
        target = self.options.target_latency_s
        return target is None or curve is None or self._cost(curve, self._rows_each)(1) <= target

    def _cost(self, curve: Curve, each: float) -> Callable[[int], float]:
        """What a batch of so many items costs that have so many rows each."""
        rows = self._rows
        if rows.measure is None and not rows.allowed:
            return curve.of
        return lambda items: curve.of(rows.padded(ceil(items * each)))

    def _limit(self, curve: Curve | None) -> int:
        """The most rows of a batch: with an objective, sizes never seen are approached by doubling."""
        most = self.options.max_batch_size
        if self.options.target_latency_s is None or not self._attainable(curve):
            return most
        return min(most, max(1, 2 * self.cost.largest))

    def _choose(self, line: Line, now: float) -> list[Waiting]:
        """Those that go as one batch; none: nobody of this line could, and it has changed. Raises Unmeasured."""
        if self._unhurried(line, now):
            return self._rows.fit(line.entries, self._limit(None))
        curve = self._curve(line)
        limit = self._limit(curve)
        deadline = DEADLINE if self._attainable(curve) else EXPIRES
        if curve is None:
            self._set_aside(line, now, 0.0, limit, deadline)
            return self._rows.fit(line.entries + line.late, limit) if len(line) else []
        each = self._rows_each
        if self._rows.measure is not None:
            fitting = self._rows.fit(line.entries or line.late, limit)
            each = self._rows.count(fitting) / len(fitting)
        most = max(1, int(limit / each)) if each else len(line)
        cost = self._cost(curve, each)
        if not line.late and line.not_before(deadline is DEADLINE) >= now + cost(min(most, len(line))):
            return self._rows.fit(line.entries, limit)
        had_turn = bool(line.entries)
        self._set_aside(line, now, cost(1), most, deadline)
        if not line.entries and (had_turn or not line.late):
            return []  # those that are late now have their turn among the late ones of all keys
        at_once = self.options.max_concurrent_batches
        sizing = Sizing(now, cost, curve.margin, most, self._arrivals.per_s, at_once, deadline)
        chosen, given_up = sizing.choose(line, min(int(self._owed), len(line.late)), patient=not self._late)
        if self._rows.measure is not None:  # they were chosen by the mean number of rows
            earliest = min(map(deadline, chosen))
            limit = self._rows.unpadded(curve.room(earliest - now, limit))
        chosen = self._rows.fit(chosen, max(1, limit))
        leaving = {entry.serial for entry in chosen} if given_up else ()
        for entry in given_up:
            if entry.serial in leaving:
                continue
            line.make_late(entry)
            self._late += 1
        return chosen

    def _set_aside(
        self, line: Line, now: float, alone_s: float, most: int, deadline: Callable[[Waiting], float]
    ) -> None:
        """Of the first `most` of a line, those that cannot be in time even alone leave it: for the lane of late ones,
        or the queue, when it is their own deadline.
        """
        at_best = now + alone_s
        gone = []
        found = 0
        for entry in line.entries:
            if deadline(entry) < at_best:
                gone.append(entry)
            else:
                found += 1
                if found >= most:
                    break
        for entry in gone + [entry for entry in line.late if entry.expires < at_best]:
            if entry.expires >= at_best:
                line.make_late(entry)
                self._late += 1
                continue
            self._hopeless += 1
            if self._hopeless % PROBE_EVERY or entry.expires <= now:
                self._remove(entry)
                self.shed.append(entry.item)
            else:
                line.excuse(entry)
        if found:
            self._hopeless = 0

    # Start

    def _start(self, line: Line, chosen: list[Waiting], reason: Reason, now: float) -> Batch[ItemT]:
        """Raises Unmeasured, before anything has changed."""
        rows = self._rows.count(chosen)
        items = [entry.item for entry in chosen]
        for item in items:
            del self._entries[item]
        if line.timed:
            self._settle_late(chosen)
            self._arrivals.batch(self._serial, now)
        line.take(chosen)
        self._tidy(line)
        if self._rows.measure is not None:
            weight = 1 / 8 if self.cost.batches else 1.0
            self._rows_each += (rows / len(chosen) - self._rows_each) * weight
        self.running += 1
        self._freed = False
        if rows >= self.options.max_batch_size:
            reason = Reason.FULL
        self.releases[reason] += 1
        return Batch(items, line.key, rows, self._rows.padded(rows), reason, now)

    def _settle_late(self, chosen: list[Waiting]) -> None:
        late = sum([entry.late for entry in chosen])
        self._late -= late
        owed = self._owed + LATE_SHARE * len(chosen) - late if self._late else 0.0
        self._owed = max(0.0, min(owed, float(self.options.max_batch_size)))
