"""Who stands at the door: how many, who is turned away, and what is said of them."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.doorkeeper import SOURCES, Doorkeeper, Newcomer


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=200))
def test_there_are_never_more_than_may_be_and_none_is_lost(steps: list[tuple[int, bool]]):
    door = Doorkeeper("a replica", limit=12, limit_a_source=4)
    waiting: dict[Newcomer, str] = {}
    turned_away: list[Newcomer] = []
    for number, comes in steps:
        source = f"10.0.0.{number}"
        if comes:
            entered: list[Newcomer] = []

            def turn_away(entered: list[Newcomer] = entered) -> None:
                turned_away.append(entered[0])
                waiting.pop(entered[0])
                door.left(entered[0])  # as its task does when it is cancelled

            entered.append(door.enter(source, turn_away))
            waiting[entered[0]] = source
        elif waiting:
            newcomer = next(iter(waiting))
            waiting.pop(newcomer)
            door.left(newcomer)
            door.left(newcomer)
        assert len(door) == len(waiting) <= 12
        assert max((list(waiting.values()).count(each) for each in waiting.values()), default=0) <= 4
    door.close()
    assert not waiting
    assert len(door) == 0
    assert not door._waiting


def test_the_eldest_of_the_source_with_most_gives_way():
    gone: list[str] = []
    door = Doorkeeper("a replica", limit=3, limit_a_source=2)
    door.enter("10.0.0.1", lambda: gone.append("1a"))
    door.enter("10.0.0.1", lambda: gone.append("1b"))
    door.enter("10.0.0.1", lambda: gone.append("1c"))
    assert gone == ["1a"]
    door.enter("10.0.0.2", lambda: gone.append("2a"))
    door.enter("10.0.0.3", lambda: gone.append("3a"))
    assert gone == ["1a", "1b"]


def test_a_source_is_named_once_and_not_too_many_are(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    door = Doorkeeper("replica Model#1")
    for _ in range(3):
        door.failed("10.0.0.1", "it spoke of the weather")
    assert [record.message for record in caplog.records] == [
        "replica Model#1: refused a connection from 10.0.0.1: it spoke of the weather (not logged again for it)"
    ]
    for number in range(2 * SOURCES):
        door.failed(f"host-{number}", "it spoke of the weather")
    assert len(caplog.records) == SOURCES + 1
    assert "no other will be logged" in caplog.records[-1].message
