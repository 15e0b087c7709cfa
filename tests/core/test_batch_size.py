"""How many go, and who is given up, by deadlines and costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.batch_line import NEVER, Line, Waiting
from headrace.core.batch_size import DEADLINE, EXPIRES, ArrivalRate, Sizing, largest


def cost(items: int) -> float:
    return 0.002 + 0.001 * items


def sizing(most: int = 16, per_s: float = 0.0, at_once: int = 1, margin: float = 1.0) -> Sizing:
    return Sizing(0.0, cost, margin, most, per_s, at_once, DEADLINE)


def line_of(deadlines: list[float], expires: float = NEVER, late: int = 0) -> Line:
    """In the order of deadlines; `late` others have missed theirs."""
    line = Line(None)
    for number, deadline in enumerate([-1.0] * late + sorted(deadlines)):
        line.put(Waiting(deadline, number, number, line, 0.0, deadline, expires, 0))
    for entry in line.entries[:late]:
        line.make_late(entry)
    return line


def numbers(entries: list[Waiting]) -> list[int]:
    return [entry.item for entry in entries]


class TestChoose:
    def test_all_go_when_all_are_in_time(self) -> None:
        chosen, given_up = sizing().choose(line_of([0.007] * 5), 0, patient=True)
        assert (numbers(chosen), given_up) == ([0, 1, 2, 3, 4], [])

    def test_the_first_alone_when_the_others_have_time(self) -> None:
        chosen, given_up = sizing().choose(line_of([0.004, 0.1, 0.1, 0.1]), 0, patient=True)
        assert (numbers(chosen), given_up) == ([0, 1], [])

    def test_the_first_is_given_up_when_the_others_have_not(self) -> None:
        """A batch of four, or of one for the first, after which the others are late."""
        line = line_of([0.003, 0.007, 0.007, 0.007, 0.007])
        chosen, given_up = sizing().choose(line, 0, patient=True)
        assert (numbers(chosen), numbers(given_up)) == ([1, 2, 3, 4], [0])

    def test_those_given_up_fill_what_must_be_filled(self) -> None:
        """So many arrive that batches of 4 are needed, and that one of 5 is made of those that wait."""
        line = line_of([0.003, 0.0031, 0.0031, 0.0071, 0.0071])
        chosen, given_up = sizing(per_s=640.0).choose(line, 0, patient=False)
        assert (numbers(chosen), numbers(given_up)) == ([3, 4, 0, 1, 2], [0, 1, 2])

    def test_one_whose_answer_nobody_wants_then_does_not_go_along(self) -> None:
        line = Line(None)
        for number, deadline in enumerate([0.003, 0.007, 0.007, 0.007, 0.007]):
            line.put(Waiting(deadline, number, number, line, 0.0, deadline, deadline, 0))
        chosen, given_up = sizing().choose(line, 0, patient=True)
        assert numbers(chosen) == [1, 2, 3, 4]
        assert given_up == []

    def test_nobody_is_asked_to_wait_while_others_are_late(self) -> None:
        line = line_of([0.004, 0.1, 0.1, 0.1])
        chosen, _ = sizing().choose(line, 0, patient=False)
        assert numbers(chosen) == [1, 2, 3]

    def test_a_batch_is_no_smaller_than_keeps_up(self) -> None:
        """333 a second are carried one by one, 667 by fours."""
        line = line_of([0.0031] * 6)
        few, _ = sizing(per_s=0.0).choose(line, 0, patient=False)
        assert len(few) == 1
        many, _ = sizing(per_s=600.0).choose(line, 0, patient=False)
        assert len(many) >= 4

    def test_late_ones_fill_the_room_that_is_left(self) -> None:
        chosen, _ = sizing().choose(line_of([0.1, 0.1], late=3), 0, patient=False)
        assert numbers(chosen) == [3, 4, 0, 1, 2]

    def test_the_share_of_late_ones_goes_first(self) -> None:
        chosen, _ = sizing(most=3).choose(line_of([0.1, 0.1, 0.1], late=3), 1, patient=False)
        assert numbers(chosen) == [0, 3, 4]

    def test_late_ones_alone(self) -> None:
        chosen, _ = sizing(most=2).choose(line_of([], late=3), 0, patient=False)
        assert numbers(chosen) == [0, 1]

    @given(
        st.lists(st.floats(0.003, 0.05), max_size=30),
        st.integers(0, 5),
        st.integers(1, 20),
        st.sampled_from([0.0, 300.0, 900.0, 1e6]),
        st.booleans(),
        st.sampled_from([1.0, 2.0]),
    )
    def test_somebody_goes_once_and_no_more_than_may(
        self, deadlines: list[float], late: int, most: int, per_s: float, patient: bool, margin: float
    ) -> None:
        if deadlines or late:
            line = line_of(deadlines, late=late)
            chosen, given_up = sizing(most, per_s, margin=margin).choose(line, min(1, late), patient and not late)
            assert 1 <= len(chosen) <= most
            assert len(set(numbers(chosen))) == len(chosen)
            assert set(numbers(chosen)) | set(numbers(given_up)) <= set(range(len(deadlines) + late))
            stay = [entry for entry in line.entries if entry not in chosen and entry not in given_up]
            assert numbers(stay) == sorted(numbers(stay))


class TestKeepingUp:
    def test_it_is_the_least_size_that_carries_what_arrives(self) -> None:
        for per_s in (1.0, 100.0, 300.0, 700.0):
            least = sizing(per_s=per_s).keeping_up()
            assert least / cost(least) >= 1.1 * per_s
            assert least == 1 or (least - 1) / cost(least - 1) < 1.1 * per_s

    def test_none_does(self) -> None:
        assert sizing(per_s=1000.0).keeping_up() == 0

    def test_several_at_once_carry_more(self) -> None:
        assert sizing(per_s=1000.0, at_once=2).keeping_up() == sizing(per_s=500.0).keeping_up()

    def test_it_goes_by_what_batches_typically_take(self) -> None:
        assert sizing(per_s=1000.0, margin=2.0).keeping_up() == sizing(per_s=500.0).keeping_up()


class TestArrivalRate:
    def test_it_is_not_known_before_a_second_batch(self) -> None:
        rate = ArrivalRate()
        rate.batch(100, 1.0)
        assert rate.per_s == 0.0
        rate.batch(150, 1.1)
        assert rate.per_s == pytest.approx(500.0)

    def test_it_follows(self) -> None:
        rate = ArrivalRate()
        for batch in range(20):
            rate.batch(batch * 10, batch * 0.01)
        assert rate.per_s == pytest.approx(1000.0)
        for batch in range(1, 11):
            rate.batch(190 + batch * 60, 0.19 + batch * 0.01)
        assert rate.per_s > 5000.0

    def test_batches_at_one_moment(self) -> None:
        rate = ArrivalRate()
        rate.batch(1, 1.0)
        rate.batch(2, 1.0)
        assert rate.per_s == 0.0


@given(st.integers(-1, 1000), st.integers(-5, 1010))
def test_the_largest_that_fits(most: int, limit: int) -> None:
    assert largest(most, lambda number: number <= limit) == max(0, min(most, limit))


def test_the_objective_counts_or_the_request_alone() -> None:
    entry = Waiting(0.0, 1, None, Line(None), 0.0, 3.0, 4.0, 0)
    assert (DEADLINE(entry), EXPIRES(entry)) == (3.0, 4.0)
