"""A worker: told by the controller which replica to host, it hosts it and reports, for as long as it is wanted.

In: HostReplica, ReconfigureReplica, DescribeReplica, DrainReplica, EndProcess and snapshots from the controller. Out:
ReplicaReports, when asked, at each change of state and after each (re)connect, so that a controller that was away
adopts what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from headrace.handle import DeploymentHandle
from headrace.replica.host import HostedReplica
from headrace.replica.place import Place
from headrace.router.reports import Reports
from headrace.runtime import Runtime
from headrace.spec.snapshot import Snapshot
from headrace.wire.awake import Awake
from headrace.wire.control import (
    DescribeReplica,
    DrainReplica,
    EndProcess,
    Hello,
    HostReplica,
    Message,
    ReconfigureReplica,
    ReplicaReport,
)
from headrace.wire.link import ControlLink

log = logging.getLogger("headrace.replica")


class Worker:
    """Hosts one replica. `run` is its life; `stop` ends it. All on one loop.

    `prepare(order)` readies the process for the replica's code before that is loaded; what it raises fails the replica.
    `on_state(replica)` is told of changes of state, `on_drain(deadline_s)` of a drain that begins, `adopt` of
    snapshots, `runtime` is what the handles of the replica call by, where that is not the one of the process,
    `reports` what tells the controller of requests of this process, and `place` where it is, where there are several
    nodes.
    """

    def __init__(
        self,
        process_id: str,
        control_path: str,
        *,
        snapshot: Snapshot | None = None,
        adopt: Callable[[Snapshot], None] | None = None,
        prepare: Callable[[HostReplica], None] | None = None,
        on_state: Callable[[HostedReplica], None] | None = None,
        on_drain: Callable[[float], None] | None = None,
        awake: Awake | None = None,
        runtime: Runtime | None = None,
        reports: Reports | None = None,
        place: Place | None = None,
    ) -> None:
        self.replica: HostedReplica | None = None
        self._process_id = process_id
        self._prepare = prepare
        self._on_state = on_state
        self._on_drain = on_drain
        self._awake = awake
        self._runtime = runtime
        self._place = place
        self._ended = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._link = ControlLink(
            control_path,
            Hello(role="worker", id=process_id, pid=os.getpid(), node="" if place is None else place.node),
            self._received,
            snapshot=snapshot,
            on_snapshot=adopt,
            on_connect=self._connected,
        )
        self._reports = reports

    def __repr__(self) -> str:
        return f"<Worker {self._process_id} {self.replica or 'without a replica'}>"

    async def run(self) -> int:
        """Until the replica has ended, or `stop` found none; the exit code. Cancelled, it ends as if killed."""
        linked = asyncio.get_running_loop().create_task(self._link.run(), name="link")
        if self._reports is not None:
            self._reports.begin(self._link)
        try:
            await self._ended.wait()
            if self._life is not None:
                await self._life
            if self._reports is not None:
                self._reports.stop()
            await asyncio.sleep(0)  # the loop writes what was sent in this round: the last report
            return 0
        finally:
            for task in (self._life, linked):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    def stop(self, deadline_s: float | None = None) -> None:
        """Drain the replica for `deadline_s` seconds at most (None: as long as its deployment says), then end."""
        if self.replica is None:
            self._ended.set()
            return
        if deadline_s is None:
            deadline_s = self.replica.order.spec.options.graceful_shutdown_timeout_s
        self._drain(deadline_s)

    # ---- what the controller says

    def _received(self, message: Message) -> None:
        match message:
            case HostReplica():
                self._host(message)
            case DrainReplica(replica_id=replica_id, deadline_s=deadline_s) if self._is_ours(replica_id):
                self._drain(deadline_s)
            case ReconfigureReplica(replica_id=replica_id, spec=spec, told_at=at) if self._is_ours(replica_id):
                if self.replica is not None:
                    self.replica.reconfigure(spec, at)
            case EndProcess(grace_s=grace_s):
                log.warning("%s: its place was given to another; it ends within %g s", self._process_id, grace_s)
                self.stop(grace_s)
            case DescribeReplica(replica_id=replica_id) if self._is_ours(replica_id):
                self._report_again()
            case _:
                log.warning("%s does not know what to do with %s", self._process_id, message)

    def _is_ours(self, replica_id: str) -> bool:
        return self.replica is not None and self.replica.order.replica_id == replica_id

    def _host(self, order: HostReplica) -> None:
        if self.replica is not None:
            # A controller that came back asks again for what runs already.
            if self.replica.order.replica_id != order.replica_id:
                log.error("%s hosts %s already, not %s", self._process_id, self.replica, order.replica_id)
            self._report_again()
            return
        self.replica = HostedReplica(
            order, self._tell, lambda name: DeploymentHandle(name, order.app), self._prepare, self._awake, self._place
        )
        self.replica.context.runtime = self._runtime
        self._life = asyncio.get_running_loop().create_task(self._live(self.replica), name="replica")

    async def _live(self, replica: HostedReplica) -> None:
        try:
            await replica.run()
        finally:
            self._ended.set()

    def _drain(self, deadline_s: float) -> None:
        assert self.replica is not None
        if self._on_drain is not None:
            self._on_drain(deadline_s)
        self.replica.drain(deadline_s)

    # ---- what it says

    def _tell(self, report: ReplicaReport) -> None:
        self._link.send(report)
        if self._on_state is not None and self.replica is not None:
            self._on_state(self.replica)

    def _connected(self) -> None:
        self._report_again()
        if self._reports is not None:
            self._reports.connected()

    def _report_again(self) -> None:
        if self.replica is not None and self.replica.state is not None:
            self._link.send(self.replica.describe())
