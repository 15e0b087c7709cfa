"""The control socket: who may talk to the controller, and what becomes of what they say.

In: connections of this user's processes; with several nodes, those that their agents carry here, over TCP. Out: their
messages, to the reconciler and the operations, and what is known of nodes; what cannot be understood or is not allowed
ends that connection, with an error in the log, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.controller.ledger import Ledger
from headrace.controller.operations import Operations
from headrace.controller.reconcile import Reconciler
from headrace.controller.waiters import Waiter
from headrace.engine.linux import peer_uid
from headrace.spec.errors import PeerVersionError, ProtocolError
from headrace.wire.channel import ControlChannel
from headrace.wire.control import (
    CONTROL_PURPOSE,
    CONTROL_VERSION,
    MAX_CONTROL_BYTES,
    CountsReport,
    Hello,
    IngressReport,
    Message,
    NodeReport,
    ReplicaReport,
    Request,
    Signals,
    SnapshotAck,
    Subscribe,
)
from headrace.wire.meeting import Reception
from headrace.wire.tcp import Credentials, format_address, listen
from headrace.wire.tls import TlsFiles

logger = logging.getLogger(__name__)

ROLES = frozenset({"worker", "ingress", "node", "driver", "cli"})
HELLO_TIMEOUT_S = 10.0


class NodesHeard(Protocol):
    """Who is told what is heard of nodes by their agents. `now` is the loop's time."""

    def connected(self, node_id: str, host: str, now: float) -> None:
        """The agent of the node has a connection (more): one that comes back may do so before the old one is gone."""

    def reported(self, node_id: str, now: float) -> None:
        """The node lives, and can be reached."""

    def lost(self, node_id: str, now: float) -> None:
        """A connection of the agent of the node has ended."""


class NoNodes:
    """For an engine with one node, which has no agents."""

    def connected(self, node_id: str, host: str, now: float) -> None:
        """Nothing."""

    def reported(self, node_id: str, now: float) -> None:
        """Nothing."""

    def lost(self, node_id: str, now: float) -> None:
        """Nothing."""


@dataclass(slots=True)
class _Session:
    """Who is at the other end, once it has said so."""

    timer: asyncio.TimerHandle
    hello: Hello | None = None
    subscribed: bool = False
    reported: bool = False  # as the agent of its node


def _process(hello: Hello) -> str:
    """A name that no other process has, nor had."""
    return f"{hello.id} (pid {hello.pid})"


