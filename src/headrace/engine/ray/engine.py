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

from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    RayActorError,
    RayError,
    RuntimeEnvSetupError,
)

from headrace.core.placement import choose_node, could_fit, demand_of, shortage
from headrace.core.resources import Resources, check_amounts
from headrace.engine import messages
from headrace.engine.base import EngineEvent, NodeInfo, NodesChanged, ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.ray import inventory
from headrace.engine.ray.agent import Post, node_variables
from headrace.engine.ray.agents import Agents
from headrace.engine.ray.host import Where
from headrace.engine.ray.hosts import ANSWER_S, Host, brief, call
from headrace.engine.ray.nodes import Held, Seen, infos, look, may_grow
from headrace.engine.ray.seats import Seating, ask_for_seat, remove_seat
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import HeadraceError, InstanceError, ResourcesShortError

logger = logging.getLogger(__name__)

INGRESS = "ingress"
LOOK_S = 1.0
KILLED = -9
_SHORT_S = 5.0  # what just ended is still being given back
_ADOPT_S = 10.0
_GROUP_S = 20.0
_TERMINATE_S = 5.0
_RETRY_S = 0.2
_CLOSE_S = 3.0
_THREADS = 16

_T = TypeVar("_T")


class _Process:
    """A process of the engine's, from before it starts until its end was told."""

    def __init__(self, id: str, role: str, group: str, order: int) -> None:
        self.id = id
        self.role = role
        self.group = group
        self.order = order
        self.node = ""
        self.host: Host | None = None
        self.info: ProcessInfo | None = None
        self.unwanted = asyncio.Event()  # it was stopped before it had started

    def __repr__(self) -> str:
        return f"_Process({self.id} on {self.node[:8] or 'no node'}{'' if self.info else ', starting'})"


