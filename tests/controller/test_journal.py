"""The journal: whatever was cut off, failed or came late, what is read is the state after some transaction."""

from __future__ import annotations

import copy

import msgspec
import pytest
from fake_values import FakeValues, Fate
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.controller.blobs import Blob, BlobBroken, Blobs
from headrace.controller.journal import Change, Journal, JournalBroken, Superseded, Tables, apply

SIZES = {"part_bytes": 50, "inline_bytes": 20, "most_entries": 3}
VALUES = st.one_of(st.none(), st.binary(max_size=5), st.sampled_from([bytes([n]) * 70 for n in range(3)]))
CHANGES = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["", "x/y"]), st.one_of(st.integers(0, 2)), VALUES),
    min_size=1,
    max_size=3,
)


def written(tables: Tables) -> Tables:
    """Without tables that have no rows, of which nothing is kept."""
    return {name: dict(rows) for name, rows in tables.items() if rows}


def read(values: FakeValues) -> Tables:
    return written(Journal(values, "s/", **SIZES).load())


class Story:
    """Controllers one after the other, each with the journal; and what may be read at each moment."""

    def __init__(self) -> None:
        self.values = FakeValues()
        self.states: list[Tables] = [{}]
        self.sure: list[tuple[int, int]] = []  # from this write on, no state before this one may be read
        self.waiting: list[Change] = []
        self.next()

    def next(self) -> None:
        """The next controller takes over."""
        self.values.fate = lambda key: "done"
        self.journal = Journal(self.values, "s/", **SIZES)
        self.tables = self.journal.load()
        self.waiting = []
        self.states.append(written(self.tables))
        self.journal.begin(self.tables)
        self._is_sure()

    def _is_sure(self) -> None:
        self.sure.append((len(self.values.writes), len(self.states) - 1))

    def change(self, changes: list[Change], fates: list[Fate]) -> None:
        """One transaction, tried until it is written or there are no more fates."""
        left = iter(fates)
        self.values.fate = lambda key: next(left, "done")
        apply(self.tables, changes)
        self.waiting += changes
        self.states.append(copy.deepcopy(written(self.tables)))
        try:
            if self.journal.needs_base:
                self.journal.begin(self.tables)
            else:
                self.journal.append(self.waiting)
        except OSError:
            return
        self.waiting = []
        self._is_sure()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), CHANGES, st.lists(st.sampled_from(["done", "refused", "done, and refused"]))),
        st.tuples(st.just("change"), CHANGES, st.just([])),
        st.tuples(st.just("next"), st.none(), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_after_any_write_a_state_can_be_read_and_none_that_is_too_old(steps: list[tuple[str, object, object]]) -> None:
    story = Story()
    for what, changes, fates in steps:
        if what == "next":
            story.next()
        else:
            story.change(changes, fates)  # type: ignore[arg-type]
    assert read(story.values) in story.states
    seen = FakeValues()
    for count, (key, value) in enumerate(story.values.writes, 1):
        seen._write(key, value)
        least = max((state for writes, state in story.sure if writes <= count), default=0)
        assert read(seen) in story.states[least:], (count, key)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CHANGES, st.sampled_from(["done", "late", "refused"])), max_size=10), st.data())
def test_entries_that_come_late_change_nothing(steps: list[tuple[list[Change], Fate]], data: st.DataObject) -> None:
    story = Story()
    for changes, fate in steps:
        story.change(changes, [fate] if not story.journal.needs_base else [])
        while story.values.late and data.draw(st.booleans()):
            story.values.arrive()
    story.change([("a", "", 0, b"the last")], [])
    while story.values.late:
        story.values.arrive()
    assert read(story.values) == story.states[-1]
    story.next()
    assert story.states[-1] == story.states[-2]


def test_late_writes_of_a_controller_that_was_cut_off_reach_nothing() -> None:
    values = FakeValues()
    first, second = Journal(values, "s/", **SIZES), Journal(values, "s/", **SIZES)
    first.begin({"t": {("a", 1): b"x"}})
    values.fate = lambda key: "late"
    with pytest.raises(OSError, match="away"):
        first.append([("t", "a", 1, b"of long ago")])
    values.fate = lambda key: "done"
    second.begin(second.load())
    second.append([("t", "a", 2, b"y")])
    values.arrive()
    assert read(values) == {"t": {("a", 1): b"x", ("a", 2): b"y"}}
    for write in (lambda: first.append([("t", "a", 1, b"z")]), lambda: first.begin({})):
        with pytest.raises(Superseded, match="another controller writes s/head"):
            write()
    assert read(values) == {"t": {("a", 1): b"x", ("a", 2): b"y"}}


