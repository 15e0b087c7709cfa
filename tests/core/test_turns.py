"""Suspects run one at a time, in the order in which they came."""

from __future__ import annotations

from headrace.core.turns import Turns


def test_one_runs_and_the_next_follows_when_it_ends() -> None:
    turns: Turns[str] = Turns()
    assert [turns.enter(call) for call in ("a", "b", "c")] == [True, False, False]
    assert turns.leave("a") == "b"
    assert turns.leave("b") == "c"
    assert turns.leave("c") is None
    assert turns.enter("d")


def test_one_that_is_cancelled_while_it_waits_loses_its_turn() -> None:
    turns: Turns[str] = Turns()
    for call in ("a", "b", "c"):
        turns.enter(call)
    assert turns.waits("b")
    assert turns.leave("b") is None
    assert not turns.waits("b")
    assert turns.leave("a") == "c"


def test_one_that_never_came_may_leave() -> None:
    turns: Turns[str] = Turns()
    turns.enter("a")
    assert turns.leave("stranger") is None
    assert turns.current == "a"
