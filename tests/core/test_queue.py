"""The queue of calls against a model of it: a list in the order in which calls are due."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.queue import AGING_S, CallQueue
from headrace.spec.priority import HIGHEST_PRIORITY, LOWEST_PRIORITY

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put_back", "take", "discard", "take_lowest"]),
        st.integers(0, 50),
        st.sampled_from([0, 0, 0, 1, 5, HIGHEST_PRIORITY, LOWEST_PRIORITY]),
    ),
    max_size=80,
)


@dataclass(frozen=True)
class Place:
    call: int
    since: float
    priority: int
    fresh: bool

    @property
    def due(self) -> float:
        return self.since - self.priority * AGING_S

    @property
    def in_line(self) -> tuple[bool, float, int]:
        return (self.fresh, self.since, self.call)


def next_of(waiting: list[Place]) -> Place | None:
    """The first of each priority, and of those the one that is due first; of two, that of the higher priority."""
    firsts = [
        min((place for place in waiting if place.priority == priority), key=lambda place: place.in_line)
        for priority in {place.priority for place in waiting}
    ]
    return min(firsts, key=lambda place: (place.due, -place.priority), default=None)


@given(steps)
def test_calls_leave_in_order(steps: list[tuple[str, int, int]]) -> None:
    queue: CallQueue[int] = CallQueue()
    waiting: list[Place] = []
    taken: list[Place] = []
    for number, (step, n, priority) in enumerate(steps):
        if step == "put":
            queue.put(number, float(number), priority)
            waiting.append(Place(number, float(number), priority, True))
        elif step == "put_back" and taken:
            place = taken.pop(n % len(taken))
            queue.put_back(place.call, place.since, place.priority)
            waiting.append(Place(place.call, place.since, place.priority, False))
        elif step == "take":
            expected = next_of(waiting)
            assert queue.take() == (expected.call if expected else None)
            if expected:
                waiting.remove(expected)
                taken.append(expected)
        elif step == "take_lowest":
            lowest = min((place.priority for place in waiting), default=0)
            line = [place for place in waiting if place.priority == lowest and lowest < priority]
            expected = max(line, key=lambda place: place.in_line, default=None)
            assert queue.take_lowest(priority) == (expected.call if expected else None)
            if expected:
                waiting.remove(expected)
        elif step == "discard":
            call = n % (number + 1)
            assert queue.discard(call) == any(place.call == call for place in waiting)
            waiting = [place for place in waiting if place.call != call]
        due = next_of(waiting)
        assert queue.count == len(waiting)
        assert queue.due() == (due.due if due else None)
        assert queue.plain == all(place.priority == 0 for place in waiting)
        for level in (LOWEST_PRIORITY, 0, 1, HIGHEST_PRIORITY):
            assert queue.ahead(level) == sum(place.priority >= level for place in waiting)


def test_a_level_of_priority_is_worth_a_second_of_waiting() -> None:
    queue: CallQueue[str] = CallQueue()
    queue.put("low", 0.0, -1)
    queue.put("plain", 0.5)
    queue.put("late", 1.5)
    queue.put("high", 9.0, 9)
    assert [queue.take() for _ in range(4)] == ["high", "plain", "low", "late"]


def test_the_lowest_starves_no_longer_than_its_levels_say() -> None:
    queue: CallQueue[str] = CallQueue()
    queue.put("lowest", 0.0, LOWEST_PRIORITY)
    now, served = 0.0, 0
    while True:
        queue.put(f"{now}", now, HIGHEST_PRIORITY)
        if queue.take() == "lowest":
            break
        served += 1
        now += 0.5
    assert now == (HIGHEST_PRIORITY - LOWEST_PRIORITY) * AGING_S + 0.5
    assert served == 41
