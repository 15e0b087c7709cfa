"""What becomes of a call whose replica died, and how many repeats there may be."""

from __future__ import annotations

import pytest

from headrace.core.repeat import Repeats, RetryBudget, Verdict


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, Verdict.REPEAT),
        ({"started": False}, Verdict.MOVE),
        ({"started": False, "suspect": True}, Verdict.MOVE),
        ({"started": False, "repeatable": False}, Verdict.MOVE),
        ({"started": False, "kept": False}, Verdict.FAIL_DIED),
        ({"suspect": True}, Verdict.POISONOUS),
        ({"repeatable": False}, Verdict.FAIL_DIED),
        ({"kept": False}, Verdict.FAIL_DIED),
        ({"answered": True}, Verdict.FAIL_DIED),
        ({"answered": True, "suspect": True}, Verdict.POISONOUS),
    ],
)
def test_the_verdict_follows_from_the_facts(facts: dict[str, bool], verdict: Verdict) -> None:
    assert Repeats().judge(0.0, **facts) is verdict


def test_a_call_that_moves_or_fails_costs_no_repeat() -> None:
    repeats = Repeats(RetryBudget(initial=1.0, per_second=0.0))
    for facts in ({"started": False}, {"suspect": True}, {"repeatable": False}, {"kept": False}, {"answered": True}):
        repeats.judge(0.0, **facts)
    assert repeats.judge(0.0) is Verdict.REPEAT
    assert repeats.judge(0.0) is Verdict.FAIL_DIED, "the budget is spent"


def test_a_hundred_repeats_are_in_hand_at_the_start() -> None:
    budget = RetryBudget()
    assert [budget.withdraw(0.0) for _ in range(101)] == [True] * 100 + [False]


def test_a_tenth_of_the_calls_may_be_repeated() -> None:
    budget = RetryBudget(ratio=0.1, initial=0.0, per_second=0.0)
    for _ in range(50):
        budget.deposit()
    assert sum(budget.withdraw(0.0) for _ in range(50)) == 5


def test_some_repeats_come_with_time_where_there_is_little_traffic() -> None:
    budget = RetryBudget(initial=0.0, per_second=10.0)
    assert not budget.withdraw(100.0)
    assert [budget.withdraw(100.25) for _ in range(3)] == [True, True, False]
    assert not budget.withdraw(99.0), "a clock that goes back gives nothing"
    assert budget.balance(100.35) == pytest.approx(1.5)


def test_the_budget_does_not_grow_for_ever() -> None:
    budget = RetryBudget(capacity=7.0)
    budget.calls = 1_000_000
    assert budget.balance(1e6) == 7.0


def test_a_budget_of_nothing_repeats_nothing_until_it_is_changed() -> None:
    budget = RetryBudget(ratio=0.0, per_second=0.0)
    budget.deposit()
    assert not budget.withdraw(now=1.0)
    assert not budget.withdraw(now=1000.0)
    budget.tune(ratio=1.0, per_second=0.0)
    for _ in range(2):
        budget.deposit()
    assert [budget.withdraw(now=1001.0) for _ in range(3)] == [True, True, False]
    budget.tune(ratio=0.0, per_second=1.0)
    assert budget.withdraw(now=1003.0)
    budget.tune(ratio=0.0, per_second=0.0)
    assert not budget.withdraw(now=1003.0)
