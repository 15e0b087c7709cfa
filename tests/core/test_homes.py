"""Where models are: first homes, loaders, more homes for hot ones; no call waits for a load that it does not need."""

from __future__ import annotations

from random import Random

from headrace.core.balance import Balancer, Replica
from headrace.core.bound import MOST_LINES, to_model, to_replica
from headrace.core.homes import HINT_LASTS_S, MOST_GUESSES, PRESSURE, Homes, State


def homes_of(count: int) -> tuple[Homes, list[Replica]]:
    return Homes(Random(1).random, lambda name: False), [Replica(f"Model#{i}", 10) for i in range(count)]


def anywhere(replica: Replica) -> bool:
    return True


def test_a_model_that_is_nowhere_gets_the_same_first_home_from_every_router() -> None:
    for name in ("cat", "dog", "owl"):
        chosen = set()
        for _ in range(3):
            homes, replicas = homes_of(5)
            found = homes.first(name, replicas)
            assert found is not None
            chosen.add(found.id)
        assert len(chosen) == 1
    assert homes.first("cat", []) is None


def test_first_homes_spread_over_the_replicas() -> None:
    homes, replicas = homes_of(4)
    counts = dict.fromkeys(replicas, 0)
    for i in range(400):
        found = homes.first(f"model-{i}", replicas)
        assert found is not None
        counts[found] += 1
    assert min(counts.values()) > 60


def test_a_home_that_goes_disturbs_the_models_of_no_other() -> None:
    homes, replicas = homes_of(4)
    names = [f"model-{i}" for i in range(100)]
    before = {name: homes.first(name, replicas) for name in names}
    for name, home in before.items():
        assert home is not None
        homes.told(home, ready=[name])
    gone = replicas.pop()
    homes.removed(gone)
    for name in names:
        if before[name] is gone:
            assert not homes.known(name)
        else:
            assert homes.pick(name, anywhere) is before[name] is homes.first(name, replicas)


def test_one_loader_goes_and_the_others_wait_until_the_model_is_ready() -> None:
    homes, (home, *_) = homes_of(1)
    assert homes.takes("cat", home)
    assert homes.sent("cat", home), "it is the loader"
    assert not homes.takes("cat", home)
    homes.told(home, loading=["cat"])
    assert homes.pick("cat", anywhere) is None
    homes.told(home, ready=["cat"])
    assert homes.pick("cat", anywhere) is home
    assert not homes.sent("cat", home), "no other one loads"


def test_a_loader_that_is_refused_leaves_its_place_to_another() -> None:
    homes, (home, *_) = homes_of(1)
    homes.sent("cat", home)
    assert homes.ended("cat", home, started=False)
    assert not homes.known("cat"), "it may go to any replica"
    assert homes.sent("cat", home)


def test_where_a_load_failed_those_that_wait_may_all_go_and_share_the_next() -> None:
    homes, (home, *_) = homes_of(1)
    homes.sent("cat", home)
    homes.told(home, loading=["cat"])
    homes.told(home, gone=["cat"])
    assert homes.takes("cat", home)
    assert not homes.sent("cat", home)
    assert homes.takes("cat", home), "for the second too"
    homes.told(home, loading=["cat"])
    assert not homes.takes("cat", home)


def test_where_the_loader_ended_without_a_load_calls_go_as_ever() -> None:
    homes, (home, *_) = homes_of(1)
    homes.sent("cat", home)
    assert homes.ended("cat", home)
    assert homes.pick("cat", anywhere) is home


def test_the_end_of_a_loader_changes_nothing_while_the_replica_says_that_it_loads() -> None:
    homes, (home, *_) = homes_of(1)
    homes.sent("cat", home)
    homes.told(home, loading=["cat"])
    assert not homes.ended("cat", home)
    assert not homes.takes("cat", home)


def test_where_it_is_ready_nothing_else_counts() -> None:
    homes, (failed, ready, asked) = homes_of(3)
    homes.told(failed, loading=["cat"])
    homes.told(failed, gone=["cat"])
    assert homes.pick("cat", anywhere) is failed
    homes.told(ready, ready=["cat"])
    assert homes.pick("cat", lambda replica: replica is not ready) is None, "no call is sent where a load has failed"
    homes.told(asked, loading=["cat"])
    homes.told(asked, gone=["cat"])
    assert homes.pick("cat", lambda replica: replica is not ready) is None, "nor where one fails now"


def test_that_a_model_is_gone_which_was_not_there_means_nothing() -> None:
    homes, (home,) = homes_of(1)
    homes.told(home, gone=["cat"])
    assert not homes.known("cat")


