"""What is free on the nodes of a cluster, though its figures lag behind what was just given and taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.placement import NodeState
from headrace.engine.ray.held import Held, Seen, infos


def node(id: str = "n", cpus: float = 4.0, free: float | None = None) -> Seen:
    left = cpus if free is None else free
    return Seen(state=NodeState(id=id, total={"CPU": cpus}, free={"CPU": left}), host="10.0.0.1")


def free(held: Held, *seen: Seen) -> list[float]:
    return [state.free["CPU"] for state in held.states(seen)]


def test_what_was_just_taken_is_not_free_though_the_cluster_says_so() -> None:
    held = Held()
    held.take("a", "n", {"CPU": 3.0})
    held.observed([node()], 0.0)
    assert free(held, node()) == [1.0]


def test_what_others_hold_is_not_free() -> None:
    held = Held()
    held.take("a", "n", {"CPU": 1.0})
    held.observed([node(free=0.5)], 0.0)
    assert free(held, node()) == [0.5]


def test_what_was_just_left_is_free_though_the_cluster_does_not_say_so_yet() -> None:
    held = Held(lag_s=2.0)
    held.take("a", "n", {"CPU": 3.0})
    held.release("a", 10.0)
    held.observed([node(free=1.0)], 11.0)
    assert held.settling()
    assert free(held, node()) == [4.0]
    held.observed([node(free=1.0)], 13.0)  # so it was another's
    assert not held.settling()
    assert free(held, node()) == [1.0]


def test_nodes_without_an_agent_are_not_told() -> None:
    assert [info.id for info in infos([node("a"), node("b")], {"b": "10.0.0.2"})] == ["b"]


def test_an_agent_that_is_started_anew_is_told() -> None:
    told = infos([node("a"), node("b")], {"a": "10.0.0.1", "b": "10.0.0.2"}, {"b"})
    assert [(info.id, info.restarting) for info in told] == [("a", False), ("b", True)]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["n", "m"]), st.floats(0, 4), st.booleans())),
    st.floats(0, 4),
)
def test_free_is_never_below_nothing_nor_above_all(steps: list[tuple[str, str, float, bool]], reported: float) -> None:
    held = Held()
    seen = [node("n", free=reported), node("m")]
    for time, (holder, where, amount, leaves) in enumerate(steps):
        if leaves:
            held.release(holder, float(time))
        else:
            held.take(holder, where, {"CPU": amount})
        held.observed(seen, float(time))
        assert all(0.0 <= amount <= 4.0 for amount in free(held, *seen))
