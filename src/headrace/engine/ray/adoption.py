"""What becomes of the seats of an earlier controller: their processes go on, or their ends are told.

In: a seat that Ray knows. Out, to the engine: the process in it; the end that nobody heard of. A seat that answers
nobody keeps nobody waiting: its process is taken for running until it answers, or who follows the nodes gives it up.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from headrace.core.resources import Resources
from headrace.engine import messages
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.ray import inventory
from headrace.engine.ray.host import Where
from headrace.engine.ray.hosts import Host, brief, call
from headrace.engine.ray.places import Process
from headrace.engine.ray.seats import Seating

ADOPT_S = 10.0
_AGAIN = 0.1  # after so much of the patience
_KILLED = -9


class Owner(Protocol):
    """The engine, as this needs it."""

    async def ask_ray(self, question: Callable[[], Any]) -> Any: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    def take_up(self, info: ProcessInfo, host: Host, request: ProcessRequest | None) -> Process: ...
    def runs(self, process: Process) -> bool: ...
    def follow(self, host: Host) -> None: ...
    def tell(self, event: ProcessExited) -> None: ...
    def ended(self, process: Process, code: int, tail: Sequence[str], pid: int = 0) -> None: ...
    def gone(self, host: Host, why: str) -> None: ...
    def leave_seat(self, host: Host) -> None: ...
    def end_seat(self, seating: Seating) -> None: ...


async def adopt_seat(owner: Owner, id: str, seating: Seating, patience_s: float = ADOPT_S) -> Process | None:
    """Take up the process `id` in this seat. None: it has none, and the seat is left."""
    try:
        where: Where = await call(seating.actor.where.remote(), patience_s)
    except (RayError, TimeoutError) as error:
        if _is_dead(error):
            owner.end_seat(seating)
            return None
        return await _adopt_unheard(owner, id, seating, patience_s)
    host = Host(seating.actor, where.node, where.life, seating)
    if where.processes:
        owner.follow(host)
        return owner.take_up(where.processes[0], host, where.request)
    for event in await _ends(host, patience_s):
        owner.tell(event)
    owner.leave_seat(host)
    return None


async def _adopt_unheard(owner: Owner, id: str, seating: Seating, patience_s: float) -> Process | None:
    """It answers nobody now."""
    node = await owner.ask_ray(functools.partial(inventory.node_of, seating.actor))
    if not node:  # Ray has not placed it, and who asked for it does not wait any more
        owner.end_seat(seating)
        return None
    info = ProcessInfo(id=id, role="worker", pid=0, started_at=0.0, resources=Resources(), node=node)
    host = Host(seating.actor, node, "", seating)
    process = owner.take_up(info, host, None)
    host.following = owner.spawn(_meet(owner, process, host, patience_s))
    return process


async def _meet(owner: Owner, process: Process, host: Host, patience_s: float) -> None:
    """Find out what runs there, once it answers."""
    while owner.runs(process):
        try:
            where: Where = await call(host.actor.where.remote(), patience_s)
        except (RayError, TimeoutError) as error:
            if _is_dead(error):
                owner.gone(host, brief(error))
                return
            await asyncio.sleep(_AGAIN * patience_s)
            continue
        if not owner.runs(process):
            return  # it was given up meanwhile
        host.life = where.life
        if where.processes:
            owner.take_up(where.processes[0], host, where.request)
            owner.follow(host)
            return
        for event in await _ends(host, patience_s):
            owner.ended(process, event.code, event.tail, event.pid)
        owner.ended(process, _KILLED, ("it was not there any more when its node answered again",))
        owner.leave_seat(host)
        return


async def _ends(host: Host, patience_s: float) -> list[ProcessExited]:
    """What ended there, and was not heard of."""
    try:
        heard = await call(host.actor.exits.remote(0, host.life, 0.0), patience_s)
    except (RayError, TimeoutError):
        return []
    ends: list[messages.Exited] = heard.exits
    host.told = max((exited.number for exited in ends), default=host.told)
    return [exited.event for exited in ends]


def _is_dead(error: BaseException) -> bool:
    """Whether the actor is gone for good, and not only out of reach."""
    return isinstance(error, RayActorError) and not isinstance(error, ActorUnavailableError)
