"""The engine of a Ray cluster: a seat on some node for each worker, an agent on each node for its ingress and ports.

In: the controller's calls, on its loop. Out: actors, placement groups; what becomes of processes and nodes. All that
waits for Ray does so beside the loop and in bounded time, or ends when the process is not wanted any more: a node that
answers nobody keeps nobody from the others.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ray.exceptions import RayError

from headrace.core.resources import Resources, check_amounts
from headrace.engine import messages
from headrace.engine.base import EngineEvent, NodeInfo, NodesChanged, ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.directory import runtime_directory
from headrace.engine.ray import inventory
from headrace.engine.ray.adoption import ADOPT_S, adopt_seat
from headrace.engine.ray.agent import Post, node_variables
from headrace.engine.ray.agents import UP_S, Agents
from headrace.engine.ray.held import Seen, infos
from headrace.engine.ray.hosts import ANSWER_S, Host, brief, call
from headrace.engine.ray.places import Places, Process
from headrace.engine.ray.seats import Seating, remove_seat
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import HeadraceError, InstanceError

logger = logging.getLogger(__name__)

INGRESS = "ingress"
LOOK_S = 1.0
KILLED = -9
_TERMINATE_S = 5.0
_RETRY_S = 0.2
_CLOSE_S = 3.0
_THREADS = 16

_T = TypeVar("_T")


class RayEngine:
    """See `base.Engine`. This process is connected to the cluster. One for the life of a controller.

    `open` waits `patience_s` for what it finds on the nodes: a controller that follows another should be there soon,
    whichever node answers nobody.
    """

    def __init__(
        self, instance: str, secret: bytes, options: ClusterOptions | None = None, *, patience_s: float = UP_S
    ) -> None:
        self._patience_s = patience_s
        self._instance = instance
        self._secret = secret
        self._options = options or ClusterOptions()
        self._on_event: Callable[[EngineEvent], None] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "headrace-ray")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._endings: set[asyncio.Task[Any]] = set()
        self._processes: dict[str, Process] = {}
        self._order = itertools.count()
        self._agents = self._no_agents()
        self._places = Places(self, instance)
        self._nodes: tuple[NodeInfo, ...] = ()
        self._opening = False
        self._stopping = False

    def __repr__(self) -> str:
        state = "closed" if self._on_event is None else "open"
        return f"RayEngine({self._instance}, {state}, {len(self._nodes)} nodes, {len(self._processes)} processes)"

    # --- the contract -------------------------------------------------------------------------------------------------

    async def open(self, on_event: Callable[[EngineEvent], None]) -> None:
        self._on_event = on_event
        self._opening = True
        self._processes.clear()
        self._nodes = ()
        seen = await self._places.look()
        if not seen:
            raise InstanceError("the Ray cluster has no node that lives")
        self._agents.bring(seen)
        await self._adopt()
        await self._agents.wait(self._patience_s)
        self._observe(seen)
        self._opening = False
        self.spawn(self._watch())

    async def start(self, request: ProcessRequest) -> ProcessInfo:
        self._check_open()
        if self._stopping:
            raise InstanceError(f"instance {self._instance} is stopping: {request.id} was not started")
        living = self._processes.get(request.id)
        if living is not None:
            known = f", pid {living.info.pid}" if living.info else ""
            raise InstanceError(f"process {request.id} already runs{known}: stop it first")
        check_amounts(request.resources)
        process = Process(request.id, request.role, request.placement.group, next(self._order))
        self._processes[request.id] = process
        try:
            if request.role == INGRESS:
                process.info = await self._start_at_agent(process, request)
            else:
                process.info = await self._start_in_seat(process, request)
        finally:
            if process.info is None:
                self._forget(process)
        if process.host is not None and process.early is not None and process.early.pid == process.info.pid:
            asyncio.get_running_loop().call_soon(self.exited, process.host, process.early)
        if process.unwanted.is_set():
            self.stop(request.id, _TERMINATE_S)  # which came when it had its place, and was about to run
        return process.info

    def stop(self, id: str, grace_s: float) -> None:
        process = self._processes.get(id)
        if process is None or self._on_event is None:
            return
        if process.info is None or process.host is None:
            process.unwanted.set()
            return
        self._end(self._stop(process, process.host, grace_s))

    async def list(self) -> Sequence[ProcessInfo]:
        self._check_open()
        living = sorted(self._processes.values(), key=lambda process: process.order)
        return [process.info for process in living if process.info is not None]

    def abandon(self, id: str) -> None:
        process = self._processes.get(id)
        if process is None:
            return
        if process.info is None:
            process.unwanted.set()
            return
        if process.host is not None:
            process.host.forgotten.add(process.info.pid)
            self.spawn(self._do_away(process.host, id))
        asyncio.get_running_loop().call_soon(self.ended, process, KILLED, ("its node answers nobody",))

    def nodes(self) -> Sequence[NodeInfo]:
        return self._nodes

    def capacity(self) -> Resources:
        if not self._places.seen:
            raise InstanceError("the engine is not open: what the cluster has is known after open()")
        totals = [seen.state.total for seen in self._places.seen]
        return Resources(
            cpus=sum(total.get("CPU", 0.0) for total in totals), gpus=sum(total.get("GPU", 0.0) for total in totals)
        )

    async def reserve_port(self, host: str, port: int, name: str = "http", node: str = "") -> int:
        self._check_open()
        if host.startswith("unix:"):
            return 0  # the path is the caller's own, and is held by nobody else
        return await self._agents.reserve(node or self._first_node(), messages.ReservePort(0, name, host, port))

    def shutdown(self, grace_s: float) -> None:
        self._stopping = True
        asyncio.get_running_loop().call_later(grace_s, self._stop_all)

    async def close(self) -> None:
        self._on_event = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._endings:
            await asyncio.wait(self._endings, timeout=_CLOSE_S)
        for process in self._processes.values():
            process.unwanted.set()
        self._processes.clear()
        self._places = Places(self, self._instance)
        self._agents = self._no_agents()

    def controller_at(self, address: str) -> None:
        """Tell all agents where the controller is."""
        self._agents.controller_at(address)

    # --- starting -----------------------------------------------------------------------------------------------------

    async def _start_at_agent(self, process: Process, request: ProcessRequest) -> ProcessInfo:
        node = request.node or self._first_node()
        agent = await self._agents.at(node)
        answer = await agent.ask(messages.Start(0, request))
        assert isinstance(answer, messages.Started)
        process.node, process.host = node, agent
        return answer.info

    async def _start_in_seat(self, process: Process, request: ProcessRequest) -> ProcessInfo:
        if not request.argv:
            raise InstanceError(f"process {request.id} cannot be started: its argv is empty")
        seating, where = await self._places.take_seat(process, request, lambda: self._others(process))
        host = Host(seating.actor, where.node, where.life, seating)
        try:
            self._places.took(process, where.node, request)
            await self._agents.at(where.node)
            directory = self._agents.directories[where.node]
            variables = self._variables(where.node, directory)
            await call(seating.actor.furnish.remote(directory, variables, sys.executable), ANSWER_S)
            answer = await host.ask(messages.Start(0, request))
        except (RayError, TimeoutError) as error:
            self.end_seat(seating)
            raise InstanceError(f"{request.id} cannot be started on node {where.node[:8]}: {brief(error)}") from error
        except BaseException:
            self.end_seat(seating)
            raise
        assert isinstance(answer, messages.Started)
        process.host = host
        self.follow(host)
        return answer.info

    def _others(self, process: Process) -> Sequence[tuple[str, str]]:
        """Node and group of all processes but this one."""
        return [(each.node, each.group) for each in self._processes.values() if each.node and each is not process]

    def _variables(self, node: str, directory: str) -> dict[str, str]:
        address = self._agents.addresses[node]
        return node_variables(self._instance, runtime_directory(directory), node, address, self._options)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def exited(self, host: Host, event: ProcessExited) -> None:
        """A process of this actor has ended."""
        process = self._processes.get(event.id)
        if process is not None and process.host is host:
            self.ended(process, event.code, event.tail, event.pid)
        elif process is not None and process.info is None:
            process.early = event  # before the answer to its start
        elif process is None and event.pid in host.forgotten:
            host.forgotten.discard(event.pid)
        elif process is None:
            self.tell(event)
        if host.seating is not None:
            self.leave_seat(host)

    def restarted(self, host: Host) -> None:
        """An agent died, and what it kept with it; Ray has begun it anew."""
        for process in [each for each in self._processes.values() if each.host is host and each.info is not None]:
            self.ended(process, KILLED, ("the agent of its node died",))
        self._agents.restarted(host)

    def gone(self, host: Host, why: str) -> None:
        """An actor is gone for good."""
        for process in [each for each in self._processes.values() if each.host is host and each.info is not None]:
            self.ended(process, KILLED, (f"Ray: {why}",))
        if host.seating is not None:
            self.end_seat(host.seating)
        else:
            self._agents.gone(host)

    def ended(self, process: Process, code: int, tail: Sequence[str], pid: int = 0) -> None:
        """Tell the end of the process, if it was not told yet."""
        if not self.runs(process) or self._on_event is None:
            return
        self._forget(process)
        known = process.info.pid if process.info is not None else 0
        self._on_event(ProcessExited(id=process.id, pid=pid or known, code=code, tail=tuple(tail)))

    def _forget(self, process: Process) -> None:
        if self.runs(process):
            del self._processes[process.id]
            self._places.left(process)

    def leave_seat(self, host: Host) -> None:
        """Its process has ended, and that was told: nobody needs the seat any more."""
        assert host.seating is not None
        self._end(self._acknowledge_and_leave(host, host.seating))

    async def _acknowledge_and_leave(self, host: Host, seating: Seating) -> None:
        await host.acknowledge()
        await self.ask_ray(functools.partial(remove_seat, seating))

    def end_seat(self, seating: Seating) -> None:
        self._end(self.ask_ray(functools.partial(remove_seat, seating)))

    async def _do_away(self, host: Host, id: str) -> None:
        """Kill the process when its node answers again. A seat goes with it; its place may be taken until then."""
        while True:
            try:
                await host.ask(messages.Stop(id, 0.0), ADOPT_S)
                break
            except HeadraceError:
                if not self._places.knows(host.node):
                    break
                await asyncio.sleep(LOOK_S)
        if host.seating is not None:
            if host.following is not None:
                host.following.cancel()
            self.leave_seat(host)

    async def _stop(self, process: Process, host: Host, grace_s: float) -> None:
        """Told again and again, until its node is heard of as gone."""
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + grace_s
        while self.runs(process):
            try:
                await host.ask(messages.Stop(process.id, max(0.0, kill_at - loop.time())))
                return
            except HeadraceError as error:
                logger.warning("process %s could not be told to stop yet: %s", process.id, error)
                await asyncio.sleep(_RETRY_S)

    def _stop_all(self) -> None:
        for id in tuple(self._processes):
            self.stop(id, _TERMINATE_S)

    # --- what runs already --------------------------------------------------------------------------------------------

    async def _adopt(self) -> None:
        """Take up the seats of an earlier controller: those with a process, and those with news of its end."""
        seatings = await self.ask_ray(functools.partial(inventory.seats, self._instance))
        patience_s = min(ADOPT_S, self._patience_s)
        found = await asyncio.gather(*(adopt_seat(self, id, seating, patience_s) for id, seating in seatings))
        living = sorted((process for process in found if process is not None), key=_started_at)
        for process in living:
            process.order = next(self._order)

    def take_up(self, info: ProcessInfo, host: Host, request: ProcessRequest | None) -> Process:
        """A process that runs already, as far as is known; again, once more is known of it."""
        process = self._processes.get(info.id)
        if process is None or process.host is not host:
            process = Process(info.id, info.role, "", next(self._order))
        process.group = request.placement.group if request else ""
        process.host, process.info = host, info
        self._processes[info.id] = process
        wanted = request or ProcessRequest(id=info.id, role=info.role, argv=(), resources=info.resources)
        self._places.took(process, host.node, wanted)
        return process

    def runs(self, process: Process) -> bool:
        """Whether its end was not told yet."""
        return self._processes.get(process.id) is process

    def tell(self, event: ProcessExited) -> None:
        """The end of a process of an earlier controller, which did not hear it."""
        if self._on_event is not None:
            self._on_event(event)

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        known = True
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                seen = await self._places.look()
                await self._agents.look()
            except Exception as error:  # the top of a task: while the GCS is away, what was last known goes on
                if known:
                    logger.warning("the nodes of the cluster are not known now: %s", brief(error))
                known = False
                continue
            if not known:
                logger.warning("the nodes of the cluster are known again")
            known = True
            self._observe(seen)

    def _observe(self, seen: tuple[Seen, ...]) -> None:
        gone = self._places.observe(seen)
        self._agents.bring(seen)
        for node in gone:
            self._node_gone(node)
        self._tell_nodes()

    def _node_gone(self, node: str) -> None:
        self._agents.forget(node)
        for process in [each for each in self._processes.values() if each.node == node and each.info is not None]:
            seating = process.host.seating if process.host is not None else None
            self.ended(process, KILLED, ("Ray: its node is dead",))
            if seating is not None:
                self.end_seat(seating)

    def _tell_nodes(self) -> None:
        nodes = infos(self._places.seen, self._agents.addresses, self._agents.restarting)
        if nodes != self._nodes:
            self._nodes = nodes
            if self._on_event is not None and not self._opening:
                self._on_event(NodesChanged(nodes=nodes))

    def _first_node(self) -> str:
        """The head, where there is one that processes can be started on."""
        nodes = sorted(self._nodes, key=lambda node: not node.head)
        if not nodes:
            raise InstanceError("no node of the cluster has an agent that is up yet")
        return nodes[0].id

    def agent_up(self, host: Host, post: Post) -> None:
        """The agent of a node is up, perhaps with what an earlier controller started there."""
        for info in post.where.processes:
            if info.id not in self._processes:
                self.take_up(info, host, None)
        self.follow(host)
        self._tell_nodes()

    def _no_agents(self) -> Agents:
        return Agents(self, self._instance, self._secret, self._options)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def follow(self, host: Host) -> None:
        """Hear of its news from now on."""
        host.following = self.spawn(host.follow(self))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _end(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that is finished though the engine is closed: what it gives back, nobody else will."""
        task = asyncio.get_running_loop().create_task(work)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the engine failed", exc_info=error)

    async def ask_ray(self, question: Callable[[], _T]) -> _T:
        """Ask what blocks, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, question)

    def _check_open(self) -> None:
        if self._on_event is None:
            raise InstanceError("the engine is not open")


def _started_at(process: Process) -> float:
    return process.info.started_at if process.info is not None else 0.0
