"""A batcher under any order of arrivals, ends, cancellations, changes of options and passing of time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.batching import Batch, Batcher
from headrace.core.queue import AGING_S
from headrace.spec.batching import BatchOptions

NEVER = float("inf")


class Item:
    """`rows` negative: it cannot be measured, alone or with others."""

    def __init__(self, number: int, key: str, since: float, rows: int, deadline: float | None, priority: int) -> None:
        self.number = number
        self.key = key
        self.since = since
        self.rows = rows
        self.deadline = deadline
        self.priority = priority
        self.fate = "waits"

    def __repr__(self) -> str:
        return f"<item {self.number} {self.fate}>"

    def end(self, fate: str) -> None:
        assert self.fate == "waits", f"{self} is {fate} as well"
        self.fate = fate


class CannotBeCounted(Exception):
    pass


def rows_of(items: Sequence[Item]) -> int:
    if any(item.rows < 0 for item in items):
        raise CannotBeCounted
    return sum(item.rows for item in items)


options = st.builds(
    lambda most, window, at_once, target, padded: BatchOptions(
        max_batch_size=most,
        batch_wait_timeout_s=window,
        max_concurrent_batches=at_once,
        target_latency_s=target,
        allowed_batch_sizes=(2, most // 2 + 3, most + 4) if padded else (),
    ),
    st.sampled_from([1, 2, 3, 8, 20]),
    st.sampled_from([0.0, 0.0, 0.005, 0.05]),
    st.integers(1, 3),
    st.sampled_from([None, None, 0.001, 0.01, 0.1]),
    st.sampled_from([False, False, True]),
)


class BatcherMachine(RuleBasedStateMachine):
    """Nothing is lost, nothing goes twice, no limit is exceeded, and nothing waits for longer than it should."""

    @initialize(given=options, measured=st.booleans(), row_s=st.sampled_from([0.0, 0.0001, 0.002]))
    def begin(self, given: BatchOptions, measured: bool, row_s: float) -> None:
        self.options = given
        self.measured = measured
        self.batcher: Batcher[Item] = Batcher(given, rows_of if measured else None)
        self.row_s = row_s
        self.now = 100.0
        self.items: list[Item] = []
        self.batches: list[Batch[Item]] = []
        self.running: list[Batch[Item]] = []

    @rule(
        key=st.sampled_from(["a", "a", "a", "b", "c"]),
        count=st.integers(1, 6),
        rows=st.sampled_from([1, 1, 1, 0, 3, 30, -1]),
        waited_s=st.sampled_from([0.0, 0.0, 0.003, 1.0]),
        left_s=st.sampled_from([None, None, None, 0.0, 0.002, 0.02, 10.0]),
        priority=st.sampled_from([0, 0, 0, 1, -10]),
        asked=st.booleans(),
    )
    def add(
        self, key: str, count: int, rows: int, waited_s: float, left_s: float | None, priority: int, asked: bool
    ) -> None:
        for _ in range(count):
            deadline = None if left_s is None else self.now + left_s
            item = Item(len(self.items), key, self.now - waited_s, rows, deadline, priority)
            self.items.append(item)
            self.batcher.add(item, key, self.now, waited_s=waited_s, deadline=deadline, priority=priority)
            if asked:
                self.ask()
        self.ask()

    @rule(seconds=st.sampled_from([0.0001, 0.001, 0.004, 0.02, 1.0]))
    def advance(self, seconds: float) -> None:
        """As the shell does: it asks at every due moment on the way."""
        until = self.now + seconds
        while (due := self.batcher.due()) is not None and due <= until:
            self.now = max(self.now, due)
            self.ask()
        self.now = until

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), learn=st.sampled_from([True, True, False]), took=st.sampled_from([0, 1, 1, 10]))
    def end(self, which: int, learn: bool, took: int) -> None:
        batch = self.running.pop(which % len(self.running))
        self.now = max(self.now, batch.started_at + took * (0.001 + self.row_s * batch.padded_size))
        self.batcher.ended(batch, self.now, learn)
        self.ask()

    @precondition(lambda self: self.waiting())
    @rule(which=st.integers(0, 1 << 16))
    def discard(self, which: int) -> None:
        waiting = self.waiting()
        item = waiting[which % len(waiting)]
        assert self.batcher.discard(item)
        item.end("discarded")
        assert not self.batcher.discard(item)
        self.ask()

    @rule(given=options)
    def configure(self, given: BatchOptions) -> None:
        self.options = given
        self.batcher.configure(given)
        self.ask()

    def teardown(self) -> None:
        """Whatever waits leaves in the end, once batches end."""
        for _ in range(10 * len(self.items) + 10 if hasattr(self, "items") else 0):
            self.advance(1.0)
            for batch in self.running:
                self.batcher.ended(batch, self.now)
            self.running.clear()
            self.ask()
            if not self.waiting():
                return
        assert not hasattr(self, "items") or not self.waiting()

    def waiting(self) -> list[Item]:
        return [item for item in self.items if item.fate == "waits"]

    def ask(self) -> None:
        batcher = self.batcher
        while (batch := batcher.next(self.now)) is not None:
            assert batcher.running <= self.options.max_concurrent_batches
            assert batch.items
            assert batch.started_at == self.now
            assert {item.key for item in batch.items} == {batch.key}
            rows = rows_of(batch.items) if self.measured else len(batch.items)
            assert batch.size == rows
            assert rows <= self.options.max_batch_size or len(batch.items) == 1
            allowed = [size for size in self.options.allowed_batch_sizes if size >= rows]
            assert batch.padded_size == (allowed[0] if allowed else rows)
            for item in batch.items:
                item.end("started")
            self.batches.append(batch)
            self.running.append(batch)
        for item in batcher.shed:
            assert item.deadline is not None, "only a deadline of its own sheds an item"
            item.end("shed")
        batcher.shed.clear()
        for item, error in batcher.failed:
            assert isinstance(error, CannotBeCounted)
            assert item.rows < 0, "those that can be measured are not failed by those that cannot"
            item.end("failed")
        batcher.failed.clear()
        due = batcher.due()
        assert due is None or due > self.now, "asked for nothing, for ever"

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "batcher"):
            assert self.batcher.waiting == len(self.waiting())
            assert self.batcher.running == len(self.running)
            assert sum(self.batcher.releases.values()) == len(self.batches)
            assert repr(self.batcher)

    @invariant()
    def nothing_waits_beyond_its_window_while_the_model_has_time(self) -> None:
        if hasattr(self, "batcher") and len(self.running) < self.options.max_concurrent_batches:
            for item in self.waiting():
                assert self.now < item.since + self.options.batch_wait_timeout_s


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


arrivals = st.lists(
    st.tuples(st.floats(0, 0.01), st.sampled_from([0.0, 0.5]), st.sampled_from([None, 1.0, 30.0]), st.integers(-2, 2)),
    max_size=30,
)


@pytest.mark.parametrize("target", [None, 5.0])
@given(arrivals, st.integers(1, 7))
def test_the_order_is_that_of_arrival_or_of_deadlines_a_level_of_priority_being_worth_waiting(
    target: float | None, given: list[tuple[float, float, float | None, int]], most: int
) -> None:
    batcher: Batcher[int] = Batcher(BatchOptions(max_batch_size=most, target_latency_s=target))
    now, turns = 0.0, []
    for number, (gap_s, waited_s, left_s, priority) in enumerate(given):
        now += gap_s
        deadline = None if left_s is None else now + left_s
        batcher.add(number, None, now, waited_s=waited_s, deadline=deadline, priority=priority)
        since = now - waited_s
        due = since if target is None else min(since + target, NEVER if deadline is None else deadline)
        turns.append((due - priority * AGING_S, number))
    went: list[int] = []
    while (batch := batcher.next(now)) is not None:
        went += batch.items
        batcher.ended(batch, now, learn=False)
    assert went == [number for _, number in sorted(turns)]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 0.01)), min_size=1, max_size=40))
def test_without_objective_the_key_of_the_eldest_goes_first(given: list[tuple[int, float]]) -> None:
    batcher: Batcher[int] = Batcher(BatchOptions(max_batch_size=4))
    now, waiting = 0.0, []
    for number, (key, gap_s) in enumerate(given):
        now += gap_s
        batcher.add(number, key, now)
        waiting.append((number, key))
    while waiting:
        batch = batcher.next(now)
        assert batch is not None
        assert batch.key == waiting[0][1]
        assert batch.items == [number for number, key in waiting if key == batch.key][:4]
        waiting = [each for each in waiting if each[0] not in batch.items]
        batcher.ended(batch, now)
