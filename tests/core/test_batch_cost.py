"""What a batch costs by its size, as it is learned."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.core.batch_cost import (
    FAR,
    LEARNED_AFTER,
    LEAST_BATCHES,
    MARGINS,
    MOST_MARGIN,
    BatchCost,
    Curve,
)


def model(rows: int, times: float = 1.0) -> float:
    return (0.002 + 0.00005 * rows) * times


def learned(sizes: list[int], times: float = 1.0, noise: float = 0.0, seed: int = 1) -> BatchCost:
    cost, random = BatchCost(), Random(seed)
    teach(cost, sizes, times, noise, random)
    return cost


def teach(
    cost: BatchCost, sizes: list[int], times: float = 1.0, noise: float = 0.0, random: Random | None = None
) -> None:
    for rows in sizes:
        seconds = model(rows, times)
        if random is not None:
            seconds *= random.lognormvariate(0, noise)
        cost.observe(rows, seconds)
        cost.curve(None)


def some_sizes(count: int, least: int, most: int, seed: int = 1) -> list[int]:
    random = Random(seed)
    return [random.randint(least, most) for _ in range(count)]


def test_nothing_is_known_of_few() -> None:
    cost = learned([1] * (LEAST_BATCHES - 1))
    assert not cost.known
    assert repr(cost) == f"<BatchCost not known, {LEAST_BATCHES - 1} seen>"
    teach(cost, [1])
    assert cost.known
    assert repr(cost) == f"<BatchCost 0.000000 s + 0.0020500 s a row, margin 1.00, from {LEAST_BATCHES}>"


def test_two_sizes_make_a_line() -> None:
    cost = learned([1, 1, 1, 16, 16, 1, 16, 16])
    for rows in (1, 4, 16, 64):
        assert cost.curve(None).of(rows) == pytest.approx(model(rows), rel=0.1)
    assert cost.largest == 16


@given(st.lists(st.integers(1, 64), min_size=20, max_size=60).filter(lambda sizes: max(sizes) > 3 * min(sizes)))
@example([11, 8, 8, *17 * [1]])  # what was not foreseen of the first ones is in the margin still
def test_a_line_is_found_among_the_sizes_seen(sizes: list[int]) -> None:
    curve = learned(sizes).curve(None)
    for rows in sizes:
        assert curve.of(rows) >= 0.85 * model(rows)
        assert curve.of(rows) / curve.margin <= 1.25 * model(rows)


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5])
def test_it_is_the_upper_quantile(noise: float) -> None:
    """Of the batches after those that it learned from, about one in 20 takes longer."""
    random = Random(5)
    cost = learned(some_sizes(300, 1, 40), noise=noise)
    longer = 0
    for rows in some_sizes(2000, 1, 40, seed=2):
        seconds = model(rows) * random.lognormvariate(0, noise)
        longer += seconds > cost.curve(None).of(rows)
        cost.observe(rows, seconds)
    assert 0.01 <= longer / 2000 <= (0.1 if noise < 0.4 else 0.2), "where its margin ends, more do"


class TestOneSize:
    """Nothing tells what is fixed from what is each row's: a larger batch is taken to be dear, a smaller one cheap."""

    def test_costs_count_as_proportional(self) -> None:
        curve = learned([16] * 100).curve(None)
        assert curve.of(16) == pytest.approx(model(16))
        assert curve.of(32) == pytest.approx(2 * model(16))
        assert curve.of(1) == pytest.approx(model(16) / 16)

    def test_sizes_near_each_other_tell_no_more(self) -> None:
        curve = learned([31, 32] * 100, noise=0.1).curve(None)
        assert curve.of(64) > 1.5 * curve.of(32)

    def test_the_first_batch_of_another_size_tells(self) -> None:
        cost = learned([1] * 100)
        assert cost.curve(None).of(30) > 10 * model(30)
        teach(cost, [30])
        assert cost.curve(None).of(30) == pytest.approx(model(30), rel=0.05)
        assert cost.curve(None).of(10) == pytest.approx(model(10), rel=0.1)

    def test_sizes_that_are_not_seen_any_more_are_remembered(self) -> None:
        cost = learned(some_sizes(100, 1, 40))
        teach(cost, [32] * 2000)
        for rows in (1, 8, 32, 64):
            assert cost.curve(None).of(rows) == pytest.approx(model(rows), rel=0.15)