def test_models_that_no_replica_ever_has_take_a_bounded_memory() -> None:
    waited_for = {"model-0", "model-7"}
    homes, home = Homes(Random(1).random, waited_for.__contains__), Replica("Model#1", 10)
    homes.told(home, ready=["cat"])
    for i in range(MOST_GUESSES + 5000):
        assert homes.sent(f"model-{i}", home)
        assert homes.ended(f"model-{i}", home)
    assert repr(homes) == f"<Homes of {MOST_GUESSES + 3} models>", "those that calls wait for, and what is there, stay"
    assert all(homes.known(name) for name in ("model-0", "model-7", "cat"))
    assert not homes.known("model-1")


def test_an_evicted_model_is_forgotten() -> None:
    homes, (home, *_) = homes_of(1)
    homes.told(home, ready=["cat"])
    homes.told(home, gone=["cat"])
    assert not homes.known("cat")


def test_of_two_homes_the_less_loaded_takes_the_call() -> None:
    homes, (one, other) = homes_of(2)
    homes.told(one, ready=["cat"])
    homes.told(other, ready=["cat"])
    one.ours = 5
    assert homes.pick("cat", anywhere) is other
    assert homes.pick("cat", lambda replica: replica is one) is one
    assert homes.pick("cat", lambda replica: False) is None


def press(homes: Homes, others: list[Replica], times: int, now: float = 0.0) -> list[Replica]:
    found = [homes.spread("cat", now, others) for _ in range(times)]
    return [replica for replica in found if replica is not None]


def test_a_hot_model_gets_one_home_more_and_the_next_only_when_that_is_ready() -> None:
    homes, (home, idle, other) = homes_of(3)
    homes.told(home, ready=["cat"])
    home.ours = 8
    found = press(homes, [idle, other], 40)
    assert len(found) == 1
    homes.told(found[0], loading=["cat"])
    assert press(homes, [idle, other], 40) == []
    homes.told(found[0], ready=["cat"])
    assert press(homes, [idle, other], 40) == [], "the new home is idle, so there is no need"
    found[0].ours = 8
    assert len(press(homes, [idle, other], 40)) == 1


def test_a_few_calls_at_once_do_not_make_a_model_hot() -> None:
    homes, (home, idle) = homes_of(2)
    homes.told(home, ready=["cat"])
    home.ours = 8
    assert press(homes, [idle], int(PRESSURE) - 1) == []
    assert press(homes, [idle], int(PRESSURE) - 1, now=100.0) == []


def test_a_model_does_not_spread_to_replicas_that_are_as_busy() -> None:
    homes, (home, busy) = homes_of(2)
    homes.told(home, ready=["cat"])
    home.ours, busy.others = 8, 5
    assert press(homes, [busy], 100) == []


def test_a_replica_that_does_not_load_what_it_was_asked_to_is_asked_again_after_a_while() -> None:
    homes, (home, idle) = homes_of(2)
    homes.told(home, ready=["cat"])
    home.ours = 8
    assert len(press(homes, [idle], 100)) == 1
    assert press(homes, [idle], 100, now=HINT_LASTS_S - 1) == []
    assert len(press(homes, [idle], 100, now=HINT_LASTS_S + 1)) == 1


def test_states_are_as_they_read() -> None:
    assert [state.value for state in State] == ["loader", "loading", "ready", "open"]


# --- with the balancer


def balancer_of(count: int, limit: int) -> tuple[Balancer[str], list[Replica]]:
    balancer: Balancer[str] = Balancer(limit, -1, Random(1))
    return balancer, [balancer.add(f"Model#{i}") for i in range(count)]


def test_calls_for_other_models_do_not_wait_behind_those_that_wait_for_a_load() -> None:
    balancer, (replica,) = balancer_of(1, limit=2)
    balancer.models_changed(replica, ["dog"], [], [])
    assert balancer.choose_bound("loader", to_model("cat"), 0.0) is replica
    for i in range(10):
        assert balancer.choose_bound(f"cat{i}", to_model("cat"), 0.0) is None
        assert balancer.enqueue(f"cat{i}", 0.0, key=to_model("cat"))
    assert balancer.choose_bound("dog", to_model("dog"), 0.0) is replica, "it has its model, and there is a slot"


def test_a_call_for_a_model_that_is_ready_waits_for_its_home_and_not_for_a_load_elsewhere() -> None:
    balancer, replicas = balancer_of(2, limit=2)
    home, idle = replicas
    balancer.models_changed(home, ["cat"], [], [])
    for i in range(2):
        assert balancer.choose_bound(f"cat{i}", to_model("cat"), 0.0) is home
    for i in range(2, 12):
        assert balancer.choose_bound(f"cat{i}", to_model("cat"), 0.0) is None
        balancer.enqueue(f"cat{i}", 0.0, key=to_model("cat"))
    assert balancer.to_load == [("cat", idle)], "the other loads it, with no call waiting there"
    balancer.models_changed(idle, [], ["cat"], [])
    assert balancer.drain(0.0) == []
    balancer.models_changed(idle, ["cat"], [], [])
    assert [replica for _, replica in balancer.drain(0.0)] == [idle, idle]


