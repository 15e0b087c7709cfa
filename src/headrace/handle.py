"""Handles: calls from Python to a deployment, from any thread, any event loop and any process of the instance.

In: arguments of users' code (a script, a notebook, another deployment). Out: calls to the process's router, and their
results to whoever awaits them, as often as they like.

Who may touch what: a response changes its state on the thread of the router's loop, or, when it is cancelled, on that
of whoever cancels. Everyone else appends a waiter first and looks at the state after, so that none is left asleep.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import os
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import msgspec

from headrace import runtime as runtimes
from headrace.context import RequestContext, current_replica, request_variable
from headrace.core.traffic import own_revision
from headrace.router import Call
from headrace.runtime import Runtime
from headrace.spec.errors import (
    HeadraceError,
    InstanceError,
    LoopBlockedError,
    OptionError,
    OptionTypeError,
    PayloadError,
    RequestCancelledError,
    RequestTimeoutError,
)
from headrace.wire import payload
from headrace.wire.frames import ErrorInfo

# States of a response. PENDING ends in one of the next three; REPLIED becomes VALUE when somebody wants it.
PENDING, REPLIED, FAILED, CANCELLED, VALUE = range(5)

_get_ident = threading.get_ident
_encode = payload.encode


def new_request_id() -> str:
    """A random id in the form of a UUID (version 4)."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


class DeploymentResponse(Call):
    """The result of a call that is on its way: await it, or ask for `.result()`, as often as needed.

    The call was made when this came from `.remote()`, whether or not anybody waits for it. Given as an argument to
    another call, the callee gets its result. Cancelling what awaits it cancels the call, unless others wait for it too
    (`asyncio.shield` keeps it alive).
    """

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
        self._value: Any = None
        self._waiters: list[Callable[[], None]] = []
        self._submitted = False
        self._siblings: set[Any] | None = None  # calls of the same request; this one leaves when it ends

    def __repr__(self) -> str:
        state = ("pending", "done", "failed", "cancelled", "done")[self._state]
        return f"<DeploymentResponse {self.app}/{self.deployment}.{self.method} {self.request_id} {state}>"

    def __reduce__(self) -> NoReturn:
        raise PayloadError(
            "a DeploymentResponse does not pickle: pass it as an argument of its own to another `.remote()` call (not "
            "inside a list or an object), or await it (`.result()` outside of an event loop) and pass the result"
        )

    # ---- for its user

    def __await__(self) -> Generator[Any, None, Any]:
        """The result. Raises the error of the user's code with its own type, or a HeadraceError."""
        if self._state == PENDING:
            yield from self._wait()
        return self._take()

    def result(self, timeout_s: float | None = None) -> Any:
        """Block until the result is there, `timeout_s` seconds at most (None: for ever).

        Raises TimeoutError when it is late (the call goes on), RuntimeError on a thread that runs an event loop (await
        there), the error of the user's code with its own type, or a HeadraceError.
        """
        if asyncio._get_running_loop() is not None:
            raise LoopBlockedError(
                "DeploymentResponse.result() would block the running event loop: `await` the response instead"
            )
        if self._state == PENDING:
            self._block(timeout_s)
        return self._take()

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

    def cancelled(self) -> bool:
        """Whether the call was cancelled before it ended."""
        return self._state == CANCELLED

    def done(self) -> bool:
        """Whether the call has ended: with a result, an error, or by cancellation."""
        return self._state != PENDING

    # ---- for the router, on its loop

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """The whole result."""
        self._end(REPLIED, payload)

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
            raise PayloadError(f"{self.deployment}.{self.method}: {what or error}") from error.__cause__
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
            self._end(
                FAILED,
                RequestTimeoutError(
                    f"{self.deployment}.{self.method} did not answer in time (request {self.request_id})"
                ),
            )

    def _send_when_resolved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Submit the call once the responses among its arguments have ended; one that failed fails this call too."""
        needed = [a for a in (*args, *kwargs.values()) if isinstance(a, DeploymentResponse)]
        _Resolution(self, args, kwargs, needed).advance()

    # ---- waiting

    def _take(self) -> Any:
        """The outcome of a response that is no longer pending: return the value or raise the error."""
        raw = self._outcome
        state = self._state  # after the outcome: while this is REPLIED, no other thread has taken the payload away
        if state == REPLIED:
            self._value = payload.decode(raw, self.buffers)  # type: ignore[arg-type]
            self._state = VALUE
            self._outcome = None
            return self._value
        if state == VALUE:
            return self._value
        if state == CANCELLED:
            raise RequestCancelledError(f"the call {self.request_id} to {self.deployment}.{self.method} was cancelled")
        error = raw if isinstance(raw, BaseException) else payload.decode_error(raw)
        self._outcome = error
        raise error.with_traceback(None)  # it may be raised again: it must not collect the frames of every raise

    def _wait(self) -> Generator[Any, None, None]:
        """Give way to the running loop until the call has ended."""
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
            if self._state == PENDING:
                yield from future
        except asyncio.CancelledError:
            self._forget(wake)
            if not self._waiters:
                self.cancel()
            raise
        finally:
            runtime.waiting.discard(self)

    def _block(self, timeout_s: float | None) -> None:
        """Block the thread until the call has ended."""
        lock = threading.Lock()
        lock.acquire()
        wake = lock.release
        waiting = self._runtime.waiting
        waiting.add(self)  # before the look whether the runtime is alive: who closes it looks here after
        self._waiters.append(wake)
        try:
            self._check_alive()
            woken = self._state != PENDING or lock.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
        finally:
            waiting.discard(self)
        if not woken:
            self._forget(wake)
            if self._state == PENDING:
                raise TimeoutError(
                    f"no result of {self.deployment}.{self.method} within {timeout_s:g} s (request {self.request_id}); "
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
                f"the call {self.request_id} to {self.deployment}.{self.method} belongs to a connection that was "
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


class HandleOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `.options()` of a handle changes. `special`: any of them but the method is set, and applies to each call."""

    method_name: str = "__call__"
    timeout_s: float | None = None
    session_id: str | None = None
    multiplexed_model_id: str | None = None
    special: bool = False