class TestSteps:
    @pytest.mark.parametrize("times", [3.0, 10.0, 1 / 3, 1 / 10])
    def test_a_step_is_learned_after_a_few_batches(self, times: float) -> None:
        cost = learned(some_sizes(200, 1, 40))
        teach(cost, some_sizes(LEARNED_AFTER, 1, 40, seed=3), times)
        for rows in (1, 5, 20, 40):
            assert cost.curve(None).of(rows) == pytest.approx(model(rows, times), rel=0.15)

    @pytest.mark.parametrize("times", [3.0, 1 / 3])
    def test_with_noise_as_well(self, times: float) -> None:
        random = Random(7)
        cost = learned(some_sizes(200, 1, 40), noise=0.15)
        teach(cost, some_sizes(LEARNED_AFTER, 1, 40, seed=3), times, 0.15, random)
        for rows in (5, 20, 40):
            assert 0.75 * model(rows, times) <= cost.curve(None).of(rows) <= 1.6 * model(rows, times)

    def test_sizes_not_seen_since_have_changed_in_proportion(self) -> None:
        cost = learned(some_sizes(200, 1, 40))
        teach(cost, [4] * 50, 3.0)
        assert cost.curve(None).of(40) == pytest.approx(model(40, 3.0), rel=0.15)

    def test_a_small_change_is_followed_too(self) -> None:
        cost = learned(some_sizes(200, 1, 40))
        teach(cost, some_sizes(100, 1, 40, seed=2), 1.3)
        for rows in (1, 20, 40):
            assert model(rows, 1.2) <= cost.curve(None).of(rows) <= model(rows, 1.5)

    def test_there_and_back(self) -> None:
        cost = learned(some_sizes(100, 1, 10))
        for times in (3.0, 1.0, 5.0, 1.0):
            teach(cost, some_sizes(100, 1, 30, seed=int(times)), times)
            for rows in (1, 10, 30):
                assert cost.curve(None).of(rows) == pytest.approx(model(rows, times), rel=0.25)


class TestPauses:
    def test_one_pause_changes_nothing(self) -> None:
        cost = learned(some_sizes(100, 1, 40))
        before = cost.curve(None).of(20)
        cost.observe(20, 5.0)
        assert cost.curve(None).of(20) == pytest.approx(before, rel=0.05)

    def test_a_first_call_that_compiles_is_forgotten(self) -> None:
        cost = BatchCost()
        cost.observe(1, 3.0)
        teach(cost, [2, 4, 8, 16, 5, 7])
        assert cost.curve(None).of(16) <= MOST_MARGIN * 1.5 * model(16)
        teach(cost, some_sizes(MARGINS, 1, 16))
        assert cost.curve(None).of(16) == pytest.approx(model(16), rel=0.1)

    def test_one_batch_in_ten_that_pauses_widens_the_margin_and_no_more(self) -> None:
        cost = BatchCost()
        for number, rows in enumerate(some_sizes(300, 1, 40)):
            cost.observe(rows, 0.5 if number % 10 == 0 else model(rows))
            cost.curve(None)
        curve = cost.curve(None)
        assert curve.margin == MOST_MARGIN
        assert curve.of(20) / curve.margin == pytest.approx(model(20), rel=0.1)

    def test_one_that_took_no_time_changes_little(self) -> None:
        cost = learned(some_sizes(100, 1, 40))
        for rows in (3, 20):
            cost.observe(rows, 0.0)
            teach(cost, some_sizes(10, 1, 40))
        assert cost.curve(None).of(20) == pytest.approx(model(20), rel=0.2)


