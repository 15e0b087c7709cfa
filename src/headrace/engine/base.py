"""The seam between the controller and what places processes: requests in; processes, exits and ports out.

An engine starts, watches and stops processes, and never carries requests. Every engine passes the same contract suite
(`tests/engine/test_engine_contract.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from headrace.core.resources import Resources

__all__ = [
    "Engine",
    "EngineEvent",
    "EngineLost",
    "ProcessExited",
    "ProcessInfo",
    "ProcessRequest",
    "Resources",
]


class ProcessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A process to start. `id` is unique among the living; `role` is `controller`, `ingress`, `worker` or `driver`.

    The process gets the environment of whoever started the instance, then what the engine sets (HEADRACE_*, threads and
    GPUs by `resources`), then `env`, which wins except over HEADRACE_*.
    """

    id: str
    role: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    resources: Resources = Resources()


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A process that was started. `pid` and `started_at` (seconds since boot, by the kernel) name it for ever."""

    id: str
    role: str
    pid: int
    started_at: float
    resources: Resources


class ProcessExited(msgspec.Struct, frozen=True, kw_only=True):
    """A process is gone, and what it left behind with it. `code` is negative for a signal; `tail` its last lines."""

    id: str
    pid: int
    code: int
    tail: tuple[str, ...] = ()


class EngineLost(msgspec.Struct, frozen=True, kw_only=True):
    """The engine itself is gone: no event will come any more, and the instance must end."""

    reason: str


EngineEvent = ProcessExited | EngineLost


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

    def capacity(self) -> Resources:
        """What the machine has in all, held or not. Valid after `open`."""

    async def reserve_port(self, host: str, port: int, name: str = "http") -> int:
        """Hold the port `name` of the instance at `host` for its life; returns it (`port` 0: any that is free).

        Nothing listens on it yet: processes bind it themselves with SO_REUSEPORT. The same request again returns the
        same port; another one moves `name`. Raises PortBusyError, OptionError (no such address), InstanceError.
        """

    def shutdown(self, grace_s: float) -> None:
        """End the instance: the controller gets SIGTERM and `grace_s` to drain all, then everything is killed."""

    async def close(self) -> None:
        """Forget the engine; what runs goes on. No event comes any more."""
