"""Where a worker's replica listens: a socket in its own node's directory, and an address for other nodes.

In: HEADRACE_NODE, HEADRACE_NODE_HOST, HEADRACE_NODE_LISTEN and HEADRACE_PORTS ("low-high"), which processes on an
engine with several nodes are given. Out: the addresses that the replica reports.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.engine.credentials import credentials_of
from headrace.engine.directory import InstanceDirectory
from headrace.replica.server import Server
from headrace.spec.errors import InstanceError, OptionError
from headrace.wire.tcp import Credentials, replica_purpose


@dataclass(frozen=True)
class Place:
    """The node of this process, and how replicas here are reached. `ports` None: any; `listen_at` is where they listen,
    if not at `host`, by which others reach them.
    """

    node: str
    host: str
    ports: tuple[int, int] | None
    directory: InstanceDirectory
    credentials: Credentials
    listen_at: str = ""

    def near(self, address: str) -> str:
        """The Unix socket of that name in this node's directory: the controller names one of its own."""
        return f"unix:{self.directory.replicas / Path(address).name}"

    def listen(self, server: Server, app: str) -> str:
        """Have the server listen for other nodes: the address. Raises InstanceError."""
        try:
            purpose = replica_purpose(app, server.replica_id)
            return server.listen_tcp(self.host, self.ports, self.credentials, purpose, self.listen_at)
        except OSError as error:
            within = "" if self.ports is None else f" on a port from {self.ports[0]} to {self.ports[1]}"
            raise InstanceError(f"the replica cannot listen at {self.host}{within}: {error}") from error


def place_of(directory: InstanceDirectory, environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process; None where there is but one node. Raises OptionError, InstanceError."""
    node = environ.get("HEADRACE_NODE", "")
    if not node:
        return None
    host = environ.get("HEADRACE_NODE_HOST", "")
    if not host:
        raise OptionError("HEADRACE_NODE is set and HEADRACE_NODE_HOST is not: others cannot reach this process")
    ports = _ports(environ.get("HEADRACE_PORTS", ""))
    listen_at = environ.get("HEADRACE_NODE_LISTEN", "")
    return Place(node, host, ports, directory, credentials_of(directory, environ), listen_at)


def _ports(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    first, dash, last = text.partition("-")
    numbers = all(each.isascii() and each.isdecimal() for each in (first, last))
    if not dash or not numbers or not 0 < int(first) <= int(last) < 65536:
        raise OptionError(f"HEADRACE_PORTS={text!r} must be FIRST-LAST, such as 20000-20999")
    return int(first), int(last)
