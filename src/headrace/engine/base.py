"""The seam between the controller and what places processes: requests in; processes, exits and ports out.

An engine starts, watches and stops processes, and never carries requests. Every engine passes the same contract suite
(`tests/engine/test_engine_contract.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from headrace.core.resources import Resources
from headrace.spec.placement import Placement

__all__ = [
    "Engine",
    "EngineEvent",
    "EngineLost",
    "NodeInfo",
    "NodesChanged",
    "ProcessExited",
    "ProcessInfo",
    "ProcessRequest",
    "Resources",
]


class ProcessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A process to start. `id` is unique among the living; `role` is `controller`, `ingress`, `worker` or `driver`.

    The process gets the environment of whoever started the instance, then what the engine sets (HEADRACE_*, threads and
    GPUs by `resources`), then `env`, which wins except over HEADRACE_*. It runs on `node` ("": the engine chooses one,
    by `resources` and `placement`, none of `avoid`).
    """

    id: str
    role: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    resources: Resources = Resources()
    node: str = ""
    placement: Placement = Placement()
    avoid: tuple[str, ...] = ()


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A process that was started. `pid` and `started_at` (seconds since boot, by the kernel) name it for ever, on its
    `node` ("": there is but one).
    """

    id: str
    role: str
    pid: int
    started_at: float
    resources: Resources
    node: str = ""


class ProcessExited(msgspec.Struct, frozen=True, kw_only=True):
    """A process is gone, and what it left behind with it. `code` is negative for a signal; `tail` its last lines."""

    id: str
    pid: int
    code: int
    tail: tuple[str, ...] = ()


class EngineLost(msgspec.Struct, frozen=True, kw_only=True):
    """The engine itself is gone: no event will come any more, and the instance must end."""

    reason: str


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node on which processes can be started. `host` is the address of it. `leaving`: what runs there should move.
    `restarting`: what keeps the node's processes in touch has died alone, and is being started anew.
    """

    id: str = ""
    host: str = ""
    head: bool = True
    leaving: bool = False
    restarting: bool = False


class NodesChanged(msgspec.Struct, frozen=True, kw_only=True):
    """These are the nodes from now on. Of processes on others that are gone with them, an exit each is told."""

    nodes: tuple[NodeInfo, ...]


EngineEvent = ProcessExited | EngineLost | NodesChanged


class Engine(Protocol):
    """Starts, watches and stops processes. All methods and callbacks belong to one event loop."""

    async def open(self, on_event: Callable[[EngineEvent], None]) -> None:
        """Connect. Exits that nobody was told of are told now, through `on_event`. Raises InstanceError."""

    async def start(self, request: ProcessRequest) -> ProcessInfo:
        """Start a process; return once it exists, not when it is ready.

        Raises ResourcesShortError, OptionError (impossible resources), or InstanceError (an id that is alive already, a
        program that cannot be run, an engine that is stopping or gone).
        """

    def stop(self, id: str, grace_s: float) -> None:
        """Ask the process to end (SIGTERM), and kill it with all it started after `grace_s` (0: at once).

        Returns at once; ProcessExited follows. Again with a shorter grace shortens it; an unknown id is no error.
        """

    async def list(self) -> Sequence[ProcessInfo]:
        """The living processes that were started through this engine, also by an earlier controller."""

    def abandon(self, id: str) -> None:
        """Forget the process, whose node answers nobody: its ProcessExited follows at once, and whatever of it lives is
        killed when that can be done. An unknown id is no error.
        """

    def nodes(self) -> Sequence[NodeInfo]:
        """The nodes as last known; a change is told by NodesChanged. Valid after `open`."""

    def capacity(self) -> Resources:
        """What all nodes have in all, held or not. Valid after `open`."""

    async def reserve_port(self, host: str, port: int, name: str = "http", node: str = "") -> int:
        """Hold the port `name` of the instance at `host` of the node, for its life; returns it (`port` 0: any that is
        free).

        Nothing listens on it yet: processes bind it themselves with SO_REUSEPORT. The same request again returns the
        same port; another one moves `name`. Raises PortBusyError, OptionError (no such address), InstanceError.
        """

    def shutdown(self, grace_s: float) -> None:
        """End the instance: the controller gets SIGTERM and `grace_s` to drain all, then everything is killed."""

    async def close(self) -> None:
        """Forget the engine; what runs goes on. No event comes any more."""
