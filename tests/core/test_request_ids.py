"""Ids of requests are UUIDs of version 7, and know when they were made."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.request_ids import new_id, start_of, time_of


@given(st.floats(0, 2**47 / 1000), st.binary(min_size=10, max_size=10))
def test_an_id_is_a_uuid_that_knows_its_time(now_s: float, random: bytes) -> None:
    made = new_id(now_s, random)
    read = uuid.UUID(made)
    assert str(read) == made
    assert (read.version, read.variant) == (7, uuid.RFC_4122)
    at = time_of(made)
    assert at is not None
    assert at == pytest.approx(now_s, abs=0.0011)
    assert made.startswith(start_of(now_s, random[:4]))


def test_they_sort_by_time() -> None:
    made = [new_id(1_700_000_000 + i / 500, bytes(10)) for i in range(100)]
    assert made == sorted(made)


@pytest.mark.parametrize(
    "text",
    ["", "1", "6f1a2b3c-0000-4000-8000-000000000000", "0192f5e0-1234-7abc-c9ab-0123456789ab", "x" * 36, "0" * 10_000],
)
def test_other_ids_tell_no_time(text: str) -> None:
    assert time_of(text) is None