class ControlServer:
    """Listens on the control socket, for this user alone.

    A connection with more than `max_unsent_bytes` that its other end does not read is closed.
    """

    def __init__(
        self,
        path: Path,
        reconciler: Reconciler,
        operations: Operations,
        ledger: Ledger,
        nodes: NodesHeard | None = None,
    ) -> None:
        self._path = path
        self._nodes = nodes or NoNodes()
        self._reconciler = reconciler
        self._operations = operations
        self._ledger = ledger
        self.max_unsent_bytes = MAX_CONTROL_BYTES  # the largest message alone is within it
        self._sessions: dict[ControlChannel, _Session] = {}
        self._server: asyncio.Server | None = None
        self._reception: Reception | None = None

    def __repr__(self) -> str:
        return f"<ControlServer {self._path}, {len(self._sessions)} connections>"

    async def listen(self) -> None:
        """Bind and listen. A socket that an earlier controller left is replaced: the keeper runs one at a time."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(mask)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: ControlChannel(self._received, self._closed, on_open=self._opened, name="a newcomer"),
            sock=listener,
            backlog=1024,
        )

    async def listen_tcp(
        self, host: str, ports: tuple[int, int] | None, secret: bytes, tls: TlsFiles | None, at: str = ""
    ) -> str:
        """Take connections at `host` too, on a free port of `ports` (None: any), of who has the secret and, with `tls`,
        a certificate; listen `at` another address ("": at `host`). Returns the address. Raises OSError, or
        InstanceError for TLS files that cannot be used.
        """
        sock = listen(at or host, ports)
        self._reception = Reception(
            sock,
            Credentials(secret, tls),
            CONTROL_PURPOSE,
            lambda: ControlChannel(self._received, self._closed, on_open=self._begun, name="a newcomer"),
            what="the controller",
        )
        try:
            self._reception.start()
        except BaseException:
            await self._reception.close()
            raise
        return format_address(host, sock.getsockname()[1])

    def cut(self, node_id: str) -> None:
        """End all connections from this node now: what it still has to say, it has to say anew."""
        for channel, session in list(self._sessions.items()):
            if session.hello is not None and session.hello.node == node_id:
                channel.abort()

    async def close(self) -> None:
        """Close the sockets and all connections."""
        if self._server is not None:
            self._server.close()
        if self._reception is not None:
            await self._reception.close()
        for channel in list(self._sessions):
            channel.close()
        self._path.unlink(missing_ok=True)

    # --- connections ------------------------------------------------------------------------------------------------

    def _opened(self, channel: ControlChannel) -> None:
        assert channel.transport is not None
        uid = peer_uid(channel.transport.get_extra_info("socket"))
        self._begun(channel)
        if uid is not None and uid != os.getuid():
            logger.error("closing a control connection of user %d: the instance is of user %d", uid, os.getuid())
            channel.abort()

    def _begun(self, channel: ControlChannel) -> None:
        timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self._silent, channel)
        self._sessions[channel] = _Session(timer)

    def _silent(self, channel: ControlChannel) -> None:
        logger.error("closing a control connection that said no hello within %g s", HELLO_TIMEOUT_S)
        channel.abort()

    def _closed(self, channel: ControlChannel) -> None:
        session = self._sessions.pop(channel)
        session.timer.cancel()
        if session.hello is not None:
            if session.hello.role == "worker":
                self._reconciler.worker_lost(session.hello.id, channel)
            if session.reported:
                self._nodes.lost(session.hello.node, asyncio.get_running_loop().time())
            if session.subscribed and not self._is_back(session.hello.id):
                self._reconciler.unsubscribed(session.hello.id)
                self._ledger.gone(_process(session.hello))

    def _is_back(self, id: str) -> bool:
        """Whether the process has a newer connection, over which it subscribed already."""
        return any(
            other.hello is not None and other.hello.id == id and other.subscribed for other in self._sessions.values()
        )

    # --- messages ---------------------------------------------------------------------------------------------------

    def _received(self, channel: ControlChannel, message: Message) -> None:
        session = self._sessions[channel]
        if session.hello is None:
            self._greeted(channel, session, message)
            return
        now = asyncio.get_running_loop().time()
        id = session.hello.id
        match message:
            case Subscribe(have=have):
                session.subscribed = True
                self._ledger.present(_process(session.hello))
                self._reconciler.subscribed(id, have, lambda news: self._tell(channel, news), now)
            case SnapshotAck(version=version):
                self._reconciler.acknowledged(id, version, now)
            case ReplicaReport() if session.hello.role == "worker":
                self._reconciler.reported(id, message, now)
            case IngressReport() if session.hello.role == "ingress":
                self._reconciler.ingress_reported(id, message)
            case NodeReport(id=node_id) if session.hello.role == "node" and node_id == session.hello.node:
                self._node_reported(channel, session, message, now)
            case CountsReport(counted=counted, since=since) if session.subscribed:
                self._ledger.counted(_process(session.hello), counted, since)
            case Signals(signals=signals):
                self._ledger.signals(_process(session.hello), signals, time.time())
            case Request(id=number, operation=operation):
                self._operations.take(operation, Waiter(number, channel.send), now)
            case _:
                raise ProtocolError(f"{session.hello.role} {id} sent {type(message).__name__}, which it may not")

    def _node_reported(self, channel: ControlChannel, session: _Session, report: NodeReport, now: float) -> None:
        if not session.reported:
            session.reported = True
            self._nodes.connected(report.id, report.host, now)
        self._nodes.reported(report.id, now)
        channel.send(report)

    def _tell(self, channel: ControlChannel, news: Message) -> bool:
        """Send a snapshot, unless the other end has not read for so long that its connection had better end."""
        if channel.unsent_bytes > self.max_unsent_bytes:
            logger.error("closing the control connection to %s, which does not read", channel.name)
            channel.abort()
        return channel.send(news)

    def _greeted(self, channel: ControlChannel, session: _Session, message: Message) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"the first message is {type(message).__name__}, not Hello")
        # Answered in any case: who speaks another version is to learn which one we speak.
        channel.send(Hello(role="controller", id="controller", pid=os.getpid()))
        if message.version != CONTROL_VERSION:
            raise PeerVersionError(
                f"{message.role} {message.id} (pid {message.pid}) speaks version {message.version} of the control "
                f"protocol, this controller version {CONTROL_VERSION}"
            )
        if message.role not in ROLES:
            raise ProtocolError(f"role {message.role!r} is none of {', '.join(sorted(ROLES))}")
        if message.role == "node" and not message.node:
            raise ProtocolError(f"node {message.id} (pid {message.pid}) does not say which node it is")
        session.timer.cancel()
        session.hello = message
        channel.name = f"{message.role} {message.id} (pid {message.pid})"
        if message.role == "worker":
            self._reconciler.worker_connected(message.id, channel, asyncio.get_running_loop().time())
        elif message.role == "ingress":
            now = asyncio.get_running_loop().time()
            self._reconciler.ingress_connected(message.id, message.node, message.pid, channel, now)
