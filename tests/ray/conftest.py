"""One Ray cluster of three nodes for all tests of this folder: it takes some seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_cluster import RayCluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RayCluster) -> RayCluster:
    """The shared cluster, whole again when the test before has killed nodes of it.

    Who kills the head, or wants other options for a cluster, starts one of its own: `with RayCluster(subnet=8) as ...`.
    """
    while len(shared_cluster.nodes) < shared_cluster.count:
        shared_cluster.add_node()
    return shared_cluster
