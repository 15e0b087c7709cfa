"""Three nodes on a clock of their own: calls stay on the node where they came from, until load says otherwise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from simulated_cluster import SERVICE_S, Cluster


@dataclass
class Seen:
    local: float  # share of the calls that stayed on their node
    shares: dict[str, float]  # of all calls, by the node that worked on them
    mean_s: float
    p99_s: float


def seen(
    limit: int,
    utilization: float,
    *,
    aware: bool = True,
    slow: dict[str, float] | None = None,
    callers: int = 0,
    calls: int = 3000,
) -> Seen:
    """Twelve replicas and six routers on three nodes; `callers`: how many of the routers get calls (0: all)."""
    cluster = Cluster(routers=6, replicas=12, limit=limit, nodes=3, aware=aware, slow=slow or {})
    cluster.run(cluster.arrive(500, utilization, callers))
    cluster.started_on.clear()
    before = len(cluster.world.calls)
    cluster.run(cluster.arrive(calls, utilization, callers) + 1000.0)
    done = cluster.world.calls[before:]
    assert all(call.outcome == "answered" for call in done)
    latencies = sorted(cluster.answered_at[call] - call.since for call in done)
    shares = {node: count / len(cluster.started_on) for node, count in Counter(cluster.started_on.values()).items()}
    return Seen(cluster.local_share(), shares, sum(latencies) / len(latencies), latencies[int(0.99 * len(latencies))])


@pytest.mark.parametrize(("limit", "utilization"), [(1, 0.2), (4, 0.5), (20, 0.3), (20, 0.8)])
def test_where_nodes_are_equal_calls_stay_where_they_came_from(limit: int, utilization: float) -> None:
    near, anywhere = seen(limit, utilization), seen(limit, utilization, aware=False)
    assert near.local > 0.95
    assert anywhere.local < 0.4
    assert all(abs(share - 1 / 3) < 0.05 for share in near.shares.values())
    assert near.mean_s < 1.05 * anywhere.mean_s
    assert near.p99_s < 1.15 * anywhere.p99_s


@pytest.mark.parametrize("limit", [1, 4, 20])
def test_calls_leave_a_slow_node(limit: int) -> None:
    slow = {"node0": 4.0}
    near, anywhere = seen(limit, 0.5, slow=slow), seen(limit, 0.5, aware=False, slow=slow)
    assert near.shares["node0"] < 0.22, "a third, if they all stayed"
    assert near.mean_s < 1.2 * anywhere.mean_s
    assert near.p99_s < 1.2 * anywhere.p99_s


@pytest.mark.parametrize(("limit", "utilization"), [(1, 0.7), (4, 0.7), (20, 0.7)])
def test_where_one_node_alone_has_callers_all_replicas_work(limit: int, utilization: float) -> None:
    near = seen(limit, utilization, callers=1)
    assert set(near.shares) == {"node0", "node1", "node2"}
    assert min(near.shares.values()) > 0.2
    assert near.mean_s < 1.2 * SERVICE_S


def test_beyond_what_all_can_do_every_node_does_its_share() -> None:
    near = seen(2, 1.1, calls=1500)
    assert all(abs(share - 1 / 3) < 0.05 for share in near.shares.values())
