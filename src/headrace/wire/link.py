"""A process's standing connection to its controller.

In: messages of the controller, handed to the owner's `on_message` on the event loop; snapshots and differences, of
which the owner's `on_snapshot` gets each whole; HEADRACE_NODE, where there are several nodes. Out: the owner's
messages, and by itself Hello, Subscribe, and a SnapshotAck for each snapshot once `on_snapshot` has returned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable

import msgspec

from headrace.spec.errors import PeerVersionError
from headrace.spec.snapshot import Snapshot, apply
from headrace.wire.channel import ControlChannel
from headrace.wire.control import (
    CONTROL_VERSION,
    DeltaMessage,
    Hello,
    Message,
    SnapshotAck,
    SnapshotMessage,
    Subscribe,
)

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0
HELLO_TIMEOUT_S = 10.0


class ControlLink:
    """A connection to the controller: says hello, subscribes, delivers messages, reconnects with backoff for ever.

    `snapshot` is the one that the controller told last; at first what the owner knows already (None: nothing). Without
    `on_snapshot` none is asked for. `on_connect` is called each time the controller has said hello: there the owner
    reports its state anew.
    """

    def __init__(
        self,
        path: str,
        hello: Hello,
        on_message: Callable[[Message], None] | None = None,
        *,
        snapshot: Snapshot | None = None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        self.snapshot = snapshot or Snapshot()
        self.hello_timeout_s = HELLO_TIMEOUT_S
        self._path = path
        self._hello = msgspec.structs.replace(hello, node=hello.node or os.environ.get("HEADRACE_NODE", ""))
        self._on_message = on_message
        self._on_snapshot = on_snapshot
        self._on_connect = on_connect
        self._channel: ControlChannel | None = None
        self._ended: asyncio.Event | None = None
        self._connected = False
        self._random = random.Random()

    def __repr__(self) -> str:
        return f"<ControlLink of {self._hello.id} {'connected' if self._connected else 'not connected'}>"

    @property
    def connected(self) -> bool:
        """Whether the controller has said hello on the present connection."""
        return self._connected

    async def run(self) -> None:
        """Keep the link up until cancelled; a cancelled link is closed."""
        loop = asyncio.get_running_loop()
        wait_s = FIRST_RETRY_S
        while True:
            self._ended = ended = asyncio.Event()
            try:
                _, self._channel = await loop.create_unix_connection(
                    lambda: ControlChannel(self._received, self._closed), self._path
                )
            except OSError as error:
                logger.debug("%s cannot reach the controller at %s: %s", self._hello.id, self._path, error)
            else:
                silent = loop.call_later(self.hello_timeout_s, self._look_for_hello, self._channel)
                try:
                    self._open(self._channel)
                    await ended.wait()
                finally:
                    silent.cancel()
                    self._channel.abort()
                    self._channel = None
                    if self._connected:
                        wait_s = FIRST_RETRY_S
                    self._connected = False
            # Spread out: after the controller's restart all processes come back at once.
            await asyncio.sleep(wait_s * self._random.uniform(0.75, 1.25))
            wait_s = min(wait_s * 2, LAST_RETRY_S)

    def _open(self, channel: ControlChannel) -> None:
        channel.send(self._hello)
        if self._on_snapshot is not None:
            channel.send(Subscribe(self.snapshot.version))

    def _look_for_hello(self, channel: ControlChannel) -> None:
        # Who took the connection may be on the way to the controller, and not know itself that there is none.
        if not self._connected:
            id, timeout_s = self._hello.id, self.hello_timeout_s
            logger.warning("%s: the controller said no hello within %g s; asking anew", id, timeout_s)
            channel.abort()

    def send(self, message: Message) -> bool:
        """Send the message. False: not connected now, and the message is dropped; report the state in `on_connect`."""
        if self._channel is None or not self._connected:
            return False
        return self._channel.send(message)

    def _received(self, channel: ControlChannel, message: Message) -> None:
        match message:
            case Hello(version=version):
                if version != CONTROL_VERSION:
                    raise PeerVersionError(
                        f"the controller speaks version {version} of the control protocol, this process "
                        f"({self._hello.id}) version {CONTROL_VERSION}; restart the instance"
                    )
                self._connected = True
                if self._on_connect is not None:
                    self._on_connect()
            case SnapshotMessage(snapshot=snapshot):
                self._follow(channel, snapshot)
            case DeltaMessage(delta=delta):
                if delta.from_version != self.snapshot.version:
                    channel.send(Subscribe(0))
                    return
                self._follow(channel, apply(self.snapshot, delta))
            case _ if self._on_message is not None:
                self._on_message(message)
            case _:
                logger.warning("%s does not know what to do with %s", self._hello.id, type(message).__name__)

    def _follow(self, channel: ControlChannel, snapshot: Snapshot) -> None:
        if self._on_snapshot is not None:
            self._on_snapshot(snapshot)
        # After it: an owner that failed to take a snapshot does not route by it, and is told the next one whole.
        self.snapshot = snapshot
        channel.send(SnapshotAck(snapshot.version))

    def _closed(self, channel: ControlChannel) -> None:
        if self._ended is not None:
            self._ended.set()
