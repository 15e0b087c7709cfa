"""One ingress: listens, routes by the controller's snapshots, reports, and ends without losing a request.

In: snapshots, from the disk first and then from the controller; EndProcess. Out: IngressReports, after
each (re)connect and when it stops to listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from typing import TYPE_CHECKING

from headrace.ingress.connection import ClientConnection
from headrace.ingress.door import Door
from headrace.ingress.listener import Listener
from headrace.ingress.tls import TlsHandshake, context_of
from headrace.router import Router
from headrace.router.reports import Reports
from headrace.spec.config import HTTPOptions
from headrace.spec.snapshot import Snapshot
from headrace.wire.control import EndProcess, Hello, IngressReport, Message
from headrace.wire.link import ControlLink

if TYPE_CHECKING:
    from headrace.ingress.grpc_server import GrpcServer

log = logging.getLogger("headrace.ingress")


class Ingress:
    """One ingress process: HTTP, and gRPC where `grpc` is given. `run` is its life; `stop` ends it. All on one loop.

    `snapshot` is what is known before the controller has said anything: with it requests are served at once, and
    without a controller too.
    """

    def __init__(
        self,
        process_id: str,
        options: HTTPOptions,
        router: Router,
        control_path: str,
        *,
        snapshot: Snapshot | None = None,
        grpc: GrpcServer | None = None,
    ) -> None:
        self.grpc = grpc
        self.door = Door(router.loop, router, options)
        self.listener = Listener(router.loop, self._client)
        self._process_id = process_id
        self._options = options
        self._router = router
        self._first_snapshot = snapshot
        self._tls: ssl.SSLContext | None = None
        self._stopped = asyncio.Event()
        self._drain_s = options.drain_timeout_s
        self._link = ControlLink(
            control_path,
            Hello(role="ingress", id=process_id, pid=os.getpid(), node=os.environ.get("HEADRACE_NODE", "")),
            self._received,
            snapshot=snapshot,
            on_snapshot=self._route_by,
            on_connect=self._connected,
        )
        self._reports = Reports(router.loop, router.tallies)

    def __repr__(self) -> str:
        return f"<Ingress {self._process_id} {self.listener} {self.door}>"

    async def run(self) -> None:
        """Serve until `stop`, then drain. Raises PortBusyError or OptionError when it cannot listen."""
        if self._first_snapshot is not None:
            self._route_by(self._first_snapshot)
        self._tls = context_of(self._options)
        await self.listener.open(self._options.host, self._options.port)
        if self.grpc is not None:
            await self.grpc.open(self._options.host)
        link = asyncio.get_running_loop().create_task(self._link.run(), name="link")
        self._reports.begin(self._link)
        try:
            await self._stopped.wait()
            self.door.draining = True
            self._report()
            await self.listener.leave()
            await asyncio.gather(self.door.drain(self._drain_s), self._drain_grpc(self._drain_s))
        finally:
            await self._drain_grpc(0.0)
            await self.listener.leave()  # nothing is left to leave, unless this was cancelled
            self.door.stop()
            self._reports.stop()
            await asyncio.sleep(0)  # the loop writes what was sent in this round
            link.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await link

    async def _drain_grpc(self, timeout_s: float) -> None:
        if self.grpc is not None:
            await self.grpc.drain(timeout_s)

    def _client(self) -> asyncio.Protocol:
        """What reads a connection that a client has opened."""
        if self._tls is None:
            return ClientConnection(self.door)
        return TlsHandshake(self.door, self._tls, lambda: ClientConnection(self.door))

    def stop(self, drain_s: float | None = None) -> None:
        """Take no new connections, finish what is in work for `drain_s` at most (None: as the options say), and end."""
        if drain_s is not None:
            self._drain_s = min(self._drain_s, drain_s)
        self._stopped.set()

    def _route_by(self, snapshot: Snapshot) -> None:
        self._router.update(snapshot)
        self.door.update(snapshot)
        if self.grpc is not None:
            self.grpc.update(snapshot)

    def _received(self, message: Message) -> None:
        match message:
            case EndProcess(grace_s=grace_s):
                log.warning("%s: its place was given to another; it ends within %g s", self._process_id, grace_s)
                self.stop(grace_s)
            case _:
                log.warning("%s does not know what to do with %s", self._process_id, type(message).__name__)

    def _connected(self) -> None:
        self._report()
        self._reports.connected()

    def _report(self) -> None:
        self._link.send(
            IngressReport(
                ingress_id=self._process_id,
                pid=os.getpid(),
                host=self._options.host,
                port=self.listener.port,
                draining=self.door.draining,
                grpc_port=0 if self.grpc is None else self.grpc.port,
                node=os.environ.get("HEADRACE_NODE", ""),
            )
        )
