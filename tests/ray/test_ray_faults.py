"""Nodes die under 500 requests a second, the controller and agents under 200, and nobody who asks elsewhere notices.

Clients ask the ingress of nodes that live on. A client whose own connection was to the ingress of a node that died has
lost it with the node: that its request was not answered is for it alone to know, and to ask another node again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import fault_apps
import pytest
import ray
from fleet import Clients, Fleet, running
from ray_cluster import RayCluster

from bench.instance import wait_for
from headrace import serve


@pytest.fixture(scope="module")
def kept(shared_cluster: RayCluster) -> Iterator[Fleet]:
    with running(shared_cluster, "faults") as fleet:
        yield fleet


@pytest.fixture
def fleet(kept: Fleet, cluster: RayCluster) -> Fleet:
    """The instance on the whole cluster, with an ingress on each node."""
    kept.whole()
    for node in cluster.nodes:
        kept.port(node)
    return kept


def test_a_node_that_dies_costs_no_request_and_its_replicas_come_back_elsewhere(fleet: Fleet) -> None:
    doomed, living = fleet.victim()
    clients = Clients(*map(fleet.port, living))
    clients.until_answered(200)
    before = fleet.replicas()
    lost = {id for id, each in before.items() if each.node == doomed.id}
    # They have answered requests that came to other nodes: there is something to lose.
    wait_for(lambda: lost & clients.served.keys(), f"those of {doomed.host} are used")
    fleet.cluster.kill(doomed)
    clients.until_answered(500)
    after = fleet.whole(without=[doomed])
    assert before.keys() - after.keys() == lost
    clients.until_answered(200)
    clients.stop_well()


def test_a_node_that_joins_gets_an_ingress(fleet: Fleet) -> None:
    joined = fleet.cluster.add_node()
    clients = Clients(fleet.port(joined), rate=100)
    clients.until_answered(50)
    clients.stop_well()
    fleet.cluster.kill(joined)


def test_a_controller_that_dies_costs_no_request_and_comes_back_with_all_it_knew(fleet: Fleet) -> None:
    before = fleet.replicas()
    actor = fleet.actor("controller")
    pid = ray.get(actor.ready.remote())
    clients = Clients(*map(fleet.port, fleet.cluster.nodes), rate=200)
    clients.until_answered(100)
    os.kill(pid, signal.SIGKILL)
    clients.until_answered(300)
    assert ray.get(actor.ready.remote(), timeout=60) != pid
    assert {id: each.pid for id, each in fleet.whole().items()} == {id: each.pid for id, each in before.items()}
    clients.until_answered(100)
    clients.stop_well()


def test_a_controller_that_dies_in_the_middle_of_a_canary_goes_on_with_it(fleet: Fleet) -> None:
    clients = Clients(*map(fleet.port, fleet.cluster.nodes), rate=150)
    serve.run(fault_apps.second, rollout=serve.Canary(steps=[(0.5, None)], analysis=[]))
    before = wait_for(lambda: (seen := serve.rollout_status("default")).stage == "watching" and seen, "half of it")
    actor = fleet.actor("controller")
    pid = ray.get(actor.ready.remote())
    os.kill(pid, signal.SIGKILL)
    assert ray.get(actor.ready.remote(), timeout=60) != pid
    after = wait_for(lambda: (seen := serve.rollout_status("default")).ready == before.ready and seen, "known again")
    assert (after.stage, after.weights, after.revision) == ("watching", before.weights, before.revision)
    assert after.since == pytest.approx(before.since, abs=1.0)
    clients.until_answered(100)
    assert serve.rollout_status("default").weights == before.weights
    serve.abort_rollout("default", reason="enough")
    assert serve.wait_for_rollout("default", 30).outcome == "ROLLED_BACK"
    clients.until_answered(100)
    clients.stop_well()
    fleet.whole()


def test_an_agent_that_dies_takes_its_ingress_along_and_no_replica(fleet: Fleet) -> None:
    node, others = fleet.victim()
    before = fleet.replicas()
    agent = fleet.actor(f"node:{node.id}")
    pid = ray.get(agent.where.remote()).pid
    clients = Clients(*map(fleet.port, others), rate=200)
    clients.until_answered(100)
    os.kill(pid, signal.SIGKILL)
    clients.until_answered(300)

    def back() -> bool:
        try:
            return bool(ray.get(agent.where.remote()).pid != pid)
        except ray.exceptions.ActorUnavailableError:  # it is about to be started again
            return False

    wait_for(back, "the agent is back")
    assert {id: each.pid for id, each in fleet.whole().items()} == {id: each.pid for id, each in before.items()}
    fleet.port(node)
    clients.stop_well()


def test_a_node_that_is_drained_loses_its_replicas_before_it_goes(fleet: Fleet) -> None:
    leaving, others = fleet.victim()
    clients = Clients(*map(fleet.port, others), rate=200)
    clients.until_answered(100)
    gcs = ray._private.worker.global_worker.gcs_client
    accepted, why = gcs.drain_node(leaving.id, 2, "it is taken back", 0x7FFFFFFFFFFFFFFF)  # 2: preemption
    assert accepted, why
    fleet.whole(without=[leaving])
    clients.until_answered(100)
    fleet.cluster.kill(leaving)
    clients.until_answered(300)
    clients.stop_well()
    assert len(serve.status().applications["default"].deployments["Door"].replicas) == 2
