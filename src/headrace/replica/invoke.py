"""Runs the calls of one replica: coroutines on the event loop, plain functions in threads.

In: calls that have a slot, from the server. Out: their results and errors, through the same `Incoming`; errors of user
code with their traceback to the log. Any error of user code, of whatever kind, ends its own request alone.

An asynchronous call costs one task and nothing more; a plain one costs no task, only its turn in a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import difflib
import inspect
import logging
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

import headrace
from headrace.context import ReplicaContext, RequestContext, request_variable
from headrace.handle import cancel_calls
from headrace.replica.request import HttpRequest
from headrace.replica.response import AsgiReply, is_whole, json_body, render, send_whole
from headrace.replica.threads import Done, ThreadPool
from headrace.spec.errors import (
    MethodNotFound,
    NotServableError,
    PayloadError,
    RequestCancelledError,
    RequestTimeoutError,
    ServingError,
)
from headrace.wire import payload
from headrace.wire.frames import HTTP, ErrorInfo

if TYPE_CHECKING:
    from headrace.replica.incoming import Incoming

log = logging.getLogger("headrace.replica")

_PACKAGE = f"{Path(headrace.__file__).parent}/"
_current_task = asyncio.current_task
_set_request = request_variable.set
_decode, _encode = payload.decode, payload.encode
_GONE = ErrorInfo("headrace.spec.errors.RequestCancelledError", "the caller has left", "", RequestCancelledError.status)
# What user code may raise because its caller has left.
_LEAVING = (asyncio.CancelledError, RequestCancelledError, ClientDisconnect, OSError)


class Method(msgspec.Struct, frozen=True):
    """A method as it is called: `serve` with the Request of an HTTP call, `function` with the arguments of others."""

    name: str
    function: Callable[..., Any]
    serve: Callable[[HttpRequest], Any]
    is_async: bool


class Invoker:
    """Runs calls on `servable`, the user's instance or function. All methods belong to the loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, servable: object, replica: ReplicaContext, threads: ThreadPool
    ) -> None:
        self._loop = loop
        self._servable = servable
        self._replica = replica
        self._threads = threads
        self._methods: dict[str, Method] = {}
        self._responding: set[asyncio.Task[Any]] = set()  # they run a response, and maybe go on after its end
        self._rested = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Invoker of {self._replica.replica_id} responding={len(self._responding)}>"

    def start(self, incoming: Incoming) -> None:
        """Run the call; never raises. The server calls this on the loop as soon as the call has a slot."""
        meta = incoming.meta
        method = self._methods.get(meta.method)
        if method is None:
            try:
                method = self._methods[meta.method] = find_method(self._servable, meta.method)
            except Exception as error:  # MethodNotFound, and what properties and signatures of users raise
                incoming.fail(self._tell(incoming, error))
                return
        remaining = meta.remaining_s
        deadline = None if remaining < 0 else self._loop.time() + remaining
        if method.is_async:
            run = self._run_http if incoming.flags & HTTP else self._run_call
            asyncio.Task(run(incoming, method, deadline), loop=self._loop, name="call")
        else:
            # Nothing cancels a thread, only the calls that it waits for; the slot is taken until it has returned.
            self._threads.submit(partial(self._in_thread, incoming, method, deadline))

    async def rested(self) -> None:
        """Until no background task of a response that was sent is left."""
        while self._responding:
            self._rested.clear()
            await self._rested.wait()

    def cancel_background(self) -> None:
        """Cancel the background tasks of responses that were sent, and responses that are being sent."""
        for task in self._responding:
            task.cancel()

    # ---- on the loop

    # A task that is cancelled before its first step never takes it, and could not free its slot: so each makes itself
    # cancellable in its first step, which looks whether that is too late.

    async def _run_http(self, incoming: Incoming, method: Method, deadline: float | None) -> None:
        try:
            incoming.on_cancel = _current_task(self._loop).cancel  # type: ignore[assignment, union-attr]
            if incoming.cancelled:
                raise asyncio.CancelledError
            if deadline is not None:
                self._check_deadline(incoming, deadline)
            _set_request(RequestContext(incoming.meta, deadline, self._replica))
            request = HttpRequest(incoming)
            try:
                result = await method.serve(request)
            except HTTPException as error:
                result = _response_of(error)
            if type(result) is dict:
                incoming.reply(json_body(result), b"", HTTP)
            else:
                await self._respond(incoming, request, result)
        except BaseException as error:  # the top of the task: whatever user code raises is this request's error alone
            self._fail(incoming, error)

    async def _run_call(self, incoming: Incoming, method: Method, deadline: float | None) -> None:
        try:
            incoming.on_cancel = _current_task(self._loop).cancel  # type: ignore[assignment, union-attr]
            if incoming.cancelled:
                raise asyncio.CancelledError
            if deadline is not None:
                self._check_deadline(incoming, deadline)
            _set_request(RequestContext(incoming.meta, deadline, self._replica))
            args, kwargs = _decode(incoming.body, incoming.buffers)
            incoming.answer(_encode(await method.function(*args, **kwargs)))
        except BaseException as error:  # as in _run_http
            self._fail(incoming, error)

    async def _run_rest(self, incoming: Incoming, request: HttpRequest | None, result: Any) -> None:
        """What is left to do on the loop of a call whose method ran in a thread."""
        try:
            incoming.on_cancel = _current_task(self._loop).cancel  # type: ignore[assignment, union-attr]
            if incoming.cancelled:
                if inspect.iscoroutine(result):
                    result.close()
                raise asyncio.CancelledError
            if inspect.isawaitable(result):
                result = await result
            if request is None:
                incoming.answer(_encode(result))
            else:
                await self._respond(incoming, request, result)
        except BaseException as error:  # as in _run_http
            self._fail(incoming, error)

    async def _respond(self, incoming: Incoming, request: HttpRequest, result: Any) -> None:
        if not isinstance(result, Response):
            body, head = render(result)
            incoming.reply(body, head, HTTP)
        elif is_whole(result):
            send_whole(incoming, result)
        else:
            await self._run_response(incoming, request, result)

    async def _run_response(self, incoming: Incoming, request: HttpRequest, response: Response) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._responding.add(task)
        reply = AsgiReply(incoming)
        try:
            await response(request.scope, request.receive, reply.send)
            reply.check_finished()
        except BaseException as error:  # of a background task it comes too late for the client: only the log has it
            if not reply.finished:
                raise
            self._tell(incoming, error)
        finally:
            self._responding.discard(task)
            self._rested.set()

    # ---- in a thread

    def _in_thread(self, incoming: Incoming, method: Method, deadline: float | None) -> Done:
        """Run the call in this thread, in a context of its own; the loop does what is returned."""
        context = contextvars.Context()
        return context.run(self._work, incoming, method, deadline, context)

    def _work(self, incoming: Incoming, method: Method, deadline: float | None, context: contextvars.Context) -> Done:
        try:
            if incoming.cancelled:
                return partial(incoming.fail, _GONE)
            if deadline is not None:
                self._check_deadline(incoming, deadline)
            request = RequestContext(incoming.meta, deadline, self._replica)
            _set_request(request)
            incoming.on_cancel = partial(cancel_calls, request)
            if incoming.flags & HTTP:
                return self._work_http(incoming, method, context)
            args, kwargs = _decode(incoming.body, incoming.buffers)
            result = method.function(*args, **kwargs)
            if inspect.isawaitable(result):
                return partial(self._go_on, incoming, None, result, context)
            return partial(incoming.answer, _encode(result))
        except BaseException as error:  # the top of the thread's work, as in _run_http
            return partial(incoming.fail, self._error_of(incoming, error))

    def _work_http(self, incoming: Incoming, method: Method, context: contextvars.Context) -> Done:
        request = HttpRequest(incoming)
        try:
            result = method.serve(request)
        except HTTPException as error:
            result = _response_of(error)
        if isinstance(result, Response) or inspect.isawaitable(result):
            return partial(self._go_on, incoming, request, result, context)
        body, head = render(result)
        return partial(incoming.reply, body, head, HTTP)

    def _go_on(
        self, incoming: Incoming, request: HttpRequest | None, result: Any, context: contextvars.Context
    ) -> None:
        self._loop.create_task(self._run_rest(incoming, request, result), context=context)

    # ---- errors

    def _check_deadline(self, incoming: Incoming, deadline: float) -> None:
        if self._loop.time() >= deadline:
            meta = incoming.meta
            raise RequestTimeoutError(
                f"the time of request {meta.request_id} was over before {meta.method} could start on "
                f"{self._replica.replica_id}"
            )

    def _fail(self, incoming: Incoming, error: BaseException) -> None:
        if incoming.cancelled:
            cancel_calls(request_variable.get())
        incoming.fail(self._error_of(incoming, error))

    def _error_of(self, incoming: Incoming, error: BaseException) -> ErrorInfo:
        if incoming.cancelled and isinstance(error, _LEAVING):
            return _GONE
        return self._tell(incoming, error)

    def _tell(self, incoming: Incoming, error: BaseException) -> ErrorInfo:
        """Log the error for people, and make what the caller gets. Errors that say all in a line get a line."""
        meta = incoming.meta
        info = payload.encode_error(error)
        where = f"{self._replica.deployment}.{meta.method}"
        if isinstance(error, ServingError | MethodNotFound | RequestCancelledError):
            log.warning("request %s: %s: %s: %s", meta.request_id, where, type(error).__name__, info.message)
        elif isinstance(error, NotServableError):
            log.error("request %s: %s returned what is no HTTP response: %s", meta.request_id, where, info.message)
        elif isinstance(error, PayloadError) and not is_of_user_code(error):
            log.error("request %s: arguments or result of %s: %s", meta.request_id, where, info.message)
        else:
            text = info.traceback_text.rstrip()
            log.error("request %s: %s raised %s\n%s", meta.request_id, where, type(error).__name__, text)
        return info


