"""`headrace status`: a table of what runs and the last error of whatever is not well, or all of it as JSON."""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Sequence

import msgspec

from headrace.cli.instance import add_instance, ask, running
from headrace.cli.live import percent, stage_of
from headrace.cli.terminal import Style
from headrace.spec.errors import HeadraceError
from headrace.spec.status import DeploymentStatusOverview, ProxyDetails, ReplicaState, ServeStatus
from headrace.wire.control import GetStatus, Status

_GOOD = frozenset(("RUNNING", "HEALTHY", "ALIVE"))
_BAD = frozenset(("DEPLOY_FAILED", "UNHEALTHY", "FAILED", "SUSPECT", "LOST"))
_ANY = ("0.0.0.0", "::")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace status`."""
    parser.add_argument("--json", action="store_true", help="for programs: everything, as JSON")
    add_instance(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the state; returns 0 when there is an instance to tell of. Raises InstanceError when there is none."""
    directory = running(arguments)
    answer = ask(directory, GetStatus())
    if not isinstance(answer, Status):
        raise HeadraceError(f"the controller answered GetStatus with {type(answer).__name__}")
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(answer.status), indent=2).decode())
    else:
        print("\n".join(table(answer.status, Style.of(sys.stdout))))
        if answer.status.nodes:
            print(f"\nwhat replicas print is on their nodes: on this one in {directory.logs}")
    return 0


def table(status: ServeStatus, style: Style) -> list[str]:
    """The lines of the table: the instance, its applications and their deployments, then what is not well."""
    lines = [_head(status)]
    nodes = _nodes(status, style)
    if not status.applications:
        return [*lines, *nodes, "", "no application runs on it: headrace run, or serve.run(...), deploys one"]
    rows: list[Sequence[str]] = [("APPLICATION", "ROUTE", "STATUS", "REVISION")]
    for name, app in status.applications.items():
        rows.append((name, app.route_prefix or "-", app.status.value, str(app.revision or "-")))
    lines += ["", *_aligned(rows, style)]
    rows = [("DEPLOYMENT", "STATUS", "REPLICAS", "RESTARTS", "ONGOING")]
    for app_name, app in status.applications.items():
        for name, deployment in app.deployments.items():
            rows.append((f"{app_name}/{name}", deployment.status.value, *_counts(deployment)))
    lines += ["", *_aligned(rows, style)]
    return lines + nodes + _rollouts(status, style) + _errors(status, style)


def _rollouts(status: ServeStatus, style: Style) -> list[str]:
    """Of each application whose traffic is shared, mirrored or on the move: how."""
    rows: list[Sequence[str]] = [("APPLICATION", "TRAFFIC BY REVISION", "ROLLOUT")]
    for name, app in status.applications.items():
        rollout = app.rollout
        under_way = rollout is not None and not rollout.outcome
        if len(app.weights) < 2 and not under_way and not app.shadows:
            continue
        shares = ", ".join(f"{number}: {percent(weight)}" for number, weight in sorted(app.weights.items()))
        if app.shadows:
            copies = ", ".join(f"{number}: {percent(fraction)}" for number, fraction in sorted(app.shadows.items()))
            shares += f"; copies to {copies}"
        told = f"revision {rollout.revision}: {stage_of(rollout)}" if rollout is not None and under_way else "-"
        rows.append((name, shares or "-", told))
    return ["", *_aligned(rows, style)] if len(rows) > 1 else []


def listening(status: ServeStatus) -> list[str]:
    """Where the instance listens, HTTP before gRPC; on a cluster, where its nodes do: none of them is named whose
    ingress is for the node itself.
    """
    found = {f"{p.scheme}://{_in_url(_host(p, status))}:{p.port}" for p in status.proxies.values() if p.port}
    found |= {f"grpc://{_in_url(_host(p, status))}:{p.grpc_port}" for p in status.proxies.values() if p.grpc_port}
    return sorted(found, key=lambda place: (place.startswith("grpc"), place))


def _host(proxy: ProxyDetails, status: ServeStatus) -> str:
    """The address that others reach it by: on a cluster, that of its node where it listens on all addresses."""
    node = status.nodes.get(proxy.node)
    return node.host if node is not None and node.host and proxy.host in _ANY else proxy.host


def _nodes(status: ServeStatus, style: Style) -> list[str]:
    """Of a cluster: each node with its ingress and its replicas."""
    if not status.nodes:
        return []
    rows: list[Sequence[str]] = [("NODE", "ADDRESS", "STATUS", "INGRESS", "REPLICAS")]
    replicas = [r for app in status.applications.values() for each in app.deployments.values() for r in each.replicas]
    for id, node in sorted(status.nodes.items(), key=lambda item: (not item[1].head, item[1].host, item[0])):
        proxies = [proxy.status.value for proxy in status.proxies.values() if proxy.node == id]
        states = collections.Counter(r.state for r in replicas if r.node == id)
        counted = ", ".join(f"{n} {state.lower()}" for state, n in sorted(states.items(), key=_running_first))
        ingress = ", ".join(f"{n} {state.lower()}" for state, n in collections.Counter(proxies).items())
        name = f"{id[:8]} (head)" if node.head else id[:8]
        rows.append((name, node.host or "-", node.status.value, ingress or "-", counted or "-"))
    return ["", *_aligned(rows, style)]


def _head(status: ServeStatus) -> str:
    count = len(status.proxies)
    processes = f" ({count} ingress process{'es' if count != 1 else ''})" if count else ""
    unwell = [f"{name} {p.status.value}" for name, p in status.proxies.items() if p.status != "HEALTHY"]
    where = ", ".join(listening(status)) or "no HTTP"
    return f"instance {status.instance} · {where}{processes}{' · ' + ', '.join(unwell) if unwell else ''}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _counts(deployment: DeploymentStatusOverview) -> tuple[str, str, str]:
    """Replicas by state (`2 running, 1 starting`), their restarts, and the calls in work."""
    states = [f"{n} {state.lower()}" for state, n in sorted(deployment.replica_states.items(), key=_running_first) if n]
    restarts = sum(replica.restarts for replica in deployment.replicas)
    ongoing = sum(replica.ongoing for replica in deployment.replicas)
    return ", ".join(states) or "none", str(restarts), str(ongoing)


def _running_first(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] != ReplicaState.RUNNING, item[0]


def _aligned(rows: list[Sequence[str]], style: Style) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(_coloured(cell, width, style) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _coloured(cell: str, width: int, style: Style) -> str:
    padding = " " * (width - len(cell))
    if cell in _GOOD:
        return style.good(cell) + padding
    return (style.bad(cell) if cell in _BAD else cell) + padding


def _errors(status: ServeStatus, style: Style) -> list[str]:
    """What is not well, in the words of whoever told it: a message once, however many repeat it."""
    lines: list[str] = []
    told: set[str] = set()

    def tell(what: str, message: str) -> None:
        text = message.strip()
        if text and text not in told:
            told.add(text)
            lines.extend(["", style.bad(f"{what}:"), *(f"  {line}" for line in text.splitlines())])

    for app_name, app in status.applications.items():
        for name, deployment in app.deployments.items():
            tell(f"{app_name}/{name}", deployment.message)
            for replica in deployment.replicas:
                tell(f"{app_name}/{replica.id}", replica.error)
        if not any(app.message.strip() in text or text in app.message for text in told):
            tell(app_name, app.message)
    return lines
