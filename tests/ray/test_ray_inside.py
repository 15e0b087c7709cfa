"""What is served on a cluster may use Ray itself: it means the cluster that it runs on, whatever its machine is in."""

from __future__ import annotations

import inside_apps
import pytest
import ray
from ray_cluster import RayCluster

from headrace import serve


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class Memory:
    def __init__(self) -> None:
        self.sum = 0

    def add(self, amount: int) -> int:
        self.sum += amount
        return self.sum


def test_a_replica_uses_the_cluster_that_it_runs_on(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_INSTANCE", "inside")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of whoever deploys: it means nothing there
    at_the_head = {"node:__internal_head__": 0.001}  # a node that has just died is one to Ray for a while
    memory = Memory.options(name="memory", namespace="users", resources=at_the_head).remote()
    serve.start(engine="ray", address=cluster.address, http_options={"ingress_workers": 0})
    try:
        handle = serve.run(inside_apps.app)
        assert handle.told.remote().result(60) == cluster.address
        assert handle.asked.remote().result(60) == cluster.address
        assert handle.add.remote(2).result(60) == 2
        assert ray.get(memory.add.remote(3)) == 5
    finally:
        serve.shutdown()
