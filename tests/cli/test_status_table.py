import msgspec

from headrace.cli.status import listening, table
from headrace.cli.terminal import Style, shown_name
from headrace.spec.status import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    NodeDetails,
    NodeStatus,
    ProxyDetails,
    ProxyStatus,
    ReplicaDetails,
    ReplicaState,
    RolloutStatus,
    ServeStatus,
)

PLAIN = Style(False)
TRACEBACK = "Traceback (most recent call last):\n  ...\nValueError: no model"


def status(**deployments):
    states = [d.status for d in deployments.values()]
    failed = DeploymentStatus.DEPLOY_FAILED in states
    return ServeStatus(
        instance="default",
        proxies={
            "ingress#0": ProxyDetails(status=ProxyStatus.HEALTHY, pid=1, host="127.0.0.1", port=8000, grpc_port=9000)
        },
        applications={
            "app": ApplicationStatusOverview(
                status=ApplicationStatus.DEPLOY_FAILED if failed else ApplicationStatus.RUNNING,
                route_prefix="/",
                revision=2,
                message="deployment Digits: " + TRACEBACK if failed else "",
                deployments=deployments,
            )
        },
    )


WELL = DeploymentStatusOverview(
    status=DeploymentStatus.HEALTHY,
    replica_states={"STARTING": 1, "RUNNING": 2, "STOPPED": 0},
    replicas=(
        ReplicaDetails(id="Digits#0", state=ReplicaState.RUNNING, restarts=1, ongoing=3),
        ReplicaDetails(id="Digits#1", state=ReplicaState.RUNNING, restarts=2),
    ),
)


def test_what_runs():
    assert table(status(Digits=WELL, Other=DeploymentStatusOverview(status=DeploymentStatus.UPDATING)), PLAIN) == [
        "instance default · http://127.0.0.1:8000, grpc://127.0.0.1:9000 (1 ingress process)",
        "",
        "APPLICATION  ROUTE  STATUS   REVISION",
        "app          /      RUNNING  2",
        "",
        "DEPLOYMENT  STATUS    REPLICAS               RESTARTS  ONGOING",
        "app/Digits  HEALTHY   2 running, 1 starting  3         3",
        "app/Other   UPDATING  none                   0         0",
    ]


def test_traffic_that_is_shared_or_moves_is_told():
    def shared(weights, rollout=None, shadows={}):  # noqa: B006  # nobody changes it
        app = ApplicationStatusOverview(
            status=ApplicationStatus.RUNNING, weights=weights, rollout=rollout, shadows=shadows
        )
        return table(ServeStatus(applications={"app": app}), PLAIN)

    assert shared({1: 0.9, 2: 0.1})[-2:] == [
        "APPLICATION  TRAFFIC BY REVISION  ROLLOUT",
        "app          1: 90 %, 2: 10 %     -",
    ]
    canary = RolloutStatus(app="app", revision=2, strategy="canary", stage="watching", step=0, steps=3)
    assert shared({1: 1.0}, canary)[-1] == "app          1: 100 %             revision 2: step 1 of 3 · watching"
    assert shared({1: 1.0}, shadows={2: 0.5})[-1] == "app          1: 100 %; copies to 2: 50 %  -"
    ended = msgspec.structs.replace(canary, outcome="ROLLED_BACK")
    assert not any("ROLLOUT" in line for line in shared({1: 1.0}, ended))


def test_what_is_not_well_is_told_once():
    failed = DeploymentStatusOverview(
        status=DeploymentStatus.DEPLOY_FAILED,
        message=TRACEBACK,
        replicas=(ReplicaDetails(id="Digits#0", state=ReplicaState.FAILED, error=TRACEBACK),),
    )
    lines = table(status(Digits=failed), PLAIN)
    assert lines[-4:] == ["app/Digits:", "  Traceback (most recent call last):", "    ...", "  ValueError: no model"]
    assert sum("ValueError" in line for line in lines) == 1