class RayEngine:
    """See `base.Engine`. This process is connected to the cluster. One for the life of a controller."""

    def __init__(self, instance: str, secret: bytes, options: ClusterOptions | None = None) -> None:
        self._instance = instance
        self._secret = secret
        self._options = options or ClusterOptions()
        self._on_event: Callable[[EngineEvent], None] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "headrace-ray")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._endings: set[asyncio.Task[Any]] = set()
        self._processes: dict[str, _Process] = {}
        self._order = itertools.count()
        self._agents = self._no_agents()
        self._held = Held()
        self._seen: tuple[Seen, ...] = ()
        self._nodes: tuple[NodeInfo, ...] = ()
        self._may_grow = False
        self._looked = asyncio.Event()
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
        self._seen = await self.ask_ray(look)
        self._may_grow = await self.ask_ray(may_grow)
        if not self._seen:
            raise InstanceError("the Ray cluster has no node that lives")
        self._agents.bring(self._seen)
        await self._adopt()
        await self._agents.wait()
        self._observe(self._seen)
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
        process = _Process(request.id, request.role, request.placement.group, next(self._order))
        self._processes[request.id] = process
        try:
            if request.role == INGRESS:
                process.info = await self._start_at_agent(process, request)
            else:
                process.info = await self._start_in_seat(process, request)
        finally:
            if process.info is None:
                self._forget(process)
        return process.info

    def stop(self, id: str, grace_s: float) -> None:
        process = self._processes.get(id)
        if process is None or self._on_event is None:
            return
        if process.info is None or process.host is None:
            process.unwanted.set()
            return
        self._end(self._stop(process.host, id, grace_s))

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
            self.spawn(self._do_away(process.host, id))
        asyncio.get_running_loop().call_soon(self._tell_end, process, KILLED, ("its node answers nobody",))

    def nodes(self) -> Sequence[NodeInfo]:
        return self._nodes

    def capacity(self) -> Resources:
        if not self._seen:
            raise InstanceError("the engine is not open: what the cluster has is known after open()")
        totals = [seen.state.total for seen in self._seen]
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
        self._held = Held()
        self._agents = self._no_agents()

    def controller_at(self, address: str) -> None:
        """Tell all agents where the controller is."""
        self._agents.controller_at(address)

    # --- starting -----------------------------------------------------------------------------------------------------

    async def _start_at_agent(self, process: _Process, request: ProcessRequest) -> ProcessInfo:
        node = request.node or self._first_node()
        agent = await self._agents.at(node)
        answer = await agent.ask(messages.Start(0, request))
        assert isinstance(answer, messages.Started)
        process.node, process.host = node, agent
        return answer.info

    async def _start_in_seat(self, process: _Process, request: ProcessRequest) -> ProcessInfo:
        if not request.argv:
            raise InstanceError(f"process {request.id} cannot be started: its argv is empty")
        seating, where = await self._take_seat(process, request)
        host = Host(seating.actor, where.node, where.life, seating)
        try:
            process.node = where.node
            self._held.take(process.id, where.node, demand_of(request))
            await self._agents.at(where.node)
            directory = self._agents.directories[where.node]
            variables = self._variables(where.node, directory)
            await call(seating.actor.furnish.remote(directory, variables, sys.executable), ANSWER_S)
            answer = await host.ask(messages.Start(0, request))
        except (RayError, TimeoutError) as error:
            self._end_seat(seating)
            raise InstanceError(f"{request.id} cannot be started on node {where.node[:8]}: {brief(error)}") from error
        except BaseException:
            self._end_seat(seating)
            raise
        assert isinstance(answer, messages.Started)
        process.host = host
        self._follow(host)
        return answer.info

    async def _take_seat(self, process: _Process, request: ProcessRequest) -> tuple[Seating, Where]:
        """A seat that is placed. Raises ResourcesShortError where no node has room, and none may come that has."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _SHORT_S
        looked = False
        while True:
            states = self._held.states(self._seen)
            running = [
                (each.node, each.group) for each in self._processes.values() if each.node and each is not process
            ]
            node = choose_node(request, states, running)
            if node is None and not self._may_grow:
                # What has just ended may still be being given back; what never was there is not waited for.
                if looked and (loop.time() >= give_up or not self._held.settling() or not could_fit(request, states)):
                    raise ResourcesShortError(
                        f"{request.id} does not fit on any node of the cluster: {shortage(request, states)}"
                    )
                await self._next_look(process)
                looked = True
                continue
            if node is not None:
                process.node = node
                self._held.take(process.id, node, demand_of(request))
            try:
                return await self._placed(process, request, node)
            except ResourcesShortError:
                self._give_back(process)
                if loop.time() >= give_up:
                    raise
                await self._next_look(process)
            except BaseException:
                self._give_back(process)
                raise

    async def _placed(self, process: _Process, request: ProcessRequest, node: str | None) -> tuple[Seating, Where]:
        """Ask Ray for a seat, and wait until it is there, or is not wanted any more."""
        seating = await self.ask_ray(functools.partial(ask_for_seat, self._instance, request, node))
        try:
            if seating.group is not None and not self._may_grow:
                await self._wait_for_bundles(request, seating)
            where = await self._unless_unwanted(process, call(seating.actor.where.remote(), None))
        except RuntimeEnvSetupError as error:
            self._end_seat(seating)
            raise InstanceError(f"{request.id} cannot be started: its runtime_env cannot be made: {error}") from error
        except (ActorUnschedulableError, ActorPlacementGroupRemoved) as error:
            self._end_seat(seating)
            raise ResourcesShortError(f"{request.id} does not fit on node {(node or '')[:8]} any more") from error
        except RayError as error:
            self._end_seat(seating)
            raise InstanceError(f"{request.id} cannot be started: {brief(error)}") from error
        except BaseException:
            self._end_seat(seating)
            raise
        return seating, where

    async def _wait_for_bundles(self, request: ProcessRequest, seating: Seating) -> None:
        assert seating.group is not None
        if not await self.ask_ray(functools.partial(seating.group.wait, _GROUP_S)):
            raise ResourcesShortError(
                f"{request.id} does not fit on the cluster: no room for its bundles {list(request.placement.bundles)} "
                f"({request.placement.strategy})"
            )

    async def _unless_unwanted(self, process: _Process, waiting: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.ensure_future(waiting)
        unwanted = asyncio.ensure_future(process.unwanted.wait())
        try:
            await asyncio.wait({task, unwanted}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise InstanceError(f"{process.id} was stopped before Ray had found a place for it")
            return task.result()
        finally:
            task.cancel()
            unwanted.cancel()

    async def _next_look(self, process: _Process) -> None:
        """Wait for news of what is free. Raises InstanceError when the process is not wanted any more."""
        self._looked.clear()
        await self._unless_unwanted(process, self._looked.wait())

    def _variables(self, node: str, directory: str) -> dict[str, str]:
        from headrace.engine.directory import runtime_directory

        address = self._agents.addresses[node]
        return node_variables(self._instance, runtime_directory(directory), node, address, self._options)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def exited(self, host: Host, event: ProcessExited) -> None:
        """A process of this actor has ended."""
        process = self._processes.get(event.id)
        if process is not None and process.host is host:
            self._tell_end(process, event.code, event.tail, event.pid)
        elif process is None and self._on_event is not None:
            self._on_event(event)  # of an earlier controller, which did not hear it
        if host.seating is not None:
            self._leave_seat(host)

    def restarted(self, host: Host) -> None:
        """An agent died, and what it kept with it; Ray has begun it anew."""
        for process in [each for each in self._processes.values() if each.host is host and each.info is not None]:
            self._tell_end(process, KILLED, ("the agent of its node died",))
        self._agents.restarted(host)

    def gone(self, host: Host, why: str) -> None:
        """An actor is gone for good."""
        for process in [each for each in self._processes.values() if each.host is host and each.info is not None]:
            self._tell_end(process, KILLED, (f"Ray: {why}",))
        if host.seating is not None:
            self._end_seat(host.seating)
        else:
            self._agents.gone(host)

    def _tell_end(self, process: _Process, code: int, tail: Sequence[str], pid: int = 0) -> None:
        if self._processes.get(process.id) is not process or self._on_event is None:
            return
        self._forget(process)
        known = process.info.pid if process.info is not None else 0
        self._on_event(ProcessExited(id=process.id, pid=pid or known, code=code, tail=tuple(tail)))

    def _forget(self, process: _Process) -> None:
        if self._processes.get(process.id) is process:
            del self._processes[process.id]
            self._held.release(process.id, asyncio.get_running_loop().time())

    def _give_back(self, process: _Process) -> None:
        process.node = ""
        self._held.release(process.id, asyncio.get_running_loop().time())

    def _leave_seat(self, host: Host) -> None:
        """Its process has ended, and that was told: nobody needs the seat any more."""
        assert host.seating is not None
        self._end(self._acknowledge_and_leave(host, host.seating))

    async def _acknowledge_and_leave(self, host: Host, seating: Seating) -> None:
        await host.acknowledge()
        await self.ask_ray(functools.partial(remove_seat, seating))

    def _end_seat(self, seating: Seating) -> None:
        self._end(self.ask_ray(functools.partial(remove_seat, seating)))

    async def _do_away(self, host: Host, id: str) -> None:
        """Kill the process when its node answers again. A seat goes with it; its place may be taken until then."""
        while True:
            try:
                await host.ask(messages.Stop(id, 0.0), _ADOPT_S)
                break
            except HeadraceError:
                if not any(seen.state.id == host.node for seen in self._seen):
                    break
                await asyncio.sleep(LOOK_S)
        if host.seating is not None:
            if host.following is not None:
                host.following.cancel()
            self._leave_seat(host)

    async def _stop(self, host: Host, id: str, grace_s: float) -> None:
        try:
            await host.ask(messages.Stop(id, grace_s))
        except HeadraceError as error:
            logger.warning("process %s could not be told to stop: %s", id, error)

    def _stop_all(self) -> None:
        for id in tuple(self._processes):
            self.stop(id, _TERMINATE_S)

    # --- what runs already --------------------------------------------------------------------------------------------

    async def _adopt(self) -> None:
        """Take up the seats of an earlier controller: those with a process, and those with news of its end."""
        seatings = await self.ask_ray(functools.partial(inventory.seats, self._instance))
        found = await asyncio.gather(*(self._adopt_seat(id, seating) for id, seating in seatings))
        living = sorted((process for process in found if process is not None), key=_started_at)
        for process in living:
            process.order = next(self._order)

    async def _adopt_seat(self, id: str, seating: Seating) -> _Process | None:
        try:
            where: Where = await call(seating.actor.where.remote(), _ADOPT_S)
        except RayActorError:
            self._end_seat(seating)
            return None
        except (RayError, TimeoutError):
            # Its node answers nobody now. It may be back, or be given up by who follows the nodes.
            node = await self.ask_ray(functools.partial(inventory.node_of, seating.actor))
            info = ProcessInfo(id=id, role="worker", pid=0, started_at=0.0, resources=Resources(), node=node)
            host = Host(seating.actor, node, "", seating)
            self._follow(host)
            return self._take_up(info, host)
        host = Host(seating.actor, where.node, where.life, seating)
        if where.processes:
            self._follow(host)
            return self._take_up(where.processes[0], host)
        try:
            heard = await call(seating.actor.exits.remote(0, where.life, 0.0), _ADOPT_S)
        except (RayError, TimeoutError):
            heard = None
        for exited in heard.exits if heard is not None else ():
            host.told = exited.number
            if self._on_event is not None:
                self._on_event(exited.event)
        self._leave_seat(host)
        return None

    def _take_up(self, info: ProcessInfo, host: Host) -> _Process:
        process = _Process(info.id, info.role, "", next(self._order))
        process.node, process.host, process.info = host.node, host, info
        self._processes[info.id] = process
        amounts = {"CPU": info.resources.cpus or 0.0, "GPU": info.resources.gpus}
        self._held.take(info.id, host.node, {name: amount for name, amount in amounts.items() if amount})
        return process

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                seen = await self.ask_ray(look)
                self._may_grow = await self.ask_ray(may_grow)
            except Exception as error:  # the top of a task: while the GCS is away, what was last known goes on
                logger.warning("the nodes of the cluster are not known now: %s", brief(error))
                continue
            self._observe(seen)

    def _observe(self, seen: tuple[Seen, ...]) -> None:
        known = {each.state.id for each in self._seen}
        self._seen = seen
        living = {each.state.id for each in seen}
        self._held.observed(seen, asyncio.get_running_loop().time())
        self._agents.bring(seen)
        for node in known - living:
            self._node_gone(node)
        self._tell_nodes()
        self._looked.set()

    def _node_gone(self, node: str) -> None:
        self._agents.forget(node)
        for process in [each for each in self._processes.values() if each.node == node and each.info is not None]:
            seating = process.host.seating if process.host is not None else None
            self._tell_end(process, KILLED, ("Ray: its node is dead",))
            if seating is not None:
                self._end_seat(seating)

    def _tell_nodes(self) -> None:
        nodes = infos(self._seen, self._agents.addresses)
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
                self._take_up(info, host)
        self._follow(host)
        self._tell_nodes()

    def _no_agents(self) -> Agents:
        return Agents(self, self._instance, self._secret, self._options)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _follow(self, host: Host) -> None:
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


def _started_at(process: _Process) -> float:
    return process.info.started_at if process.info is not None else 0.0
