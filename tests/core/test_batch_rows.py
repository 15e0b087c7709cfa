"""How many rows items make, how many items fit, and whose fault it is when that cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.batch_line import NEVER, Line, Waiting
from headrace.core.batch_rows import Rows, Unmeasured


def entries_of(items: Sequence[Any]) -> list[Waiting]:
    line = Line(None)
    return [Waiting(0.0, number, item, line, 0.0, NEVER, NEVER, 0) for number, item in enumerate(items)]


def padded_length(items: Sequence[int]) -> int:
    """As of texts that are padded to the longest of them."""
    return max(items, default=0) * len(items)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 60), st.sampled_from([sum, padded_length]))
def test_as_many_fit_as_there_is_room_for(items: list[int], limit: int, measure: Any) -> None:
    rows = Rows(measure, ())
    chosen = [entry.item for entry in rows.fit(entries_of(items), limit)]
    assert chosen == items[: len(chosen)]
    assert chosen
    assert measure(chosen) <= limit or len(chosen) == 1
    if len(chosen) < len(items) and measure(chosen) < limit:
        assert measure(items[: len(chosen) + 1]) > limit


def test_measuring_a_batch_takes_few_calls() -> None:
    calls = 0

    def measure(items: Sequence[int]) -> int:
        nonlocal calls
        calls += 1
        return sum(items)

    assert len(Rows(measure, ()).fit(entries_of([3] * 10_000), 1024)) == 341
    assert calls <= 12


@given(st.lists(st.integers(1, 500), max_size=5, unique=True), st.integers(0, 600))
def test_padding_goes_to_the_next_size_and_back(sizes: list[int], rows: int) -> None:
    made = Rows(None, tuple(sorted(sizes)))
    larger = [size for size in sorted(sizes) if size >= rows]
    assert made.padded(rows) == (larger[0] if larger else rows)
    most = made.unpadded(rows)
    assert most <= rows
    assert most == 0 or made.padded(most) <= rows
    assert most == rows or made.padded(most + 1) > rows


@pytest.mark.parametrize(("waiting", "goes"), [(3, 3), (4, 4), (5, 4), (7, 4), (8, 8), (16, 16), (17, 17), (40, 32)])
def test_half_a_batch_of_padding_is_too_much(waiting: int, goes: int) -> None:
    rows = Rows(None, (4, 16, 32, 64))
    assert len(rows.fit(entries_of([1] * waiting), 32)) == goes


def test_one_that_is_too_large_is_not_made_smaller() -> None:
    rows = Rows(sum, (2, 12, 23))
    assert [entry.item for entry in rows.fit(entries_of([3, 1]), 20)] == [3, 1]
    assert [entry.item for entry in rows.fit(entries_of([30]), 20)] == [30]


def test_those_that_cannot_be_measured_are_named_each_with_its_error() -> None:
    def measure(items: Sequence[str]) -> int:
        return sum(map(int, items))

    with pytest.raises(Unmeasured) as caught:
        Rows(measure, ()).fit(entries_of(["1", "x", "2", "y"]), 10)
    assert [(entry.item, str(error)) for entry, error in caught.value.errors] == [
        ("x", "invalid literal for int() with base 10: 'x'"),
        ("y", "invalid literal for int() with base 10: 'y'"),
    ]


def test_the_error_of_one_item_does_not_tell_of_those_of_others() -> None:
    with pytest.raises(Unmeasured) as caught:
        Rows(sum, ()).count(entries_of([1, "two", None]))
    errors = [error for _, error in caught.value.errors]
    assert ["'str'" in str(errors[0]), "'NoneType'" in str(errors[1])] == [True, True]
    assert [error.__context__ for error in errors] == [None, None]


def test_what_ends_the_process_is_not_kept_back() -> None:
    def measure(items: Sequence[str]) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rows(measure, ()).count(entries_of(["a"]))


class Index:
    """As numpy's integers are."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


def test_an_integer_of_another_kind_will_do() -> None:
    assert Rows(lambda items: Index(3), ()).count(entries_of(["a"])) == 3  # type: ignore[arg-type,return-value]
