"""Replicas hosted in this process, and calls to them over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import deployed_code

from headrace import runtime
from headrace.handle import DeploymentHandle
from headrace.replica.host import HostedReplica
from headrace.router import Router
from headrace.runtime import Runtime
from headrace.spec.application import Code, DeploymentSpec, Environment, ImportedCode
from headrace.spec.options import DeploymentOptions
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, ReplicaEntry, RevisionEntry, Snapshot
from headrace.spec.status import ReplicaState
from headrace.wire.code import pack_arguments
from headrace.wire.control import HostReplica, ReplicaReport

S = ReplicaState


@contextlib.contextmanager
def short_directory() -> Any:
    """A directory whose sockets have short paths."""
    path = tempfile.mkdtemp(prefix="hr-")
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path)


@dataclasses.dataclass
class Bound:
    """Stands for a deployment among the arguments of another."""

    name: str


def _name_of(value: Any) -> str | None:
    return value.name if isinstance(value, Bound) else None


def spec_of(
    code: str | Code,
    *args: Any,
    name: str = "",
    limit: int = 8,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> DeploymentSpec:
    """The specification of a deployment of `deployed_code`."""
    if isinstance(code, str):
        code = ImportedCode("deployed_code", code)
        name = name or code.qualname
    arguments, uses = pack_arguments(args, kwargs, _name_of)
    return DeploymentSpec(
        name=name or "Pickled",
        code=code,
        arguments=arguments,
        options=DeploymentOptions(**(options or {})),
        digest="0" * 16,
        max_ongoing_requests=limit,
        uses=uses,
    )


def order_of(directory: Path, spec: DeploymentSpec, n: int = 0, environment: Environment | None = None) -> HostReplica:
    return HostReplica(
        replica_id=f"{spec.name}#{n}",
        app="shop",
        key=f"shop/{spec.name}@{spec.digest}",
        revision=1,
        spec=spec,
        environment=environment or Environment(),
        address=f"unix:{directory}/{spec.name}-{n}.sock",
    )


def snapshot_of(*orders: HostReplica, version: int = 1, app: str = "shop") -> Snapshot:
    deployments: dict[str, DeploymentEntry] = {}
    for order in orders:
        known = deployments.get(order.key)
        deployments[order.key] = DeploymentEntry(
            key=order.key,
            app=app,
            name=order.spec.name,
            max_ongoing_requests=order.spec.max_ongoing_requests,
            max_queued_requests=100,
            repeatable=order.spec.options.repeatable,
            replicas=(*(known.replicas if known else ()), ReplicaEntry(order.replica_id, order.address)),
        )
    revision = RevisionEntry(number=1, weight=1.0, deployments={e.name: k for k, e in deployments.items()})
    entry = ApplicationEntry(name=app, route_prefix="/", ingress=orders[0].spec.name, revisions=(revision,))
    return Snapshot(version=version, applications={app: entry}, deployments=deployments)


class Hosted:
    """A replica with its reports and its life."""

    def __init__(self, order: HostReplica, prepare: Callable[[HostReplica], None] | None = None) -> None:
        self.reports: list[ReplicaReport] = []
        self._changed = asyncio.Event()
        self.replica = HostedReplica(order, self._told, lambda name: DeploymentHandle(name, order.app), prepare)
        self.life = asyncio.ensure_future(self.replica.run())

    def _told(self, report: ReplicaReport) -> None:
        self.reports.append(report)
        self._changed.set()

    @property
    def states(self) -> list[ReplicaState]:
        return [report.state for report in self.reports]

    async def until(self, state: ReplicaState, times: int = 1) -> ReplicaReport:
        while self.states.count(state) < times:
            self._changed.clear()
            await self._changed.wait()
        return self.reports[-1]

    async def end(self, deadline_s: float = 30.0) -> None:
        self.replica.drain(deadline_s)
        await self.life


@contextlib.asynccontextmanager
async def shop(*specs: DeploymentSpec) -> AsyncIterator[tuple[Any, ...]]:
    """Replicas of these, running, each with a handle to it, in a process that routes to them: (hosted, handle), ..."""
    loop = asyncio.get_running_loop()
    with short_directory() as directory:
        orders = [order_of(directory, spec) for spec in specs]
        router = Router(loop, f"test-{os.getpid()}")
        runtime.install(Runtime(router, loop, threading.get_ident()))
        router.update(snapshot_of(*orders))
        hosted = [Hosted(order) for order in orders]
        try:
            for one in hosted:
                report = await one.until(S.RUNNING)
                assert report.error == ""
            yield tuple((one, DeploymentHandle(one.replica.order.spec.name, "shop")) for one in hosted)
        finally:
            deployed_code.RELEASE.set()
            for one in hosted:
                await one.end()
            await router.close()
            runtime.install(None)
