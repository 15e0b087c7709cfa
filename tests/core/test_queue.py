"""The queue of calls against a model of it: a list in the order in which calls are due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.queue import CallQueue

steps = st.lists(st.tuples(st.sampled_from(["put", "put_back", "take", "discard"]), st.integers(0, 50)), max_size=80)


@given(steps)
def test_calls_leave_in_order(steps: list[tuple[str, int]]) -> None:
    queue: CallQueue[int] = CallQueue()
    fresh: list[tuple[float, int]] = []
    back: list[tuple[float, int]] = []
    taken: list[tuple[float, int]] = []
    for number, (step, n) in enumerate(steps):
        if step == "put":
            queue.put(number, float(number))
            fresh.append((float(number), number))
        elif step == "put_back" and taken:
            since, call = taken.pop(n % len(taken))
            queue.put_back(call, since)
            back.append((since, call))
            back.sort()
        elif step == "take":
            expected = back.pop(0) if back else fresh.pop(0) if fresh else None
            assert queue.take() == (expected[1] if expected else None)
            if expected:
                taken.append(expected)
        elif step == "discard":
            waits = [call for _, call in back + fresh]
            call = n % (number + 1)
            assert queue.discard(call) == (call in waits)
            back = [place for place in back if place[1] != call]
            fresh = [place for place in fresh if place[1] != call]
        due = (back + fresh)[:1]
        assert queue.count == len(back) + len(fresh)
        assert queue.due() == (due[0][0] if due else None)
