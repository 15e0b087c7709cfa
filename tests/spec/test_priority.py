"""headrace.spec.priority: a small whole number, and an error that says so for all else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.priority import HIGHEST_PRIORITY, LOWEST_PRIORITY, checked_priority, priority_of_text


@given(st.integers(LOWEST_PRIORITY, HIGHEST_PRIORITY))
def test_a_priority_is_taken_as_a_number_and_as_text(priority: int) -> None:
    assert checked_priority(priority) == priority
    assert priority_of_text(str(priority)) == priority
    assert priority_of_text(f" {priority:+d}\t".encode()) == priority


@pytest.mark.parametrize("value", [-11, 11, 2**70, -(2**70)])
def test_one_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(OptionError, match=rf"priority={value} must be a whole number from -10 to 10"):
        checked_priority(value)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, b"1", [1]])
def test_one_of_a_wrong_type_is_refused(value: object) -> None:
    with pytest.raises(OptionTypeError, match=r"priority=.* must be a whole number from -10 to 10, not"):
        checked_priority(value)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-", "+", "11", "-11", "1.0", "high", "1_0", "--1", "+-1", "٣", "1 0", "0x1", "nan", "9" * 5000, "1\n"],
)
def test_text_that_is_no_priority_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="must be a whole number from -10 to 10"):
        priority_of_text(text)
    with pytest.raises(OptionError, match="must be a whole number from -10 to 10"):
        priority_of_text(text.encode())


def test_a_long_text_is_not_repeated_whole() -> None:
    with pytest.raises(OptionError) as caught:
        priority_of_text(b"\xff" * 10_000)
    assert len(str(caught.value)) < 300