def is_of_user_code(error: BaseException) -> bool:
    """Whether user code raised the error, or passed it on: code that is not Headrace's is in the traceback."""
    return any(not frame.f_code.co_filename.startswith(_PACKAGE) for frame, _ in traceback.walk_tb(error.__traceback__))


def find_method(servable: object, name: str) -> Method:
    """The method of a servable by its name. Raises MethodNotFound, naming the nearest, for what there is not.

    Names that begin with an underscore are not for callers, except `__call__`.
    """
    function = None
    if name == "__call__":
        function = servable if callable(servable) else None
    elif not name.startswith("_") and not inspect.isroutine(servable):
        function = getattr(servable, name, None)
    if not callable(function):
        raise MethodNotFound(_no_method(servable, name))
    label = f"{_name_of(servable)}.{name}"
    target = function.__call__ if name == "__call__" and not inspect.isroutine(function) else function
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        refuse = partial(_refuse_generator, label)
        return Method(name, refuse, refuse, False)
    serve = function if _takes_an_argument(target) else partial(_without_request, function)
    return Method(name, function, serve, inspect.iscoroutinefunction(target))


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of an extension module, without a signature
        return True


def _without_request(function: Callable[[], Any], request: HttpRequest) -> Any:
    return function()


def _refuse_generator(label: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise NotServableError(
        f"{label} is a generator, and items are not sent one by one yet: return a list, or over HTTP a "
        "starlette.responses.StreamingResponse of the generator"
    )


def _no_method(servable: object, name: str) -> str:
    owner = _name_of(servable)
    if name.startswith("_") and name != "__call__":
        return f"{owner}.{name} is private: only methods whose names do not begin with an underscore can be called"
    if inspect.isroutine(servable):
        return f"{owner} is a function and has no method {name!r}: call handle.remote(...)"
    known = [n for n in dir(type(servable)) if not n.startswith("_") and callable(getattr(type(servable), n, None))]
    if name == "__call__":
        there = f"; it has {', '.join(known[:10])}" if known else ""
        return f"{owner} has no __call__, which HTTP requests and handle.remote() go to{there}"
    near = difflib.get_close_matches(name, known, 3)
    if near:
        return f"{owner} has no method {name!r}: did you mean {' or '.join(near)}?"
    return f"{owner} has no method {name!r}; it has {', '.join(known[:10]) or 'none'}"


def _name_of(servable: object) -> str:
    return getattr(servable, "__name__", None) or type(servable).__name__


def _response_of(error: HTTPException) -> Response:
    """The response that Starlette makes of an HTTPException."""
    if error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=error.headers)
    return PlainTextResponse(error.detail, status_code=error.status_code, headers=error.headers)
