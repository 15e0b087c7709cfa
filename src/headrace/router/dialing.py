"""Connections of one pool to replicas of other nodes that are being made, which takes round trips.

In: replicas, and where they listen. Out: to the pool's connections, connected sockets whose other end has proved that
it is the replica; those that could not be reached.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from headrace.router.link import Link
from headrace.spec.errors import HeadraceError, InstanceError
from headrace.wire.over_tcp import OverTcp
from headrace.wire.tcp import open_connection, replica_purpose

if TYPE_CHECKING:
    from headrace.router.pool import Pool

log = logging.getLogger("headrace.router")


class TcpLink(OverTcp, Link):
    """The caller's end of the connection to a replica of another node."""


class Dialing:
    """The replicas of `pool` to which a connection is under way."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"<Dialing {list(self._tasks)}>"

    def __contains__(self, replica_id: object) -> bool:
        return replica_id in self._tasks

    def dial(self, replica_id: str, address: str) -> None:
        """Begin to connect, if that is not under way; the connections are told by `reached` or `unreached`."""
        if replica_id not in self._tasks:
            task = self._pool.loop.create_task(self._dial(replica_id, address), name=f"dial {replica_id}")
            self._tasks[replica_id] = task

    def forget(self, replica_id: str) -> None:
        """The replica is gone, or another place is meant."""
        self._warned.discard(replica_id)
        task = self._tasks.pop(replica_id, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Connect to none any more."""
        for replica_id in list(self._tasks):
            self.forget(replica_id)

    async def _dial(self, replica_id: str, address: str) -> None:
        pool = self._pool
        try:
            credentials = pool.router.credentials()
            if credentials is None:
                raise InstanceError("this process was not told the secret of the instance")
            purpose = replica_purpose(pool.entry.app, replica_id)
            sock = await open_connection(pool.loop, address, credentials, purpose)
        # The top of the task: whatever an address or a file holds, calls for the replica must not wait for ever.
        except Exception as error:
            del self._tasks[replica_id]
            self._say(replica_id, address, error)
            pool.connections.unreached(replica_id)
        else:
            del self._tasks[replica_id]
            pool.connections.reached(replica_id, sock)

    def _say(self, replica_id: str, address: str, error: Exception) -> None:
        # That nobody is there happens whenever a node dies. That somebody else is, somebody has to look into.
        expected = isinstance(error, OSError) or replica_id in self._warned
        self._warned.add(replica_id)
        reason = str(error) or type(error).__name__
        log.log(
            logging.INFO if expected else logging.WARNING,
            "replica %s cannot be reached at %s: %s",
            replica_id,
            address,
            reason,
            exc_info=None if isinstance(error, OSError | HeadraceError) else error,
        )