def test_only_the_replicas_that_could_take_it_are_told_of_a_bound_call() -> None:
    balancer, (home, other) = balancer_of(2, limit=1)
    balancer.models_changed(home, ["cat"], [], [])
    balancer.choose_bound("first", to_model("cat"), 0.0)
    balancer.enqueue("second", 0.0, key=to_model("cat"))
    assert balancer.announce() == [home]
    assert (balancer.waiting_for(home), balancer.waiting_for(other)) == (1, 0)
    assert balancer.offered(other, 1, 0.0) is None
    assert balancer.offered(home, 1, 0.0) == "second"


def test_of_a_bound_call_and_another_that_which_waits_longer_takes_the_offer() -> None:
    balancer, (home,) = balancer_of(1, limit=1)
    assert balancer.choose() is home
    balancer.enqueue("any", 1.0)
    balancer.enqueue("bound", 2.0, key=to_replica(home.id))
    assert [balancer.offered(home, 1, 3.0), balancer.offered(home, 1, 3.0)] == ["any", "bound"]


def test_a_call_that_is_not_bound_goes_where_no_bound_call_waits() -> None:
    balancer, (one, other) = balancer_of(2, limit=2)
    for _ in range(2):
        balancer.choose_bound("x", to_replica(one.id), 0.0)
    balancer.enqueue("bound", 0.0, key=to_replica(one.id))
    balancer.finished(one, 1)
    assert balancer.choose() is other
    assert balancer.choose() is other
    assert balancer.choose() is None, "the slot that is left is the bound call's"


def test_calls_bound_to_a_replica_that_goes_are_stranded() -> None:
    balancer, (one, _) = balancer_of(2, limit=1)
    balancer.choose_bound("first", to_replica(one.id), 0.0)
    balancer.enqueue("second", 0.0, key=to_replica(one.id))
    balancer.remove(one.id)
    assert balancer.stranded() == ["second"]
    assert balancer.queued == 0


def test_calls_for_a_model_whose_home_goes_find_a_new_one() -> None:
    balancer, replicas = balancer_of(2, limit=1)
    home = balancer.choose_bound("first", to_model("cat"), 0.0)
    assert home is not None
    balancer.enqueue("second", 0.0, key=to_model("cat"))
    balancer.enqueue("third", 0.0, key=to_model("cat"))
    balancer.remove(home.id)
    assert balancer.stranded() == []
    (other,) = [replica for replica in replicas if replica is not home]
    assert balancer.drain(0.0) == [("second", other)], "as its loader; the third waits"


def test_a_model_that_is_nowhere_goes_to_whichever_replica_has_room_first() -> None:
    balancer, replicas = balancer_of(3, limit=1)
    for _ in replicas:
        balancer.choose()
    assert balancer.choose_bound("first", to_model("cat"), 0.0) is None
    balancer.enqueue("first", 0.0, key=to_model("cat"))
    assert sorted(replica.id for replica in balancer.announce()) == ["Model#0", "Model#1", "Model#2"]
    assert balancer.offered(replicas[1], 1, 0.0) == "first"
    assert not balancer.homes.takes("cat", replicas[0]), "one loads it now"


def test_a_loader_that_a_full_replica_refused_goes_to_one_with_room() -> None:
    balancer, _ = balancer_of(2, limit=1)
    full = balancer.choose_bound("first", to_model("cat"), 0.0)
    assert full is not None
    balancer.rejected(full, 1)
    assert balancer.loader_ended("first", started=False)
    balancer.requeue("first", 0.0, key=to_model("cat"))
    ((call, other),) = balancer.drain(0.0)
    assert call == "first"
    assert other is not full


def test_calls_that_came_when_there_was_no_replica_find_one_that_comes() -> None:
    balancer, _ = balancer_of(0, limit=3)
    for name in ("first", "second"):
        assert balancer.choose_bound(name, to_model("cat"), 0.0) is None
        balancer.enqueue(name, 0.0, key=to_model("cat"))
    replica = balancer.add("Model#1")
    assert balancer.drain(0.0) == [("first", replica)]
    balancer.models_changed(replica, ["cat"], [], [])
    assert balancer.drain(0.0) == [("second", replica)]