def test_a_store_that_came_back_empty_gets_all_again() -> None:
    values = FakeValues()
    journal = Journal(values, "s/", **SIZES)
    tables: Tables = {"t": {("a", 1): b"x" * 70, ("a", 2): b"y"}}
    journal.begin(tables)
    values.rows.clear()
    assert not journal.needs_base
    with pytest.raises(OSError, match="has lost what it kept"):
        journal.append([("t", "a", 2, b"z")])
    assert journal.needs_base
    journal.begin(tables)
    assert read(values) == tables


def test_large_values_are_there_once_and_what_nobody_names_goes() -> None:
    values = FakeValues()
    journal = Journal(values, "s/", **SIZES)
    journal.begin({})
    large = b"x" * 120
    journal.append([("t", "a", 1, large), ("t", "a", 2, large), ("t", "a", 3, b"y" * 21)])
    blobs = {key.split("/")[2] for key in values.rows if key.startswith("s/blob/")}
    assert len(blobs) == 3  # with the base
    assert max(len(value) for value in values.rows.values()) <= 300
    again = Journal(values, "s/", **SIZES)
    tables = again.load()
    del tables["t"]["a", 3]
    again.begin(tables)
    parts = [value for key, value in values.rows.items() if key.startswith("s/blob/")]
    assert sorted(len(part) for part in parts if set(part) == {ord("x")}) == [20, 50, 50]
    assert not [part for part in parts if set(part) == {ord("y")}]
    assert not [key for key in values.rows if key.startswith("s/log/")]
    assert read(values) == {"t": {("a", 1): large, ("a", 2): large}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("s/head", b"\xc1"),
        ("s/head", msgspec.msgpack.encode([99, "w", "g", ["0" * 64, 1]])),
        ("s/log/", b"no entry"),
        ("s/log/", msgspec.msgpack.encode([["t", "a", 1, ["0" * 64, 5]]])),
        ("s/blob/", b"other bytes"),
        ("s/blob/", None),
    ],
)
def test_what_cannot_be_read_is_said_to_be_broken(key: str, value: bytes | None) -> None:
    values = FakeValues()
    journal = Journal(values, "s/", **SIZES)
    journal.begin({})
    journal.append([("t", "a", 1, b"x" * 70)])
    for found in [name for name in values.rows if name.startswith(key)]:
        values._write(found, value)
    with pytest.raises(JournalBroken):
        journal.load()


def test_one_who_reads_while_another_writes_reads_again() -> None:
    values = FakeValues()
    journal = Journal(values, "s/", **SIZES)
    journal.begin({"t": {("a", 1): b"x"}})

    class Meanwhile(FakeValues):
        """At the first look at the log, the writer begins a new generation."""

        def keys(self, prefix: str) -> list[str]:
            found = values.keys(prefix)
            if journal is not None and not begun:
                begun.append(True)
                journal.append([("t", "a", 2, b"y")])
                found = values.keys(prefix)
                journal.begin({"t": {("a", 1): b"x", ("a", 2): b"y"}})
            return found

        def get(self, key: str) -> bytes | None:
            return values.get(key)

    begun: list[bool] = []
    assert Journal(Meanwhile(), "s/", **SIZES).load() == {"t": {("a", 1): b"x", ("a", 2): b"y"}}


def test_of_a_value_all_parts_or_nothing() -> None:
    values = FakeValues()
    blobs = Blobs(values, "b/", part_bytes=4)
    blob = blobs.put(b"0123456789")
    assert sorted(values.rows.values()) == [b"0123", b"4567", b"89"]
    assert Blobs(values, "b/", part_bytes=100).get(blob) == b"0123456789"
    assert blobs.get(blobs.put(b"")) == b""
    writes = len(values.writes)
    blobs.put(b"0123456789")
    assert len(values.writes) == writes
    values.delete(f"b/{blob.sha256}/1")
    with pytest.raises(BlobBroken, match=r"is not what its name says|of its 10 bytes"):
        blobs.get(blob)
    with pytest.raises(BlobBroken, match="has 0 of its 3 bytes"):
        blobs.get(Blob("0" * 64, 3))
