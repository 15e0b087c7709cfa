"""Subsets: few connections for each router, each replica in as many subsets as any other, little change."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.subset import SUBSET_SIZE, choose_subset
from headrace.spec.snapshot import ReplicaEntry


def replicas(count: int, first: int = 0) -> list[ReplicaEntry]:
    return [ReplicaEntry(f"d#{i}", f"unix:/r/{i}.sock") for i in range(first, first + count)]


def test_a_small_deployment_is_everybodys() -> None:
    few = replicas(SUBSET_SIZE)
    assert choose_subset("ingress#0", few, routers=1000) == few


def test_a_router_that_is_alone_connects_to_all() -> None:
    many = replicas(500)
    assert choose_subset("driver", many) == many


@pytest.mark.parametrize(("first", "count"), [(0, 1000), (37, 333), (4096, 333)])
def test_each_replica_is_in_about_as_many_subsets_as_any_other(first: int, count: int) -> None:
    many = replicas(count)
    coverage: Counter[str] = Counter()
    for i in range(first, first + 1000):
        chosen = choose_subset(f"Caller#{i}@app", many, routers=1000)
        assert len(chosen) == len({replica.id for replica in chosen}) == SUBSET_SIZE
        coverage.update(replica.id for replica in chosen)
    mean = 1000 * SUBSET_SIZE / count
    assert all(abs(coverage[replica.id] - mean) <= 3 for replica in many)


def test_few_routers_take_larger_subsets_so_that_each_replica_gets_calls() -> None:
    many = replicas(1000)
    covered = {replica.id for i in range(10) for replica in choose_subset(f"ingress#{i}", many, routers=10)}
    assert len(covered) == 1000


@given(st.integers(0, 10_000), st.integers(25, 200), st.integers(0, 10_000))
def test_a_replica_that_comes_or_goes_changes_at_most_two_places(router: int, count: int, which: int) -> None:
    many = replicas(count)
    fewer = [replica for i, replica in enumerate(many) if i != which % count]
    before = {replica.id for replica in choose_subset(f"c#{router}", many, routers=1000)}
    after = {replica.id for replica in choose_subset(f"c#{router}", fewer, routers=1000)}
    assert len(before - after) <= 2
    assert len(after - before) <= 2


def test_the_order_in_which_replicas_are_listed_does_not_matter() -> None:
    many = replicas(100)
    chosen = choose_subset("c#1", many, routers=1000)
    assert choose_subset("c#1", many[::-1], routers=1000) == chosen


@given(st.text())
def test_any_name_of_a_router_will_do(name: str) -> None:
    assert len(choose_subset(name, replicas(50), routers=1000)) == SUBSET_SIZE


@pytest.mark.parametrize("on_node", [1, 5, 100])
def test_replicas_of_the_routers_own_node_come_first(on_node: int) -> None:
    many = [
        ReplicaEntry(replica.id, replica.address, "here" if i < on_node else f"there{i % 7}")
        for i, replica in enumerate(replicas(1000))
    ]
    chosen = choose_subset("c#1", many, routers=1000, node="here")
    near = [replica.id for replica in chosen if replica.node == "here"]
    assert len(near) >= min(on_node, SUBSET_SIZE)
    assert near[: min(on_node, SUBSET_SIZE)] == [r.id for r in chosen[: min(on_node, SUBSET_SIZE)]]
    assert len(chosen) == len({replica.id for replica in chosen}) <= 2 * SUBSET_SIZE
    # And the share of all that it has without a node, so that each replica is in as many shares as before.
    assert {replica.id for replica in choose_subset("c#1", many, routers=1000)} <= {replica.id for replica in chosen}
