"""When a slow call may have a copy: after most others would have ended, within the budget, and only while it helps."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.balance import Balancer
from headrace.core.bound import to_model
from headrace.core.hedging import (
    BURST_CALLS,
    GAIN,
    LEAST_LATENCIES,
    LEAST_PAUSE_S,
    MOST_CREDIT,
    MOST_LINES,
    MOST_PAUSE_S,
    PROBE_EVERY,
    PROBE_PATIENCE,
    TRIES,
    CopyBudget,
    Hedger,
    Line,
    Refusal,
)
from headrace.spec.hedging import HedgingConfig


def line(calls: int = 0, seconds: float = 0.01, **config: float) -> Line[int]:
    """A line that knows the latency of so many calls."""
    made: Line[int] = Hedger[int](HedgingConfig(**config)).line("f")
    for i in range(calls):
        made.sent(-i - 1, 0.0)
        made.answered(-i - 1, seconds, 0.0)
    return made


# --- when a call is due


def test_no_call_is_due_before_latencies_are_known() -> None:
    few = line(LEAST_LATENCIES)  # the last of them weighs a little more than all before it
    few.sent(0, 0.0)
    assert few.delay_s is None
    assert few.due(1000.0) == []
    assert few.look_at(1000.0) is None


def test_a_call_is_due_after_the_quantile_and_not_before() -> None:
    some = line(100)
    some.sent(0, 1.0)
    delay_s = some.delay_s
    assert delay_s is not None
    assert 0.01 <= delay_s <= 0.0111
    assert some.look_at(1.0) == 1.0 + delay_s
    assert some.due(1.0 + delay_s - 1e-6) == []
    assert some.due(1.0 + delay_s + 1e-6) == [0]


def test_a_quick_method_waits_for_the_least_delay() -> None:
    quick = line(100, seconds=0.0001, least_delay_s=0.25)
    assert quick.delay_s == 0.25


def test_rarer_quantiles_need_more_latencies() -> None:
    assert line(150, quantile=0.99).delay_s is not None
    assert line(95, quantile=0.99).delay_s is None


def test_the_eldest_come_first_and_no_more_than_a_few() -> None:
    busy = line(100)
    for call in range(10):
        busy.sent(call, 1.0 + call * 0.001)
    assert busy.due(2.0) == list(range(TRIES))
    busy.answered(0, 1.0, 2.0)
    busy.taken_back(1)
    busy.given_up(2, 0.5, 2.0)
    assert busy.due(2.0)[0] == 3


def test_calls_that_hang_where_no_other_replica_is_hold_up_none_behind_them() -> None:
    busy = line(100)
    for call in range(TRIES + 2):
        busy.sent(call, 1.0)
    for call in busy.due(2.0):
        busy.passed_over(call)
    assert busy.due(2.0) == [TRIES, TRIES + 1, 0, 1]
    busy.taken_back(0)
    busy.passed_over(0)
    assert busy.due(2.0) == [TRIES, TRIES + 1, 1, 2]


def test_it_looks_again_later_while_calls_are_due() -> None:
    busy = line(100)
    busy.sent(0, 0.0)
    soon = busy.look_at(0.02)
    assert soon is not None
    assert 0.02 + LEAST_PAUSE_S <= soon <= 0.03
    when = busy.look_at(50.0)
    assert when == 50.0 + MOST_PAUSE_S, "a call that hangs, and that none can be copied for, costs next to nothing"
    busy.sent(1, 50.0)
    assert busy.look_at(50.0) == when
    busy.taken_back(0)
    busy.taken_back(1)
    assert busy.look_at(50.0) is None


def test_a_look_is_never_due_at_once() -> None:
    """A timer that rings a moment early must not ring for ever."""
    busy = line(100)
    busy.sent(0, 0.0)
    delay_s = busy.delay_s
    assert delay_s is not None
    assert busy.look_at(delay_s - 1e-9) == pytest.approx(delay_s + LEAST_PAUSE_S)


def test_calls_that_nobody_waited_for_to_the_end_count_as_slow() -> None:
    learns = line(100)
    for call in range(30):
        learns.sent(call, 0.0)
        learns.given_up(call, 5.0, 5.0)
    assert learns.delay_s is not None
    assert learns.delay_s >= 5.0
    before = learns.delay_s
    for call in range(300):
        learns.sent(call, 0.0)
        learns.given_up(call, 0.0001, 5.0)  # they left early: that says nothing
    assert learns.delay_s == before


# --- the budget


@given(
    st.floats(0.0, 1.0),
    st.lists(st.one_of(st.integers(1, 300), st.just(0)), max_size=60),
)
def test_the_budget_holds_from_the_start_and_over_any_stretch(share: float, steps: list[int]) -> None:
    """A number: so many calls came; 0: as many copies leave as may."""
    budget, calls, copies = CopyBudget(share), 0, 0
    marks = [(0, 0)]
    for step in steps:
        calls += step
        for _ in range(step):
            budget.deposit()
        while not step and budget.enough():
            budget.withdraw()
            copies += 1
        assert copies <= share * calls
        for calls_before, copies_before in marks:
            most = share * (calls - calls_before) + max(1, share * BURST_CALLS)
            assert copies - copies_before <= most + 1e-9
        marks.append((calls, copies))


def test_all_of_the_budget_can_be_had() -> None:
    budget, copies = CopyBudget(0.05), 0
    for _ in range(1000):
        budget.deposit()
        if budget.enough():
            budget.withdraw()
            copies += 1
    assert copies == 50
    assert repr(budget) == "<CopyBudget 0.00 copies>"


def test_methods_share_the_budget_and_nothing_else() -> None:
    hedger: Hedger[int] = Hedger(HedgingConfig())
    one, other = hedger.line("one"), hedger.line("other")
    assert hedger.line("one") is one
    assert set(hedger.lines()) == {one, other}
    for call in range(100):
        one.sent(call, 0.0)
        one.answered(call, 0.01, 0.0)
    assert one.delay_s is not None
    assert other.delay_s is None
    assert one.refusal(0) is other.refusal(0) is None
    for call in range(5):
        one.sent(call, 0.0)
        one.copied(call)
    assert one.refusal(0) is other.refusal(0) is Refusal.BUDGET


# --- what stops it


def test_none_leaves_while_calls_wait() -> None:
    ready = line(100)
    assert ready.refusal(0) is None
    assert ready.refusal(1) is Refusal.WAITING


def waste(some: Line[int], copies: int) -> int:
    """So many copies leave and do not help, as soon as they may. How many calls that took."""
    calls = 0
    while copies:
        calls += 1
        some.sent(calls, 0.0)
        if some.refusal(0) is None:
            some.copied(calls)
            copies -= 1
        some.answered(calls, 0.01, 0.0)
    return calls


def test_it_stops_when_copies_do_not_help_and_only_probes() -> None:
    some = line(100)
    delay_s = some.delay_s
    assert delay_s is not None
    assert waste(some, MOST_CREDIT) <= MOST_CREDIT / 0.05
    assert waste(some, 5) >= 5 * PROBE_EVERY / 0.05
    some.sent(0, 0.0)
    assert some.refusal(0) is Refusal.USELESS
    assert some.due(delay_s * PROBE_PATIENCE * 0.99) == []
    assert some.due(delay_s * PROBE_PATIENCE * 1.01) == [0]
    assert some.look_at(0.0) == pytest.approx(delay_s * PROBE_PATIENCE)


def test_one_that_helps_brings_it_back() -> None:
    some = line(100)
    waste(some, MOST_CREDIT + 1)
    some.won(some.delay_s or 0.0)
    assert some.credit == GAIN
    assert some.refusal(0) is None


def test_a_copy_that_is_slow_itself_is_no_help_though_it_comes_first() -> None:
    some = line(100)
    waste(some, MOST_CREDIT)
    some.won(0.1)
    assert some.credit == 0


def test_credit_has_an_end() -> None:
    some = line(100)
    for _ in range(10):
        some.won(0.001)
    assert some.credit == MOST_CREDIT
    assert repr(some).endswith("credit=30>")


# --- anything, in any order


class Hedging(RuleBasedStateMachine):
    """One line of calls, driven as by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.config = HedgingConfig(quantile=0.9, budget=0.2)
        self.line: Line[int] = Hedger[int](self.config).line("f")
        self.now = 0.0
        self.number = 0
        self.out: dict[int, float] = {}
        self.copied: dict[int, float] = {}
        self.sent = self.copies = self.known = 0
        self.useless = 0  # in a row

    @rule(count=st.integers(1, 50), seconds=st.floats(0.001, 1.0))
    def quick(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.send()
            self.end(self.number, seconds)

    @rule(count=st.integers(1, 5))
    def send_some(self, count: int) -> None:
        for _ in range(count):
            self.send()

    def send(self) -> None:
        self.number += 1
        self.sent += 1
        self.line.sent(self.number, self.now)
        self.out[self.number] = self.now

    def end(self, call: int, seconds: float) -> None:
        self.line.answered(call, seconds, self.now)
        self.known += 1
        self.out.pop(call, None)
        self.copied.pop(call, None)

    @rule(seconds=st.floats(0.0, 2.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.out or self.copied)
    @rule(how=st.sampled_from(["answered", "given up", "refused", "won"]), which=st.integers(0, 100))
    def something_ends(self, how: str, which: int) -> None:
        calls = [*self.out, *self.copied]
        call = calls[which % len(calls)]
        seconds = self.now - self.out.get(call, self.now)
        if how == "refused" and call in self.out:
            self.line.taken_back(call)
            self.line.sent(call, self.now, again=True)
            self.out[call] = self.now
            return
        if how == "won" and call in self.copied:
            took_s = self.now - self.copied[call]
            delay_s = self.line.delay_s
            if delay_s is not None and took_s <= delay_s:
                self.useless = 0
            self.line.won(took_s)
        if how == "given up":
            self.line.given_up(call, seconds, self.now)
            self.out.pop(call, None)
            self.copied.pop(call, None)
        else:
            self.end(call, seconds)

    @rule(waiting=st.sampled_from([0, 0, 0, 1]), replica=st.sampled_from(["one", "one", None]))
    def look(self, waiting: int, replica: str | None) -> None:
        for call in self.line.due(self.now):
            assert call in self.out, "only what is under way, and has no copy yet, is due"
            assert self.now - self.out[call] >= self.config.least_delay_s
            if replica is None:
                self.line.passed_over(call)
                continue
            refusal = self.line.refusal(waiting)
            assert (refusal is Refusal.WAITING) is (waiting > 0)
            if refusal is not None:
                break
            assert self.known >= LEAST_LATENCIES
            self.line.copied(call)
            self.copied[call] = self.now
            del self.out[call]
            self.copies += 1
            self.useless += 1

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.copies <= self.config.budget * self.sent

    @invariant()
    def useless_copies_stop(self) -> None:
        most = MOST_CREDIT + 1 + self.sent * self.config.budget / PROBE_EVERY
        assert self.useless <= most

    @invariant()
    def a_look_is_planned_while_a_call_may_be_due(self) -> None:
        when = self.line.look_at(self.now)
        assert (when is None) is (not self.line._out)
        assert when is None or when >= self.now + LEAST_PAUSE_S
        assert set(self.line._out) <= set(self.out)
        if self.line.due(self.now):
            assert when is not None
            hanging_s = (self.now - min(self.line._out.values())) / 64  # the longer it hangs, the seldomer
            assert when <= self.now + max(LEAST_PAUSE_S, (self.line.delay_s or 1.0) * PROBE_PATIENCE, hanging_s)


TestHedging = Hedging.TestCase
TestHedging.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- where a copy goes


def balancer(limit: int, loads: list[int], seed: int = 1) -> Balancer[int]:
    made: Balancer[int] = Balancer(limit, 10, Random(seed))
    for i, load in enumerate(loads):
        replica = made.add(f"r{i}")
        for _ in range(load):
            made.book(replica)
    return made


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(0, 6), st.integers(0, 100))
def test_a_copy_goes_to_another_replica_with_room_and_less_to_do(loads: list[int], which: int, seed: int) -> None:
    made = balancer(4, loads, seed)
    holder = made.replicas[f"r{which % len(loads)}"]
    before = {replica.id: replica.ours for replica in made.replicas.values()}
    chosen = made.choose_beside(holder)
    if chosen is None:
        if len(loads) <= 3:  # then two are all others
            assert all(load >= loads[which % len(loads)] for load in loads)
        return
    assert chosen is not holder
    assert before[chosen.id] < min(4, holder.ours)
    assert chosen.ours == before[chosen.id] + 1
    assert sum(replica.ours for replica in made.replicas.values()) == sum(before.values()) + 1
    made.finished(chosen, chosen.ours - 1)
    assert {replica.id: replica.ours for replica in made.replicas.values()} == before


def test_methods_of_any_name_take_a_bounded_memory() -> None:
    hedger: Hedger[int] = Hedger(HedgingConfig())
    used = hedger.line("used")
    for i in range(3 * MOST_LINES):
        hedger.line(f"method-{i}")
        assert hedger.line("used") is used
    assert len(hedger.lines()) == MOST_LINES


def test_every_other_replica_can_be_chosen() -> None:
    made = balancer(4, [3, 0, 0, 0, 0])
    chosen = set()
    for _ in range(200):
        replica = made.choose_beside(made.replicas["r0"])
        assert replica is not None
        made.finished(replica, replica.ours - 1)
        chosen.add(replica.id)
    assert chosen == {"r1", "r2", "r3", "r4"}


def test_a_copy_may_leave_a_replica_that_is_gone() -> None:
    made = balancer(4, [2, 1])
    holder = made.remove("r0")
    assert holder is not None
    assert made.choose_beside(holder) is made.replicas["r1"]
    assert made.choose_beside(holder) is None, "as loaded as the one that has it"


def test_a_copy_of_a_call_for_a_model_goes_where_the_model_is() -> None:
    made = balancer(4, [2, 0, 0])
    holder, second, third = made.replicas.values()
    key = to_model("m")
    assert made.choose_beside(holder, key) is None
    made.models_changed(holder, ["m"], [], [])
    made.models_changed(third, [], ["m"], [])
    assert made.choose_beside(holder, key) is None, "it is being loaded there"
    made.models_changed(second, ["m"], [], [])
    assert made.choose_beside(holder, key) is second
