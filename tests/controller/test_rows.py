"""Rows over a store that is slow, away, lost or taken over: nobody waits, and nothing is missing when it is back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fake_values import FakeValues

from headrace.controller import rows as rows_module
from headrace.controller.journal import Tables
from headrace.controller.rows import MOST_WAITING, Rows
from headrace.spec.errors import InstanceError


def any_rows(tables: Tables) -> None:
    """All can be read."""


def ignore(reason: str) -> None:
    """Of nobody's concern."""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read(values: FakeValues) -> dict[object, bytes]:
    rows = Rows(FakeValues(values.rows.items()))
    rows.open(any_rows, ignore)
    try:
        return dict(rows.table("t"))
    finally:
        rows.close()


@pytest.fixture
def values() -> Iterator[FakeValues]:
    values = FakeValues()
    yield values
    values.away = False
    values.open.set()


@pytest.fixture
def rows(values: FakeValues) -> Iterator[Rows]:
    rows = Rows(values)
    rows.open(any_rows, ignore)
    yield rows
    values.away = False
    values.open.set()
    rows.close()


def test_what_is_written_is_read_at_once_and_settles(values: FakeValues, rows: Rows) -> None:
    values.open.clear()
    rows.write(("t", "a", 1, b"x"), ("t", "a", 2, b"y"))
    rows.write(("t", "a", 2, None))
    assert dict(rows.table("t")) == {("a", 1): b"x"}
    assert dict(rows.table("never")) == {}
    assert repr(rows) == "<Rows state/ 2 transactions behind>"

    async def body() -> None:
        settled = asyncio.create_task(rows.settled())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not settled.done()
        values.open.set()
        await settled
        await rows.settled()

    asyncio.run(body())
    assert read(values) == {("a", 1): b"x"}
    assert repr(rows) == "<Rows state/>"


def test_while_it_is_away_nothing_fails_and_when_it_is_back_nothing_is_missing(
    values: FakeValues, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    rows.write(("t", "a", 0, b"before"))
    asyncio.run(rows.settled())
    values.away = True
    for number in range(1, 5):
        rows.write(("t", "a", number, b"x"))
        rows.write(("t", "a", number, b"y"))
    until(lambda: caplog.records)
    with pytest.raises(InstanceError, match=r"cannot be written to state/: the fake store is away"):
        rows.check()
    values.away = False
    asyncio.run(rows.settled())
    until(lambda: len(caplog.records) == 2)
    rows.check()
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]  # each said once
    assert "is lost if the controller dies" in caplog.text
    assert "written to state/ again, and whole" in caplog.text
    assert read(values) == {("a", 0): b"before", **{("a", number): b"y" for number in range(1, 5)}}


def test_a_store_that_answers_nothing_is_noticed_and_holds_nobody_up(
    values: FakeValues, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows(values, stuck_s=0.01)
    rows.open(any_rows, ignore)
    values.open.clear()
    rows.write(("t", "a", 1, b"x"))

    def refuses() -> bool:
        try:
            rows.check()
        except InstanceError as error:
            return "has answered nothing" in str(error)
        return False

    until(refuses)
    rows.write(("t", "a", 2, b"x"))
    assert len(caplog.records) == 1
    values.open.set()
    asyncio.run(rows.settled())
    rows.check()
    rows.close()
    assert read(values) == {("a", 1): b"x", ("a", 2): b"x"}


def test_what_waits_is_bounded_and_written_anew_then(values: FakeValues, rows: Rows) -> None:
    values.away = True
    for number in range(MOST_WAITING + 10):
        rows.write(("t", "a", number % 100, str(number).encode()))
    assert len(rows._waiting) < MOST_WAITING
    values.away = False
    asyncio.run(rows.settled())
    assert read(values) == dict(rows.table("t"))
    assert len(read(values)) == 100


def test_much_that_waits_goes_in_several_entries(values: FakeValues, rows: Rows) -> None:
    values.open.clear()
    for number in range(100):
        rows.write(("t", "a", number, b"x" * 50_000))
    values.open.set()
    asyncio.run(rows.settled())
    entries = [value for key, value in values.writes if "/log/" in key and value is not None]
    assert len(entries) > 2
    assert max(map(len, entries)) < 2 * rows_module.ENTRY_BYTES
    assert len(read(values)) == 100


def test_a_store_that_came_back_empty_gets_all_again(values: FakeValues, rows: Rows) -> None:
    rows.write(("t", "a", 1, b"x"))
    asyncio.run(rows.settled())
    values.rows.clear()
    rows.write(("t", "a", 2, b"y"))
    asyncio.run(rows.settled())
    assert read(values) == {("a", 1): b"x", ("a", 2): b"y"}


def test_whoever_is_superseded_is_told_and_writes_no_more(values: FakeValues) -> None:
    told: list[str] = []
    first, second = Rows(values), Rows(values)
    first.open(any_rows, told.append)
    first.write(("t", "a", 1, b"x"))
    asyncio.run(first.settled())
    second.open(any_rows, ignore)
    first.write(("t", "a", 1, b"of the past"))
    until(lambda: told)
    assert "another controller" in told[0]
    second.write(("t", "a", 2, b"y"))
    first.close()
    second.close()
    assert read(values) == {("a", 1): b"x", ("a", 2): b"y"}


def test_the_end_writes_what_is_left(values: FakeValues) -> None:
    rows = Rows(values)
    rows.open(any_rows, ignore)
    values.open.clear()
    rows.write(("t", "a", 1, b"x"))
    threading.Timer(0.02, values.open.set).start()
    rows.close()
    rows.close()
    assert read(values) == {("a", 1): b"x"}
    with pytest.raises(InstanceError, match="not open"):
        rows.write(("t", "a", 2, b"y"))


def test_the_end_does_not_wait_for_ever(values: FakeValues, caplog: pytest.LogCaptureFixture) -> None:
    rows = Rows(values, close_s=0.05)
    rows.open(any_rows, ignore)
    values.away = True
    rows.write(("t", "a", 1, b"x"))
    rows.close()
    assert "1 changes of the controller's state could not be written" in caplog.text


def test_a_store_that_is_away_from_the_beginning_is_an_error(values: FakeValues) -> None:
    values.away = True
    with pytest.raises(InstanceError, match=r"cannot be kept in state/: the fake store is away"):
        Rows(values).open(any_rows, ignore)
    values.away = False
    values.put("state/at", b"elsewhere")
    with pytest.raises(InstanceError, match=r"state/at is b'elsewhere', and should be a number"):
        Rows(values).open(any_rows, ignore)


def test_what_cannot_be_read_is_left_there_and_only_the_last_of_it(
    values: FakeValues, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 4):
        rows = Rows(values)
        rows.open(any_rows, ignore)
        assert dict(rows.table("t")) == {}
        rows.write(("t", "a", number, b"x"))
        rows.close()
        values.put(f"state/{number}/head", b"\xc1")
        again = Rows(values)
        again.open(any_rows, ignore)
        assert again.set_aside == f"state/{number}/"
        again.close()
    assert {key.split("/")[1] for key in values.rows} == {"at", "3", "4"}
    assert "begins anew without any application" in caplog.text
