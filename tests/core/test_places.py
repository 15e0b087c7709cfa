"""Places for calls that wait: a ledger and allowances of routers, with messages between that take their time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.core.places import (
    KEEP_S,
    PATIENCE_S,
    RETRY_S,
    TICK_S,
    Allowance,
    Grant,
    PlaceLedger,
    Question,
)


@dataclass(eq=False)
class Router:
    """A queue with an allowance. `admitted` counts calls that were let in, `refused` those that were not."""

    allowance: Allowance
    keeper: Keeper | None = None
    waiting: int = 0
    admitted: int = 0
    refused: int = 0
    inbox: deque[Grant[Router]] = field(default_factory=deque)

    def say(self, question: Question | None) -> None:
        if question is not None:
            assert self.keeper is not None, "there is nobody to ask"
            self.keeper.inbox.append((self, question))
        excess = self.allowance.excess(self.waiting)
        self.waiting -= excess
        self.refused += excess
        self.admitted -= excess

    def arrive(self, now: float) -> None:
        allowance = self.allowance
        if 0 <= allowance.limit <= self.waiting:
            self.say(allowance.want(self.waiting, now, self.keeper is not None))
        if 0 <= allowance.limit <= self.waiting:
            self.refused += 1
        else:
            self.waiting += 1
            self.admitted += 1

    def receive(self, now: float) -> None:
        _, number, places, more = self.inbox.popleft()
        self.say(self.allowance.grant(number, places, more, self.waiting, now))

    def tick(self, now: float) -> None:
        if not self.allowance.idle:
            self.say(self.allowance.tick(self.waiting, now, self.keeper is not None))


@dataclass(eq=False)
class Keeper:
    """A ledger at the other end of the connections."""

    ledger: PlaceLedger[Router]
    inbox: deque[tuple[Router, Question]] = field(default_factory=deque)

    def receive(self, now: float) -> None:
        router, question = self.inbox.popleft()
        if router.keeper is self:
            self.send(self.ledger.ask(router, question, now))

    def send(self, grants: list[Grant[Router]]) -> None:
        for grant in grants:
            if grant.caller.keeper is self:
                grant.caller.inbox.append(grant)


class Shared:
    """Routers and their keeper. Time is the test's."""

    def __init__(self, routers: int, total: int) -> None:
        self.now = 0.0
        self.total = total
        self.keeper = Keeper(PlaceLedger(total))
        self.routers = [Router(Allowance(total, self.share(routers)), self.keeper) for _ in range(routers)]
        self.messages = 0

    def share(self, routers: int) -> int:
        return max(1, self.total // routers)

    @property
    def waiting(self) -> int:
        return sum(router.waiting for router in self.routers)

    @property
    def held(self) -> int:
        return sum(router.allowance.held for router in self.routers)

    def deliver(self, random: Random | None = None) -> None:
        """All messages, each connection's in their order."""
        while True:
            ready: list[Router | Keeper] = [router for router in self.routers if router.inbox]
            if self.keeper.inbox:
                ready.append(self.keeper)
            if not ready:
                return
            (random.choice(ready) if random else ready[0]).receive(self.now)
            self.messages += 1

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += TICK_S
            for router in self.routers:
                router.tick(self.now)
            self.deliver()

    def break_connection(self, router: Router) -> None:
        keeper, router.keeper = router.keeper, None
        if keeper is not None:
            keeper.inbox = deque(item for item in keeper.inbox if item[0] is not router)
            keeper.send(keeper.ledger.disconnect(router, self.now))
        router.inbox.clear()
        router.allowance.lost(router.waiting, self.now)
        router.say(None)

    def change_keeper(self) -> None:
        self.keeper = Keeper(PlaceLedger(self.total))
        for router in self.routers:
            router.keeper = self.keeper
            router.inbox.clear()
            router.allowance.lost(router.waiting, self.now)
            router.say(None)


def test_a_queue_gets_places_by_demand_and_some_more() -> None:
    shared = Shared(routers=2, total=100)
    one, _ = shared.routers
    one.arrive(0.0)
    assert one.waiting == 1, "while the answer is under way it waits"
    shared.deliver()
    assert one.allowance.held == 9
    for _ in range(8):
        one.arrive(0.0)
    assert shared.messages == 2
    one.arrive(0.0)
    shared.deliver()
    assert one.allowance.held == 20
    assert (one.waiting, one.refused) == (10, 0)


def test_no_more_wait_in_all_than_there_are_places() -> None:
    shared = Shared(routers=3, total=10)
    for _ in range(20):
        for router in shared.routers:
            router.arrive(shared.now)
        shared.deliver()
        assert shared.waiting <= 10
        assert shared.held <= 10
        shared.advance(RETRY_S)
    assert shared.waiting == 10
    assert sorted(router.waiting for router in shared.routers) == [3, 3, 4], "and each has its part"


def test_one_router_alone_may_fill_all_places_and_no_more() -> None:
    shared = Shared(routers=4, total=100)
    one = shared.routers[0]
    for _ in range(120):
        one.arrive(shared.now)
        shared.deliver()
    assert (one.waiting, one.refused) == (100, 20)


def test_places_that_are_not_needed_are_given_back() -> None:
    shared = Shared(routers=2, total=1000)
    one, _ = shared.routers
    for _ in range(200):
        one.arrive(shared.now)
        shared.deliver()
    held = one.allowance.held
    assert held >= 200
    one.waiting = 3
    shared.advance(3 * KEEP_S)
    assert 3 <= one.allowance.held < 20
    one.waiting = 0
    shared.advance(3 * KEEP_S)
    assert one.allowance.held == shared.keeper.ledger.granted == 0
    assert one.allowance.idle
    before = shared.messages
    shared.advance(10.0)
    assert shared.messages == before


def test_a_router_that_holds_many_gives_way_to_another_at_once() -> None:
    shared = Shared(routers=2, total=10)
    one, two = shared.routers
    for _ in range(10):
        one.arrive(shared.now)
        shared.deliver()
    one.waiting = 1  # the others have been served
    two.arrive(shared.now)
    shared.deliver()
    assert (two.waiting, two.refused) == (1, 0)
    assert shared.held <= 10


def test_calls_wait_for_places_that_are_coming_back_but_not_for_long() -> None:
    shared = Shared(routers=2, total=4)
    one, two = shared.routers
    for _ in range(4):
        one.arrive(shared.now)
        shared.deliver()
    assert one.allowance.held == 4
    two.arrive(shared.now)
    shared.deliver()
    assert (two.waiting, two.allowance.held) == (1, 0), "the other has been asked, but its calls still wait"
    one.waiting -= 1
    shared.advance(TICK_S)
    assert (two.waiting, two.allowance.held, two.refused) == (1, 1, 0)

    two.arrive(shared.now)
    shared.deliver()
    assert two.waiting == 2
    shared.advance(PATIENCE_S + 2 * TICK_S)
    assert (two.waiting, two.refused) == (1, 1)
    one.waiting -= 1
    shared.advance(TICK_S)
    assert two.allowance.held == 1, "it was for calls that are refused by now: whoever asks next may have it"
    two.arrive(shared.now)
    shared.deliver()
    assert (two.waiting, two.refused, two.allowance.held) == (2, 1, 2)


def test_a_grant_that_has_crossed_a_newer_question_does_not_count() -> None:
    shared = Shared(routers=2, total=1)
    one, two = shared.routers
    one.arrive(shared.now)
    shared.deliver()
    shared.now += 1.0
    two.arrive(shared.now)
    shared.deliver()
    one.waiting = 0
    one.tick(shared.now)
    shared.keeper.receive(shared.now)
    assert [grant.places for grant in two.inbox] == [1], "what it asked for is on its way"
    for _ in range(3):
        shared.now += PATIENCE_S
        two.tick(shared.now)
    two.arrive(shared.now)
    assert [question.holds for _, question in shared.keeper.inbox] == [0], "and it asks again"
    two.receive(shared.now)
    assert two.allowance.held == 0
    shared.deliver()
    assert two.allowance.held == shared.keeper.ledger.granted == 1


def test_who_was_refused_a_while_ago_does_not_come_before_who_asks_now() -> None:
    shared = Shared(routers=5, total=1)
    *crowd, late = shared.routers
    for router in crowd:
        router.arrive(shared.now)
        shared.deliver()
    shared.advance(PATIENCE_S)
    assert sorted(router.waiting for router in crowd) == [0, 0, 0, 1]
    for router in crowd:
        router.waiting = 0  # a replica was free for it
    late.arrive(shared.now)
    shared.deliver()
    shared.advance(PATIENCE_S)
    assert (late.waiting, late.refused) == (1, 0)


def test_a_place_that_nobody_uses_is_given_to_who_asks() -> None:
    shared = Shared(routers=3, total=1)
    one, two, three = shared.routers
    one.arrive(shared.now)
    shared.deliver()
    one.waiting = 0  # a replica was free for it at once
    two.arrive(shared.now)
    shared.deliver()
    assert (two.waiting, two.refused) == (1, 0)
    before = shared.messages
    three.arrive(shared.now)
    shared.deliver()
    assert (three.waiting, three.refused) == (0, 1), "it hears at once that the place is in use"
    assert shared.messages - before == 6, "two questions, a probe, three answers"
    assert shared.held == 1


def test_a_router_that_does_not_say_what_it_uses_keeps_nobody_for_long() -> None:
    shared = Shared(routers=3, total=1)
    one, two, three = shared.routers
    one.arrive(shared.now)
    shared.deliver()
    one.waiting = 0
    one.keeper = None  # it hears nothing
    two.arrive(shared.now)
    shared.deliver()
    assert (two.waiting, two.refused) == (1, 0)
    shared.advance(PATIENCE_S + 2 * TICK_S)
    assert (two.waiting, two.refused) == (0, 1)
    three.arrive(shared.now)
    shared.deliver()
    assert (three.waiting, three.refused) == (1, 0), "it is called back by now: its time is over"


def test_calls_that_came_back_have_their_chance_when_another_comes() -> None:
    shared = Shared(routers=2, total=1)
    one, _ = shared.routers
    one.waiting = 1  # its replica had no slot for it
    one.arrive(shared.now)
    shared.deliver()
    assert (one.waiting, one.refused, one.allowance.held) == (1, 1, 1)


@pytest.mark.parametrize("total", [1, 2, 5])
@pytest.mark.parametrize("routers", [2, 4, 9])
def test_nobody_is_shut_out_where_there_are_fewer_places_than_routers(total: int, routers: int) -> None:
    shared, random = Shared(routers, total), Random(1)
    served = [0] * routers
    for _ in range(3000):
        shared.now += 0.005
        for i in random.sample(range(routers), routers):
            shared.routers[i].arrive(shared.now)
            shared.deliver()
        provisional = sum(max(0, router.waiting - router.allowance.held) for router in shared.routers)
        assert shared.waiting - provisional <= shared.held <= total
        busy = [i for i in range(routers) if shared.routers[i].waiting]
        if busy:
            i = random.choice(busy)
            shared.routers[i].waiting -= 1
            served[i] += 1
        for router in shared.routers:
            router.tick(shared.now)
        shared.deliver()
    assert min(served) > 3000 / routers / 4, served


def test_a_keeper_that_does_not_answer_leaves_each_its_share() -> None:
    shared = Shared(routers=4, total=40)
    one = shared.routers[0]
    for _ in range(40):
        one.arrive(shared.now)
    assert one.waiting == 40
    inbox, shared.keeper.inbox = shared.keeper.inbox, deque()
    shared.advance(PATIENCE_S + TICK_S)
    assert (one.waiting, one.refused) == (10, 30)
    one.arrive(shared.now)
    assert one.refused == 31
    shared.keeper.inbox = inbox  # it answers after all
    shared.deliver()
    one.arrive(shared.now)
    assert (one.waiting, one.refused) == (11, 31)


def test_calls_that_come_while_an_answer_is_under_way_are_not_refused_where_there_is_room() -> None:
    shared = Shared(routers=2, total=100)
    one, _ = shared.routers
    for _ in range(60):
        one.arrive(shared.now)
    shared.deliver()
    assert (one.waiting, one.refused) == (60, 0)
    assert shared.messages == 4


def test_without_a_keeper_each_has_its_share_and_reports_what_waits_when_there_is_one() -> None:
    shared = Shared(routers=4, total=40)
    for router in shared.routers:
        router.keeper = None
        for _ in range(20):
            router.arrive(shared.now)
        assert router.waiting == 10
    for router in shared.routers:
        router.keeper = shared.keeper
    shared.advance(KEEP_S)
    assert shared.keeper.ledger.granted == shared.held == shared.waiting == 40


def test_the_next_keeper_hears_what_is_held() -> None:
    shared = Shared(routers=2, total=20)
    for router in shared.routers:
        for _ in range(10):
            router.arrive(shared.now)
            shared.deliver()
    shared.change_keeper()
    shared.advance(TICK_S)
    assert shared.keeper.ledger.granted == shared.held == 20
    assert sum(router.refused for router in shared.routers) == 0


def test_a_lower_maximum_holds_as_queues_get_shorter() -> None:
    shared = Shared(routers=2, total=20)
    for router in shared.routers:
        for _ in range(10):
            router.arrive(shared.now)
            shared.deliver()
    shared.keeper.send(shared.keeper.ledger.resize(6, shared.now))
    for router in shared.routers:
        router.allowance.resize(6, 3, router.waiting)
    shared.deliver()
    assert shared.waiting == 20, "those that wait may stay"
    for router in shared.routers:
        router.arrive(shared.now)
        assert router.refused == 1
        router.waiting = 0
    shared.advance(TICK_S)
    assert shared.held <= 6


def test_calls_that_wait_for_an_answer_keep_to_a_maximum_that_was_lowered_meanwhile() -> None:
    shared = Shared(routers=2, total=1)
    for total in (3, 1):
        shared.keeper.send(shared.keeper.ledger.resize(total, shared.now))
        for router in shared.routers:
            router.allowance.resize(total, 1, router.waiting)
        if total == 3:
            shared.routers[0].arrive(shared.now)
            shared.routers[1].arrive(shared.now)
            shared.routers[1].arrive(shared.now)
    for _ in range(2):
        shared.keeper.receive(shared.now)
    shared.routers[1].receive(shared.now)
    assert shared.routers[1].allowance.limit <= 1


def test_no_limit_needs_no_places() -> None:
    allowance = Allowance(-1, 1)
    assert allowance.limit == -1
    assert allowance.want(1000, 0.0, True) is None
    assert allowance.idle
    allowance.resize(10, 5, waiting=7)
    assert (allowance.limit, allowance.held) == (7, 7)
    allowance.resize(-1, 5, waiting=7)
    assert allowance.limit == -1
    assert allowance.excess(1000) == 0


class PlacesMachine(RuleBasedStateMachine):
    """Messages, connections, keepers and maxima as they come. More places than there are, only for a stated reason."""

    @initialize(routers=st.integers(1, 4), total=st.sampled_from([1, 2, 5, 30]))
    def start(self, routers: int, total: int) -> None:
        self.shared = Shared(routers, total)
        self.bound = total  # the most that may be held now
        self.lost = False  # a ledger was lost

    def router(self, n: int) -> Router:
        return self.shared.routers[n % len(self.shared.routers)]

    def most_after_a_loss(self) -> int:
        """What is held may be forgotten by the ledger, beside all that it grants, or has granted under a higher maximum
        (its messages may still be on their way).
        """
        shared = self.shared
        return shared.held + max(shared.total, shared.keeper.ledger.granted)

    @rule(n=st.integers(0, 9), calls=st.integers(1, 12))
    def arrive(self, n: int, calls: int) -> None:
        for _ in range(calls):
            self.router(n).arrive(self.shared.now)

    @rule(n=st.integers(0, 9), calls=st.integers(1, 12))
    def leave(self, n: int, calls: int) -> None:
        router = self.router(n)
        router.waiting = max(0, router.waiting - calls)

    @rule(n=st.integers(0, 9), messages=st.integers(1, 3))
    def router_receives(self, n: int, messages: int) -> None:
        router = self.router(n)
        for _ in range(min(messages, len(router.inbox))):
            router.receive(self.shared.now)

    @rule(messages=st.integers(1, 3))
    def keeper_receives(self, messages: int) -> None:
        for _ in range(min(messages, len(self.shared.keeper.inbox))):
            self.shared.keeper.receive(self.shared.now)

    @rule(n=st.integers(0, 9), seconds=st.sampled_from([0.01, TICK_S, PATIENCE_S, KEEP_S]))
    def tick(self, n: int, seconds: float) -> None:
        self.shared.now += seconds
        self.router(n).tick(self.shared.now)

    @rule(n=st.integers(0, 9))
    def disconnect(self, n: int) -> None:
        self.bound = self.most_after_a_loss()
        self.shared.break_connection(self.router(n))
        self.lost = True

    @rule(n=st.integers(0, 9))
    def connect(self, n: int) -> None:
        router = self.router(n)
        if router.keeper is None:
            router.keeper = self.shared.keeper

    @rule()
    def change_keeper(self) -> None:
        self.bound = self.most_after_a_loss()
        self.shared.change_keeper()
        self.lost = True

    @rule(total=st.sampled_from([1, 3, 30]))
    def resize(self, total: int) -> None:
        shared = self.shared
        self.bound = max(self.bound, shared.held, shared.keeper.ledger.granted, total)
        shared.total = total
        shared.keeper.send(shared.keeper.ledger.resize(total, shared.now))
        for router in shared.routers:
            router.allowance.resize(total, shared.share(len(shared.routers)), router.waiting)

    @rule()
    def come_to_rest(self) -> None:
        """All are connected, no call comes or stays: nothing is held, and all places are there again."""
        shared = self.shared
        for router in shared.routers:
            router.keeper = shared.keeper
            router.waiting = 0
        shared.deliver()
        shared.advance(3 * KEEP_S)
        assert shared.held == shared.keeper.ledger.granted == 0
        assert all(router.allowance.idle for router in shared.routers)
        self.bound = shared.total
        self.lost = False
        for router in shared.routers:
            router.arrive(shared.now)
            shared.deliver()
        assert shared.waiting == min(shared.total, len(shared.routers))

    @invariant()
    def no_more_is_held_than_there_is(self) -> None:
        if not hasattr(self, "shared"):
            return
        shared = self.shared
        assert shared.held <= self.bound
        for router in shared.routers:
            allowance = router.allowance
            assert allowance.held >= 0
            assert self.lost or allowance.held <= shared.keeper.ledger.granted_to(router)
            assert 0 <= allowance.limit <= max(shared.total, 1)


TestPlaces = PlacesMachine.TestCase
TestPlaces.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
