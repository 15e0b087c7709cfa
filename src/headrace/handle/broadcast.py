"""One call to each replica of a deployment, at once, and all their results: `handle.broadcast(...)`.

In: arguments, encoded once. Out: to the router, one call for each replica that the snapshot lists; to whoever waits,
what came of each, when all have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, NoReturn

from headrace.handle.call import CANCELLED, FAILED, PENDING, REPLIED, HandleCall, until_settled
from headrace.router.call import Call
from headrace.runtime import Runtime
from headrace.spec.errors import HeadraceError, LoopBlockedError, PayloadError, ProtocolError, RequestTimeoutError
from headrace.wire import payload
from headrace.wire.frames import ErrorInfo


class _Part(Call):
    """The call to one replica, which waits for that alone, however many others wait."""

    whole = True
    hedge = False
    near = False

    def __init__(self, broadcast: DeploymentBroadcastResponse, revision: int, replica_id: str) -> None:
        super().__init__(broadcast.app, broadcast.deployment, broadcast.method)
        self.broadcast = broadcast
        self.revision = revision
        self.target = replica_id
        self.request_id = broadcast.request_id
        self.deadline = broadcast.deadline
        self.trace = broadcast.trace
        self.sticky = broadcast.sticky
        self.model_id = broadcast.model_id
        self.priority = broadcast.priority
        if broadcast.mirrored:
            self.mirrored = True
        self.body = broadcast.body
        self.buffers = broadcast.buffers
        self.outcome: bytes | HeadraceError | ErrorInfo | None = None

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        self.end(payload)

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self.end(error)

    def end(self, outcome: bytes | HeadraceError | ErrorInfo) -> None:
        self.body = b""
        self.outcome = outcome
        self.broadcast._part_ended()

    def result(self) -> tuple[bool, Any]:
        """(True, what the replica returned), or (False, the error)."""
        outcome = self.outcome
        try:
            if isinstance(outcome, bytes):
                return True, payload.decode(outcome, self.buffers)  # type: ignore[arg-type]
            error = payload.decode_error(outcome) if isinstance(outcome, ErrorInfo) else outcome
        except (PayloadError, ProtocolError) as unreadable:
            error = unreadable
        assert error is not None
        error.add_note(f"This came of the call to replica {self.target}.")
        return False, error


class DeploymentBroadcastResponse(HandleCall):
    """What comes of a call to all replicas: `await` it, or ask for `results()`, as often as needed.

    A replica that has no room is waited for. The calls are on their way when this came from `handle.broadcast`, whether
    or not anybody waits for them; they go to the replicas that take calls at that moment. The results come when all
    replicas have answered or failed: so when an error is raised, nothing is in work any more.
    """

    _timed = True  # to submit it is more than to give it to the router

    def __init__(self, runtime: Runtime, app: str, deployment: str, method: str) -> None:
        super().__init__(runtime, app, deployment, method)
        self._parts: list[_Part] = []
        self._left = 0
        self._results: list[tuple[bool, Any]] | None = None

    def __repr__(self) -> str:
        state = ("pending", "done", "failed", "cancelled")[self._state]
        return f"<DeploymentBroadcastResponse {self.app}/{self._name} {self.request_id} {state} of {len(self._parts)}>"

    def __reduce__(self) -> NoReturn:
        raise PayloadError("a DeploymentBroadcastResponse cannot be sent to another deployment: pass on its results")

    # ---- for its user

    def results(self, *, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        """Block until all replicas have answered or failed, `timeout_s` seconds at most; a result for each, as in
        `replica_ids`.

        An error takes the place of its result where `return_exceptions` is True, else the first is raised. Raises
        TimeoutError when it is late (the calls go on), RuntimeError on a thread that runs an event loop (await there).
        """
        _check_timeout(timeout_s)
        if asyncio._get_running_loop() is not None:
            raise LoopBlockedError(
                "DeploymentBroadcastResponse.results() would block the running event loop: `await` the response, or "
                "its `results_async()`"
            )
        if self._state == PENDING:
            self._block(timeout_s)
        return self._take(return_exceptions)

    async def results_async(self, *, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        """As `results`, from async code. Cancelling what awaits it cancels the calls, unless others wait for them."""
        _check_timeout(timeout_s)
        if self._state == PENDING:
            await self._end_within(timeout_s)
        return self._take(return_exceptions)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """`results_async()`."""
        return self.results_async().__await__()

    @property
    def replica_ids(self) -> list[str]:
        """The replicas that were called, in the order of the results, as soon as those are there."""
        return [part.target for part in self._parts if part.target is not None]

    # ---- waiting

    def _settled(self) -> bool:
        return self._state != PENDING

    async def _end_within(self, timeout_s: float | None) -> None:
        stay = _nothing  # who waits stays in the list when the time is over, so that the calls go on
        self._waiters.append(stay)
        try:
            async with asyncio.timeout(timeout_s):
                await until_settled(self)
        except TimeoutError:
            raise TimeoutError(
                f"not all replicas of {self._name} have answered within {timeout_s:g} s (request {self.request_id}); "
                "the calls go on: ask again, or cancel() them"
            ) from None
        except asyncio.CancelledError:
            self._forget(stay)
            if not self._waiters:
                self.cancel()
            raise
        finally:
            self._forget(stay)

    def _take(self, return_exceptions: bool) -> list[Any]:
        if self._state in (FAILED, CANCELLED):
            raise self._error()
        results = self._results
        if results is None:
            results = self._results = [part.result() for part in self._parts]
        if not return_exceptions:
            for came, result in results:
                if not came:
                    raise result.with_traceback(None)
        return [result for _, result in results]

    # ---- on the router's loop

    def _submit(self, _: None) -> None:
        if self._state != PENDING:
            return  # it was cancelled before the loop came to it
        runtime = self._runtime
        router = runtime.router
        try:
            listed = router.replicas_of(self.app, self.deployment, self.revision)
        except HeadraceError as error:
            self._end(FAILED, error)
            return
        self._submitted = True
        if self.deadline is not None:
            self._timer = runtime.loop.call_at(self.deadline, self._expire)
        self._parts = [_Part(self, revision, replica_id) for revision, replica_id in listed]
        self._left = len(self._parts)
        for part in self._parts:
            router.submit(part)

    def _part_ended(self) -> None:
        self._left -= 1
        if not self._left:
            self._end(REPLIED, None)

    def _withdraw(self, _: None) -> None:
        self._stop_parts()
        super()._withdraw(None)

    def _expire(self) -> None:
        if self._state != PENDING:
            return
        for part in self._stop_parts():
            part.end(RequestTimeoutError(f"{self._name} did not answer in time (request {self.request_id})"))

    def _stop_parts(self) -> list[_Part]:
        """Cancel the calls that have not ended."""
        waiting = [part for part in self._parts if part.outcome is None]
        for part in waiting:
            self._runtime.router.cancel(part)
        return waiting

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """Never: only its parts are sent."""


def _nothing() -> None:
    """What is done for one who only stays."""


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not timeout_s >= 0:
        raise ValueError(f"timeout_s={timeout_s!r} must be a number of seconds, 0 or more, or None for no limit")
