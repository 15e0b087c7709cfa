"""A node that is cut off for ten seconds, and lives: nobody else loses a request, and at the end there is one truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from fabric import Fabric
from fleet import Clients, Fleet, running
from ray_cluster import ADDRESSES, RayCluster

from bench.instance import wait_for
from headrace import serve

OUTSIDE = "127.99.{subnet}.{number}"
PORTS = (21000, 21031)
CUT_S = 10.0


class Cluster(RayCluster):
    """Its nodes reach each other through the network that can be cut."""

    def node_environment(self, number: int) -> dict[str, str]:
        host, outside = (each.format(subnet=self.subnet, number=number) for each in (ADDRESSES, OUTSIDE))
        return {"HEADRACE_NODE_HOST": outside, "HEADRACE_NODE_LISTEN": host}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def fabric(cluster: Cluster) -> Iterator[Fabric]:
    nodes = [(node.host, node.env["HEADRACE_NODE_HOST"], node.home) for node in cluster.nodes]
    with Fabric(nodes, PORTS) as fabric:
        yield fabric


@pytest.fixture(scope="module")
def fleet(cluster: Cluster, fabric: Fabric) -> Iterator[Fleet]:
    with running(cluster, "parted", cluster_options={"ports": PORTS}) as fleet:
        yield fleet


@pytest.mark.parametrize("way", ["both", "in", "out"])
def test_a_node_that_is_cut_off_for_ten_seconds(fleet: Fleet, fabric: Fabric, way: str) -> None:
    before = fleet.whole()
    apart, others = fleet.victim()
    fleet.port(apart)
    clients = Clients(*map(fleet.port, others), rate=150)
    there = {id for id, each in before.items() if each.node == apart.id}
    wait_for(lambda: there & clients.served.keys(), f"those of {apart.host} are used")
    fabric.cut(apart.host, way)
    began = time.monotonic()
    fleet.whole(without=[apart])
    wait_for(lambda: time.monotonic() - began >= CUT_S, "the cut has lasted long enough")
    clients.until_answered(200)
    fabric.restore(apart.host)
    fleet.port(apart)
    after = fleet.whole()
    clients.until_answered(200)
    clients.stop_well()
    assert {id: each.pid for id, each in after.items() if id in before} == {
        id: each.pid for id, each in before.items() if id in after
    }
    one_truth(fleet)


def one_truth(fleet: Fleet) -> None:
    """The processes that run are those that are known, and nothing is in work anywhere."""

    def agreed() -> bool:
        found = fleet.replicas().values()
        return {each.pid for each in found} == fleet.workers() and all(each.ongoing == 0 for each in found)

    known = sorted(each.pid for each in fleet.replicas().values())
    wait_for(agreed, f"the processes {sorted(fleet.workers())} are those that are known, {known}")
    assert serve.status().applications["default"].status == "RUNNING"
