"""Where processes are and may go: a node is chosen, a seat asked for there, and chosen again where Ray has no room.

In: requests, what the cluster has. Out: seats that are placed, or why none can be. Ray alone has a say where nodes may
come that are not there yet; else a process waits no longer than for what is just being given back.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from ray.exceptions import ActorPlacementGroupRemoved, ActorUnschedulableError, RayError, RuntimeEnvSetupError

from headrace.core.placement import choose_node, could_fit, demand_of, shortage
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.ray.held import Held, Seen
from headrace.engine.ray.host import Where
from headrace.engine.ray.hosts import Host, brief, call
from headrace.engine.ray.nodes import look, may_grow
from headrace.engine.ray.seats import Seating, ask_for_seat
from headrace.spec.errors import InstanceError, ResourcesShortError

_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Timeout)\b.*", re.MULTILINE)
_SHORT_S = 5.0  # what just ended is still being given back
_GROUP_S = 20
_GROUP_TURN_S = 1  # of Ray's whole seconds: in between, the thread is for whoever waits for one

_T = TypeVar("_T")


class Process:
    """A process of the engine's, from before it starts until its end was told."""

    def __init__(self, id: str, role: str, group: str, order: int) -> None:
        self.id = id
        self.role = role
        self.group = group
        self.order = order
        self.node = ""
        self.host: Host | None = None
        self.info: ProcessInfo | None = None
        self.early: ProcessExited | None = None  # its end, heard of before its start was answered
        self.unwanted = asyncio.Event()  # it was stopped before it had started

    def __repr__(self) -> str:
        return f"Process({self.id} on {self.node[:8] or 'no node'}{'' if self.info else ', starting'})"


class Owner(Protocol):
    """The engine, as this needs it."""

    async def ask_ray(self, question: Callable[[], Any]) -> Any: ...
    def end_seat(self, seating: Seating) -> None: ...


class Places:
    """All on the engine's loop. `seen` are the nodes as last looked at."""

    def __init__(self, owner: Owner, instance: str) -> None:
        self.seen: tuple[Seen, ...] = ()
        self._owner = owner
        self._instance = instance
        self._held = Held()
        self._may_grow = False
        self._looked = asyncio.Event()

    def __repr__(self) -> str:
        return f"Places({len(self.seen)} nodes)"

    async def look(self) -> tuple[Seen, ...]:
        """The nodes now. Raises what Ray raises."""
        self._may_grow = await self._owner.ask_ray(may_grow)
        seen: tuple[Seen, ...] = await self._owner.ask_ray(look)
        return seen

    def observe(self, seen: tuple[Seen, ...]) -> set[str]:
        """These are the nodes. Returns those that were, and are no more."""
        known = {each.state.id for each in self.seen}
        self.seen = seen
        self._held.observed(seen, asyncio.get_running_loop().time())
        self._looked.set()
        return known - {each.state.id for each in seen}

    def knows(self, node: str) -> bool:
        """Whether the node is there, as far as the cluster knows."""
        return any(each.state.id == node for each in self.seen)

    def took(self, process: Process, node: str, request: ProcessRequest) -> None:
        """The process is there, with what it asked for."""
        process.node = node
        self._held.take(process.id, node, demand_of(request))

    def left(self, process: Process) -> None:
        """It holds nothing any more."""
        process.node = ""
        self._held.release(process.id, asyncio.get_running_loop().time())

    async def take_seat(
        self, process: Process, request: ProcessRequest, others: Callable[[], Sequence[tuple[str, str]]]
    ) -> tuple[Seating, Where]:
        """A seat that is placed. Raises ResourcesShortError where no node has room and none may come that has,
        InstanceError when the seat cannot be had or is not wanted any more.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _SHORT_S
        looked = False
        while True:
            states = self._held.states(self.seen)
            vain = not self._may_grow and not could_fit(request, states)
            node = None if vain else choose_node(request, states, others())
            if node is None and not self._may_grow:
                # What never was there is not waited for.
                if looked and (vain or loop.time() >= give_up or not self._held.settling()):
                    short = shortage(request, states)
                    raise ResourcesShortError(f"{request.id} does not fit on any node of the cluster: {short}")
                await self._next_look(process)
                looked = True
                continue
            if node is not None:
                self.took(process, node, request)
            try:
                return await self._placed(process, request, node)
            except ResourcesShortError:
                self.left(process)
                if loop.time() >= give_up:
                    raise
                await self._next_look(process)

    async def _placed(self, process: Process, request: ProcessRequest, node: str | None) -> tuple[Seating, Where]:
        """Ask Ray for a seat, and wait until it is there, or is not wanted any more."""
        seating: Seating = await self._owner.ask_ray(functools.partial(ask_for_seat, self._instance, request, node))
        placed = False
        try:
            if seating.group is not None and not self._may_grow:
                await self._wait_for_bundles(process, request, seating)
            where: Where = await _unless_unwanted(process, call(seating.actor.where.remote(), None))
            placed = True
        except RuntimeEnvSetupError as error:
            why = what_was_raised(str(error))
            raise InstanceError(f"{request.id} cannot be started: its runtime_env cannot be made: {why}") from error
        except (ActorUnschedulableError, ActorPlacementGroupRemoved) as error:
            raise ResourcesShortError(f"{request.id} does not fit on node {(node or '')[:8]} any more") from error
        except RayError as error:
            raise InstanceError(f"{request.id} cannot be started: {brief(error)}") from error
        finally:
            if not placed:
                self._owner.end_seat(seating)
        return seating, where

    async def _wait_for_bundles(self, process: Process, request: ProcessRequest, seating: Seating) -> None:
        assert seating.group is not None
        for _ in range(0, _GROUP_S, _GROUP_TURN_S):
            if await self._owner.ask_ray(functools.partial(seating.group.wait, _GROUP_TURN_S)):
                return
            if process.unwanted.is_set():
                raise InstanceError(f"{process.id} was stopped before Ray had found a place for it")
        raise ResourcesShortError(
            f"{request.id} does not fit on the cluster: no room for its bundles {list(request.placement.bundles)} "
            f"({request.placement.strategy})"
        )

    async def _next_look(self, process: Process) -> None:
        """Wait for news of what is free. Raises InstanceError when the process is not wanted any more."""
        self._looked.clear()
        await _unless_unwanted(process, self._looked.wait())


def what_was_raised(told: str) -> str:
    """What the last traceback in a text says was raised, in as many lines as it has; the text, where there is none."""
    starts = [match.start() for match in _RAISED.finditer(told)]
    return told[starts[-1] :].strip() if "Traceback (most recent call last)" in told and starts else told.strip()


async def _unless_unwanted(process: Process, waiting: Coroutine[Any, Any, _T]) -> _T:
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