def test_nothing_runs():
    lines = table(ServeStatus(instance="x"), PLAIN)
    assert lines[0] == "instance x · no HTTP"
    assert "no application runs" in lines[-1]


def test_an_ingress_that_is_not_well_and_an_address_of_version_6():
    proxies = {
        "ingress#0": ProxyDetails(status=ProxyStatus.HEALTHY, host="::1", port=8000),
        "ingress#1": ProxyDetails(status=ProxyStatus.STARTING, host="::1", port=8000),
    }
    head = table(ServeStatus(proxies=proxies), PLAIN)[0]
    assert head == "instance default · http://[::1]:8000 (2 ingress processes) · ingress#1 STARTING"


def test_colours_do_not_shift_columns():
    plain = table(status(Digits=WELL), PLAIN)
    coloured = table(status(Digits=WELL), Style(True))
    assert any("\x1b[32mRUNNING\x1b[0m" in line for line in coloured)
    stripped = [line.replace("\x1b[32m", "").replace("\x1b[0m", "") for line in coloured]
    assert stripped == plain


class Stream:
    def __init__(self, terminal):
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def test_colour_only_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Style.of(Stream(True)).good("x") == "\x1b[32mx\x1b[0m"
    assert Style.of(Stream(False)).good("x") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style.of(Stream(True)).good("x") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Style.of(Stream(True)).good("x") == "x"


def test_a_deployment_has_one_colour():
    style = Style(True)
    assert style.process("A#1").replace("A#1", "") == style.process("A#2").replace("A#2", "")


def test_names_of_processes():
    assert shown_name("Digits#3@default") == "Digits#3"
    assert shown_name("Digits#3@other") == "Digits#3@other"
    assert shown_name("ingress#0") == "ingress#0"


def test_a_cluster_s_nodes_are_told_with_what_runs_on_each():
    def proxy(node):
        return ProxyDetails(status=ProxyStatus.HEALTHY, pid=1, host="0.0.0.0", port=8000, node=node)

    replicas = (
        ReplicaDetails(id="D#1", state=ReplicaState.RUNNING, node="b" * 56),
        ReplicaDetails(id="D#2", state=ReplicaState.RUNNING, node="b" * 56),
        ReplicaDetails(id="D#3", state=ReplicaState.STARTING, node="a" * 56),
    )
    overview = DeploymentStatusOverview(status=DeploymentStatus.UPDATING, replicas=replicas)
    cluster = msgspec.structs.replace(
        status(D=overview),
        proxies={"ingress#0@a": proxy("a" * 56), "ingress#0@b": proxy("b" * 56)},
        nodes={
            "c" * 56: NodeDetails(status=NodeStatus.LOST, host="10.0.0.3"),
            "b" * 56: NodeDetails(status=NodeStatus.ALIVE, host="10.0.0.2"),
            "a" * 56: NodeDetails(status=NodeStatus.ALIVE, host="10.0.0.1", head=True),
        },
    )
    lines = table(cluster, PLAIN)
    assert lines[0] == "instance default · http://10.0.0.1:8000, http://10.0.0.2:8000 (2 ingress processes)"
    at = next(i for i, line in enumerate(lines) if line.startswith("NODE"))
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["aaaaaaaa", "(head)", "10.0.0.1", "ALIVE", "1", "healthy", "1", "starting"],
        ["bbbbbbbb", "10.0.0.2", "ALIVE", "1", "healthy", "2", "running"],
        ["cccccccc", "10.0.0.3", "LOST", "-", "-"],
    ]


def test_http_is_told_before_grpc_and_a_loopback_address_as_it_is():
    details = ProxyDetails(status=ProxyStatus.HEALTHY, host="127.0.0.1", port=8000, grpc_port=9000, node="a")
    nodes = {"a": NodeDetails(status=NodeStatus.ALIVE, host="10.0.0.1")}
    told = listening(ServeStatus(proxies={"ingress#0": details}, nodes=nodes))
    assert told == ["http://127.0.0.1:8000", "grpc://127.0.0.1:9000"]
