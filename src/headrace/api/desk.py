"""What handlers share: the controller, who takes up configs, and what follows from both.

In: questions of handlers. Out: answers about applications and their rollouts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from headrace.api.controller import Controller, unexpected
from headrace.api.deployer import Deployer
from headrace.api.errors import PreconditionFailed
from headrace.api.route import Condition
from headrace.spec.errors import ApplicationNotFound, DeployFailedError, HeadraceError, RolledBackError, RolloutError
from headrace.spec.status import (
    ApplicationStatus,
    ApplicationStatusOverview,
    RolloutOutcome,
    RolloutStatus,
    ServeStatus,
)
from headrace.wire.control import Delete, GetRollout, Rollout

POLL_S = 0.2
Gone = Callable[[], Awaitable[bool]]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where an application is: `revision` was made, or is meant; `outcome` is "" while its rollout is under way."""

    revision: int
    outcome: str = ""
    reason: str = ""


class Desk:
    """The one of the process."""

    def __init__(self, controller: Controller, deployer: Deployer) -> None:
        self.controller = controller
        self.deployer = deployer
        self._deleting: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Desk of {self.controller!r}>"

    async def application(self, name: str) -> ApplicationStatusOverview:
        """The application's state. Raises ApplicationNotFound."""
        return _found(await self.controller.status(), name)

    async def revision_meant(self, name: str, condition: Condition) -> int | None:
        """The newest revision that the condition is met by, for the controller to hold on to; None where there is no
        condition. Raises PreconditionFailed.
        """
        if condition == Condition():
            return None
        app = (await self.controller.status()).applications.get(name)
        newest = 0 if app is None else (app.newest or app.revision)
        if not condition.holds(newest):
            is_at = f"is at revision {newest}" if newest else "does not exist"
            raise PreconditionFailed(f"application {name!r} {is_at}, and the request is for another state of it")
        return newest

    async def rollout(self, name: str) -> RolloutStatus:
        """The rollout of the application, the one under way or the last. Raises ApplicationNotFound, RolloutError."""
        answer = await self.controller.ask(GetRollout(name))
        if not isinstance(answer, Rollout):
            raise unexpected(GetRollout(name), answer)
        return answer.status

    async def settled(self, name: str, revision: int, is_gone: Gone) -> Standing:
        """How the rollout of this revision ended; as it stands when the client has gone. Raises DeployFailedError,
        RolledBackError, RolloutError (superseded), ApplicationNotFound (deleted meanwhile).
        """
        while True:
            status = await self.rollout(name)
            if status.outcome or status.revision != revision:
                app = await self.application(name)
                in_place = app.revision == revision and status.outcome
                if status.revision != revision and not in_place:
                    raise RolloutError(f"revision {revision} of {name!r} was superseded by revision {status.revision}")
                if app.status != ApplicationStatus.DEPLOYING:  # options that changed in place have no rollout
                    return _ended(name, status, revision)
            if await is_gone():
                return Standing(revision=revision)
            await asyncio.sleep(POLL_S)

    async def aborted(self, name: str, revision: int, is_gone: Gone) -> RolloutStatus:
        """The rollout of this revision once it has ended, as it was told to."""
        while True:
            status = await self.rollout(name)
            if status.outcome or status.revision != revision or await is_gone():
                return status
            await asyncio.sleep(POLL_S)

    async def delete(self, name: str, wait: bool, expected: int | None = None) -> None:
        """Delete the application, if `expected` is its newest revision (None: any).

        Returns when it is being deleted; with `wait`, when its last replica is gone.
        """
        _found(await self.controller.status(), name)
        gone = asyncio.create_task(self._until_gone(name, expected))
        self._deleting.add(gone)
        gone.add_done_callback(self._deleting.discard)
        while not wait and not gone.done():
            app = (await self.controller.status()).applications.get(name)
            if app is None or app.status == ApplicationStatus.DELETING:
                gone.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody waits for it
                return
            await asyncio.wait([gone], timeout=POLL_S)
        await gone

    async def _until_gone(self, name: str, expected: int | None) -> None:
        await self.controller.ask(Delete(name, expected), timeout_s=None)


def _found(status: ServeStatus, name: str) -> ApplicationStatusOverview:
    app = status.applications.get(name)
    if app is None:
        known = ", ".join(sorted(status.applications)) or "none"
        raise ApplicationNotFound(f"no application is called {name[:100]!r}; there are: {known}")
    return app


def _ended(name: str, status: RolloutStatus, revision: int) -> Standing:
    what = f"revision {status.revision} of application {name!r}"
    error: HeadraceError
    match status.outcome:
        case _ if status.revision != revision:  # its options changed in place, after a rollout of another one
            return Standing(revision=revision, outcome=RolloutOutcome.PROMOTED)
        case RolloutOutcome.FAILED:
            error = DeployFailedError(status.reason or f"{what} did not come up")
        case RolloutOutcome.ROLLED_BACK:
            error = RolledBackError(f"{what} was rolled back: {status.reason}")
        case RolloutOutcome.SUPERSEDED:
            error = RolloutError(f"{what} was superseded: {status.reason}")
        case _:
            return Standing(revision=revision, outcome=status.outcome, reason=status.reason)
    raise error
