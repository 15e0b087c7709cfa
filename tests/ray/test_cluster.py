"""The cluster that the tests of this folder stand on is what they take it for."""

from __future__ import annotations

import os

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_cluster import Node, RayCluster

from bench.instance import alive


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class Probe:
    def look(self) -> tuple[str, str, int]:
        return os.environ["HEADRACE_HOME"], ray.util.get_node_ip_address(), os.getpid()


def probe(node: Node) -> tuple[str, str, int]:
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    actor = Probe.options(scheduling_strategy=strategy).remote()
    seen = ray.get(actor.look.remote())
    return str(seen[0]), str(seen[1]), int(seen[2])


def test_each_node_has_an_address_and_a_home_of_its_own(cluster: RayCluster) -> None:
    seen = [probe(node) for node in cluster.nodes]
    assert [(home, host) for home, host, _ in seen] == [(str(node.home), node.host) for node in cluster.nodes]
    assert len({host for _, host, _ in seen}) == 3


def test_a_killed_node_leaves_nothing_and_comes_back_anew(cluster: RayCluster) -> None:
    node = cluster.nodes[-1]
    _, host, pid = probe(node)
    raylet = node.raylet
    cluster.kill(node)
    assert not alive(pid)
    assert not alive(raylet)
    again = cluster.add_node()
    assert again.host == host
    assert again.id != node.id
    assert probe(again)[1] == host