def test_bound_calls_count_among_those_that_may_wait_and_give_way() -> None:
    balancer: Balancer[str] = Balancer(1, 2, Random(1))
    balancer.add("Model#1")
    balancer.choose()
    assert balancer.enqueue("low", 0.0, -1, key=to_model("cat"))
    assert balancer.enqueue("any", 0.0)
    assert not balancer.enqueue("more", 0.0, key=to_model("cat"))
    assert balancer.evict(below=0) == "low"
    assert balancer.enqueue("more", 0.0, key=to_model("cat"))
    assert sorted(balancer.take_all()) == ["any", "more"]


def test_who_gives_way_is_of_the_lowest_priority_bound_or_not() -> None:
    balancer: Balancer[str] = Balancer(1, 3, Random(1))
    for name, priority, key in (("any", 0, None), ("low", -1, to_model("cat")), ("one", 0, to_model("cat"))):
        assert balancer.enqueue(name, 0.0, priority, key=key)
    assert [balancer.evict(below=1) for _ in range(4)] == ["low", "any", "one", None]


def test_of_the_same_priority_a_line_that_is_longer_than_the_queue_gives_way_first() -> None:
    balancer: Balancer[str] = Balancer(1, 4, Random(1))
    for name, key in (("any", None), ("one", to_model("cat")), ("two", to_model("cat")), ("three", to_model("cat"))):
        assert balancer.enqueue(name, 0.0, key=key)
    assert [balancer.evict() for _ in range(5)] == ["three", "two", "any", "one", None]


def test_calls_for_a_model_that_would_be_late_are_not_sent_after_they_have_waited() -> None:
    balancer, (home,) = balancer_of(1, limit=1)
    cat = to_model("cat")
    balancer.models_changed(home, ["cat"], [], [])
    for _ in range(20):
        balancer.lateness.times.observe(1.0, 0.0)
    assert balancer.choose_bound("first", cat, 0.0) is home
    balancer.enqueue("late", 0.0, deadline=0.5, key=cat)
    balancer.enqueue("also late", 0.0, deadline=0.5, key=cat)
    balancer.enqueue("in time", 0.0, deadline=10.0, key=cat)
    assert balancer.offered(home, 1, 0.1) == "in time"
    assert balancer.shed == ["late", "also late"]
    balancer.shed.clear()
    balancer.finished(home, 1)
    balancer.finished(home, 0)
    assert balancer.choose_bound("again", cat, 0.0) is home
    balancer.enqueue("too late", 0.0, deadline=0.5, key=cat)
    balancer.enqueue("any", 0.0)
    assert balancer.offered(home, 1, 0.1) == "any", "the slot is for the next that is in time"
    balancer.shed.clear()
    balancer.enqueue("once more", 0.0, deadline=0.5, key=cat)
    balancer.finished(home, 0)
    balancer.finished(home, 0)
    assert balancer.drain(0.1) == []
    assert balancer.shed == ["once more"]


def test_an_offer_is_not_declined_for_a_bound_call_because_those_before_it_were_too_late() -> None:
    balancer, (home,) = balancer_of(1, limit=1)
    balancer.choose()
    balancer.enqueue("late", 0.0, deadline=1.0)
    balancer.enqueue("bound", 1.0, key=to_replica(home.id))
    assert balancer.offered(home, 1, 2.0) == "bound"
    assert balancer.shed == ["late"]


def test_calls_for_more_models_than_there_are_lines_wait_as_any_others() -> None:
    balancer, (replica,) = balancer_of(1, limit=1)
    balancer.choose()
    for i in range(MOST_LINES + 2):
        balancer.enqueue(f"call{i}", float(i), key=to_model(f"model{i}"))
    balancer.enqueue("another", 1000.0, key=to_model("model0"))
    assert balancer.queued == MOST_LINES + 3
    assert len(list(balancer._bound)) == MOST_LINES
    sent = []
    while balancer.queued:
        call = balancer.offered(replica, 1, 2000.0)
        assert call is not None
        sent.append(call)
        balancer.loader_ended(call)
    assert sent == [*(f"call{i}" for i in range(MOST_LINES + 2)), "another"]


def test_calls_for_one_replica_are_never_too_many_and_never_give_way() -> None:
    balancer: Balancer[str] = Balancer(1, 1, Random(1))
    replica = balancer.add("Model#1")
    balancer.choose()
    assert balancer.enqueue("any", 0.0)
    assert balancer.enqueue("one", 0.0, -1, key=to_replica(replica.id))
    assert balancer.enqueue("two", 0.0, -1, key=to_replica(replica.id))
    assert balancer.queued == 1
    assert balancer.evict() == "any"
    assert balancer.evict() is None
    assert balancer.enqueue("other", 0.0)
    assert sorted(balancer.take_all()) == ["one", "other", "two"]
    assert balancer.queued == 0