class TestKeys:
    def test_each_has_its_level(self) -> None:
        cost = BatchCost()
        for number, rows in enumerate(some_sizes(200, 1, 40)):
            cost.observe(rows, model(rows, 5.0 if number % 2 else 1.0), "dear" if number % 2 else "cheap")
            cost.curve("dear")
        for rows in (1, 20, 40):
            assert cost.curve("cheap").of(rows) == pytest.approx(model(rows), rel=0.2)
            assert cost.curve("dear").of(rows) == pytest.approx(model(rows, 5.0), rel=0.2)

    def test_a_new_one_begins_with_what_is_known_of_others(self) -> None:
        cost = BatchCost()
        for rows in some_sizes(100, 1, 40):
            cost.observe(rows, model(rows), "old")
        assert cost.curve("new").of(20) == pytest.approx(model(20), rel=0.1)
        for rows in some_sizes(LEARNED_AFTER, 1, 40):
            cost.observe(rows, model(rows, 5.0), "new")
        assert cost.curve("new").of(20) == pytest.approx(model(20, 5.0), rel=0.2)
        assert cost.curve("old").of(20) == pytest.approx(model(20), rel=0.2)

    def test_of_ten_thousand_not_all_are_remembered(self) -> None:
        cost = BatchCost()
        for key in range(10_000):
            cost.observe(4, model(4), key)
            if key % 10 == 0:
                cost.curve(key)
        assert len(cost._levels) <= 256
        assert cost.curve(0).of(4) == pytest.approx(model(4))


def test_costs_that_grow_faster_than_rows_are_followed_where_they_are_seen() -> None:
    cost = BatchCost()
    for rows in some_sizes(300, 20, 60):
        cost.observe(rows, 0.001 + 0.00001 * rows * rows)
        cost.curve(None)
    for rows in (20, 40, 60):
        assert cost.curve(None).of(rows) >= 0.75 * (0.001 + 0.00001 * rows * rows)


@given(
    st.lists(st.tuples(st.integers(0, 1 << 53), st.floats(-1.0, 1e6), st.sampled_from([None, "a", "b"])), max_size=60)
)
def test_whatever_is_observed_a_curve_is_finite_and_does_not_fall(given: list[tuple[int, float, str | None]]) -> None:
    cost = BatchCost()
    for rows, seconds, key in given:
        cost.observe(rows, seconds, key)
    for key in (None, "a", "b", "c"):
        if given:
            curve = cost.curve(key)
            assert 0 < curve.of(1) <= curve.of(2) <= curve.of(1 << 53) < float("inf")
            assert 1 <= curve.margin <= MOST_MARGIN


def test_a_bound_is_far_above_and_sees_what_nobody_has_looked_at() -> None:
    cost = learned(some_sizes(100, 1, 40))
    assert cost.bound_s(20, None) == pytest.approx(FAR * model(20), rel=0.1)
    cost.observe(20, 1.0)
    assert cost.bound_s(20, None) == FAR
    cost.curve(None)
    assert cost.bound_s(20, None) < 1.0


def test_who_only_asks_for_a_bound_learns_all_the_same() -> None:
    cost = learned(some_sizes(100, 1, 40))
    for rows in some_sizes(400, 1, 40):
        cost.observe(rows, model(rows, 0.1))
        cost.bound_s(20, None)
    assert cost.bound_s(20, None) < 2 * FAR * model(20, 0.1)


@given(
    st.floats(0, 1), st.floats(0, 1).filter(lambda each: each == 0 or each > 1e-9), st.floats(0, 3), st.integers(1, 500)
)
@example(fixed=1.0, row=0.01, seconds=1.15, most=16)  # 0.15 / 0.01 is less than 15
def test_room_is_the_largest_size_that_takes_no_longer(fixed: float, row: float, seconds: float, most: int) -> None:
    curve = Curve(fixed, row, 1.0)
    room = curve.room(seconds, most)
    assert room == max((rows for rows in range(1, most + 1) if curve.of(rows) <= seconds), default=0)
