"""The order of the items of one key, and what is known of all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.batch_line import NEVER, Line, Waiting


def entry(line: Line, number: int, urgency: float, since: float = 0.0, deadline: float = NEVER) -> Waiting:
    return Waiting(urgency, number, number, line, since, deadline, deadline, 0)


def numbers(entries: list[Waiting]) -> list[int]:
    return [each.item for each in entries]


def test_it_says_who_is_first() -> None:
    line = Line("key")
    assert line.put(entry(line, 1, 5.0))
    assert not line.put(entry(line, 2, 5.0)), "of equals the one that came first"
    assert line.put(entry(line, 3, 4.0))
    assert numbers(line.entries) == [3, 1, 2]
    assert repr(line) == "<Line 'key': 3 waiting, 0 late>"
    assert line.remove(line.entries[0])
    assert not line.remove(line.entries[1])
    assert len(line) == 1


def test_late_ones_stand_apart_and_have_their_own_deadline_alone() -> None:
    line = Line(None)
    first = Waiting(1.0, 1, 1, line, 0.0, 1.0, 9.0, 0)
    line.put(first)
    line.put(entry(line, 2, 2.0, deadline=2.0))
    line.make_late(first)
    assert (numbers(line.entries), numbers(line.late)) == ([2], [1])
    assert (first.deadline, first.expires) == (9.0, 9.0)
    assert line.tightest(objective=True) == 2.0
    assert not line.remove(first), "it was not the first of the others"
    assert len(line) == 1


def test_one_that_is_excused_has_no_deadline() -> None:
    line = Line(None)
    line.put(entry(line, 1, 1.0, deadline=1.0))
    line.excuse(line.entries[0])
    assert line.tightest(objective=True) == line.tightest(objective=False) == NEVER


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "put", "remove", "take", "late"]),
            st.integers(0, 9),
            st.floats(0, 9),
            st.integers(0, 99),
        ),
        max_size=60,
    )
)
def test_whatever_happens_the_order_holds_and_sums_are_those_of_who_is_there(
    given: list[tuple[str, int, float, int]],
) -> None:
    line = Line(None)
    waiting: list[Waiting] = []
    late: list[Waiting] = []
    for number, (what, urgency, time, which) in enumerate(given):
        if what == "put":
            made = entry(line, number, float(urgency), since=time, deadline=10 - time)
            line.put(made)
            waiting.append(made)
        elif what == "remove" and waiting + late:
            gone = (waiting + late)[which % len(waiting + late)]
            line.remove(gone)
            (late if gone.late else waiting).remove(gone)
        elif what == "take":
            chosen = [each for each in line.entries + line.late if (each.item + which) % 3][: which % 7]
            line.take(chosen)
            waiting = [each for each in waiting if each not in chosen]
            late = [each for each in late if each not in chosen]
        elif what == "late" and waiting:
            gone = waiting.pop(which % len(waiting))
            line.make_late(gone)
            late.append(gone)
        assert numbers(line.entries) == numbers(sorted(waiting))
        assert numbers(line.late) == numbers(sorted(late))
        deadlines = [each.deadline for each in waiting]
        assert line.not_before(objective=True) <= min(deadlines, default=NEVER)
        if which % 2:
            assert line.eldest() == min([each.since for each in waiting], default=NEVER)
            assert line.tightest(objective=True) == min(deadlines, default=NEVER)
