"""The contract of engines, seen on a Ray cluster of one node."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray_cluster import RayCluster

from headrace.engine.ray import cluster as clusters
from headrace.engine.ray.engine import RayEngine
from tests.engine.engine_contract import *  # noqa: F403 - its tests are these tests
from tests.engine.engine_contract import CPUS, GPUS, World

SECRET = os.urandom(32)
SHORT = (
    r"^c does not fit on any node of the cluster: it asks for 2 CPU; free on the nodes: .* 1 of 4 CPU$",
    r"it asks for 2 GPU; free on the nodes: .* 1 of 2 GPU$",
)


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[RayCluster]:
    """A cluster of its own. This process can be a driver of but one: it is of the others' again afterwards."""
    address = ray.get_runtime_context().gcs_address if ray.is_initialized() else ""
    ray.shutdown()
    with RayCluster(1, cpus=int(CPUS), gpus=GPUS) as cluster:
        yield cluster
    if address:
        ray.init(address=address, namespace="headrace", log_to_driver=False, logging_level="ERROR")


@pytest.fixture
def world(small_cluster: RayCluster, request: pytest.FixtureRequest) -> Iterator[World]:
    # An instance holds its ports for its life, and a life of an instance takes seconds: these alone have their own.
    instance = request.node.name.replace("_", "-")[-32:] if "_port_" in request.node.name else "contract"
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    try:
        # No controller stands above the engine here, that would end: what is left is ended when its time is over.
        yield World("ray", folder, lambda: RayEngine(instance, SECRET), SHORT, shutdown_s=0.05)
    finally:
        if instance != "contract":
            clusters.end(instance, 0)
        shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(small_cluster: RayCluster) -> Iterator[None]:
    yield
    clusters.end("contract", 0)
    assert clusters.left("contract") == []
