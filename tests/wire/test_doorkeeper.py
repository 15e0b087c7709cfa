"""Who stands at the door: how many, who is turned away, and what is said of them."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.doorkeeper import KIN, SOURCES, Doorkeeper, Newcomer

COMES, LEAVES, PROVES = range(3)


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([COMES, COMES, LEAVES, PROVES])), max_size=200))
def test_there_are_never_more_than_may_be_and_none_is_lost(steps: list[tuple[int, int]]):
    door = Doorkeeper("a replica", limit=12, limit_a_source=4)
    waiting: dict[Newcomer, str] = {}
    turned_away: list[Newcomer] = []
    kin: set[str] = set()
    for number, step in steps:
        source = f"10.0.0.{number}"
        if step == COMES:
            entered: list[Newcomer] = []

            def turn_away(entered: list[Newcomer] = entered) -> None:
                turned_away.append(entered[0])
                waiting.pop(entered[0])
                door.left(entered[0])  # as its task does when it is cancelled

            entered.append(door.enter(source, turn_away))
            waiting[entered[0]] = source
        elif waiting:
            newcomer = next(iter(waiting))
            if step == PROVES:
                kin.add(waiting[newcomer])
                door.proved(waiting[newcomer])
            waiting.pop(newcomer)
            door.left(newcomer)
            door.left(newcomer)
        assert len(door) == len(waiting)
        assert sum(source not in kin for source in waiting.values()) == door._strangers <= 12
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


def test_strangers_do_not_stand_in_the_way_of_nodes_that_all_come_again():
    gone: list[str] = []
    door = Doorkeeper("the controller", limit=8, limit_a_source=4)

    def enter(source: str) -> Newcomer:
        return door.enter(source, lambda: gone.append(source))

    for number in range(4):
        door.left(enter(f"10.0.0.{number}"))
        door.proved(f"10.0.0.{number}")
    for number in range(8):
        enter(f"10.6.6.{number}")
    for number in range(4):
        for _ in range(4):
            enter(f"10.0.0.{number}")
    assert not gone
    assert len(door) == 24
    enter("10.6.6.9")
    assert gone == ["10.6.6.0"], "the eldest of the strangers alone"
    enter("10.0.0.1")
    assert gone == ["10.6.6.0", "10.0.0.1"], "of one source, kin or not, there are no more than may be"


def test_not_all_that_ever_proved_it_are_remembered():
    door = Doorkeeper("the controller", limit=2, limit_a_source=2)
    eldest = door.enter("host-0", lambda: None)
    for number in range(KIN + 10):
        door.proved(f"host-{number}")
    assert len(door._kin) == KIN
    assert door._strangers == 1
    door.left(eldest)
    assert (len(door), door._strangers) == (0, 0)


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
