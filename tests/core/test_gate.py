"""The gate: who gets a slot of a replica. Callers are names here; each `now` is the test's own."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.gate import LEASE_S, Gate


def full(limit: int = 1) -> Gate[str]:
    """A gate whose slots are all taken by calls of somebody else."""
    gate: Gate[str] = Gate(limit)
    for _ in range(limit):
        assert gate.enter("somebody", False, 0.0)
    return gate


def test_calls_start_until_the_limit_is_reached() -> None:
    gate: Gate[str] = Gate(2)
    assert [gate.enter("a", False, 0.0) for _ in range(3)] == [True, True, False]
    assert gate.load == gate.ongoing == 2


def test_a_slot_that_comes_free_while_nobody_waits_is_anybodys() -> None:
    gate = full()
    assert gate.leave(1.0) is None
    assert gate.load == 0
    assert gate.enter("b", False, 1.0)


def test_a_freed_slot_is_offered_to_the_caller_with_the_eldest_call() -> None:
    gate = full()
    assert gate.waiting("young", 3, 0.1, now=1.0) == []
    assert gate.waiting("old", 1, 0.9, now=1.1) == []
    assert gate.leave(1.2) == "old"
    assert (gate.load, gate.ongoing) == (1, 0)


def test_the_offered_slot_is_the_callers_for_one_lease_and_nobody_overtakes() -> None:
    gate = full()
    gate.waiting("a", 1, 0.0, now=1.0)
    assert gate.leave(2.0) == "a"
    assert not gate.enter("b", False, 2.001)
    assert gate.enter("a", True, 2.002)
    assert gate.ongoing == 1


def test_whoever_waits_is_offered_what_is_free_but_not_more_than_it_asked_for() -> None:
    gate: Gate[str] = Gate(5)
    assert gate.waiting("a", 2, 0.0, now=0.0) == ["a", "a"]
    assert gate.waiting("a", 3, 0.0, now=0.001) == ["a"], "two of the three have their offers already"
    assert gate.enter("b", False, 0.002), "two slots are neither taken nor wanted"


def test_a_leased_call_tells_how_old_the_next_one_is_and_so_keeps_the_callers_place() -> None:
    gate = full(2)
    gate.waiting("a", 5, 1.0, now=1.0)
    gate.waiting("b", 5, 0.5, now=1.0)
    assert gate.leave(1.1) == "a"
    assert gate.enter("a", True, 1.101, next_age_s=0.9)
    assert gate.leave(1.102) == "a", "its next call has waited longer than b's eldest"
    assert gate.enter("a", True, 1.103, next_age_s=0.1)
    assert gate.leave(1.104) == "b"


def test_a_caller_with_an_open_offer_goes_behind_the_others() -> None:
    gate = full(3)
    gate.waiting("a", 5, 1.0, now=1.0)
    gate.waiting("b", 5, 0.5, now=1.0)
    assert [gate.leave(1.1), gate.leave(1.2), gate.leave(1.3)] == ["a", "b", "a"]


def test_a_leased_call_after_which_none_waits_ends_the_callers_turn() -> None:
    gate = full(1)
    gate.waiting("a", 5, 1.0, now=1.0)
    assert gate.leave(1.1) == "a"
    assert gate.enter("a", True, 1.1, next_age_s=None)
    assert gate.leave(1.2) is None


def test_offers_grow_while_calls_wait_and_slots_are_free() -> None:
    """A queue that has grown since it was announced is not told; two offers for each used find it out."""
    gate: Gate[str] = Gate(8)
    assert gate.waiting("a", 1, 0.0, now=0.0) == ["a"]
    rounds = []
    answers = 1
    while gate.load < 8 or answers:
        offers = 0
        for _ in range(answers):
            assert gate.enter("a", True, 0.0, next_age_s=0.0)
            while gate.offer(0.0) is not None:
                offers += 1
        rounds.append(offers)
        answers = offers
    assert rounds == [2, 4, 1, 0]


def test_a_lease_that_is_not_answered_goes_to_the_next_and_the_caller_is_passed_over() -> None:
    gate = full(2)
    gate.waiting("stopped", 9, 2.0, now=2.0)
    gate.waiting("b", 9, 1.0, now=2.0)
    assert gate.leave(2.0) == "stopped"
    assert gate.next_expiry() == pytest.approx(2.0 + LEASE_S)
    assert gate.expire(2.0 + LEASE_S / 2) == []
    assert gate.expire(2.0 + LEASE_S) == ["b"]
    assert gate.leave(2.1) == "b", "not 'stopped', which has said nothing since"


def test_a_leased_call_that_comes_too_late_is_treated_as_a_new_one() -> None:
    gate = full(1)
    gate.waiting("slow", 1, 1.0, now=1.0)
    gate.leave(1.0)
    gate.expire(1.0 + LEASE_S)
    assert gate.next_expiry() is None
    assert gate.enter("slow", True, 1.1), "the slot is free still"

    gate.waiting("slow", 2, 1.0, now=1.2)
    assert gate.leave(1.2) == "slow"
    gate.expire(1.2 + LEASE_S)
    assert gate.enter("b", False, 1.3)
    assert not gate.enter("slow", True, 1.4, next_age_s=0.1), "the slot is taken by now"
    assert gate.leave(1.5) == "slow", "but it has spoken, and is offered slots again"


def test_the_late_answer_to_a_void_lease_does_not_use_up_a_later_one() -> None:
    gate = full(1)
    gate.waiting("a", 2, 1.0, now=1.0)
    assert gate.leave(1.0) == "a"
    gate.expire(1.0 + LEASE_S)
    assert gate.waiting("a", 1, 1.0, now=1.1) == ["a"], "a second offer, while the first has no answer yet"
    assert gate.decline("a", now=1.1) == [], "this answers the first"
    assert gate.load == 1
    assert gate.enter("a", True, 1.1), "and this the second, which holds"


def test_a_call_that_has_crossed_the_offer_of_a_slot_gets_that_slot() -> None:
    gate: Gate[str] = Gate(1)
    assert gate.waiting("a", 1, 0.0, now=1.0) == ["a"]
    assert not gate.enter("b", False, 1.0), "it is not on lease to this one"
    assert gate.enter("a", False, 1.0), "it knew of no offer when it sent this"
    assert (gate.load, gate.ongoing) == (1, 1)
    assert gate.next_expiry() is None
    assert gate.decline("a", now=1.001) == [], "the answer to the offer"
    assert gate.load == 1
    assert gate.leave(1.002) is None
    assert gate.load == 0


def test_a_leased_call_whose_lease_was_withdrawn_gets_the_next() -> None:
    gate: Gate[str] = Gate(1)
    assert gate.waiting("a", 1, 0.0, now=1.0) == ["a"]
    gate.withdraw("a", now=1.001)
    assert gate.waiting("a", 1, 0.0, now=1.002) == ["a"]
    assert gate.enter("a", True, 1.003), "it answers the first offer"
    assert not gate.enter("a", True, 1.004), "and this the second"
    assert gate.load == 1


def test_a_declined_slot_goes_to_the_next_who_waits() -> None:
    gate = full(1)
    gate.waiting("a", 1, 2.0, now=2.0)
    gate.waiting("b", 1, 1.0, now=2.0)
    assert gate.leave(2.0) == "a"
    assert gate.decline("a", now=2.001) == ["b"]
    assert gate.decline("b", now=2.002) == []
    assert gate.load == 0


def test_a_caller_that_withdraws_frees_its_leases() -> None:
    gate = full(1)
    gate.waiting("a", 1, 2.0, now=2.0)
    gate.waiting("b", 1, 1.0, now=2.0)
    assert gate.leave(2.0) == "a"
    assert gate.withdraw("a", now=2.001) == ["b"]


def test_a_lease_is_void_when_its_connection_breaks() -> None:
    gate = full(2)
    gate.waiting("a", 2, 2.0, now=2.0)
    gate.waiting("b", 1, 1.0, now=2.0)
    assert gate.leave(2.0) == "a"
    assert gate.disconnect("a", now=2.001) == ["b"]
    assert gate.expire(3.0) == [], "the void lease does not end a second time"
    assert gate.load == 1


def test_a_caller_that_was_offered_nothing_cannot_use_or_free_what_it_does_not_have() -> None:
    gate = full(1)
    assert not gate.enter("liar", True, 1.0, next_age_s=None)
    assert gate.decline("liar", now=1.0) == []
    assert gate.withdraw("liar", now=1.0) == []
    assert gate.load == 1


def test_a_closed_gate_starts_nothing_and_offers_nothing() -> None:
    gate = full(2)
    gate.waiting("a", 5, 1.0, now=1.0)
    assert gate.leave(1.0) == "a"
    gate.close()
    assert not gate.enter("a", True, 1.001, next_age_s=0.5)
    assert not gate.enter("b", False, 1.002)
    assert gate.waiting("c", 1, 1.0, now=1.0) == []
    assert gate.leave(1.1) is None
    assert gate.load == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10_000)), min_size=1, max_size=60))
def test_offers_go_by_age_whatever_the_order_of_the_news(news: list[tuple[int, int]]) -> None:
    """The last word of each caller counts: its earlier places are forgotten."""
    gate = full(1)
    for caller, since in news:
        gate.waiting(f"caller{caller}", 1, 100.0 - since / 100, now=100.0)
    places = dict(news)
    order: list[str] = []
    for i in itertools.count(1):
        chosen = gate.leave(100.0 + i)
        if chosen is None:
            break
        order.append(chosen)
        assert gate.enter(chosen, True, 100.0 + i)
    assert sorted(order) == sorted(f"caller{caller}" for caller in places)
    ages = [places[int(name.removeprefix("caller"))] for name in order]
    assert ages == sorted(ages)


def test_news_of_a_caller_that_come_again_and_again_do_not_pile_up() -> None:
    gate = full(1)
    for i in range(10_000):
        gate.waiting(f"caller{i % 10}", 1, 1.0, now=float(i))
    assert len(gate._heap) < 50
