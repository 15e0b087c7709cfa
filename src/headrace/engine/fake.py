"""An engine in one process and one event loop, with failures on demand: for tests, ours and users'.

In: a host for each role, which turns a request into something that runs here; what is to fail. Out: what every engine
gives. It passes the contract suite of all engines. See docs/reference/testing.md.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from headrace.core.resources import Ledger, Resources
from headrace.engine.base import EngineEvent, EngineLost, NodeInfo, ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.ports import HeldPorts
from headrace.spec.errors import HeadraceError, InstanceError

KILLED = -9
_FIRST_PID = 1_000_000_000  # above all that a kernel gives: no signal by mistake reaches a real process


class HostedProcess(Protocol):
    """What stands for a process."""

    async def run(self) -> int:
        """Its life; returns its exit code. An error that it raises is exit code 1; it is cancelled when killed."""

    def stop(self) -> None:
        """What SIGTERM does: ask `run` to end."""


Host = Callable[[ProcessRequest], Awaitable[HostedProcess]]


class FakeEngine:
    """See `base.Engine`. `hosts` by role; `cpus` and `gpus` are what the machine is to have.

    `async with FakeEngine(...)` ends all that it runs at the end. `crash`, `stall`, `fail_next_start` and `lose` make
    happen what a test wants to see survived.
    """

    def __init__(self, hosts: Mapping[str, Host], *, cpus: float = 8.0, gpus: int = 0) -> None:
        self._hosts = dict(hosts)
        self._ledger = Ledger(cpus, [str(index) for index in range(gpus)])
        self._living: dict[str, _Life] = {}
        self._starting: set[str] = set()
        self._pids = itertools.count(_FIRST_PID)
        self._ports = HeldPorts()
        self._untold: list[ProcessExited] = []
        self._failures: collections.deque[HeadraceError] = collections.deque()
        self._on_event: Callable[[EngineEvent], None] | None = None
        self._lost = ""

    def __repr__(self) -> str:
        return f"FakeEngine({', '.join(map(repr, self._living.values()))})"

    async def __aenter__(self) -> FakeEngine:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.end()

    # The contract

    async def open(self, on_event: Callable[[EngineEvent], None]) -> None:
        if self._lost:
            raise InstanceError(self._lost)
        self._on_event = on_event
        untold, self._untold = self._untold, []
        for event in untold:
            on_event(event)

    async def start(self, request: ProcessRequest) -> ProcessInfo:
        self._check_open()
        if self._failures:
            raise self._failures.popleft()
        if request.id in self._living or request.id in self._starting:
            raise InstanceError(f"process {request.id} already runs: stop it first")
        host = self._hosts.get(request.role)
        if host is None:
            known = ", ".join(sorted(self._hosts)) or "none"
            raise InstanceError(f"process {request.id} cannot be started: no host for role {request.role!r} ({known})")
        self._ledger.reserve(request.id, request.resources)
        self._starting.add(request.id)
        try:
            hosted = await host(request)
        except BaseException as error:
            self._ledger.release(request.id)
            if isinstance(error, (HeadraceError, asyncio.CancelledError)):
                raise
            raise InstanceError(f"process {request.id} cannot be started: {error!r}") from error
        finally:
            self._starting.discard(request.id)
        loop = asyncio.get_running_loop()
        info = ProcessInfo(
            id=request.id,
            role=request.role,
            pid=next(self._pids),
            started_at=loop.time(),
            resources=request.resources,
        )
        life = _Life(info, hosted, self._ended)
        self._living[request.id] = life
        life.begin()
        return info

    def stop(self, id: str, grace_s: float) -> None:
        life = self._living.get(id)
        if life is not None:
            life.stop(grace_s)

    async def list(self) -> Sequence[ProcessInfo]:
        self._check_open()
        return tuple(life.info for life in self._living.values())

    def abandon(self, id: str) -> None:
        self.stop(id, 0.0)

    def nodes(self) -> Sequence[NodeInfo]:
        return (NodeInfo(),)

    def capacity(self) -> Resources:
        return self._ledger.capacity

    async def reserve_port(self, host: str, port: int, name: str = "http", node: str = "") -> int:
        self._check_open()
        if host.startswith("unix:"):
            return 0  # the path is the caller's own, and is held by nobody else
        return self._ports.reserve(name, host, port)

    def shutdown(self, grace_s: float) -> None:
        for life in tuple(self._living.values()):
            life.stop(grace_s)

    async def close(self) -> None:
        self._on_event = None

    # Failures on demand

    def crash(self, id: str, code: int = KILLED, tail: Sequence[str] = ()) -> None:
        """The process dies now, without a word to it, as by `kill -9`. Raises KeyError when it does not live."""
        self._living[id].kill(code, tail)

    def stall(self, id: str) -> None:
        """The process does not hear that it is to stop, as after SIGSTOP, until `resume` or until it is killed."""
        self._living[id].stall()

    def resume(self, id: str) -> None:
        """The process hears again, and first of all what it did not hear."""
        self._living[id].resume()

    def fail_next_start(self, error: HeadraceError) -> None:
        """The next start raises `error`; call it n times for the next n starts."""
        self._failures.append(error)

    def lose(self, reason: str = "the engine was lost on demand") -> None:
        """The engine itself is gone, as after `kill -9` of the keeper. What runs goes on, out of its sight."""
        self._lost = reason
        if self._on_event is not None:
            self._on_event(EngineLost(reason=reason))

    async def end(self) -> None:
        """Kill all that runs, wait until it has ended, and give the ports back."""
        tasks = [life.task for life in self._living.values() if life.task is not None]
        for life in tuple(self._living.values()):
            life.kill(KILLED, ())
        if tasks:
            await asyncio.wait(tasks)
        self._ports.close()

    def _check_open(self) -> None:
        if self._lost or self._on_event is None:
            raise InstanceError(self._lost or "the engine is not open")

    def _ended(self, life: _Life, code: int, tail: Sequence[str]) -> None:
        del self._living[life.info.id]
        self._ledger.release(life.info.id)
        event = ProcessExited(id=life.info.id, pid=life.info.pid, code=code, tail=tuple(tail))
        if self._on_event is None or self._lost:
            self._untold.append(event)
        else:
            self._on_event(event)


class _Life:
    """One hosted process from its start to its end, which is told once."""

    def __init__(
        self, info: ProcessInfo, hosted: HostedProcess, on_end: Callable[[_Life, int, Sequence[str]], None]
    ) -> None:
        self.info = info
        self.task: asyncio.Task[int] | None = None
        self._hosted = hosted
        self._on_end = on_end
        self._stalled = False
        self._asked = False
        self._heard = False
        self._kill: asyncio.TimerHandle | None = None
        self._verdict: tuple[int, Sequence[str]] | None = None  # of who killed it

    def __repr__(self) -> str:
        return f"{self.info.id}{' stalled' if self._stalled else ''}{' stopping' if self._asked else ''}"

    def begin(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._hosted.run(), name=self.info.id)
        self.task.add_done_callback(self._done)

    def stop(self, grace_s: float) -> None:
        if grace_s <= 0:
            self.kill(KILLED, ())
            return
        self._asked = True
        self._hear()
        loop = asyncio.get_running_loop()
        when = loop.time() + grace_s
        if self._kill is None or when < self._kill.when():
            if self._kill is not None:
                self._kill.cancel()
            self._kill = loop.call_at(when, self.kill, KILLED, ())

    def kill(self, code: int, tail: Sequence[str]) -> None:
        if self._verdict is None and self.task is not None:
            self._verdict = (code, tail)
            self.task.cancel()

    def stall(self) -> None:
        self._stalled = True

    def resume(self) -> None:
        self._stalled = False
        self._hear()

    def _hear(self) -> None:
        if self._asked and not self._heard and not self._stalled:
            self._heard = True
            self._hosted.stop()

    def _done(self, task: asyncio.Task[int]) -> None:
        if self._kill is not None:
            self._kill.cancel()
        if self._verdict is not None:
            code, tail = self._verdict
            if not task.cancelled():
                task.exception()  # what it raised on its way out is nobody's: it was killed
        elif task.cancelled():
            code, tail = KILLED, ()
        elif (error := task.exception()) is not None:
            code, tail = 1, "".join(traceback.format_exception(error)).rstrip("\n").split("\n")
        else:
            code, tail = task.result(), ()
        self._on_end(self, code, tail)
