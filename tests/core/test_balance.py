"""The balancer: a router's choice of a replica, and the calls that wait for one. Calls are names here."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from headrace.core.balance import Balancer, Replica
from headrace.core.queue import AGING_S
from headrace.spec.priority import LOWEST_PRIORITY

HEAD_START_S = -LOWEST_PRIORITY * AGING_S  # of priority 0 over the lowest


def balancer(replicas: int = 2, limit: int = 2, max_queued: int = 1000) -> Balancer[str]:
    made: Balancer[str] = Balancer(limit, max_queued, Random(1))
    for i in range(replicas):
        made.add(f"d#{i}")
    return made


def choose(balancer: Balancer[str], times: int = 1) -> list[Replica]:
    chosen = [balancer.choose() for _ in range(times)]
    assert None not in chosen
    return [replica for replica in chosen if replica is not None]


def test_calls_go_to_the_lesser_load_until_there_is_no_room() -> None:
    b = balancer(replicas=2, limit=3)
    assert Counter(replica.id for replica in choose(b, 6)) == {"d#0": 3, "d#1": 3}
    assert b.choose() is None


def test_a_reply_makes_room_and_tells_of_the_load_that_others_cause() -> None:
    b = balancer(replicas=2, limit=10)
    one, two = choose(b, 2)
    b.finished(one, load=5)
    b.finished(two, load=1)
    assert (one.ours, one.others, two.ours, two.others) == (0, 5, 0, 1)
    assert choose(b, 2) == [two, two]


def test_a_call_that_never_left_makes_room_and_tells_nothing() -> None:
    b = balancer(replicas=1, limit=2)
    (one, _) = choose(b, 2)
    one.others = 1
    assert b.choose() is None
    b.enqueue("waits", 0.0)
    b.unbook(one)
    assert b.drain(0.0) == []  # for what others have there
    one.others = 0
    b.unbook(one)
    assert b.drain(0.0) == [("waits", one)]
    assert one.ours == 1


def test_choices_spread_evenly_over_many_replicas() -> None:
    b = balancer(replicas=100, limit=1000)
    counts = Counter(replica.id for replica in choose(b, 10_000))
    assert len(counts) == 100
    assert max(counts.values()) - min(counts.values()) < 15, "two choices, not one at random"


def test_old_news_of_a_high_load_fade() -> None:
    b = balancer(replicas=2, limit=100)
    busy, idle = choose(b, 2)
    b.finished(busy, load=50)
    b.finished(idle, load=0)
    used = 0
    while (replica := choose(b)[0]) is idle:
        b.finished(idle, load=0)
        used += 1
        assert used < 200, "it is never asked again"
    assert replica is busy
    assert used >= 45, "but not at once"


def test_while_calls_wait_a_new_one_waits_behind_them() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    assert b.choose() is None
    assert b.enqueue("first", now=1.0)
    b.finished(replica, load=0)
    assert b.choose() is None, "the replica has room, but the first in the queue has not been sent"


def test_too_many_waiting_calls_are_refused() -> None:
    b = balancer(replicas=0, max_queued=2)
    assert [b.enqueue(call, now=0.0) for call in ("a", "b", "c")] == [True, True, False]
    assert b.discard("a")
    assert b.enqueue("d", now=0.0)
    b.max_queued = -1
    assert b.enqueue("e", now=0.0), "negative: any number may wait"


def test_an_offer_is_for_the_eldest_call() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    b.enqueue("first", now=1.0)
    b.enqueue("second", now=2.0)
    assert b.urgency_s(now=4.0) == 3.0 + HEAD_START_S
    b.finished(replica, load=1)
    assert b.offered(replica, load=1, now=9.0) == "first"
    assert replica.ours == 1
    assert b.urgency_s(now=4.0, replica=replica) == 2.0 + HEAD_START_S


def test_an_offer_that_nobody_needs_is_declined() -> None:
    b = balancer(replicas=1)
    assert b.offered(b.replicas["d#0"], load=1, now=9.0) is None
    assert b.replicas["d#0"].ours == 0


def test_a_call_that_comes_back_takes_its_old_place() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    b.enqueue("later", now=5.0)
    b.rejected(replica, load=1)
    b.requeue("second", since=2.0)
    b.requeue("first", since=1.0)
    assert [b.offered(replica, load=1, now=9.0) for _ in range(3)] == ["first", "second", "later"]


def test_replicas_are_told_once_that_calls_wait_and_once_that_none_does() -> None:
    b = balancer(replicas=2, limit=1)
    one, two = choose(b, 2)
    assert b.announce() == []
    b.enqueue("first", now=1.0)
    b.enqueue("second", now=1.0)
    assert b.announce() == [b.replicas["d#0"], b.replicas["d#1"]]
    assert (b.waiting_for(one), b.waiting_for(two)) == (2, 2)
    b.enqueue("third", now=1.0)
    assert b.announce() == [], "they know that some wait"
    for call in ("first", "second", "third"):
        b.discard(call)
    assert len(b.announce()) == 2
    assert b.waiting_for(one) == 0


def test_a_queue_that_comes_and_goes_within_a_tick_is_no_news() -> None:
    b = balancer(replicas=2, limit=1)
    choose(b, 2)
    b.enqueue("first", now=1.0)
    b.discard("first")
    assert b.announce() == []


def test_the_replica_that_took_the_last_call_is_told_again_when_another_waits() -> None:
    """The leased call said that none waits after it. What the other replicas were told holds still."""
    b = balancer(replicas=2, limit=1)
    one, _ = choose(b, 2)
    b.enqueue("first", now=1.0)
    b.announce()
    b.finished(one, load=1)
    assert b.offered(one, load=1, now=9.0) == "first"
    b.enqueue("second", now=1.0)
    assert b.announce() == [one]


def test_a_call_that_one_replica_refused_goes_to_another_with_room() -> None:
    b = balancer(replicas=2, limit=2)
    (replica,) = choose(b)
    b.rejected(replica, load=2)
    b.requeue("call", since=0.0)
    ((call, other),) = b.drain(9.0)
    assert call == "call"
    assert other is not replica
    assert choose(b) == [other]
    assert b.choose() is None, "both are full, as far as is known"


def test_a_full_replica_without_a_call_of_ours_gets_another_chance_as_time_passes() -> None:
    """No reply of it will ever tell that it has room. Calls that end elsewhere stand for time."""
    b = balancer(replicas=2, limit=2)
    (replica,) = choose(b)
    b.rejected(replica, load=2)
    assert {choose(b)[0].id, choose(b)[0].id} == {"d#0", "d#1"} - {replica.id}
    other = next(other for other in b.replicas.values() if other is not replica)
    b.finished(other, load=1)
    assert b.choose() is not None
    assert b.choose() is not None, "room for one at each"
    assert (replica.ours, other.ours) == (1, 2)


def test_when_all_are_full_with_calls_of_others_the_replicas_are_asked_for_a_slot() -> None:
    b = balancer(replicas=1, limit=2)
    (replica,) = choose(b)
    b.rejected(replica, load=2)
    b.requeue("call", since=0.0)
    assert b.drain(9.0) == []
    assert b.announce() == [replica]
    assert b.offered(replica, load=2, now=9.0) == "call"


def test_a_new_replica_takes_what_waits() -> None:
    b = balancer(replicas=0, limit=2)
    for call in ("a", "b", "c"):
        b.enqueue(call, now=0.0)
    replica = b.add("d#7")
    assert b.drain(9.0) == [("a", replica), ("b", replica)]
    assert b.queued == 1
    assert b.announce() == [replica]


def test_a_removed_replica_is_never_chosen_though_its_calls_still_end() -> None:
    b = balancer(replicas=2, limit=2)
    one, *_ = choose(b, 3)
    assert b.remove(one.id) is one
    assert b.remove(one.id) is None
    b.finished(one, load=0)
    b.enqueue("call", now=0.0)
    assert b.offered(one, load=1, now=9.0) is None
    assert all(replica is not one for _, replica in b.drain(9.0))


def test_a_replica_is_added_once() -> None:
    with pytest.raises(ValueError, match="d#0"):
        balancer(replicas=1).add("d#0")


def test_suspects_go_one_to_a_replica_and_hold_up_nobody() -> None:
    b = balancer(replicas=2, limit=4)
    for i in range(3):
        b.quarantine(f"suspect{i}", since=float(i))
    pairs = b.drain(9.0)
    assert [call for call, _ in pairs] == ["suspect0", "suspect1"]
    assert len({replica.id for _, replica in pairs}) == 2
    assert b.choose() is not None, "a new call does not wait for the third suspect"
    assert b.announce() == [], "and no replica is asked for a slot for it"

    replica = pairs[1][1]
    b.finished(replica, load=replica.ours - 1)
    b.suspect_ended(replica)
    assert b.drain(9.0) == [("suspect2", replica)]


def test_a_suspect_takes_an_offer_before_the_calls_that_are_new_to_crashes() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    b.enqueue("call", now=5.0)
    b.quarantine("suspect", since=1.0)
    assert b.announce() == [replica]
    assert (b.waiting_for(replica), b.urgency_s(6.0, replica)) == (2, 5.0 + HEAD_START_S)
    b.finished(replica, load=1)
    assert b.offered(replica, load=1, now=9.0) == "suspect"
    assert (b.waiting_for(replica), b.urgency_s(6.0, replica)) == (1, 1.0 + HEAD_START_S)


def test_all_that_waits_can_be_taken() -> None:
    b = balancer(replicas=0)
    b.enqueue("call", now=5.0)
    b.requeue("older", since=2.0)
    b.quarantine("suspect", since=3.0)
    assert b.take_all() == ["suspect", "older", "call"]
    assert b.queued == 0


def test_a_suspect_that_found_no_room_has_its_replica_told() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    b.announce()
    b.quarantine("suspect", since=0.0)
    assert b.drain(9.0) == []
    assert b.announce() == [replica]


def test_when_a_suspect_has_ended_at_a_full_replica_the_next_asks_there_for_a_slot() -> None:
    b = balancer(replicas=1, limit=2)
    (replica,) = choose(b)
    b.quarantine("one", since=0.0)
    b.quarantine("two", since=0.0)
    assert b.drain(9.0) == [("one", replica)]
    assert b.announce() == []
    b.finished(replica, load=2)
    b.suspect_ended(replica)
    assert b.drain(9.0) == [], "another router has taken the slot"
    assert b.announce() == [replica]


def test_the_call_of_higher_priority_goes_first() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    for call, priority in (("plain", 0), ("low", -3), ("high", 3), ("high too", 3)):
        assert b.enqueue(call, now=1.0, priority=priority)
    assert [b.offered(replica, load=1, now=1.0) for _ in range(4)] == ["high", "high too", "plain", "low"]


def test_a_call_that_comes_back_keeps_its_priority() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    b.enqueue("plain", now=1.0)
    b.rejected(replica, load=1)
    b.requeue("low", since=0.5, priority=-3)
    assert [b.offered(replica, load=1, now=1.0) for _ in range(2)] == ["plain", "low"]


def test_replicas_hear_of_a_more_urgent_call_and_when_it_is_gone() -> None:
    b = balancer(replicas=2, limit=1)
    one, two = choose(b, 2)
    b.enqueue("plain", now=1.0)
    b.enqueue("second", now=1.0)
    assert len(b.announce()) == 2
    b.enqueue("high", now=1.5, priority=2)
    assert b.announce() == [b.replicas["d#0"], b.replicas["d#1"]]
    assert b.urgency_s(1.5) == 2.0 + HEAD_START_S
    b.enqueue("less so", now=1.6, priority=1)
    assert b.announce() == [], "it is not the first"
    assert b.offered(one, load=1, now=1.7) == "high"
    assert len(b.announce()) == 2
    assert b.offered(one, load=1, now=1.7) == "less so"
    assert b.announce() == [], "the next is as urgent within a level"
    assert b.offered(one, load=1, now=1.8) == "plain"
    assert b.announce() == [], "between plain calls, time alone decides"
    assert b.urgency_s(1.8, two) == pytest.approx(0.8 + HEAD_START_S)


def test_one_of_the_lowest_priority_gives_way_when_the_queue_is_full() -> None:
    b = balancer(replicas=0, max_queued=3)
    for call, priority in (("plain", 0), ("low", -1), ("low too", -1)):
        b.enqueue(call, now=1.0, priority=priority)
    assert not b.enqueue("high", now=1.0, priority=1)
    assert b.evict(below=-1) is None
    assert b.evict(below=1) == "low too"
    assert b.enqueue("high", now=1.0, priority=1)
    assert [b.evict(), b.evict(), b.evict(), b.evict()] == ["low", "plain", "high", None]


def test_a_call_that_expired_or_would_be_late_is_shed_when_its_turn_comes() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    for _ in range(20):
        b.lateness.times.observe(1.0, now=0.0)
    for call, deadline in (("expired", 5.0), ("late", 6.5), ("in time", 8.0), ("next", 8.0)):
        assert b.enqueue(call, now=0.0, deadline=deadline)
    assert b.offered(replica, load=1, now=6.0) == "in time"
    assert b.shed == ["expired", "late"]
    assert (b.queued, replica.ours) == (1, 2)
    assert b.discard("late"), "it was cancelled before it was answered"
    assert b.shed == ["expired"]
    assert b.offered(replica, load=1, now=7.5) is None
    assert b.shed == ["expired", "next"]
    assert (b.queued, replica.ours) == (0, 2)


def test_calls_that_are_late_are_shed_when_room_appears_and_the_replicas_are_told() -> None:
    b = balancer(replicas=1, limit=1)
    choose(b)
    b.enqueue("call", now=0.0, deadline=1.0)
    assert len(b.announce()) == 1
    replica = b.add("d#9")
    assert b.drain(2.0) == []
    assert b.shed == ["call"]
    assert replica.ours == 0
    assert b.announce() == [b.replicas["d#0"]], "none waits any more"


def test_a_call_is_hopeless_by_those_that_wait_before_it_unless_less_urgent_ones_do() -> None:
    b = balancer(replicas=1, limit=1)
    (replica,) = choose(b)
    b.enqueue("0", now=0.0, deadline=100.0)
    for i in range(1, 20):
        b.enqueue(f"{i}", now=0.0, deadline=100.0)
        b.offered(replica, load=1, now=float(i))
    for i in range(10):
        b.enqueue(f"more {i}", now=19.0, deadline=100.0)
    assert b.hopeless(now=19.0, deadline=24.0), "11 wait, one starts each second"
    assert not b.hopeless(now=19.0, deadline=40.0)
    assert b.hopeless(now=19.0, deadline=24.0, priority=-1)
    assert not b.hopeless(now=19.0, deadline=24.0, priority=1)
