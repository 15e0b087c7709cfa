"""The tests of instances, run on a Ray cluster: `pytest --engine ray`. A plugin, which `tests/conftest.py` loads.

In: tests that start instances as their users do, and know no engine. Out: the same tests on one cluster of three
nodes, by HEADRACE_ENGINE and HEADRACE_ADDRESS. What is about one machine alone is left out with its reason, and said.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_only import LOCAL_ONLY, LONG, reason
from namespaces import why_none
from ray_cluster import RayCluster

HERE = Path(__file__).parent
# Of whoever starts an instance on one machine: its processes have them too. On a cluster they have their node's.
TOLD = (
    *("USERS_DIARY", "WEB_DIARY", "LIBRARY_DIARY", "CHAOS_FOLDER", "HEDGING_FOLDER", "MISHAP_FOLDER", "MODELS_FOLDER"),
    "SHADOW_HANGS",
)

left_out: list[str] = []
NEEDS_NAMESPACES = "test_cut_off.py"
no_namespaces: list[str] = []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs network namespaces where none can be made, which the summary says."""
    if collection_path != HERE / NEEDS_NAMESPACES or not (why := why_none()):
        return None
    no_namespaces[:] = [why]
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about one machine, and what takes long or, with --long, all else, which the summary says."""
    long = config.getoption("--long")
    deselected = [item for item in items if reason(item.nodeid, long) is not None]
    left_out[:] = [item.nodeid for item in deselected]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if reason(item.nodeid, long) is None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in no_namespaces:
        terminalreporter.section("NOT RUN: network namespaces", red=True)
        terminalreporter.line(
            f"tests/ray/{NEEDS_NAMESPACES}: none can be made here, which takes root and iproute2: {why}"
        )
    if not left_out:
        return
    terminalreporter.section("not run on Ray")
    for name, why in (LOCAL_ONLY if terminalreporter.config.getoption("--long") else LOCAL_ONLY | LONG).items():
        count = sum(nodeid.startswith(name) for nodeid in left_out)
        if count:
            terminalreporter.line(f"{name} ({count}): {why}")


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """One for all tests: it takes some seconds to start."""
    told = tmp_path_factory.mktemp("told")
    for name in TOLD:
        (told / name).symlink_to("/nonexistent")
    with RayCluster(env={name: str(told / name) for name in TOLD}) as cluster:
        cluster.told = told
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RayCluster) -> RayCluster:
    """The shared cluster, whole again when the test before has killed nodes of it.

    Who kills the head, or wants other options for a cluster, starts one of its own: `with RayCluster() as ...`.
    """
    while len(shared_cluster.nodes) < shared_cluster.count:
        shared_cluster.add_node()
    return shared_cluster


@pytest.fixture(scope="module", autouse=True)
def _on_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the tests of other folders start their instances on the cluster; end what they leave there."""
    if Path(request.node.path).is_relative_to(HERE):
        yield
        return
    cluster: RayCluster = request.getfixturevalue("shared_cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_ENGINE", "ray")
        patch.setenv("HEADRACE_ADDRESS", cluster.address)
        patch.setenv("TOLD_FOLDER", str(cluster.told))
        yield
        end_all(cluster)


def end_all(cluster: RayCluster) -> None:
    """Shut down all instances of the cluster."""
    for name in cluster.instances():
        subprocess.run(
            [sys.executable, "-m", "headrace.cli", "shutdown", "--instance", name],
            env=os.environ | cluster.environment(),
            timeout=60,
            check=True,
        )
