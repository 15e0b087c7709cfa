"""What a node's agent says to the controller by itself: that the node is there, again and again.

In: snapshots, and an answer to each report. Out: a NodeReport every NODE_REPORT_S, by which the controller knows that
the node lives and can be reached; the snapshot on this node's disk, with which its processes start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from headrace.engine.directory import InstanceDirectory, write_node, write_snapshot
from headrace.spec.snapshot import Snapshot
from headrace.wire.control import NODE_REPORT_S, Hello, Message, NodeReport
from headrace.wire.link import ControlLink

logger = logging.getLogger(__name__)

# Reports without an answer, after which there is no controller at the other end. Counted, and not timed: a process that
# was itself stopped for a while has not heard the answers that are there.
MOST_UNANSWERED = 10


class NodeLink:
    """The link of the agent of `node`, which others reach at `host`. `cut` is called when the controller has not
    answered for MOST_UNANSWERED reports: whatever carries this node's connections to it carries them nowhere. What the
    controller says besides goes to `on_message`.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        node: str,
        host: str,
        *,
        cut: Callable[[], None],
        on_message: Callable[[Message], None] | None = None,
        report_s: float = NODE_REPORT_S,
    ) -> None:
        self._directory = directory
        self._report = NodeReport(id=node, host=host)
        self._cut = cut
        self._report_s = report_s
        self._on_message = on_message
        self._unanswered = 0
        self._link = ControlLink(
            str(directory.control_socket),
            Hello(role="node", id=f"node-{node}", pid=os.getpid(), node=node),
            self._received,
            on_snapshot=self._keep,
            on_connect=self._connected,
        )

    def __repr__(self) -> str:
        return f"<NodeLink of {self._report.id}: {self._link}, {self._unanswered} reports not answered>"

    @property
    def connected(self) -> bool:
        """Whether the controller has said hello on the present connection."""
        return self._link.connected

    @property
    def snapshot(self) -> Snapshot:
        """The one that the controller told last."""
        return self._link.snapshot

    async def run(self) -> None:
        """Keep on until cancelled."""
        try:
            write_node(self._directory, self._report.id)
        except OSError as error:
            logger.error("which node this is could not be kept on disk: %s", error)
        linked = asyncio.get_running_loop().create_task(self._link.run(), name="node link")
        try:
            while True:
                await asyncio.sleep(self._report_s)
                if self._unanswered >= MOST_UNANSWERED:
                    self._unanswered = 0
                    self._cut()
                self._unanswered += 1
                self._link.send(self._report)
        finally:
            linked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await linked

    def _connected(self) -> None:
        self._unanswered = 0
        self._link.send(self._report)

    def _received(self, message: Message) -> None:
        if isinstance(message, NodeReport):
            self._unanswered = 0
        elif self._on_message is not None:
            self._on_message(message)
        else:
            logger.warning("node %s does not know what to do with %s", self._report.id, type(message).__name__)

    def _keep(self, snapshot: Snapshot) -> None:
        try:
            write_snapshot(self._directory, snapshot)
        except OSError as error:
            # Whoever starts here has it from the controller then, a little later.
            logger.error("snapshot %d could not be kept on disk: %s", snapshot.version, error)