# Options of Ray Serve's handles that choose how arguments travel: here there is one way, and it keeps every type.
_IGNORED = {"request_serialization", "response_serialization", "use_new_handle_api"}
_TEXTS = ("method_name", "session_id", "multiplexed_model_id")


def _checked(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes that a handle's `.options()` was given, as fields of HandleOptions."""
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        if name == "stream":
            if value:
                raise OptionError(
                    "stream=True is not supported yet: handles cannot read a generator's items one by one. Return a "
                    "list, or stream over HTTP with a StreamingResponse"
                )
        elif name in _IGNORED:
            continue
        elif name in _TEXTS:
            if not isinstance(value, str):
                raise OptionTypeError(f"{name}={value!r} of a handle must be a string, not {type(value).__name__}")
            fields[name] = value or None
            if name == "method_name" and not value:
                raise OptionError("method_name='' of a handle must name a method of the deployment")
        elif name == "timeout_s":
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise OptionTypeError(f"timeout_s={value!r} of a handle must be a number of seconds, or None")
            if value is not None and not value > 0:
                raise OptionError(f"timeout_s={value!r} of a handle must be greater than 0, or None for no limit")
            fields[name] = value
        else:
            known = [*_TEXTS, "timeout_s", "stream"]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise OptionTypeError(f"a handle has no option {name!r}: {hint}")
    if fields.keys() - {"method_name"}:
        fields["special"] = True
    return fields


def _apply(options: HandleOptions, response: DeploymentResponse) -> None:
    """Set on the call what the handle's options say."""
    if options.timeout_s is not None:
        deadline = time.monotonic() + options.timeout_s  # the clock of every event loop on Linux
        if response.deadline is None or deadline < response.deadline:
            response.deadline = deadline
            response._timed = True
    if options.session_id is not None:
        response.sticky = options.session_id
    if options.multiplexed_model_id is not None:
        response.model_id = options.multiplexed_model_id


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


class _Resolution:
    """Waits for the responses among a call's arguments, one after the other, and sends the call with their results."""

    def __init__(
        self,
        response: DeploymentResponse,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        needed: list[DeploymentResponse],
    ) -> None:
        self.response = response
        self.args = args
        self.kwargs = kwargs
        self.needed = needed

    def advance(self) -> None:
        """Go on as far as can be: wait for the next response, or send."""
        try:
            needed = self.needed
            while needed:
                if needed[-1]._state == PENDING and self._sleep_on(needed[-1]):
                    return
                needed.pop()
            if self.response._state == PENDING:  # else it was cancelled meanwhile
                args = tuple([a._take() if isinstance(a, DeploymentResponse) else a for a in self.args])
                kwargs = {k: v._take() if isinstance(v, DeploymentResponse) else v for k, v in self.kwargs.items()}
                self.response._send(args, kwargs)
        except Exception as error:  # whatever an argument's call raised is this call's error
            self.response._runtime.post(functools.partial(self.response._end, FAILED), error)

    def _sleep_on(self, needed: DeploymentResponse) -> bool:
        """Whether `needed` will call `advance` when it ends; False: it has ended, and the caller goes on."""
        needed._check_alive()
        first = threading.Lock()  # its end may wake us while we find out ourselves: only one of the two goes on

        def wake() -> None:
            if first.acquire(blocking=False):
                self.advance()

        needed._waiters.append(wake)
        return needed._state == PENDING or not first.acquire(blocking=False)


class DeploymentHandle:
    """A way to call a deployment of an application: `handle.remote(...)`, `handle.method.remote(...)`.

    Handles of the same deployment are equal and hash alike, whatever their options. A handle can be pickled and used in
    any process of the instance, on any thread. In a replica, calls belong to the request that the calling code works
    for: they stay in its revision (within the application) and carry its id, deadline and trace. Outside of any request
    (in a constructor, say) they go where new requests go, or stay in the revision of a replica that has no share of
    those yet, or no more.
    """

    def __init__(self, deployment_name: str, app_name: str = "default", options: HandleOptions | None = None) -> None:
        self.deployment_name = deployment_name
        self.app_name = app_name
        self._options = options or HandleOptions()

    @property
    def deployment_id(self) -> tuple[str, str]:
        """(deployment, application)."""
        return self.deployment_name, self.app_name

    def __repr__(self) -> str:
        method = "" if self._options.method_name == "__call__" else f", method={self._options.method_name!r}"
        return f"DeploymentHandle(deployment={self.deployment_name!r}, app={self.app_name!r}{method})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeploymentHandle):
            return NotImplemented
        return self.deployment_name == other.deployment_name and self.app_name == other.app_name

    def __hash__(self) -> int:
        return hash((self.deployment_name, self.app_name))

    def __reduce__(self) -> tuple[Any, ...]:
        return DeploymentHandle, (self.deployment_name, self.app_name, self._options)

    def __getattr__(self, name: str) -> DeploymentHandle:
        # Names with two underscores are Python asking for a protocol (copy, pickle, numpy...), not a method to call.
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        method = self._with(method_name=name)
        self.__dict__[name] = method  # so that `handle.method` costs a look-up from now on
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        method = "" if self._options.method_name == "__call__" else f".{self._options.method_name}"
        raise OptionTypeError(
            f"a handle is not called directly: use handle{method}.remote(...) to call {self.deployment_name!r}"
        )

    def options(self, **changes: Any) -> DeploymentHandle:
        """This handle with other options: `method_name`, `timeout_s` (seconds that the answer matters, from `.remote()`
        on), `session_id` (calls with the same one go to the same replica where they can), `multiplexed_model_id`.

        Raises OptionError or OptionTypeError.
        """
        return self._with(**_checked(changes))

    def _with(self, **changes: Any) -> DeploymentHandle:
        return DeploymentHandle(self.deployment_name, self.app_name, msgspec.structs.replace(self._options, **changes))

    def remote(self, *args: Any, **kwargs: Any) -> DeploymentResponse:
        """Call the deployment with these arguments; the call is on its way when this returns.

        Arguments that are DeploymentResponses themselves are replaced by their results before the call is sent.
        Raises PayloadError for what cannot be pickled, InstanceError in a script whose instance does not run; all else
        is raised where the result is asked for.
        """
        options = self._options
        runtime = runtimes._slot.runtime
        if runtime is None or not runtime.alive:
            runtime = runtimes.current()
        response = DeploymentResponse(runtime, self.app_name, self.deployment_name, options.method_name)
        request = request_variable.get()
        if request is not None:
            meta = request.meta
            response.request_id = meta.request_id
            if meta.app == self.app_name:
                response.revision = meta.revision
            response.deadline = request.deadline
            response.trace = meta.trace
            response.sticky = meta.sticky
            calls = request.calls
            if calls is None:
                calls = request.calls = set()
            calls.add(response)
            response._siblings = calls
        else:
            response.request_id = new_request_id()
            replica = current_replica()
            if replica is not None and replica.app_name == self.app_name:
                entry = runtime.router.snapshot.applications.get(self.app_name)
                if entry is not None:
                    response.revision = own_revision(entry, replica.deployment, replica.revision)
        if options.special:
            _apply(options, response)
        for argument in args:
            if isinstance(argument, DeploymentResponse):
                response._send_when_resolved(args, kwargs)
                return response
        if kwargs:
            for argument in kwargs.values():
                if isinstance(argument, DeploymentResponse):
                    response._send_when_resolved(args, kwargs)
                    return response
        response._send(args, kwargs)
        return response

    def shutdown(self) -> None:
        """Let go of what the handle holds. The process's connections are shared, so there is nothing to do."""

    async def shutdown_async(self) -> None:
        """As `shutdown`, from async code."""
