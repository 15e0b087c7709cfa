"""headrace.core.placement: which node a process runs on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.placement import NodeState, choose_node, could_fit, demand_of, matches_selector, shortage
from headrace.core.resources import Resources
from headrace.engine.base import ProcessRequest
from headrace.spec.placement import Placement


def node(id: str, cpus: float = 4.0, free: float | None = None, **fields: Any) -> NodeState:
    more = fields.pop("more", {})
    total = {"CPU": cpus, "memory": 1e9, **more}
    return NodeState(id=id, total=total, free={**total, "CPU": cpus if free is None else free}, **fields)


def request(
    cpus: float | None = None, gpus: float = 0.0, node: str = "", avoid: tuple[str, ...] = (), **placement: Any
) -> ProcessRequest:
    return ProcessRequest(
        id="p",
        role="worker",
        argv=("true",),
        resources=Resources(cpus=cpus, gpus=gpus),
        node=node,
        avoid=avoid,
        placement=Placement(**{"group": "app/d@1", **placement}),
    )


def place(asked: ProcessRequest, nodes: list[NodeState], times: int) -> list[str | None]:
    """The nodes of `times` processes of one group, one after the other, each taking what it asks for."""
    placed: list[str | None] = []
    running: list[tuple[str, str]] = []
    states = {state.id: state for state in nodes}
    for _ in range(times):
        chosen = choose_node(asked, states.values(), running)
        placed.append(chosen)
        if chosen is not None:
            running.append((chosen, asked.placement.group))
            free = states[chosen].free
            taken = {name: free.get(name, 0.0) - amount for name, amount in demand_of(asked).items()}
            states[chosen] = msgspec.structs.replace(states[chosen], free=free | taken)
    return placed


def test_replicas_are_spread_also_those_that_reserve_nothing() -> None:
    nodes = [node("a", head=True), node("b"), node("c")]
    assert Counter(place(request(), nodes, 6)) == {"a": 2, "b": 2, "c": 2}
    assert Counter(place(request(cpus=1), nodes, 6)) == {"a": 2, "b": 2, "c": 2}


def test_deployments_of_one_replica_are_spread_too_and_the_head_is_the_last_among_equals() -> None:
    nodes = [node("a", head=True), node("b"), node("c")]
    running: list[tuple[str, str]] = []
    for i in range(6):
        asked = request(group=f"app/d{i}@1")
        chosen = choose_node(asked, nodes, running)
        assert chosen is not None
        running.append((chosen, asked.placement.group))
    assert [name for name, _ in running] == ["b", "c", "a", "b", "c", "a"]


def test_fewest_of_the_same_group_comes_before_free_cpus() -> None:
    nodes = [node("a", free=1), node("b", free=4)]
    assert choose_node(request(cpus=1), nodes, []) == "b"
    assert choose_node(request(cpus=1), nodes, [("b", "app/d@1")]) == "a"
    assert choose_node(request(cpus=1), nodes, [("b", "other")]) == "b"


def test_the_free_share_counts_not_the_number_of_cpus() -> None:
    assert choose_node(request(cpus=1), [node("a", cpus=64, free=8), node("b", cpus=4, free=3)], []) == "b"


def test_nothing_goes_to_a_node_that_is_leaving() -> None:
    nodes = [node("a", leaving=True), node("b", free=0)]
    assert choose_node(request(cpus=1), nodes, []) is None
    assert choose_node(request(), nodes, []) == "b"


def test_a_node_to_avoid_is_taken_only_when_no_other_has_room() -> None:
    asked = request(cpus=1, avoid=("a",))
    assert choose_node(asked, [node("a"), node("b", free=1)], [("b", "app/d@1")] * 3) == "b"
    assert choose_node(asked, [node("a"), node("b", free=0.5)], []) == "a"


def test_a_node_without_cpus_is_kept_free() -> None:
    nodes = [node("a", cpus=0, head=True), node("b")]
    assert place(request(), nodes, 3) == ["b", "b", "b"]
    assert choose_node(request(), nodes[:1], []) == "a"


def test_a_node_that_is_named_is_the_only_one() -> None:
    nodes = [node("a"), node("b", free=0)]
    assert choose_node(request(cpus=1, node="b"), nodes, []) is None
    assert choose_node(request(node="b"), nodes, []) == "b"
    assert not could_fit(request(cpus=1, node="z"), nodes)


def test_at_most_so_many_of_a_group_on_a_node() -> None:
    nodes = [node("a"), node("b")]
    assert Counter(place(request(max_per_node=1), nodes, 3)) == {"a": 1, "b": 1, None: 1}
    assert choose_node(request(max_per_node=1), nodes[:1], [("a", "other")]) == "a"


@pytest.mark.parametrize(
    "asked",
    [
        request(resources={"TPU": 2}),
        request(memory=2_000_000_000),
        request(accelerator_type="A100"),
        request(gpus=1),
        request(label_selector={"zone": "eu"}),
    ],
)
def test_what_only_one_node_has_is_found_there(asked: ProcessRequest) -> None:
    has = {"TPU": 2, "memory": 2e9, "accelerator_type:A100": 1, "GPU": 1}
    nodes = [node("a"), node("b", more=has, labels={"zone": "eu"}), node("c", labels={"zone": "us"})]
    assert choose_node(asked, nodes, []) == "b"
    assert could_fit(asked, nodes)
    assert choose_node(asked, [nodes[0], nodes[2]], []) is None
    assert not could_fit(asked, [nodes[0], nodes[2]])


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ({}, {}, True),
        ({"zone": "eu"}, {"zone": "eu"}, True),
        ({"zone": "eu"}, {"zone": "us"}, False),
        ({"zone": "eu"}, {}, False),
        ({"zone": "!eu"}, {"zone": "eu"}, False),
        ({"zone": "!eu"}, {"zone": "us"}, True),
        ({"zone": "!eu"}, {}, True),
        ({"zone": "in(eu, us)"}, {"zone": "us"}, True),
        ({"zone": "in(eu,us)"}, {"zone": "asia"}, False),
        ({"zone": "in(eu)"}, {}, False),
        ({"zone": "!in(eu,us)"}, {"zone": "us"}, False),
        ({"zone": "!in(eu,us)"}, {"zone": "asia"}, True),
        ({"zone": "!in(eu,us)"}, {}, True),
        ({"zone": "eu", "spot": "!yes"}, {"zone": "eu", "spot": "yes"}, False),
        ({"zone": ""}, {"zone": ""}, True),
        ({"a": "inner"}, {"a": "inner"}, True),
    ],
)
def test_selectors_of_labels_are_rays(selector: dict[str, str], labels: dict[str, str], matches: bool) -> None:
    assert matches_selector(selector, labels) is matches


def test_the_first_selector_that_fits_counts() -> None:
    asked = request(cpus=1, label_selector={"spot": "yes"}, fallback_label_selectors=({"zone": "eu"}, {"zone": "us"}))
    spot, eu, us = node("c", labels={"spot": "yes"}), node("b", labels={"zone": "eu"}), node("a", labels={"zone": "us"})
    assert choose_node(asked, [us, eu, spot], []) == "c"
    assert choose_node(asked, [us, eu], []) == "b"
    assert choose_node(asked, [us], []) == "a"
    assert choose_node(asked, [node("d")], []) is None


def test_a_placement_group_needs_room_for_its_bundles() -> None:
    nodes = [node("a", cpus=2), node("b", cpus=2, more={"GPU": 1})]
    two = ({"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0})
    assert choose_node(request(bundles=two), nodes, [("a", "")]) in ("a", "b")
    assert could_fit(request(bundles=two), nodes)
    assert not could_fit(request(bundles=two, strategy="STRICT_PACK"), nodes)
    assert not could_fit(request(bundles=(*two, {"GPU": 2.0})), nodes)
    assert could_fit(request(bundles=two, strategy="STRICT_SPREAD"), nodes)
    assert not could_fit(request(bundles=({"CPU": 1.0},) * 3, strategy="STRICT_SPREAD"), nodes)
    assert not could_fit(request(bundles=two, bundle_label_selector=({}, {"zone": "eu"})), nodes)
    assert demand_of(request(bundles=two, strategy="STRICT_PACK")) == {"CPU": 3.0, "GPU": 1.0}


def test_the_shortage_says_what_is_asked_and_what_there_is() -> None:
    nodes = [node("a" * 56, head=True, free=1), node("b", leaving=True, labels={"zone": "us"})]
    told = shortage(request(cpus=8, label_selector={"zone": "us"}, max_per_node=1), nodes)
    assert told == (
        "it asks for 8 CPU and labels {'zone': 'us'} and at most 1 replicas of it on one node "
        "(max_replicas_per_node); free on the nodes: aaaaaaaa (head, no zone) 1 of 4 CPU; b (leaving) 4 of 4 CPU"
    )
    assert shortage(request(), []).endswith("it asks for no resources; free on the nodes: there are none")


amounts = st.integers(0, 80).map(lambda tenths: tenths / 10)
states = st.lists(
    st.builds(
        lambda cpus, gpus, tpus, share, head, leaving, zone: NodeState(
            id="",
            total={"CPU": cpus, "GPU": gpus, "TPU": tpus},
            free={"CPU": cpus * share, "GPU": gpus * share, "TPU": tpus},
            head=head,
            leaving=leaving,
            labels={"zone": zone},
        ),
        amounts,
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["eu", "us"]),
    ),
    max_size=6,
).map(lambda made: [msgspec.structs.replace(state, id=f"n{i}") for i, state in enumerate(made)])
requests = st.builds(
    request,
    cpus=st.none() | amounts,
    gpus=st.sampled_from([0.0, 0.5, 1.0]),
    resources=st.sampled_from([{}, {"TPU": 1.0}]),
    max_per_node=st.integers(0, 3),
    label_selector=st.sampled_from([{}, {"zone": "eu"}, {"zone": "!in(eu)"}]),
    avoid=st.sampled_from([(), ("n0",), ("n0", "n1")]),
)


@given(requests, states, st.integers(1, 12))
def test_no_node_ever_gives_more_than_it_has(asked: ProcessRequest, nodes: list[NodeState], times: int) -> None:
    counts = Counter(chosen for chosen in place(asked, nodes, times) if chosen is not None)
    for state in nodes:
        for name, amount in demand_of(asked).items():
            assert counts[state.id] * amount <= state.free.get(name, 0.0) + 1e-6
        assert not counts[state.id] or not state.leaving
        assert not asked.placement.max_per_node or counts[state.id] <= asked.placement.max_per_node


@given(requests, states, st.integers(1, 12))
def test_what_is_refused_fits_nowhere_and_what_is_placed_could_fit(
    asked: ProcessRequest, nodes: list[NodeState], times: int
) -> None:
    placed = place(asked, nodes, times)
    first = placed.index(None) if None in placed else times
    assert set(placed[first:]) <= {None}, "room does not appear by itself"
    assert first == 0 or could_fit(asked, nodes)
    assert shortage(asked, nodes)


@given(st.integers(1, 6), st.integers(0, 20), st.sampled_from([None, 0.1, 1.0]))
def test_where_all_fit_nodes_differ_by_one_at_most(count: int, times: int, cpus: float | None) -> None:
    nodes = [node(f"n{i}", cpus=100 + 10 * i, head=i == 0) for i in range(count)]
    counts = Counter(place(request(cpus=cpus), nodes, times))
    assert None not in counts
    of_each = [counts[state.id] for state in nodes]
    assert max(of_each) - min(of_each) <= 1


@given(requests, states, states)
def test_another_node_never_takes_room_away(
    asked: ProcessRequest, nodes: list[NodeState], more: list[NodeState]
) -> None:
    further = [msgspec.structs.replace(state, id=f"m{i}") for i, state in enumerate(more)]
    if choose_node(asked, nodes, []) is not None:
        assert choose_node(asked, nodes + further, []) is not None
    if could_fit(asked, nodes):
        assert could_fit(asked, nodes + further) or asked.placement.bundles


@given(requests, states)
def test_the_order_in_which_nodes_are_listed_does_not_matter(asked: ProcessRequest, nodes: list[NodeState]) -> None:
    assert choose_node(asked, nodes, []) == choose_node(asked, nodes[::-1], [])
