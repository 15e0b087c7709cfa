"""The lifespan of an ASGI application in its replica: startup before the first request, shutdown after the last.

In: the application. Out: `startup` returns or raises what the application raised, `state` is what its requests see;
`shutdown` ends it. An application that does not know the protocol has none, which is no error.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from headrace.spec.errors import UserCodeError
from headrace.wire.payload import traceback_text

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

log = logging.getLogger("headrace.replica")

UNWIND_S = 0.5  # what a cancelled shutdown has to come to an end


class Lifespan:
    """`startup` once, then `shutdown` once, both on the replica's loop."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._messages = asyncio.Queue[str]()
        self._taken = False  # the application has taken a message: it knows the protocol
        self._started = asyncio.Event()
        self._failure: str | None = None
        self._error: BaseException | None = None

    async def startup(self) -> None:
        """Until the application says that it is ready. Raises what its startup raised."""
        self._messages.put_nowait("lifespan.startup")
        self._task = task = asyncio.get_running_loop().create_task(self._run(), name="lifespan")
        started = asyncio.get_running_loop().create_task(self._started.wait())
        try:
            await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
            if self._failure is not None:
                await asyncio.wait((task,))  # what it raises says more than its message
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait((task,), timeout=UNWIND_S)
            raise
        finally:
            started.cancel()
        if task.done():
            self._task = None
            if self._failure is not None:
                why = self._failure or "it does not say why"
                raise self._error or UserCodeError(f"the application's startup failed: {why}")
            if self._error is not None and self._taken:
                raise self._error
            log.debug("the application has no lifespan: %s", self._error)

    async def shutdown(self, by: float) -> None:
        """Tell the application that it ends, and wait for it until `by`, in the loop's time. Errors go to the log."""
        task = self._task
        if task is None:
            return
        self._messages.put_nowait("lifespan.shutdown")
        loop = asyncio.get_running_loop()
        await asyncio.wait((task,), timeout=max(0.0, by - loop.time()))
        if not task.done():
            log.warning("the application's shutdown did not end in time")
            task.cancel()
            await asyncio.wait((task,), timeout=UNWIND_S)
        self._task = None
        if self._error is not None:
            log.error("the application's shutdown raised\n%s", traceback_text(self._error).rstrip())
        elif self._failure is not None:
            log.error("the application's shutdown failed: %s", self._failure)

    def cancel(self) -> None:
        """End it without more ado, if it still runs."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the top of a task; to raise a SystemExit from it would end the loop
            self._error = error

    async def _receive(self) -> Message:
        self._taken = True
        return {"type": await self._messages.get()}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._failure = message.get("message", "")
        if kind.startswith("lifespan.startup."):
            self._started.set()
