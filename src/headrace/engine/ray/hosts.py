"""An actor of ours as the engine sees it: asked without ever blocking others, followed until it is gone.

In: a handle of Ray. Out: answers in bounded time; the ends of its processes, its restarts, and its own end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from headrace.engine import messages
from headrace.engine.base import ProcessExited
from headrace.engine.ray.host import Heard
from headrace.engine.ray.seats import Seating
from headrace.spec import errors
from headrace.spec.errors import HeadraceError, InstanceError

logger = logging.getLogger(__name__)

ANSWER_S = 30.0  # for what an actor answers at once, when its node has much to do
_LISTEN_S = 20.0
_RETRY_S = 0.2


class Follower(Protocol):
    """Who is told of a host's news."""

    def exited(self, host: Host, event: ProcessExited) -> None: ...
    def restarted(self, host: Host) -> None: ...
    def gone(self, host: Host, why: str) -> None: ...


class Host:
    """An actor that is up: a seat, or an agent (`seating` None)."""

    def __init__(self, actor: Any, node: str, life: str, seating: Seating | None = None) -> None:
        self.actor = actor
        self.node = node
        self.life = life
        self.seating = seating
        self.told = 0
        self.forgotten: set[int] = set()  # pids of those whose end was told though nobody had seen it
        self.following: asyncio.Task[None] | None = None
        self.away = False  # as Ray says: it may be back

    def __repr__(self) -> str:
        return f"Host({self.seating or 'agent'} on {self.node[:8]})"

    async def ask(self, message: messages.ToKeeper, timeout_s: float = ANSWER_S) -> messages.FromKeeper | None:
        """Its answer. Raises the error that it refused with, InstanceError when it does not answer."""
        try:
            answer: messages.FromKeeper | None = await call(self.actor.ask.remote(message), timeout_s)
        except (RayError, TimeoutError) as error:
            raise InstanceError(f"node {self.node[:8]} does not answer: {brief(error)}") from error
        if isinstance(answer, messages.Refused):
            raise refusal(answer)
        return answer

    async def follow(self, follower: Follower) -> None:
        """Tell of its news for as long as it is there."""
        while True:
            try:
                heard: Heard = await call(
                    self.actor.exits.remote(self.told, self.life, _LISTEN_S), _LISTEN_S + ANSWER_S
                )
            except TimeoutError:
                continue  # its node answers nobody: whether it is lost is for others to say
            except ActorUnavailableError:
                self.away = True
                await asyncio.sleep(_RETRY_S)
                continue
            except RayActorError as error:
                follower.gone(self, brief(error))
                return
            except RayError as error:
                logger.warning("%r does not tell: %s", self, brief(error))
                await asyncio.sleep(_RETRY_S)
                continue
            self.away = False
            self._news(follower, heard)

    async def acknowledge(self) -> None:
        """Have it forget what it told."""
        try:
            await call(self.actor.exits.remote(self.told, self.life, 0.0), 2.0)
        except (RayError, TimeoutError) as error:
            logger.debug("%r did not hear that it was heard: %s", self, brief(error))

    def _news(self, follower: Follower, heard: Heard) -> None:
        if heard.life != self.life:
            self.life, self.told = heard.life, 0
            follower.restarted(self)
        for exited in heard.exits:
            if exited.number > self.told:
                self.told = exited.number
                follower.exited(self, exited.event)


async def call(ref: Any, timeout_s: float | None) -> Any:
    """What the actor's method returns. Raises what Ray raises, or TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(ref.future())


def brief(error: BaseException) -> str:
    """What Ray says, without its traceback and advice."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, HeadraceError):
        error = error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    told = [line for line in lines if line.startswith("The actor is dead because")]
    line = (told or [lines[-1] if lines[0].startswith("\x1b") else lines[0]])[0]
    return line.partition(" Some common causes include")[0][:500]


def refusal(answer: messages.Refused) -> HeadraceError:
    """The error that it means."""
    kind = getattr(errors, answer.error, None)
    if isinstance(kind, type) and issubclass(kind, HeadraceError):
        return kind(answer.message)
    return InstanceError(f"{answer.error}: {answer.message}")
