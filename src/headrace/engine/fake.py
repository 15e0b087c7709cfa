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

import msgspec

from headrace.core.resources import Ledger, Resources
from headrace.engine.base import (
    EngineEvent,
    EngineLost,
    NodeInfo,
    NodesChanged,
    ProcessExited,
    ProcessInfo,
    ProcessRequest,
)
from headrace.engine.ports import HeldPorts
from headrace.spec.errors import HeadraceError, InstanceError, ResourcesShortError

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
    """See `base.Engine`. `hosts` by role; `cpus` and `gpus` are what each of `nodes` is to have, the first of which is
    the head.

    `async with FakeEngine(...)` ends all that it runs at the end. `crash`, `stall`, `fail_next_start`, `lose`, and for
    nodes `lose_node`, `return_node`, `remove_node`, `drain_node` and `add_node` make happen what a test wants to see
    survived.
    """

    def __init__(
        self, hosts: Mapping[str, Host], *, cpus: float = 8.0, gpus: int = 0, nodes: Sequence[str] = ("",)
    ) -> None:
        self._hosts = dict(hosts)
        self._cpus = cpus
        self._gpus = gpus
        self._nodes: dict[str, _Node] = {}
        for number, node in enumerate(nodes):
            self._nodes[node] = self._node(node, head=number == 0)
        self._living: dict[str, _Life] = {}
        self._abandoned: set[_Life] = set()
        self._starting: set[str] = set()
        self._pids = itertools.count(_FIRST_PID)
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
        node = self._choose(request)
        node.ledger.reserve(request.id, request.resources)
        self._starting.add(request.id)
        try:
            if node.cut:
                raise InstanceError(f"process {request.id} cannot be started: node {node.info.id} cannot be reached")
            hosted = await host(msgspec.structs.replace(request, node=node.info.id))
        except BaseException as error:
            node.ledger.release(request.id)
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
            node=node.info.id,
        )
        life = _Life(info, hosted, self._ended, request.placement.group)
        self._living[request.id] = life
        life.begin()
        return info

    def stop(self, id: str, grace_s: float) -> None:
        life = self._living.get(id)
        if life is None:
            return
        node = self._nodes[life.info.node]
        if node.cut:
            node.unheard[id] = min(grace_s, node.unheard.get(id, grace_s))
        else:
            life.stop(grace_s)

    async def list(self) -> Sequence[ProcessInfo]:
        self._check_open()
        return tuple(life.info for life in self._living.values())

    def abandon(self, id: str) -> None:
        life = self._living.pop(id, None)
        if life is None:
            return
        self._tell(life, KILLED, ())
        self._abandoned.add(life)
        if not self._nodes[life.info.node].cut:
            life.kill(KILLED, ())

    def nodes(self) -> Sequence[NodeInfo]:
        return tuple(node.info for node in self._nodes.values())

    def capacity(self) -> Resources:
        each = [node.ledger.capacity for node in self._nodes.values()]
        return Resources(cpus=sum(one.cpus or 0.0 for one in each), gpus=sum(one.gpus for one in each))

    async def reserve_port(self, host: str, port: int, name: str = "http", node: str = "") -> int:
        self._check_open()
        if host.startswith("unix:"):
            return 0  # the path is the caller's own, and is held by nobody else
        if node not in self._nodes or self._nodes[node].cut:
            raise InstanceError(f"port {port} cannot be held: node {node or 'without a name'} cannot be reached")
        return self._nodes[node].ports.reserve(name, host, port)

    def shutdown(self, grace_s: float) -> None:
        for id in tuple(self._living):
            self.stop(id, grace_s)

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

    def lose_node(self, id: str) -> None:
        """The node is cut off. What runs there goes on, nothing that is said to it arrives, and of its exits nothing is
        heard; the engine does not notice, as Ray does not for a while.
        """
        self._nodes[id].cut = True

    def return_node(self, id: str) -> None:
        """The node can be reached again, and first of all hears what it did not hear: what was abandoned is killed."""
        node = self._nodes[id]
        node.cut = False
        for life in tuple(self._abandoned):
            if life.info.node == id:
                life.kill(KILLED, ())
        unheard, node.unheard = node.unheard, {}
        for process_id, grace_s in unheard.items():
            self.stop(process_id, grace_s)
        unseen, node.unseen = node.unseen, []
        for life, code, tail in unseen:
            if self._living.get(life.info.id) is life:
                del self._living[life.info.id]
                self._tell(life, code, tail)

    def remove_node(self, id: str) -> None:
        """The node is gone with all that runs there, and the engine knows: as after a crash of a machine, in the end.

        Works for one that was lost too.
        """
        self._nodes[id].cut = False
        gone = [life for life in (*self._living.values(), *self._abandoned) if life.info.node == id]
        for life in gone:
            if self._living.pop(life.info.id, None) is life:
                self._tell(life, KILLED, ())
                self._abandoned.add(life)
            life.kill(KILLED, ())
        node = self._nodes.pop(id)
        node.ports.close()
        self._tell_nodes()

    def drain_node(self, id: str, leaving: bool = True) -> None:
        """The node is to be emptied (or, `leaving` False, is to stay after all): the engine starts nothing there."""
        node = self._nodes[id]
        node.info = msgspec.structs.replace(node.info, leaving=leaving)
        self._tell_nodes()

    def restart_agent(self, id: str, restarting: bool = True) -> None:
        """The agent of the node is being started anew (or, `restarting` False, that is over)."""
        node = self._nodes[id]
        node.info = msgspec.structs.replace(node.info, restarting=restarting)
        self._tell_nodes()

    def add_node(self, id: str) -> None:
        """There is another node."""
        if id in self._nodes:
            raise ValueError(f"there is a node {id!r} already: {', '.join(self._nodes)}")
        self._nodes[id] = self._node(id, head=False)
        self._tell_nodes()

    async def end(self) -> None:
        """Kill all that runs, wait until it has ended, and give the ports back."""
        lives = (*self._living.values(), *self._abandoned)
        tasks = [life.task for life in lives if life.task is not None]
        for life in lives:
            life.kill(KILLED, ())
        if tasks:
            await asyncio.wait(tasks)
        for node in self._nodes.values():
            node.ports.close()

    def _node(self, id: str, head: bool) -> _Node:
        info = NodeInfo(id=id, host="127.0.0.1" if id else "", head=head)
        return _Node(info, Ledger(self._cpus, [str(index) for index in range(self._gpus)]))

    def _choose(self, request: ProcessRequest) -> _Node:
        """Where the process is to run: on its node, else where the fewest of its group and the fewest in all run."""
        if request.node or "" in self._nodes:
            if request.node not in self._nodes:
                known = ", ".join(self._nodes)
                raise InstanceError(f"process {request.id} is for node {request.node!r}, which there is not ({known})")
            return self._nodes[request.node]
        lives = [life for life in self._living.values() if life.info.role == request.role]
        group, most = request.placement.group, request.placement.max_per_node
        fitting: list[tuple[int, int, _Node]] = []
        refusals: list[str] = []
        for id, node in self._nodes.items():
            there = [life for life in lives if life.info.node == id]
            alike = sum(life.group == group for life in there)
            if id in request.avoid or node.info.leaving:
                refusals.append(f"node {id} is to be avoided")
            elif most and alike >= most:
                refusals.append(f"node {id} has {alike} of them already")
            elif (short := node.shortage(request)) is not None:
                refusals.append(f"node {id}: {short}")
            else:
                fitting.append((alike, len(there), node))
        if not fitting:
            raise ResourcesShortError(f"{request.id} fits on no node: {'; '.join(refusals)}")
        return min(fitting, key=lambda each: each[:2])[2]

    def _tell_nodes(self) -> None:
        if self._on_event is not None and not self._lost:
            self._on_event(NodesChanged(nodes=tuple(self.nodes())))

    def _check_open(self) -> None:
        if self._lost or self._on_event is None:
            raise InstanceError(self._lost or "the engine is not open")

    def _ended(self, life: _Life, code: int, tail: Sequence[str]) -> None:
        node = self._nodes.get(life.info.node)
        if node is not None:
            node.ledger.release(life.info.id)
        if life in self._abandoned:
            self._abandoned.discard(life)  # its end was told when it was given up
        elif node is not None and node.cut:
            node.unseen.append((life, code, tail))
        else:
            del self._living[life.info.id]
            self._tell(life, code, tail)

    def _tell(self, life: _Life, code: int, tail: Sequence[str]) -> None:
        event = ProcessExited(id=life.info.id, pid=life.info.pid, code=code, tail=tuple(tail))
        if self._on_event is None or self._lost:
            self._untold.append(event)
        else:
            self._on_event(event)


class _Node:
    """One node. While it is `cut`, what was asked of its processes is `unheard`, and what became of them `unseen`."""

    def __init__(self, info: NodeInfo, ledger: Ledger) -> None:
        self.info = info
        self.ledger = ledger
        self.ports = HeldPorts()
        self.cut = False
        self.unheard: dict[str, float] = {}
        self.unseen: list[tuple[_Life, int, Sequence[str]]] = []

    def shortage(self, request: ProcessRequest) -> ResourcesShortError | None:
        """Why the process does not fit here now, if it does not."""
        try:
            self.ledger.reserve(request.id, request.resources)
        except ResourcesShortError as error:
            return error
        self.ledger.release(request.id)
        return None


class _Life:
    """One hosted process from its start to its end, which is told once. `group` as in its placement."""

    def __init__(
        self,
        info: ProcessInfo,
        hosted: HostedProcess,
        on_end: Callable[[_Life, int, Sequence[str]], None],
        group: str = "",
    ) -> None:
        self.info = info
        self.group = group
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
