"""Policies that choose replicas: in turn, by session on a ring, by the prefix of a text."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.balance import Balancer, Replica
from headrace.core.bound import to_replica
from headrace.core.routers import ConsistentHash, PrefixAffinity, RoundRobin
from headrace.core.routers.prefix import BLOCK_CHARS, LONGEST_CHARS, PrefixTree
from headrace.spec.errors import OptionError


class Ask:
    """A call, as policies see it."""

    def __init__(self, sticky: str | None = None, text: str = "") -> None:
        self.request_id, self.method, self.model_id = "r", "__call__", None
        self.sticky = sticky
        self.said = text

    def text(self) -> str:
        return self.said


def replicas_of(count: int, limit: int = 10, first: int = 1) -> list[Replica]:
    return [Replica(f"Model#{number}", limit) for number in range(first, first + count)]


def of(policy: Any, replicas: list[Replica]) -> Any:
    for replica in replicas:
        policy.added(replica)
    return policy


def fill(replica: Replica) -> None:
    replica.ours = replica.limit


# --- in turn ---


def test_replicas_take_turns_in_the_order_in_which_they_came() -> None:
    replicas = replicas_of(3)
    policy = of(RoundRobin(), replicas)
    shuffled = [replicas[2], replicas[0], replicas[1]]
    assert [policy.choose(Ask(), shuffled).id for _ in range(7)] == [f"Model#{i}" for i in (1, 2, 3, 1, 2, 3, 1)]


def test_a_replica_without_room_is_passed_over_and_keeps_its_turn() -> None:
    replicas = replicas_of(3)
    policy = of(RoundRobin(), replicas)
    fill(replicas[1])
    with_room = [replicas[0], replicas[2]]
    assert [policy.choose(Ask(), with_room).id for _ in range(4)] == ["Model#1", "Model#3", "Model#1", "Model#3"]
    replicas[1].ours = 0
    assert [policy.choose(Ask(), replicas).id for _ in range(3)] == ["Model#1", "Model#2", "Model#3"]


def test_each_process_may_begin_elsewhere_in_the_cycle() -> None:
    replicas = replicas_of(4)
    assert [of(RoundRobin(start), replicas).choose(Ask(), replicas).id for start in (0.0, 0.5, 0.99)] == [
        "Model#1",
        "Model#3",
        "Model#4",
    ]


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "choose"]), st.integers(0, 9)), max_size=60))
def test_whoever_comes_and_goes_turns_differ_by_one_among_those_who_stay(steps: list[tuple[str, int]]) -> None:
    policy, present, number = RoundRobin(0.4), replicas_of(2), 2
    of(policy, present)
    chosen: list[Replica] = []
    for what, which in steps:
        if what == "add":
            number += 1
            present.append(Replica(f"Model#{number}", 10))
            policy.added(present[-1])
        elif what == "remove" and len(present) > 1:
            policy.removed(present.pop(which % len(present)))
        else:
            replica = policy.choose(Ask(), present)
            assert replica in present
            chosen.append(replica)
    policy.removed(Replica("Model#999", 10))  # one that it never knew
    before = len(chosen)
    chosen += [policy.choose(Ask(), present) for _ in range(2 * len(present))]
    assert Counter(chosen[before:]) == dict.fromkeys(present, 2)


def test_with_none_to_choose_from_there_is_no_choice() -> None:
    assert RoundRobin().choose(Ask(), replicas_of(1)) is None
    assert ConsistentHash().choose(Ask("s"), replicas_of(1)) is None


# --- by session ---


def homes(policy: ConsistentHash, replicas: list[Replica], sessions: int = 300) -> dict[str, str]:
    found = {}
    for i in range(sessions):
        replica = policy.choose(Ask(f"session-{i}"), replicas)
        assert replica is not None
        found[f"session-{i}"] = replica.id
    return found


@given(st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_all_processes_agree_whatever_the_order_in_which_they_learn_of_replicas(count: int, rng: Random) -> None:
    first, second = replicas_of(count), replicas_of(count + 2)
    rng.shuffle(second)
    gone = [replica for replica in second if int(replica.id[6:]) > count]
    other = of(ConsistentHash(), second)
    other.choose(Ask("s"), second)
    for replica in gone:
        other.removed(replica)
    left = [replica for replica in second if replica not in gone]
    assert homes(of(ConsistentHash(), first), first, 60) == homes(other, left, 60)


@given(st.integers(1, 12))
@settings(max_examples=12)
def test_a_replica_that_comes_takes_sessions_and_no_other_session_moves(count: int) -> None:
    replicas = replicas_of(count)
    policy = of(ConsistentHash(), replicas)
    before = homes(policy, replicas)
    newcomer = Replica("Model#99", 10)
    policy.added(newcomer)
    after = homes(policy, [*replicas, newcomer])
    moved = [session for session in before if before[session] != after[session]]
    assert all(after[session] == "Model#99" for session in moved)
    assert len(moved) <= 300 / (count + 1) * 1.8 + 5
    policy.removed(newcomer)
    assert homes(policy, replicas) == before


@given(st.integers(2, 12), st.integers(0, 11))
@settings(max_examples=12)
def test_when_a_replica_goes_its_sessions_alone_move_and_not_all_to_one(count: int, which: int) -> None:
    replicas = replicas_of(count)
    policy = of(ConsistentHash(), replicas)
    before = homes(policy, replicas)
    gone = replicas.pop(which % count)
    policy.removed(gone)
    after = homes(policy, replicas)
    assert all(after[s] == before[s] for s in before if before[s] != gone.id)
    heirs = {after[s] for s in before if before[s] == gone.id}
    assert len(heirs) >= min(count - 1, 3)


def test_sessions_are_spread_evenly() -> None:
    replicas = replicas_of(5)
    shares = Counter(homes(of(ConsistentHash(), replicas), replicas, 5000).values())
    assert min(shares.values()) > 650
    assert max(shares.values()) < 1400


def test_a_session_whose_replica_is_full_goes_on_along_the_ring_and_comes_back() -> None:
    replicas = replicas_of(4, limit=3)
    policy = of(ConsistentHash(), replicas)
    by_id = {replica.id: replica for replica in replicas}
    home = policy.choose(Ask("mine"), replicas)
    fill(home)
    with_room = [replica for replica in replicas if replica is not home]
    second = policy.choose(Ask("mine"), with_room)
    assert second is not home
    assert policy.choose(Ask("mine"), with_room) is second  # always the same other
    fill(second)
    third = policy.choose(Ask("mine"), [r for r in with_room if r is not second])
    assert third not in (home, second)
    home.ours = 0
    assert policy.choose(Ask("mine"), [home, third]) is by_id[home.id]
    others_homes = {i: policy.choose(Ask(f"o{i}"), [home, *with_room]) for i in range(20)}
    assert len({replica.id for replica in others_homes.values()}) > 1


def test_the_number_of_others_that_are_tried_can_be_bounded() -> None:
    replicas = replicas_of(4, limit=1)
    policy = of(ConsistentHash(num_fallback_replicas=1), replicas)
    for _ in range(2):
        fill(policy.choose(Ask("mine"), [replica for replica in replicas if not replica.ours]))
    assert policy.choose(Ask("mine"), [replica for replica in replicas if not replica.ours]) is None


def test_without_a_session_there_is_no_preference() -> None:
    replicas = replicas_of(2)
    assert of(ConsistentHash(), replicas).choose(Ask(), replicas) is None


def test_a_replica_that_comes_back_under_its_name_has_its_sessions_again() -> None:
    replicas = replicas_of(3)
    policy = of(ConsistentHash(), replicas)
    before = homes(policy, replicas)
    again = Replica("Model#2", 10)
    policy.removed(replicas[1])
    policy.removed(replicas[1])
    policy.added(again)
    assert homes(policy, [replicas[0], again, replicas[2]]) == before
    policy.removed(replicas[1])  # the one of before: the new one stays
    assert homes(policy, [replicas[0], again, replicas[2]]) == before


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_virtual_nodes": 0},
        {"num_virtual_nodes": "many"},
        {"num_virtual_nodes": 10**9},
        {"num_fallback_replicas": 0},
        {"num_fallback_replicas": 1.5},
    ],
)
def test_arguments_of_the_ring_are_checked(kwargs: dict[str, Any]) -> None:
    (name,) = kwargs
    with pytest.raises(OptionError, match=name):
        ConsistentHash(**kwargs)


# --- by prefix ---

TEXTS = st.lists(st.sampled_from(["ab", "cd"]), min_size=0, max_size=8).map(
    lambda parts: "".join(part * (BLOCK_CHARS // 2) for part in parts)
)


def common(a: str, b: str) -> int:
    """How many whole blocks two texts have in common."""
    count = 0
    for start in range(0, max(len(a), len(b)), BLOCK_CHARS):
        if a[start : start + BLOCK_CHARS] != b[start : start + BLOCK_CHARS] or not a[start:] or not b[start:]:
            break
        count += 1
    return count


@given(st.lists(st.tuples(TEXTS, st.integers(0, 2)), max_size=20), TEXTS, st.sets(st.integers(0, 2)))
def test_the_tree_knows_the_longest_common_prefix_with_each_replica(
    noted: list[tuple[str, int]], asked: str, gone: set[int]
) -> None:
    tree, replicas = PrefixTree(10**6, 10**6), replicas_of(3)
    for text, which in noted:
        tree.note(tree.path(text), replicas[which])
    for which in gone:
        tree.forget(replicas[which])
    seen = tree.seen_by(tree.path(asked))
    for which, replica in enumerate(replicas):
        longest = max((common(asked, text) for text, w in noted if w == which and w not in gone), default=0)
        assert [replica in owners for owners in seen[:longest]] == [True] * longest
        assert not any(replica in owners for owners in seen[longest:])


@given(st.lists(st.tuples(TEXTS, st.integers(0, 2)), max_size=60), st.integers(1, 12), st.integers(0, 12))
def test_the_tree_is_bounded_and_forgets_no_prefix_before_what_continues_it(
    noted: list[tuple[str, int]], most: int, fewer: int
) -> None:
    tree, replicas = PrefixTree(most * BLOCK_CHARS, fewer * BLOCK_CHARS), replicas_of(3)
    for text, which in noted:
        tree.note(tree.path(text), replicas[which])
        assert tree.chars <= most * BLOCK_CHARS
        known = set(tree._nodes)
        for earlier, _ in noted:
            path = tree.path(earlier)
            reached = [node in known for node in path]
            assert reached == sorted(reached, reverse=True)
    for replica in replicas:
        tree.forget(replica)
    assert tree.chars == 0


def test_what_was_used_lately_is_kept() -> None:
    tree, (replica,) = PrefixTree(4 * BLOCK_CHARS, 2 * BLOCK_CHARS), replicas_of(1)
    for text in ("one", "two", "three", "four", "one", "five"):
        tree.note(tree.path(text), replica)
    assert [len(tree.seen_by(tree.path(text))) for text in ("one", "five", "two", "four")] == [1, 1, 0, 0]


def sent(policy: PrefixAffinity, text: str, replica: Replica) -> None:
    policy.sent(Ask(text=text), replica)


SYSTEM = "You are a helpful assistant who answers in verse. " * 4


def test_a_text_goes_where_most_of_it_has_been() -> None:
    first, second, third = replicas_of(3)
    policy = of(PrefixAffinity(), [first, second, third])
    assert policy.choose(Ask(text=SYSTEM), [first, second, third]) is None
    sent(policy, SYSTEM + "What is a mill?" * 5, first)
    sent(policy, SYSTEM + "Where does the river go?" * 5, second)
    go_on = SYSTEM + "Where does the river go?" * 5 + "And then?" * 5
    assert policy.choose(Ask(text=go_on), [third, first, second]) is second
    assert policy.choose(Ask(text=go_on), [third, first]) is first  # it has seen the beginning at least
    assert policy.choose(Ask(text=go_on), [third]) is None
    assert policy.choose(Ask(text=""), [third, first]) is None
    assert policy.choose(Ask(text="Something else altogether, and long enough" * 3), [first, second]) is None


def test_the_same_short_text_goes_to_the_same_replica() -> None:
    first, second = replicas_of(2)
    policy = of(PrefixAffinity(), [first, second])
    sent(policy, "hello", second)
    assert policy.choose(Ask(text="hello"), [first, second]) is second
    assert policy.choose(Ask(text="hello you"), [first, second]) is None


def test_a_replica_much_busier_than_another_is_passed_over() -> None:
    first, second, third = replicas_of(3, limit=100)
    policy = of(PrefixAffinity(imbalanced_threshold=5), [first, second, third])
    sent(policy, SYSTEM + "a" * 200, first)
    sent(policy, SYSTEM, second)
    first.ours, second.others = 5, 3
    assert policy.choose(Ask(text=SYSTEM + "a" * 200), [first, second, third]) is first
    first.ours = 6
    assert policy.choose(Ask(text=SYSTEM + "a" * 200), [first, second, third]) is second
    second.others = 6
    assert policy.choose(Ask(text=SYSTEM + "a" * 200), [first, second, third]) is None
    sent(policy, SYSTEM + "a" * 200, third)
    assert policy.choose(Ask(text=SYSTEM + "a" * 200), [first, second, third]) is third


def test_too_little_in_common_is_nothing() -> None:
    first, second = replicas_of(2)
    policy = of(PrefixAffinity(match_rate_threshold=0.5), [first, second])
    sent(policy, "a" * BLOCK_CHARS * 4, second)
    assert policy.choose(Ask(text="a" * BLOCK_CHARS * 4 + "b" * BLOCK_CHARS * 4), [first, second]) is second
    assert policy.choose(Ask(text="a" * BLOCK_CHARS * 4 + "b" * BLOCK_CHARS * 5), [first, second]) is None


def test_of_those_who_have_seen_as_much_the_less_busy_takes_it() -> None:
    first, second = replicas_of(2)
    policy = of(PrefixAffinity(), [first, second])
    sent(policy, SYSTEM, first)
    sent(policy, SYSTEM, second)
    first.ours = 2
    assert policy.choose(Ask(text=SYSTEM), [first, second]) is second


def test_a_replica_that_is_gone_is_forgotten() -> None:
    first, second = replicas_of(2)
    policy = of(PrefixAffinity(), [first, second])
    sent(policy, SYSTEM, second)
    policy.removed(second)
    assert policy.choose(Ask(text=SYSTEM), [first]) is None
    assert policy.tree.chars == 0


def test_of_a_very_long_text_only_the_beginning_counts() -> None:
    tree = PrefixTree(10**6, 10**6)
    assert len(tree.path("x" * 10_000_000)) == LONGEST_CHARS // BLOCK_CHARS
    assert tree.path("\ud800" * 100)  # half a character, as JSON can name it


@pytest.mark.parametrize(
    "kwargs",
    [
        {"imbalanced_threshold": -1},
        {"imbalanced_threshold": "much"},
        {"match_rate_threshold": 2},
        {"eviction_threshold_chars": 0},
        {"eviction_target_chars": -1},
    ],
)
def test_arguments_of_the_affinity_are_checked(kwargs: dict[str, Any]) -> None:
    (name,) = kwargs
    with pytest.raises(OptionError, match=name):
        PrefixAffinity(**kwargs)


# --- with the balancer ---


def test_the_balancer_asks_its_policy_and_goes_on_without_a_preference() -> None:
    balancer: Balancer[Ask] = Balancer(2, 10, Random(1))
    balancer.policy = ConsistentHash()
    for number in range(1, 6):
        balancer.add(f"Model#{number}")
    call = Ask("mine")
    first, second, third = balancer.choose(call), balancer.choose(call), balancer.choose(call)
    assert first is second
    assert third is not first  # the first takes two
    assert first is not None
    balancer.finished(first, 1)
    assert balancer.choose(call) is first
    spread = {balancer.choose(Ask()) for _ in range(6)}
    assert len(spread) > 2
    balancer.remove(first.id)
    assert balancer.choose(call) not in (first, None)


def test_beside_calls_that_are_bound_the_policy_chooses_among_the_others() -> None:
    balancer: Balancer[Any] = Balancer(2, 10, Random(1))
    balancer.policy = ConsistentHash()
    for number in range(1, 6):
        balancer.add(f"Model#{number}")
    call = Ask("mine")
    home = balancer.choose(call)
    assert home is not None
    assert balancer.choose(call) is home
    balancer.enqueue("bound", 0.0, key=to_replica(home.id))
    second = balancer.choose(call)
    assert second not in (home, None)
    assert balancer.choose(call) is second
