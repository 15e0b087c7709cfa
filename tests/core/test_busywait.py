"""To wait awake pays while answers are near, and stops by itself when they are not."""

from __future__ import annotations

from headrace.core.busywait import LONGEST_S, BusyWait


def test_near_answers_are_waited_for() -> None:
    wait = BusyWait()
    assert not wait.worthwhile()
    for _ in range(100):
        wait.heard(LONGEST_S / 3)
    assert wait.worthwhile()


def test_far_answers_are_not_and_near_ones_bring_it_back() -> None:
    wait = BusyWait()
    for _ in range(20):
        wait.heard(0.005)
    assert not wait.worthwhile()
    for _ in range(40):
        wait.heard(LONGEST_S / 3)
    assert wait.worthwhile()


def test_in_a_crowd_it_stops_at_once() -> None:
    wait = BusyWait()
    for _ in range(100):
        wait.heard(LONGEST_S / 3)
    wait.crowded()
    assert not wait.worthwhile()


def test_one_slow_answer_changes_nothing_for_long() -> None:
    wait = BusyWait()
    for _ in range(50):
        wait.heard(LONGEST_S / 3)
    wait.heard(10.0)
    assert wait.worthwhile()
