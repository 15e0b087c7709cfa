"""The snapshot that follows from the records: what it says of who calls a deployment, and of where replicas run."""

from __future__ import annotations

import pytest
from fleet_world import application, deployment

from headrace.core.fleet import Application, Replica
from headrace.core.lifecycle import Phase
from headrace.core.publication import build_snapshot, count_routers, same_routes
from headrace.spec.application import ApplicationSpec
from headrace.spec.snapshot import ReplicaEntry


def deployed(*revisions: ApplicationSpec) -> Application:
    app = Application(name="app", target=len(revisions), current=1)
    app.revisions = dict(enumerate(revisions, 1))
    return app


def graph(**replicas: int) -> ApplicationSpec:
    """A at the door uses B and C, and B uses C."""
    return application(
        deployment("A", uses=("B", "C"), num_replicas=replicas.get("a", 1)),
        deployment("B", uses=("C",), num_replicas=replicas.get("b", 1)),
        deployment("C", num_replicas=replicas.get("c", 1)),
    )


@pytest.mark.parametrize(
    ("ingress_workers", "replicas", "expected"),
    [
        (0, {}, (1, 1, 2)),  # nobody at the door: drivers call, at least one
        (4, {"a": 8, "b": 8}, (4, 8, 16)),
        (5, {"a": 9, "b": 22}, (4, 8, 16)),  # 31 callers: too few rather than too many
        (1, {"a": 100, "c": 1000}, (1, 64, 64)),
    ],
)
def test_those_who_call_are_counted(
    ingress_workers: int, replicas: dict[str, int], expected: tuple[int, int, int]
) -> None:
    snapshot = build_snapshot([deployed(graph(**replicas))], "i", 1, ingress_workers)
    assert tuple(snapshot.deployments[f"app/{name}@1"].routers for name in "ABC") == expected


def test_a_caller_that_grows_by_a_few_changes_nothing_for_its_callees() -> None:
    before, after = (build_snapshot([deployed(graph(a=number))], "i", 1, 1) for number in (16, 30))
    assert same_routes(before, after)


def test_callers_of_all_revisions_count_once_each() -> None:
    old = application(deployment("A", uses=("B",), num_replicas=4), deployment("B"))
    new = application(deployment("A", digest="2", uses=("B",), num_replicas=4), deployment("B"))
    assert count_routers(deployed(old, old), 1)["app/B@1"] == 4
    assert count_routers(deployed(old, new), 1)["app/B@1"] == 8


def test_an_application_without_a_route_is_not_called_by_the_ingress() -> None:
    spec = ApplicationSpec(name="app", route_prefix=None, ingress="A", deployments=(deployment("A"),))
    assert count_routers(deployed(spec), 8) == {}


def test_routers_know_where_replicas_run_and_their_addresses_there() -> None:
    app = deployed(application(deployment("D")))
    app.replicas["D#1"] = Replica(
        id="D#1",
        app="app",
        key="app/D@1",
        name="D",
        revision=1,
        address="tcp:h:1",
        node="n",
        near="unix:/x",
        phase=Phase.RUNNING,
    )
    entry = build_snapshot([app], "i", 1, 1).deployments["app/D@1"]
    assert entry.replicas == (ReplicaEntry("D#1", "tcp:h:1", "n", "unix:/x"),)
    assert [entry.replicas[0].address_from(node) for node in ("n", "m", "")] == ["unix:/x", "tcp:h:1", "tcp:h:1"]


def test_routers_know_which_nodes_are_lost() -> None:
    snapshots = [build_snapshot([], "i", 1, 1, lost) for lost in ((), ("b", "c"))]
    assert [snapshot.lost for snapshot in snapshots] == [(), ("b", "c")]
    assert not same_routes(*snapshots)
    assert same_routes(snapshots[1], build_snapshot([], "i", 2, 1, ["b", "c"]))
