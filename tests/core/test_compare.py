"""Whether two answers say the same: properties, and the text of the first difference."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.compare import difference, first_difference, shortened

NUMBERS = st.integers(-(10**20), 10**20) | st.floats()
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)
TOLERANCES = st.sampled_from([0.0, 1e-9, 0.01, 1.0])


@given(TREES, TOLERANCES, TOLERANCES)
def test_everything_is_the_same_as_its_copy(tree: Any, rtol: float, atol: float) -> None:
    assert difference(tree, tree, rtol, atol) is None
    assert difference(tree, json.loads(json.dumps(tree)), rtol, atol) is None


@given(TREES, TREES)
def test_trees_that_are_not_the_same_differ_both_ways(one: Any, other: Any) -> None:
    found = difference(one, other)
    assert (found is None) == (difference(other, one) is None)
    if found is None:
        assert difference(one, other, 0.5, 0.5) is None, "tolerances only make more the same"
    else:
        assert found.startswith("$")
        assert len(found) < 500


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.data())
def test_numbers_within_the_tolerance_are_the_same_and_no_others(numbers: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(numbers) - 1))
    rtol, atol = data.draw(TOLERANCES), data.draw(TOLERANCES)
    allowed = atol + rtol * abs(numbers[place])
    moved = list(numbers)
    moved[place] += data.draw(st.sampled_from([-0.9, 0.9])) * allowed
    if abs(moved[place] - numbers[place]) <= allowed:
        assert difference({"n": numbers}, {"n": moved}, rtol, atol) is None
    moved[place] = numbers[place] + 1.1 * allowed + 1e-3
    found = difference({"n": numbers}, {"n": moved}, rtol, atol)
    assert found is not None
    assert found.startswith(f"$.n[{place}]: ")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"scores": [1, 2, 3, 0.91]}, {"scores": [1, 2, 3, 0.87]}, "$.scores[3]: 0.91 against 0.87"),
        (1, 1.0, None),
        (True, 1, "$: True against 1"),
        (False, 0, "$: False against 0"),
        (None, 0, "$: None against 0"),
        ("1", 1, "$: '1' against 1"),
        ([1], (1,), None),
        ([1, 2], [1], "$[1]: 2 is missing in the shadow's answer"),
        ([], [None], "$[0]: None is in the shadow's answer alone"),
        ({"a": 1}, {}, "$.a: 1 is missing in the shadow's answer"),
        ({}, {"a b": 1}, "$['a b']: 1 is in the shadow's answer alone"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
        ([1], {"0": 1}, "$: [1] against {'0': 1}"),
        (math.nan, math.nan, None),
        (math.nan, 1.0, "$: nan against 1.0"),
        (math.inf, math.inf, None),
        (math.inf, -math.inf, "$: inf against -inf"),
        (np.array([[1.0, 2.0]]), [[1.0, 2.0]], None),
        (np.array([1, 2]), np.array([1, 3]), "$[1]: 2 against 3"),
        (np.zeros((2, 3)), np.zeros((3, 2)), "$[0][2]: 0.0 is missing in the shadow's answer"),
        (np.float32(1), 1.0, None),
        ({"x": np.int64(1)}, {"x": 2}, "$.x: 1 against 2"),
        ({1, 2}, {2, 1}, None),
        ({1}, {2}, "$: {1} against {2}"),
        (1 + 2j, 1 + 2j, None),
        (b"a", b"b", "$: b'a' against b'b'"),
    ],
)
def test_the_first_difference_is_named(one: Any, other: Any, expected: str | None) -> None:
    assert difference(one, other) == expected


def test_an_infinity_is_near_to_nothing_else() -> None:
    assert difference(math.inf, 1.0, rtol=1.0, atol=1.0) == "$: inf against 1.0"
    assert difference(1.0, math.inf, rtol=1.0, atol=1.0) == "$: 1.0 against inf"


def test_very_large_integers_are_compared_and_shown() -> None:
    assert difference(10**400, 10**400) is None
    assert difference(10**400, 1.0, 0.5, 0.5) is not None
    assert difference(10**9000, 0, 0, 0) == f"$: an integer of {(10**9000).bit_length()} bits against 0"


@dataclasses.dataclass
class Scored:
    label: str
    score: float


def test_fields_of_data_classes_are_compared_one_by_one() -> None:
    assert difference([Scored("a", 1.0)], [Scored("a", 1.001)], rtol=0.01) is None
    assert difference([Scored("a", 1.0)], [Scored("a", 2.0)], rtol=0.01) == "$[0].score: 1.0 against 2.0"


def test_structures_that_contain_themselves_end() -> None:
    def ring(last: int) -> list[Any]:
        made: list[Any] = [1]
        made += [made, {"again": made}, last]
        return made

    assert difference(ring(2), ring(2)) is None
    assert difference(ring(2), ring(3)) == "$[3]: 2 against 3"
    one: list[Any] = []
    other: list[Any] = []
    for _ in range(60):  # 2 to the power of 60 paths
        one, other = [one, one], [other, other]
    assert difference(one, other) is None


def test_deep_nesting_is_no_matter() -> None:
    one: Any = 1
    other: Any = 2
    for _ in range(100_000):
        one, other = [one], [other]
    found = difference(one, other)
    assert found is not None
    assert found.endswith("[0][0]: 1 against 2")
    assert len(found) < 200


class Odd:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    __hash__ = None  # type: ignore[assignment]


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("has no name")


def test_what_classes_of_users_raise_is_raised_and_what_they_do_not_say_is_not_missed() -> None:
    with pytest.raises(RuntimeError, match="cannot be compared"):
        difference(Odd(), Odd())
    found = difference(Unspeakable(), Unspeakable())
    assert found is not None
    assert "Unspeakable" in found


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_the_first_byte_that_differs(start: bytes, one: bytes, other: bytes) -> None:
    place = first_difference(start + one, start + other)
    expected = next(
        (i for i, (a, b) in enumerate(zip(start + one, start + other, strict=False)) if a != b),
        len(start) + min(len(one), len(other)),
    )
    assert place == expected


@given(st.text(max_size=50))
def test_shortened_texts_are_short(text: str) -> None:
    assert len(shortened(text, 10)) <= 10
    assert shortened(text, 50) == text
