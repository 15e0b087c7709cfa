"""Declared applications, taken up: what a config names is imported and built in a process of its own.

In: a config, as it came. Out: which application is at which revision now, or the error that says why not. The code of
users never runs in the API's process: it may hang, end it, or have been imported before it was edited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Protocol

import msgspec

from headrace.api.errors import Busy
from headrace.spec.errors import DeployFailedError, RequestTimeoutError
from headrace.wire.client import named_error
from headrace.wire.control import Failed

BUILD_TIMEOUT_S = 600.0
MOST_BUILDS = 4
MOST_WAITING = 64

logger = logging.getLogger(__name__)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be taken up. `only` names the one application that `config` is of; "" where it declares all there are.

    `expected` is that application's newest revision (None: any).
    """

    config: msgspec.Raw
    only: str = ""
    expected: int | None = None
    by: str = "api"


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job: the revisions of the declared applications, and those that are deleted because they were
    not declared. Or an error, by its class's name.
    """

    revisions: dict[str, int] = {}
    deleted: tuple[str, ...] = ()
    error: str = ""
    message: str = ""


class Deployer(Protocol):
    """Takes up jobs."""

    async def take(self, job: Job) -> Taken:
        """Build what the job declares, and hand it to the controller. Raises the error that says why not."""


class ProcessDeployer:
    """A process for each job, a few at once. Modules are imported from `app_dir`."""

    def __init__(
        self, instance: str, app_dir: Path, *, timeout_s: float = BUILD_TIMEOUT_S, most_at_once: int = MOST_BUILDS
    ) -> None:
        self._instance = instance
        self._app_dir = app_dir
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(most_at_once)
        self._waiting = 0
        self._all = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<ProcessDeployer from {self._app_dir}, {self._waiting} jobs>"

    async def take(self, job: Job) -> Taken:
        """Raises RequestTimeoutError, Busy, DeployFailedError, and what the job's process answers with."""
        if self._waiting >= MOST_WAITING:
            raise Busy(f"{self._waiting} deploys are being built or wait for that already")
        self._waiting += 1
        try:
            # Two declarations of all applications: one after the other, or the outcome is neither.
            async with contextlib.AsyncExitStack() as stack:
                if not job.only:
                    await stack.enter_async_context(self._all)
                await stack.enter_async_context(self._places)
                return await self._run(job)
        finally:
            self._waiting -= 1

    async def _run(self, job: Job) -> Taken:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "headrace.api.build",
            str(self._app_dir),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,  # the result's alone: what imported modules print goes to stderr
            env={**os.environ, "HEADRACE_INSTANCE": self._instance},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                raw, _ = await process.communicate(msgspec.json.encode(job))
        except TimeoutError:
            raise RequestTimeoutError(
                f"what the config declares was not built within {self._timeout_s:g} s: does a module of it wait for "
                "something while it is imported?"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with what it started: its group is its own
                await process.wait()
        return _taken(raw, process.returncode or 0)


def _taken(raw: bytes, code: int) -> Taken:
    try:
        taken = msgspec.json.decode(raw, type=Taken)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        logger.error("a process that builds applications ended with code %d, and what it said is above", code)
        raise DeployFailedError(
            f"the process that imports what the config declares ended with code {code}; the log of `headrace api` has "
            "what it said"
        ) from None
    if taken.error:
        raise named_error(Failed(taken.error, taken.message))
    return taken
