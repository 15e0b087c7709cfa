"""Declared applications, taken up: each is built in a process of its own, and handed to the controller.

In: a configuration that is valid. Out: which application is at which revision now, or the error that says why not. The
code of users never runs in the API's process: it may hang, end it, or have been imported before it was edited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

import msgspec

from headrace.api.errors import Busy
from headrace.api.thread import in_thread
from headrace.engine.directory import InstanceDirectory
from headrace.serve.declared import Declared, deploy_config
from headrace.spec.config_schema import ServeApplicationSchema, ServeDeploySchema
from headrace.spec.errors import HeadraceError
from headrace.wire.client import named_error
from headrace.wire.control import Failed

MOST_AT_ONCE = 4
MOST_WAITING = 64

logger = logging.getLogger(__name__)


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a configuration: the revisions of its applications, and those that are deleted because they were
    not declared any more.
    """

    revisions: dict[str, int] = {}
    deleted: tuple[str, ...] = ()


class Deployer(Protocol):
    """Takes up configurations. Both raise the error that says why an application is not taken up."""

    async def declare(self, config: ServeDeploySchema, by: str) -> Taken:
        """Have the declared applications be exactly these."""

    async def deploy(self, application: ServeApplicationSchema, expected: int | None, by: str) -> Taken:
        """Deploy this application, and touch no other. `expected` is its newest revision (None: any)."""


class ProcessDeployer:
    """Builds a few at once. Modules are imported from `app_dir`."""

    def __init__(self, directory: InstanceDirectory, app_dir: Path, *, most_at_once: int = MOST_AT_ONCE) -> None:
        self._directory = directory
        self._app_dir = app_dir
        self._places = asyncio.Semaphore(most_at_once)
        self._declaring = asyncio.Lock()
        self._jobs = 0

    def __repr__(self) -> str:
        return f"<ProcessDeployer from {self._app_dir}, {self._jobs} jobs>"

    async def declare(self, config: ServeDeploySchema, by: str) -> Taken:
        """Raises Busy, DeployFailedError, and what the controller answers with."""
        # One after the other: two at once would leave what neither declares.
        async with contextlib.AsyncExitStack() as stack:
            return await self._take(stack, config, None, by, exact=True)

    async def deploy(self, application: ServeApplicationSchema, expected: int | None, by: str) -> Taken:
        """Raises Busy, DeployFailedError, and what the controller answers with."""
        config = ServeDeploySchema(applications=[application])
        async with contextlib.AsyncExitStack() as stack:
            return await self._take(stack, config, expected, by, exact=False)

    async def _take(
        self, stack: contextlib.AsyncExitStack, config: ServeDeploySchema, expected: int | None, by: str, *, exact: bool
    ) -> Taken:
        if self._jobs >= MOST_WAITING:
            raise Busy(f"{self._jobs} configurations are being built, or wait for that, already")
        self._jobs += 1
        try:
            if exact:
                await stack.enter_async_context(self._declaring)
            await stack.enter_async_context(self._places)
            return _taken(await in_thread("deploy", lambda: self._deploy(config, expected, by, exact)))
        finally:
            self._jobs -= 1

    def _deploy(self, config: ServeDeploySchema, expected: int | None, by: str, exact: bool) -> dict[str, Declared]:
        return deploy_config(
            config,
            directory=self._directory,
            wait=False,
            expected=expected,
            by=by,
            on_progress=lambda app, line: logger.info("%s: %s", app or "instance", line),
            app_dir=self._app_dir,
            source="control API",
            exact=exact,
        )


def _taken(results: dict[str, Declared]) -> Taken:
    """Raises the error of the first application that failed, which says of the others that they did not."""
    failed = [each for each in results.values() if not each.well]
    if failed:
        raise _failure(failed, [each for each in results.values() if each.well])
    return Taken(
        revisions={name: each.revision for name, each in results.items() if each.action == "deployed"},
        deleted=tuple(name for name, each in results.items() if each.action == "deleted"),
    )


def _failure(failed: list[Declared], well: list[Declared]) -> HeadraceError:
    if len(failed) == 1 and not well:
        return named_error(Failed(failed[0].error, failed[0].reason))
    lines = [f"application {each.app!r}: {each.error}: {each.reason}" for each in failed]
    deployed = ", ".join(each.app for each in well if each.action != "deleted")
    deleted = ", ".join(each.app for each in well if each.action == "deleted")
    others = f"; taken up all the same: {deployed}" if deployed else ""
    others += f"; deleted: {deleted}" if deleted else ""
    return named_error(Failed(failed[0].error, "\n".join(lines) + others))
