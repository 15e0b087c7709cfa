"""How an instance on a cluster ends, in order and otherwise: what is left of it, and what the next one finds."""

from __future__ import annotations

from collections.abc import Iterator

import fault_apps
import pytest
import ray
from fleet import Fleet, running
from ray_cluster import RayCluster

from bench.instance import wait_for
from headrace import serve
from headrace.engine.ray import cluster as clusters
from headrace.engine.ray.kv import KeyValues
from headrace.engine.ray.names import NAMESPACE, controller_name

NAME = "ends"


@pytest.fixture
def fleet(cluster: RayCluster) -> Iterator[Fleet]:
    with running(cluster, NAME) as fleet:
        yield fleet


def kill_controller_for_good() -> None:
    """As somebody does who does not know what it is: Ray does not begin it anew."""
    ray.kill(ray.get_actor(controller_name(NAME), namespace=NAMESPACE), no_restart=True)

    def gone() -> bool:
        return controller_name(NAME) not in clusters.left(NAME)

    wait_for(gone, "the controller has lost its name")


def nothing_is_left(fleet: Fleet) -> None:
    assert clusters.left(NAME) == []
    assert [key for key in KeyValues(NAME).keys("") if not key.startswith(clusters.STATE)] == []
    wait_for(lambda: not fleet.workers(), "no worker is left")


def test_a_controller_that_was_killed_for_good_is_begun_anew_by_the_next_start_and_takes_up_what_runs(
    fleet: Fleet,
) -> None:
    before = {id: each.pid for id, each in fleet.replicas().items()}
    kill_controller_for_good()
    serve.start()
    assert {id: each.pid for id, each in fleet.whole().items()} == before


def test_without_a_controller_shutdown_ends_what_is_left_at_once(fleet: Fleet) -> None:
    kill_controller_for_good()
    serve.shutdown()
    nothing_is_left(fleet)


def test_histories_and_numbers_of_revisions_outlive_the_instance(fleet: Fleet) -> None:
    before = [each.number for each in serve.history("default").revisions]
    serve.shutdown()
    nothing_is_left(fleet)
    serve.start(http_options={"port": 0})
    assert serve.status().applications == {}
    serve.run(fault_apps.app)
    assert [each.number for each in serve.history("default").revisions] == [*before, before[-1] + 1]
