"""When successors of failed replicas start: backoff by descent, escalation by intensity."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.restart import RestartPolicy, Restarts

POLICY = RestartPolicy(first_wait_s=0.1, longest_wait_s=30.0, quiet_s=60.0, period_s=60.0, intensity=10)


def test_the_waits_of_one_line() -> None:
    assert [POLICY.wait_s(level) for level in range(6)] == [0.0, 0.0, 0.1, 0.2, 0.4, 0.8]
    assert POLICY.wait_s(10**9) == 30.0


def test_what_is_missing_at_first_starts_at_once() -> None:
    restarts = Restarts(POLICY)
    assert restarts.take(0.0, 3) == [0, 0, 0]
    assert restarts.due() is None


def test_a_line_of_failures_waits_longer_and_longer() -> None:
    restarts = Restarts(POLICY)
    now, level = 100.0, 0
    waits = []
    for _ in range(5):
        waits.append(restarts.fail(now, level, 0.5, 1))
        due = restarts.due()
        assert due == now + waits[-1]
        assert restarts.take(due - 0.001, 1) == []
        (level,) = restarts.take(due, 1)
        now = due
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert level == 5


def test_one_that_lived_for_long_is_followed_at_once() -> None:
    restarts = Restarts(POLICY)
    assert restarts.fail(0.0, level=7, lived_s=59.9, wanted=1) > 1.0
    assert restarts.fail(0.0, level=7, lived_s=60.0, wanted=1) == 0.0


def test_many_that_die_together_are_followed_at_once() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.fail(5.0, 0, 100.0, 8) for _ in range(8)] == [0.0] * 8
    assert restarts.take(5.0, 8) == [1] * 8


def test_too_many_within_the_period_escalate_until_it_is_over() -> None:
    restarts = Restarts(POLICY)
    for second in range(10):
        restarts.fail(float(second), 0, 100.0, 1)
        assert not restarts.escalated(float(second), 1)
    assert restarts.fail(10.0, 0, 100.0, 1) == 30.0
    assert restarts.escalated(10.0, 1)
    assert not restarts.escalated(10.0, 4)  # of four, three times that are allowed each
    assert restarts.escalated(59.9, 1)
    assert not restarts.escalated(60.0, 1)


def test_fewer_wanted_forgets_those_that_wait_longest() -> None:
    restarts = Restarts(POLICY)
    for level in (1, 2, 3):
        restarts.fail(0.0, level, 0.1, 3)
    assert restarts.take(0.0, 1) == []
    assert restarts.due() == 0.1
    assert restarts.take(0.1, 1) == [2]
    assert restarts.take(9.9, 0) == []


def test_hurried_they_wait_no_longer_and_keep_their_level() -> None:
    restarts = Restarts(POLICY)
    for level in (6, 4):
        restarts.fail(0.0, level, 0.1, 2)
    assert restarts.take(0.0, 2) == []
    restarts.hurry(0.5)
    assert sorted(restarts.take(0.5, 2)) == [5, 7]


def test_forgiven_and_postponed() -> None:
    restarts = Restarts(POLICY)
    restarts.fail(0.0, 4, 0.1, 1)
    restarts.forgive()
    assert restarts.take(0.0, 1) == [0]
    restarts.postpone(3.0, 2)
    assert restarts.take(2.9, 1) == []
    assert restarts.take(3.0, 1) == [2]


@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.integers(0, 40), st.floats(0, 120), st.integers(0, 6)), min_size=1, max_size=40
    )
)
def test_never_more_than_missing_and_none_is_lost(steps: list[tuple[float, int, float, int]]) -> None:
    restarts = Restarts(POLICY)
    now = 0.0
    for wait_s, level, lived_s, missing in steps:
        now += wait_s
        assert 0.0 <= restarts.fail(now, level, lived_s, 3) <= POLICY.longest_wait_s
        taken = restarts.take(now, missing)
        assert len(taken) <= missing
        # What is held back comes at the latest after the longest wait.
        later = restarts.take(now + POLICY.longest_wait_s, missing - len(taken))
        assert len(taken) + len(later) == missing
