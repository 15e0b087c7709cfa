"""What the status tells, of records set up by hand."""

from __future__ import annotations

import pytest
from fleet_world import application, deployment

from headrace.core import rollout as rollouts
from headrace.core.fleet import Application, Replica
from headrace.core.lifecycle import Phase
from headrace.core.restart import RestartPolicy
from headrace.core.rollout_status import rollout_status
from headrace.core.status import serve_status
from headrace.spec.rollout import RollingUpdate, ShadowTraffic
from headrace.spec.status import ApplicationStatusOverview, NodeDetails, NodeStatus, ProxyDetails, ProxyStatus

KEY = "app/D@1"


def running(*phases: Phase, wanted: int = 2, **changes: object) -> Application:
    spec = application(deployment("D", num_replicas=wanted))
    app = Application(name="app", revisions={1: spec}, target=1, current=1, policy=RestartPolicy(intensity=2))
    for number, phase in enumerate(phases, 1):
        app.replicas[f"D#{number}"] = Replica(
            id=f"D#{number}", app="app", key=KEY, name="D", revision=1, address="", phase=phase, pid=100 + number
        )
    for name, value in changes.items():
        setattr(app, name, value)
    return app


def told(app: Application, now: float = 0.0) -> ApplicationStatusOverview:
    return serve_status([app], {}, "default", now).applications["app"]


@pytest.mark.parametrize(
    ("app", "application_status", "deployment_status", "states"),
    [
        (running(Phase.RUNNING, Phase.RUNNING), "RUNNING", "HEALTHY", {"RUNNING": 2}),
        (running(current=0, deploying=True), "DEPLOYING", "UPDATING", {}),
        (
            running(Phase.STARTING, Phase.LAUNCHING, current=0, deploying=True),
            "DEPLOYING",
            "UPDATING",
            {"STARTING": 2},
        ),
        (running(Phase.RUNNING, Phase.STARTING), "UNHEALTHY", "UNHEALTHY", {"RUNNING": 1, "STARTING": 1}),
        (
            running(Phase.RUNNING, Phase.STARTING, deploying=True),
            "DEPLOYING",
            "UPSCALING",
            {"RUNNING": 1, "STARTING": 1},
        ),
        (running(*[Phase.RUNNING] * 3, deploying=True), "DEPLOYING", "DOWNSCALING", {"RUNNING": 3}),
        (
            running(Phase.RUNNING, Phase.RUNNING, Phase.DRAINING),
            "RUNNING",
            "HEALTHY",
            {"RUNNING": 2, "STOPPING": 1},
        ),
        (running(Phase.RETIRING, Phase.STOPPING, deleting=True), "DELETING", "UPDATING", {"STOPPING": 2}),
        (running(Phase.RECOVERING, wanted=1), "UNHEALTHY", "UNHEALTHY", {"STARTING": 1}),
        (running(Phase.RUNNING, Phase.FAILED), "UNHEALTHY", "UNHEALTHY", {"RUNNING": 1, "FAILED": 1}),
    ],
)
def test_states(app: Application, application_status: str, deployment_status: str, states: dict[str, int]) -> None:
    overview = told(app)
    assert overview.status == application_status
    assert overview.deployments["D"].status == deployment_status
    assert overview.deployments["D"].replica_states == states


def test_one_that_was_listed_and_has_not_reported_runs() -> None:
    app = running(Phase.RECOVERING, wanted=1)
    app.replicas["D#1"].listed = True
    assert told(app).status == "RUNNING"
    assert told(app).deployments["D"].replicas[0].pid == 101


def test_the_last_error_is_told_of_what_is_not_well_alone() -> None:
    app = running(Phase.STARTING, wanted=1)
    failures = app.failures_of(KEY)
    failures.error = "Traceback: boom"
    assert told(app).deployments["D"].message == "Traceback: boom"
    assert told(app).message == "D: Traceback: boom"
    app.replicas["D#1"].phase = Phase.RUNNING
    assert told(app).deployments["D"].message == ""
    assert told(app).message == ""


def test_a_deploy_that_failed_says_why_while_the_old_revision_serves() -> None:
    app = running(Phase.RUNNING, Phase.RUNNING)
    app.revisions[2] = application(deployment("D", digest="2", num_replicas=2))
    app.target, app.failure = 2, "D: boom"
    app.failures_of("app/D@2").error = "boom"
    overview = told(app)
    assert (overview.status, overview.message, overview.revision) == (
        "DEPLOY_FAILED",
        "revision 2 failed; revision 1 has the traffic as before: D: boom",
        1,
    )
    assert overview.deployments["D"].status == "HEALTHY"  # what serves is well
    assert overview.deployments["D"].message == ""
    assert overview.deployments["D"].replica_states == {"RUNNING": 2}


def test_a_split_needs_as_many_replicas_as_its_shares_do() -> None:
    app = running(Phase.RUNNING, wanted=2)
    other = deployment("D", digest="2", num_replicas=2)
    app.revisions[2] = application(other)
    app.split = app.weights = {1: 0.5, 2: 0.5}
    assert told(app).deployments["D"].status == "HEALTHY"
    app.split = app.weights = {1: 0.9, 2: 0.1}
    assert told(app).deployments["D"].status == "UNHEALTHY"


def test_what_is_mirrored_is_told_whoever_asked_for_it() -> None:
    app = running(Phase.RUNNING, wanted=1)
    app.revisions[2] = application(deployment("D", digest="2"))
    assert told(app).shadows == {}
    app.shadows = {2: ShadowTraffic(fraction=0.5)}
    assert told(app).shadows == {2: 0.5}
    app.ended = rollouts.begin(1, {}, RollingUpdate(), 0.0)
    status = rollout_status(app, 0, 0.0, 0.0)
    assert status is not None
    assert status.shadow == 0.5


def test_too_many_restarts_are_unhealthy() -> None:
    app = running(Phase.STARTING, wanted=1, deploying=True)
    failures = app.failures_of(KEY)
    for _ in range(4):
        failures.restarts.fail(5.0, 0, 0.0, 1)
    assert told(app, 5.0).deployments["D"].status == "UNHEALTHY"
    assert told(app, 5.0).deployments["D"].status_trigger == "RESTARTING_TOO_OFTEN"
    assert told(app, 500.0).deployments["D"].status == "UPSCALING"


def test_proxies_are_passed_on() -> None:
    proxies = {"ingress#0": ProxyDetails(status=ProxyStatus.HEALTHY, pid=3, host="h", port=8000)}
    status = serve_status([], proxies, "other", 0.0)
    assert status.instance == "other"
    assert status.proxies == proxies


def test_nodes_are_told_of_replicas_and_of_themselves() -> None:
    app = running(Phase.RUNNING, Phase.RUNNING)
    app.replicas["D#2"].node = "n"
    nodes = {"n": NodeDetails(status=NodeStatus.LEAVING, host="h", head=True)}
    status = serve_status([app], {}, "default", 0.0, nodes=nodes)
    assert status.nodes == nodes
    assert [replica.node for replica in status.applications["app"].deployments["D"].replicas] == ["", "n"]
