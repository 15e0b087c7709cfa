"""What all client connections of one ingress process share: options, routes, router, the clock, and the end.

In: snapshots; connections as they open and close. Out: answers to the paths that are the ingress's own; request ids;
one sweep for all timeouts of all connections.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING

import msgspec

from headrace.core.request_ids import start_of
from headrace.ingress.request import HEALTHZ, ROUTES, HeadReader
from headrace.ingress.response import ResponseHeads
from headrace.ingress.routes import RouteTable
from headrace.spec.snapshot import Snapshot

if TYPE_CHECKING:
    from headrace.ingress.connection import ClientConnection
    from headrace.ingress.exchange import Exchange, Orphan
    from headrace.ingress.tls import TlsHandshake
    from headrace.router import Router
    from headrace.spec.config import HTTPOptions

log = logging.getLogger("headrace.ingress")

SWEEP_S = 1.0  # at most; shorter limits are looked at more often
LEAST_SWEEP_S = 0.05
COMPLAINTS = 20  # log lines about single requests from one sweep to the next: when all fail, one need not read of each
TOLD_AT_ONCE = 8  # refused connections that are kept until they have read why they are


class Door:
    """The state of the HTTP side of one process. All methods are called on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, router: Router, options: HTTPOptions) -> None:
        self.loop = loop
        self.router = router
        self.options = options
        self.heads = ResponseHeads()
        self.connections: set[ClientConnection] = set()
        self.handshakes: set[TlsHandshake] = set()  # connections that are not encrypted yet
        self.orphans: set[Orphan] = set()  # requests that run on without their clients
        self.now = 0.0  # the loop's clock at the last sweep: near enough for limits of seconds
        self.draining = False
        self.reader = self._reader_of(RouteTable(Snapshot()))
        self._ids = RequestIds(os.urandom(16))
        self.new_request_id = self._ids.next
        self._had_routes = False
        self._complaints = 0
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<Door {len(self.connections)} connections {'draining ' if self.draining else ''}{self.table}>"

    @property
    def table(self) -> RouteTable:
        return self.reader.table

    # --- routes ----------------------------------------------------------------------------------------------------

    def update(self, snapshot: Snapshot) -> None:
        """Route by this snapshot from the next request on."""
        if snapshot.applications == self.table.applications and self.table.known:
            return
        table = RouteTable(snapshot, self.options.root_path)
        self.reader = self._reader_of(table)
        self._had_routes = self._had_routes or bool(table.prefixes)
        for connection in self.connections:
            connection.reread()

    def _reader_of(self, table: RouteTable) -> HeadReader:
        options = self.options
        return HeadReader(table, options.max_body_bytes, options.request_timeout_s, options.ssl_certfile is not None)

    def answer(self, exchange: Exchange) -> None:
        """Answer a path of the ingress's own: `/-/healthz`, `/-/routes`, `OPTIONS *`."""
        head = exchange.head
        if head.local == HEALTHZ:
            if self.draining:
                exchange.answer(503, "draining")
            elif self._had_routes:
                exchange.answer(200, "success")
            else:
                exchange.answer(503, "no routes yet")
        elif head.local == ROUTES:
            exchange.answer(200, "", body=msgspec.json.encode(self.table.prefixes))
        else:
            exchange.answer(200, "")

    # --- connections -----------------------------------------------------------------------------------------------

    def opened(self, connection: ClientConnection) -> bool:
        """Take the connection in. False: there are too many."""
        if self._timer is None:
            # Nobody has looked at the clock while there was nobody to look after.
            self._tick()
            self._timer = self.loop.call_later(self.sweep_interval_s(), self._tick)
        self.connections.add(connection)
        return len(self.connections) <= self.options.max_connections

    @property
    def flooded(self) -> bool:
        """Whether so many connections are there that one more is closed without a word: words take time."""
        return len(self.connections) + len(self.handshakes) > self.options.max_connections + TOLD_AT_ONCE

    def closed(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        self._check_empty()

    @property
    def has_room_for_orphans(self) -> bool:
        """Whether one more request may run on without its client: who hangs up must not have more than who stays."""
        return len(self.orphans) < self.options.max_connections

    def adopt(self, orphan: Orphan) -> None:
        """Keep a request whose client has left until it ends."""
        self.orphans.add(orphan)

    def forget(self, orphan: Orphan) -> None:
        """It has ended."""
        self.orphans.discard(orphan)
        self._check_empty()

    def shaken(self, handshake: TlsHandshake) -> None:
        """A handshake has ended: what came of it, if anything, is a connection by now."""
        self.handshakes.discard(handshake)
        self._check_empty()

    @property
    def empty(self) -> bool:
        """Whether nobody is there and nothing is in work."""
        return not (self.connections or self.handshakes or self.orphans)

    def _check_empty(self) -> None:
        if self._empty is not None and self.empty:
            self._empty.set()

    # --- time ------------------------------------------------------------------------------------------------------

    def complain(self, message: str) -> None:
        """Log what went wrong with one request, unless that has been done often enough for now."""
        self._complaints += 1
        if self._complaints <= COMPLAINTS:
            log.error(message)

    def sweep_interval_s(self) -> float:
        """How often limits are looked at: about a tenth of the shortest."""
        options = self.options
        limits = [options.keep_alive_timeout_s, options.header_timeout_s, options.body_timeout_s]
        return min(SWEEP_S, max(LEAST_SWEEP_S, min(limits) / 10))

    def _tick(self) -> None:
        """One timer for all connections; none while there are no connections."""
        self.sweep(self.loop.time())
        self._timer = self.loop.call_later(self.sweep_interval_s(), self._tick) if self.connections else None

    def sweep(self, now: float) -> None:
        """Renew the date, and end what has lasted too long. `now` on the loop's clock."""
        self.now = now
        now_s = time.time()
        self.heads.date(now_s)
        self._ids.renew(now_s)
        if self._complaints > COMPLAINTS:
            log.error("%d more requests failed", self._complaints - COMPLAINTS)
        self._complaints = 0
        for connection in list(self.connections):
            connection.sweep(now)

    # --- the end ---------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> None:
        """Answer what is in work and what still comes on open connections, and close each; after the timeout, abort."""
        self.draining = True
        self.now = self.loop.time()
        for connection in list(self.connections):
            connection.drain()
        self._empty = asyncio.Event()
        if not self.empty:
            try:
                await asyncio.wait_for(self._empty.wait(), timeout_s)
            except TimeoutError:
                for handshake in list(self.handshakes):
                    handshake.abort()
                for connection in list(self.connections):
                    connection.transport.abort()
                for orphan in list(self.orphans):
                    orphan.expire()
                if not self.empty:
                    await self._empty.wait()
        self.stop()

    def stop(self) -> None:
        """No more sweeps."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class RequestIds:
    """Ids of the form of a UUID of version 7, whose random bits are drawn once: a counter is in the place of the last
    48. Its time is that of the last `renew`, for to look at the clock for each request takes longer than all the rest.
    """

    __slots__ = ("_count", "_prefix", "_random", "_renewed_at")

    def __init__(self, random: bytes) -> None:
        self._random = random[:4]
        self._count = itertools.count(int.from_bytes(random[4:10])).__next__
        self._prefix = ""
        self._renewed_at = 0.0
        self.renew(time.time())

    def renew(self, now_s: float) -> None:
        """It is `now_s`, in seconds since the epoch."""
        self._renewed_at = now_s
        self._prefix = start_of(now_s, self._random) + "%012x"

    def next(self) -> str:
        """A new id, of the time of the last `renew`."""
        return self._prefix % (self._count() & 0xFFFFFFFFFFFF)

    def next_now(self) -> str:
        """A new id, for who has nothing that renews: of a time at most a second ago."""
        now_s = time.time()
        if not 0 <= now_s - self._renewed_at < 1.0:
            self.renew(now_s)
        return self.next()
