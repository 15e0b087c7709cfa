"""The callee's side of the data plane: one replica's socket, the calls that come over it, the answers that leave.

In: connections of routers and their CALLs. Out: to the owner's `start`, each call that has a slot; to routers, replies
with the replica's load, refusals, offers of freed slots. Which call may start is `core.gate`'s to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.core.gate import Gate
from headrace.core.places import Grant, PlaceLedger
from headrace.core.turns import Turns
from headrace.engine.linux import peer_uid
from headrace.replica.board import ModelBoard
from headrace.replica.callee import CalleeLink, TcpCalleeLink
from headrace.replica.incoming import Incoming
from headrace.wire.awake import Awake
from headrace.wire.frames import (
    GOAWAY,
    GRANT,
    GRANT_COUNTS,
    MORE,
    OFFER,
)
from headrace.wire.tcp import Credentials, Listener, format_address, listen

log = logging.getLogger("headrace.replica")

BACKLOG = 1024
FLUSH_INTERVAL_S = 0.002


class Server:
    """One replica's socket and its slots. `start(incoming)` is called on the loop for each call that has a slot."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        replica_id: str,
        limit: int,
        start: Callable[[Incoming], None],
        awake: Awake | None = None,
        models: ModelBoard | None = None,
    ) -> None:
        self.loop = loop
        self.replica_id = replica_id
        self.start = start
        self.gate: Gate[CalleeLink] = Gate(limit)
        self.suspects: Turns[Incoming] = Turns()
        self.places: PlaceLedger[CalleeLink] = PlaceLedger()
        self.links: set[CalleeLink] = set()
        self.models = models or ModelBoard()
        self.models.links = self.links
        self.awake = awake  # None: the loop sleeps whenever there is nothing to do
        self.draining = False
        self.on_drain: set[Callable[[], None]] = set()  # of calls that last until they are told to end
        self._socket: socket.socket | None = None
        self._path: Path | None = None
        self._door: Listener | None = None  # for other nodes
        self._idle: asyncio.Event = asyncio.Event()
        self._lease_timer: asyncio.TimerHandle | None = None

    @property
    def ongoing(self) -> int:
        """Calls in work now."""
        return self.gate.ongoing

    async def listen(self, address: str) -> None:
        """Take connections at `unix:PATH`. Raises OSError."""
        kind, _, path = address.partition(":")
        if kind != "unix":
            raise OSError(f"a replica listens on unix:PATH here, not {address!r}")
        self._path = Path(path)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.bind(path)
        self._socket.listen(BACKLOG)
        self.loop.add_reader(self._socket.fileno(), self._accept)

    def listen_tcp(
        self, host: str, ports: tuple[int, int] | None, credentials: Credentials, purpose: str, at: str = ""
    ) -> str:
        """Take connections of other nodes too, at `host` and a port of `ports`: the address, `tcp:HOST:PORT`.

        `at` is where to listen, where that is not `host`, by which others reach it.

        What has not proved that it belongs to the instance, and means `purpose`, never becomes a link. Raises OSError,
        and InstanceError for TLS files that cannot be used.
        """
        sock = listen(at or host, ports)
        self._door = Listener(
            self.loop, sock, credentials, self._admit_distant, purpose=purpose, what=f"replica {self.replica_id}"
        )
        address = format_address(host, sock.getsockname()[1])
        self._door.start()
        return address

    def _accept(self) -> None:
        assert self._socket is not None
        while True:
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.error("cannot accept a connection: %s", error)
                return
            sock.setblocking(False)
            if peer_uid(sock) not in (None, os.getuid()):
                log.error("refused a connection of another user to replica %s", self.replica_id)
                sock.close()
                continue
            self._admit(CalleeLink(self.loop, sock, self))

    def _admit_distant(self, sock: socket.socket) -> None:
        self._admit(TcpCalleeLink(self.loop, sock, self))

    def _admit(self, link: CalleeLink) -> None:
        self.links.add(link)
        link.start()

    def start_suspect(self, incoming: Incoming) -> None:
        """Start it, or let it wait for its turn in the slot that it has."""
        if self.suspects.enter(incoming):
            self._run_suspect(incoming)

    def end_suspect(self, incoming: Incoming) -> None:
        """A suspect has ended: start the next."""
        following = self.suspects.leave(incoming)
        if following is not None:
            self._run_suspect(following)

    def _run_suspect(self, incoming: Incoming) -> None:
        incoming.tell_started()
        self.start(incoming)

    def offer(self, chosen: CalleeLink | None) -> None:
        """Tell the router whose turn it is that a slot is held for it."""
        if chosen is not None:
            chosen.send(0, OFFER, load=chosen.load)
            self.watch_leases()

    def limit_queues(self, total: int) -> None:
        """So many calls may wait for the deployment, over all routers that ask this replica for places."""
        self.grant(self.places.resize(total, self.loop.time()))

    def grant(self, grants: Sequence[Grant[CalleeLink]]) -> None:
        """Tell routers how many of their calls may wait."""
        for link, number, places, more in grants:
            link.send(0, GRANT, MORE if more else 0, payload=GRANT_COUNTS.pack(number, places))

    def offer_all(self, chosen: Sequence[CalleeLink]) -> None:
        for link in chosen:
            link.send(0, OFFER, load=link.load)
        if chosen:
            self.watch_leases()

    def watch_leases(self) -> None:
        """Have a timer at the earliest end of a lease."""
        if self._lease_timer is None:
            expiry = self.gate.next_expiry()
            if expiry is not None:
                self._lease_timer = self.loop.call_at(expiry, self._expire_leases)

    def _expire_leases(self) -> None:
        self._lease_timer = None
        for link in self.gate.expire(self.loop.time()):
            link.send(0, OFFER, load=link.load)
        self.watch_leases()

    def drain(self) -> None:
        """Take no new calls; tell all routers."""
        self.draining = True
        self.gate.close()
        for link in self.links:
            link.send(0, GOAWAY)
        for act in tuple(self.on_drain):
            act()
        self.check_drained()

    def check_drained(self) -> None:
        if self.gate.ongoing == 0:
            self._idle.set()

    async def drained(self) -> None:
        """Until no call is in work and all results have left, after `drain`."""
        await self._idle.wait()
        while any(link.unsent for link in self.links):  # noqa: ASYNC110 - at the end of a life only: nothing to wake us
            await asyncio.sleep(FLUSH_INTERVAL_S)

    def close(self) -> None:
        """Stop listening and close all connections."""
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        if self._socket is not None:
            self.loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        for link in list(self.links):
            self.links.discard(link)
            link.close()
