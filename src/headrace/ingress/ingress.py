"""One ingress: listens, routes by the controller's snapshots, reports, and ends without losing a request.

In: snapshots, from the disk first and then from the controller. Out: IngressReports, after each (re)connect and when it
stops to listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from headrace.ingress.connection import ClientConnection
from headrace.ingress.door import Door
from headrace.ingress.listener import Listener
from headrace.router import Router
from headrace.spec.config import HTTPOptions
from headrace.spec.snapshot import Snapshot
from headrace.wire.control import Hello, IngressReport
from headrace.wire.link import ControlLink

log = logging.getLogger("headrace.ingress")


class Ingress:
    """The HTTP side of one process. `run` is its life; `stop` ends it. All on one loop.

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
    ) -> None:
        self.door = Door(router.loop, router, options)
        self.listener = Listener(router.loop, lambda: ClientConnection(self.door))
        self._process_id = process_id
        self._options = options
        self._router = router
        self._first_snapshot = snapshot
        self._stopped = asyncio.Event()
        self._drain_s = options.drain_timeout_s
        self._link = ControlLink(
            control_path,
            Hello(role="ingress", id=process_id, pid=os.getpid()),
            snapshot=snapshot,
            on_snapshot=self._route_by,
            on_connect=self._report,
        )

    def __repr__(self) -> str:
        return f"<Ingress {self._process_id} {self.listener} {self.door}>"

    async def run(self) -> None:
        """Serve until `stop`, then drain. Raises PortBusyError or OptionError when it cannot listen."""
        if self._first_snapshot is not None:
            self._route_by(self._first_snapshot)
        await self.listener.open(self._options.host, self._options.port)
        link = asyncio.get_running_loop().create_task(self._link.run(), name="link")
        try:
            await self._stopped.wait()
            self.door.draining = True
            self._report()
            await self.listener.leave()
            await self.door.drain(self._drain_s)
        finally:
            await self.listener.leave()  # nothing is left to leave, unless this was cancelled
            self.door.stop()
            link.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await link

    def stop(self, drain_s: float | None = None) -> None:
        """Take no new connections, finish what is in work for `drain_s` at most (None: as the options say), and end."""
        if drain_s is not None:
            self._drain_s = min(self._drain_s, drain_s)
        self._stopped.set()

    def _route_by(self, snapshot: Snapshot) -> None:
        self._router.update(snapshot)
        self.door.update(snapshot)

    def _report(self) -> None:
        self._link.send(
            IngressReport(
                ingress_id=self._process_id,
                pid=os.getpid(),
                host=self._options.host,
                port=self.listener.port,
                draining=self.door.draining,
            )
        )
