"""What a call made by a handle is, whether it has one result or many: how it is sent, waited for, cancelled.

In: arguments of users' code. Out: a call to the process's router, and the wake-up of whoever waits for it.

Who may touch what: a call changes its state on the thread of the router's loop, or, when it is cancelled, on that of
whoever cancels. Everyone else appends a waiter first and looks at the state after, so that none is left asleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import types
from abc import abstractmethod
from collections.abc import Callable, Generator
from typing import Any

from headrace.context import RequestContext
from headrace.router import Call
from headrace.runtime import Runtime
from headrace.spec.errors import (
    HeadraceError,
    InstanceError,
    PayloadError,
    RequestCancelledError,
    RequestTimeoutError,
)
from headrace.wire import payload
from headrace.wire.frames import ErrorInfo

# States of a call. PENDING ends in one of the next three; REPLIED becomes VALUE when somebody wants it.
PENDING, REPLIED, FAILED, CANCELLED, VALUE = range(5)

_get_ident = threading.get_ident
_encode = payload.encode


class HandleCall(Call):
    """A call by a handle. Subclasses say what comes of it, and by `_settled` when a waiter may go on."""

    whole = True  # parts of a large result are joined before on_reply
    _timed = False  # its handle gave it a time of its own, after which it is cancelled
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, runtime: Runtime, app: str, deployment: str, method: str) -> None:
        self.app = app
        self.deployment = deployment
        self.method = method
        self._runtime = runtime
        self._state = PENDING
        self._outcome: Any = None  # REPLIED: the payload; FAILED: an ErrorInfo or an exception
        self._waiters: list[Callable[[], None]] = []
        self._submitted = False
        self._siblings: set[Any] | None = None  # calls of the same request; this one leaves when it ends

    @property
    def _name(self) -> str:
        return f"{self.deployment}.{self.method}"

    @abstractmethod
    def _settled(self) -> bool:
        """Whether there is something for who waits."""

    # ---- for its user

    def cancel(self) -> None:
        """Cancel the call: a queued one does not start, one that runs is cancelled in its replica.

        Without effect on a call that has ended. Who waits for it gets RequestCancelledError.
        """
        if self._state != PENDING:
            return
        self._state = CANCELLED
        runtime = self._runtime
        if _get_ident() == runtime.thread_id:
            self._withdraw(None)
        elif runtime.alive:
            runtime.post(self._withdraw, None)

    def let_go(self) -> None:
        """Cancel it from a finalizer, which may run in the midst of anything: the loop does it, in its turn."""
        if self._state == PENDING and self._runtime.alive:
            self._state = CANCELLED
            with contextlib.suppress(InstanceError):  # the loop has ended, and the call with it
                self._runtime.post(self._withdraw, None)

    def cancelled(self) -> bool:
        """Whether the call was cancelled before it ended."""
        return self._state == CANCELLED

    def done(self) -> bool:
        """Whether the call has ended: with a result, an error, or by cancellation."""
        return self._state != PENDING

    # ---- for the router, on its loop

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        """The call failed, in the replica or before it."""
        self._end(FAILED, error)

    def _end(self, state: int, outcome: Any) -> None:
        if self._state != PENDING:
            return
        self._outcome = outcome
        self._state = state
        self.body = b""
        if self._siblings is not None:
            self._siblings.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def _withdraw(self, _: None) -> None:
        if self._siblings is not None:
            self._siblings.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._submitted:
            self._runtime.router.cancel(self)
        self._wake()

    # ---- sending

    def _send(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Encode the arguments and submit the call."""
        try:
            encoded = _encode((args, kwargs))
        except PayloadError as error:
            what = _unsendable(args, kwargs)
            raise PayloadError(f"{self._name}: {what or error}") from error.__cause__
        self.body = encoded.data
        if encoded.buffers:
            self.buffers = encoded.buffers
        runtime = self._runtime
        if _get_ident() != runtime.thread_id:
            runtime.post(self._submit, None)
        elif self._timed:
            self._submit(None)
        else:
            self._submitted = True
            runtime.router.submit(self)

    def _submit(self, _: None) -> None:
        if self._state != PENDING:
            return  # it was cancelled before the loop came to it
        self._submitted = True
        if self._timed:
            assert self.deadline is not None
            self._timer = self._runtime.loop.call_at(self.deadline, self._expire)
        self._runtime.router.submit(self)

    def _expire(self) -> None:
        """The time that its handle gave it is over: whatever works on it may stop."""
        if self._state == PENDING:
            self._runtime.router.cancel(self)
            self._fail_late()

    def _fail_late(self) -> None:
        self.fail(RequestTimeoutError(f"{self._name} did not answer in time (request {self.request_id})"))

    # ---- waiting

    def _error(self) -> BaseException:
        """What a call that did not end well raises: each time it is asked."""
        if self._state == CANCELLED:
            return RequestCancelledError(f"the call {self.request_id} to {self._name} was cancelled")
        raw = self._outcome
        error = raw if isinstance(raw, BaseException) else payload.decode_error(raw)
        self._outcome = error
        return error.with_traceback(None)  # it may be raised again: it must not collect the frames of every raise

    def _wait(self) -> Generator[Any, None, None]:
        """Give way to the running loop until there is something for who waits."""
        runtime = self._runtime
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        wake: Callable[[], None]
        if _get_ident() == runtime.thread_id:
            wake = functools.partial(_resolve, future)
        else:
            wake = functools.partial(_resolve_elsewhere, loop, future)
            runtime.waiting.add(self)
        self._waiters.append(wake)
        try:
            self._check_alive()
            if self._settled():
                self._forget(wake)
            else:
                yield from future
        except asyncio.CancelledError:
            self._forget(wake)
            if not self._waiters:
                self.cancel()
            raise
        finally:
            runtime.waiting.discard(self)

    def _block(self, timeout_s: float | None) -> None:
        """Block the thread until there is something for who waits."""
        lock = threading.Lock()
        lock.acquire()
        wake = lock.release
        waiting = self._runtime.waiting
        waiting.add(self)  # before the look whether the runtime is alive: who closes it looks here after
        self._waiters.append(wake)
        try:
            self._check_alive()
            woken = self._settled() or lock.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
        finally:
            waiting.discard(self)
        if not woken:
            self._forget(wake)
            if self._state == PENDING:
                raise TimeoutError(
                    f"no result of {self._name} within {timeout_s:g} s (request {self.request_id}); "
                    "the call goes on: ask again, or cancel() it"
                )

    def _forget(self, wake: Callable[[], None]) -> None:
        try:
            self._waiters.remove(wake)
        except ValueError:
            pass  # it was woken meanwhile

    def _check_alive(self) -> None:
        if not self._runtime.alive:
            raise InstanceError(
                f"the call {self.request_id} to {self._name} belongs to a connection that was "
                "closed, or to the parent of this process: make the call again"
            )


def _unsendable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Which argument cannot be sent, and why; "" when each could be alone."""
    for label, value in (*enumerate(args), *kwargs.items()):
        try:
            _encode(value)
        except PayloadError as error:
            inner = error.__cause__  # that of a response among the parts of an argument says what to do instead
            return f"argument {label!r}: {inner if isinstance(inner, PayloadError) else error}"
    return ""


@types.coroutine
def until_settled(call: HandleCall) -> Generator[Any, None, None]:
    """Wait, on any loop, until there is something for who waits for the call; cancelled, it may cancel the call."""
    yield from call._wait()


def cancel_calls(request: RequestContext | None) -> None:
    """Cancel the calls that the code of a request made and that have not ended. From any thread."""
    if request is not None and request.calls:
        for call in list(request.calls):
            call.cancel()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _resolve_elsewhere(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_resolve, future)
    except RuntimeError:
        pass  # that loop was closed, and nobody waits on it any more
