"""headrace.core.room: which replicas have room, and the draw among near and far ones."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.room import FADE_EVERY, SPILL_MARGIN, Replica, Room


def room(near: list[int], far: list[int], limit: int = 10, seed: int = 1) -> tuple[Room, dict[str, Replica]]:
    """Replicas `n0`... of this node and `f0`... of another, with so many calls of ours."""
    made = Room(Random(seed).random)
    replicas = {}
    for prefix, loads in (("n", near), ("f", far)):
        for i, load in enumerate(loads):
            node = "here" if prefix == "n" else f"there{i % 2}"
            replica = replicas[f"{prefix}{i}"] = Replica(f"{prefix}{i}", limit, None, node, prefix == "n")
            replica.ours = load
            made.add(replica)
    return made, replicas


def drawn(made: Room, times: int) -> Counter[str]:
    """What is drawn, each time with the same loads."""
    found: Counter[str] = Counter()
    for _ in range(times):
        replica = made.draw_nearby()
        found[replica.id[0]] += 1
        replica.ours -= 1
        made.refresh(replica)
    return found


@pytest.mark.parametrize(
    ("near", "far", "goes"),
    [
        ([0, 0], [0, 0], "n"),
        ([SPILL_MARGIN] * 2, [0, 0], "n"),
        ([SPILL_MARGIN + 1] * 2, [0, 0], "f"),
        ([8, 8], [3, 3], "n"),
        ([9, 9], [3, 3], "f"),
        ([9, 0], [0, 0], "n"),
        ([9], [0], "f"),
        ([10, 10], [9, 9], "f"),
        ([9, 10], [10, 10], "n"),
        ([], [9], "f"),
        ([9], [], "n"),
    ],
)
def test_near_ones_come_first_until_they_are_notably_busier(near: list[int], far: list[int], goes: str) -> None:
    made, _ = room(near, far)
    assert drawn(made, 100) == {goes: 100}


def test_among_near_ones_the_lesser_load_wins_and_all_get_calls() -> None:
    made, replicas = room([0] * 5, [0] * 5, limit=1000)
    for _ in range(500):
        made.draw_nearby()
    near = [replica.ours for name, replica in replicas.items() if name[0] == "n"]
    assert max(near) - min(near) < 10
    assert min(near) > 60


def test_calls_of_one_node_alone_come_to_all_when_they_are_many() -> None:
    made, replicas = room([0] * 2, [0] * 4, limit=1000)
    for _ in range(600):
        made.draw_nearby()
    loads = {name: replica.ours for name, replica in replicas.items()}
    near, far = loads["n0"] + loads["n1"], sum(loads[f"f{i}"] for i in range(4))
    assert 280 <= near <= 320, loads  # twice what a far one has
    assert near + far == 600
    assert min(loads.values()) > 60


def test_old_news_of_busy_far_ones_fade_slowly() -> None:
    made, replicas = room([9], [0], limit=100)
    replicas["f0"].others = 50
    near, far = replicas["n0"], replicas["f0"]
    times = 0
    while made.draw_nearby() is near:
        near.ours -= 1
        times += 1
        assert times < 50 * FADE_EVERY, "it is never asked again"
    assert far.others <= 3
    assert times > 40 * FADE_EVERY


def test_a_copy_goes_to_another_node() -> None:
    made, replicas = room([0, 0, 5], [0, 0, 5])
    for _ in range(50):
        for holder, others in (("n2", {"f0", "f1"}), ("f2", {"n0", "n1"})):
            chosen = made.draw_beside(replicas[holder])
            assert chosen is not None
            assert chosen.id in others


def test_a_copy_goes_to_the_same_node_where_the_others_are_full_or_as_busy() -> None:
    made, replicas = room([0, 5], [10, 10])
    assert made.draw_beside(replicas["n1"]) is replicas["n0"]
    made, replicas = room([0, 5], [6, 7])
    assert made.draw_beside(replicas["n1"]) is replicas["n0"]
    made, replicas = room([5], [])
    assert made.draw_beside(replicas["n0"]) is None


def test_among_far_ones_a_copy_goes_to_another_node_too() -> None:
    made, replicas = room([], [5, 0, 0])  # there0, there1, there0
    for _ in range(50):
        assert made.draw_beside(replicas["f0"]) is replicas["f1"]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), max_size=5), st.lists(st.integers(0, 4), max_size=5), st.integers(0, 99))
def test_what_is_drawn_has_room_and_no_call_waits_while_any_has(near: list[int], far: list[int], seed: int) -> None:
    made, replicas = room(near, far, limit=4, seed=seed)
    free = sum(4 - load for load in near + far)
    for _ in range(free):
        replica = made.draw_nearby()
        assert replica.ours <= 4
    assert not made.open
    assert all(replica.ours == 4 for replica in replicas.values())


class Shelves(RuleBasedStateMachine):
    """Replicas come, go, and fill in any order: each is where its books say, the near ones before the others."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Room(Random(3).random)
        self.replicas: list[Replica] = []
        self.count = 0

    @rule(near=st.booleans(), limit=st.integers(1, 3))
    def come(self, near: bool, limit: int) -> None:
        self.count += 1
        replica = Replica(f"r{self.count}", limit, None, "here" if near else "there", near)
        self.replicas.append(replica)
        self.room.add(replica)

    @precondition(lambda self: self.replicas)
    @rule(which=st.integers(0, 99))
    def go(self, which: int) -> None:
        self.room.remove(self.replicas.pop(which % len(self.replicas)))

    @precondition(lambda self: self.replicas)
    @rule(which=st.integers(0, 99), ours=st.integers(0, 3), others=st.integers(0, 3))
    def hear(self, which: int, ours: int, others: int) -> None:
        replica = self.replicas[which % len(self.replicas)]
        replica.ours, replica.others = ours, others
        self.room.refresh(replica)

    @precondition(lambda self: self.room.open)
    @rule(nearby=st.booleans())
    def draw(self, nearby: bool) -> None:
        replica = self.room.draw_nearby() if nearby else self.room.draw()
        assert replica in self.replicas

    @precondition(lambda self: self.room.silent)
    @rule()
    def fade(self) -> None:
        self.room.fade()

    @invariant()
    def all_are_in_their_places(self) -> None:
        room = self.room
        with_room = {r for r in self.replicas if r.ours + r.others < r.limit}
        assert set(room.open) == with_room
        assert set(room.silent) == {r for r in self.replicas if r not in with_room and not r.ours}
        for shelf in (room.open, room.silent):
            assert [replica.index for replica in shelf] == list(range(len(shelf)))
            assert all(replica.shelf is shelf for replica in shelf)
        nears = [replica.near for replica in room.open]
        assert nears == sorted(nears, reverse=True)
        assert room.split == (len({replica.near for replica in self.replicas}) == 2)


TestShelves = Shelves.TestCase
TestShelves.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
