"""headrace.patterns.combining: the mean and the vote of answers of all shapes."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.patterns.combining import mean, vote


def named(answers: list[Any]) -> dict[str, Any]:
    return {f"m{place}": answer for place, answer in enumerate(answers)}


def mean_of(*answers: Any, weights: list[float] | None = None) -> Any:
    return mean(named(list(answers)), named(weights or [1.0] * len(answers)))


def vote_of(*answers: Any, weights: list[float] | None = None) -> Any:
    return vote(named(list(answers)), named(weights or [1.0] * len(answers)))


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        ([1, 2, 6], 3.0),
        ([True, False], 0.5),
        ([[1, 2], (3, 4)], [2.0, 3.0]),
        ([[[0.0], []], [[1.0], []]], [[0.5], []]),
        ([{"cat": 0.25, "dog": [1]}, {"dog": [0], "cat": 0.75}], {"cat": 0.5, "dog": [0.5]}),
        ([7], 7.0),
        ([[], []], []),
    ],
)
def test_means(answers: list[Any], result: Any) -> None:
    assert mean_of(*answers) == result


def test_means_of_arrays() -> None:
    found = mean_of(np.array([[200, 0]], np.uint8), np.array([[100, 2]], np.uint8))
    assert found.tolist() == [[150.0, 1.0]]  # small integers do not overflow
    assert mean_of(np.array([True, True]), np.array([True, False])).tolist() == [1.0, 0.5]
    assert mean_of(np.ones(3, np.float32), np.zeros(3, np.float32)).dtype == np.float32
    assert mean_of(np.float64(1), 2) == 1.5
    assert mean_of({"p": np.array([1.0])}, {"p": np.array([3.0])})["p"].tolist() == [2.0]


def test_arrays_that_came_from_elsewhere_are_not_written_to() -> None:
    first = np.ones(3)
    first.flags.writeable = False
    mean_of(first, np.zeros(3))
    assert first.tolist() == [1.0, 1.0, 1.0]


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0.01, 100)), min_size=1, max_size=6))
def test_a_weighted_mean_lies_between_its_parts_and_is_what_numpy_says(pairs: list[tuple[float, float]]) -> None:
    values, weights = map(list, zip(*pairs, strict=True))
    found = mean_of(*values, weights=weights)
    assert found == pytest.approx(np.average(values, weights=weights), abs=1e-6)
    assert min(values) - 1e-6 <= found <= max(values) + 1e-6


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        (["cat", "dog"], TypeError, "not all numbers .m0: 'cat', m1: 'dog'"),
        ([1, None], TypeError, "not all numbers"),
        ([1, {"a": 1}], TypeError, "not all numbers"),
        ([{"a": 1}, 1], ValueError, "not all dicts of the same keys"),
        ([{"a": 1}, {"b": 1}], ValueError, "not all dicts of the same keys"),
        ([[1], 1], ValueError, "not all lists"),
        ([[1], np.ones(1)], ValueError, "not all lists"),
        ([[1], [1, 2]], ValueError, "lists of different lengths"),
        ([{"a": [1, [2]]}, {"a": [1, [2, 3]]}], ValueError, r"at \['a'\]\[1\] are lists of different lengths"),
        ([np.ones(2), np.ones((2, 2))], ValueError, "arrays of different shapes"),
        ([np.ones(2), 1.0], ValueError, "arrays of different shapes"),
        ([Decimal(1), Decimal(2)], TypeError, "not all numbers"),
        ([object(), object()], TypeError, "not all numbers"),
    ],
)
def test_what_has_no_mean_is_shown(answers: list[Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        mean_of(*answers)
    assert "combine= function of your own" in str(caught.value)


def test_no_number_stays_no_number() -> None:
    assert math.isnan(mean_of(float("nan"), 1.0))


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        (["cat", "dog", "dog"], "dog"),
        (["dog", "cat"], "dog"),  # a tie: the first member's
        (["a", "b", "c", "c", "b"], "b"),
        ([1, 0, 1], 1),
        ([None, "cat", None], None),
        ([["cat", "dog"], ["cat", "cat"], ["dog", "cat"]], ["cat", "cat"]),
        ([np.array(["a", "b"]), np.array(["a", "c"]), np.array(["b", "c"])], ["a", "c"]),
        ([np.array([1, 2]), [1, 3], [1, 3]], [1, 3]),
        ([np.int64(3), 3, 4], 3),
    ],
)
def test_votes(answers: list[Any], result: Any) -> None:
    assert vote_of(*answers) == result


def test_votes_with_weights() -> None:
    assert vote_of("dog", "cat", "dog", weights=[1, 3, 1]) == "cat"
    assert vote_of("dog", "cat", "dog", weights=[1, 2, 1]) == "dog"  # a tie


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_no_label_has_more_votes_than_the_one_that_wins_and_of_equals_it_is_the_first(labels: list[str]) -> None:
    won = vote_of(*labels)
    assert all(labels.count(won) >= labels.count(label) for label in labels)
    equals = [label for label in labels if labels.count(label) == labels.count(won)]
    assert won == equals[0]


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        ([{"label": "cat"}, {"label": "dog"}], TypeError, "are no labels"),
        ([{1}, {2}], TypeError, "are no labels"),
        (["cat", ["cat"]], ValueError, "not all lists"),
        ([["cat"], ["cat", "dog"]], ValueError, "lists of different lengths"),
    ],
)
def test_what_cannot_be_voted_on_is_shown(answers: list[Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        vote_of(*answers)


def test_long_answers_are_cut_in_errors() -> None:
    with pytest.raises(TypeError) as caught:
        mean_of("x" * 10_000, "y\n" * 10_000)
    assert len(str(caught.value)) < 300
