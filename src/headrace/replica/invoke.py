"""Runs the calls of one replica: coroutines on the event loop, plain functions in threads.

In: calls that have a slot, from the server. Out: their results and errors, through the same `Incoming`; errors of user
code with their traceback to the log. Any error of user code, of whatever kind, ends its own request alone.

An asynchronous call costs one task and nothing more; a plain one costs no task, only its turn in a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from headrace.context import ReplicaContext, RequestContext, request_variable
from headrace.handle import cancel_calls
from headrace.replica.batch_items import TOLD
from headrace.replica.batched_calls import BatchedCalls
from headrace.replica.compare import Comparer
from headrace.replica.failure import log_failure
from headrace.replica.methods import Method, find_method
from headrace.replica.outlet import BodyOutlet, Outlet
from headrace.replica.request import HttpRequest
from headrace.replica.response import ANSWERS, AsgiReply, is_whole, json_body, render, send_whole
from headrace.replica.streaming import Streams, is_stream, stream_error
from headrace.replica.threads import Done, ThreadPool
from headrace.spec.errors import (
    InputError,
    RequestCancelledError,
    RequestTimeoutError,
)
from headrace.wire import payload
from headrace.wire.compare import COMPARE
from headrace.wire.frames import GRPC, HTTP, STREAM, ErrorInfo

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from headrace.replica.grpc_call import GrpcCalls
    from headrace.replica.incoming import Incoming

_current_task = asyncio.current_task
_set_request = request_variable.set
_decode, _encode = payload.decode, payload.encode
_GONE = ErrorInfo("headrace.spec.errors.RequestCancelledError", "the caller has left", "", RequestCancelledError.status)
# What user code may raise because its caller has left, or its time was over (a TimeoutError is an OSError).
_LEAVING = (asyncio.CancelledError, RequestCancelledError, ClientDisconnect, OSError)
_SPECIAL = GRPC | STREAM
_THREAD_POLL_S = 0.01  # how often to look whether a thread has returned whose caller has left


class Invoker:
    """Runs calls on `servable`, the user's instance or function. All methods belong to the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        servable: object,
        replica: ReplicaContext,
        threads: ThreadPool,
        asgi: ASGIApp | None = None,
    ) -> None:
        self.loop = loop
        self.servable = servable
        self.replica = replica
        self.threads = threads
        self._asgi = asgi  # takes the HTTP requests, if there is one
        self._streams = Streams(self)
        self._grpc: GrpcCalls | None = None
        self._methods: dict[str, Method] = {}
        self._comparer: Comparer | None = None
        self._batched: dict[str, BatchedCalls] = {}  # of the methods that are batched
        self._responding: set[asyncio.Task[Any]] = set()  # they run a response, and maybe go on after its end
        self._rested = asyncio.Event()
        self._limiter: anyio.CapacityLimiter | None = None  # knows what waits for threads of frameworks

    def __repr__(self) -> str:
        return f"<Invoker of {self.replica.replica_id} responding={len(self._responding)}>"

    def start(self, incoming: Incoming) -> None:
        """Run the call; never raises. The server calls this on the loop as soon as the call has a slot."""
        remaining = incoming.meta.remaining_s
        deadline: float | None = None
        if remaining >= 0:
            if not remaining:
                incoming.fail(self.tell(incoming, self._late(incoming)))
                return
            deadline = self.loop.time() + remaining
            incoming.expire_at(deadline)
        flags = incoming.flags
        if flags & _SPECIAL or (self._asgi is not None and flags & HTTP):
            self._start_special(incoming, deadline)
            return
        name = incoming.meta.method
        method = self._methods.get(name) or self.find(incoming, name)
        if method is None:
            return
        if method.batched is not None:
            self._batched[name].start(incoming, deadline)
        elif method.streams:
            self._streams.start(incoming, method, deadline)
        elif method.on_loop:
            run = self._run_http if flags & HTTP else self._run_call
            asyncio.Task(run(incoming, method, deadline), loop=self.loop, name="call")
        else:
            # Nothing cancels a thread, only the calls that it waits for; the slot is taken until it has returned.
            self.threads.submit(partial(self._in_thread, incoming, method, deadline))

    def find(self, incoming: Incoming, name: str) -> Method | None:
        """The method that the call names; None when the call has failed for want of it, or is no call of a method."""
        method = self._methods.get(name)
        if method is None and name == COMPARE and incoming.meta.mirrored and not incoming.flags & (HTTP | _SPECIAL):
            self.threads.submit(partial(self._compare, incoming))
        elif method is None:
            try:
                method = self._know(name, find_method(self.servable, name))
            except Exception as error:  # MethodNotFound, and what properties and signatures of users raise
                incoming.fail(self.tell(incoming, error))
        return method

    def _know(self, name: str, method: Method) -> Method:
        if method.batched is not None:
            self._batched[name] = BatchedCalls(self, method)
        self._methods[name] = method
        return method

    def _start_special(self, incoming: Incoming, deadline: float | None) -> None:
        """What is not a plain call of a method for one result."""
        flags = incoming.flags
        if flags & GRPC:
            if self._grpc is None:
                from headrace.replica.grpc_call import GrpcCalls  # grpcio is loaded where it is used

                self._grpc = GrpcCalls(self)
            incoming.sleep_on()
            self._grpc.start(incoming, deadline)
        elif flags & HTTP:
            asyncio.Task(self._run_asgi(incoming, deadline), loop=self.loop, name="call")
        else:
            method = self.find(incoming, incoming.meta.method)
            if method is not None and method.batched is not None and method.streams:
                self._batched[method.name].start(incoming, deadline)
            elif method is not None:
                self._streams.start(incoming, method, deadline)

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

    def enter(self, incoming: Incoming, deadline: float | None) -> None:
        """The first step of a call's own task: it can be cancelled from now on, and its code sees its request."""
        if deadline is not None and time.monotonic() >= deadline:
            incoming.expired = True  # what came with it held up the loop, and its timer with it
        incoming.on_cancel = _current_task(self.loop).cancel  # type: ignore[assignment, union-attr]
        if incoming.cancelled or incoming.expired:
            raise asyncio.CancelledError
        _set_request(RequestContext(incoming.meta, deadline, self.replica, None, incoming))

    async def enter_again(self, incoming: Incoming, result: Any) -> Any:
        """As `enter`, for what a method gave that ran in a thread: it can be cancelled from now on. The result, awaited
        where it is to be.
        """
        incoming.on_cancel = _current_task(self.loop).cancel  # type: ignore[assignment, union-attr]
        if incoming.cancelled or incoming.expired:
            if inspect.iscoroutine(result):
                result.close()
            raise asyncio.CancelledError
        return await result if inspect.isawaitable(result) else result

    async def _run_http(self, incoming: Incoming, method: Method, deadline: float | None) -> None:
        try:
            self.enter(incoming, deadline)
            request = HttpRequest(incoming)
            try:
                result = await method.serve(request)
            except ANSWERS as error:
                result = _response_of(error)
            if type(result) is dict:
                incoming.reply(json_body(result), b"", HTTP)
            else:
                await self._respond(incoming, request, result)
        except BaseException as error:  # the top of the task: whatever user code raises is this request's error alone
            self.fail(incoming, error)

    async def _run_call(self, incoming: Incoming, method: Method, deadline: float | None) -> None:
        try:
            self.enter(incoming, deadline)
            args, kwargs = _decode(incoming.body, incoming.buffers)
            incoming.answer(_encode_result(await method.function(*args, **kwargs), method))
        except BaseException as error:  # as in _run_http
            self.fail(incoming, error)

    async def _run_asgi(self, incoming: Incoming, deadline: float | None) -> None:
        try:
            self.enter(incoming, deadline)
            request = HttpRequest(incoming)
            if incoming.flags & STREAM:
                from headrace.replica.websocket import serve_websocket  # loaded where it is used

                await serve_websocket(incoming, request, self._asgi)
            else:
                assert self._asgi is not None
                await self._run_response(incoming, request, self._asgi)
        except BaseException as error:  # as in _run_http
            self.fail(incoming, error)

    async def _run_rest(self, incoming: Incoming, method: Method, request: HttpRequest | None, result: Any) -> None:
        """What is left to do on the loop of a call whose method ran in a thread."""
        try:
            result = await self.enter_again(incoming, result)
            if request is None:
                incoming.answer(_encode_result(result, method))
            else:
                await self._respond(incoming, request, result)
        except BaseException as error:  # as in _run_http
            self.fail(incoming, error)

    async def _respond(self, incoming: Incoming, request: HttpRequest, result: Any) -> None:
        if isinstance(result, Response):
            if is_whole(result):
                send_whole(incoming, result)
            else:
                await self._run_response(incoming, request, result)
        elif is_stream(result):
            await self._streams.send(incoming, BodyOutlet(incoming), result, incoming.meta.method)
        else:
            body, head = render(result)
            incoming.reply(body, head, HTTP)

    async def _run_response(self, incoming: Incoming, request: HttpRequest, response: ASGIApp) -> None:
        """Run an ASGI application to the end of its response, and of what it does after."""
        task = _current_task(self.loop)
        assert task is not None
        self._responding.add(task)
        incoming.lasts = True
        # It may wait for a thread (of a plain route, of the plain iterator of a StreamingResponse), which may wait for
        # what it called.
        if self._limiter is None:
            self._limiter = anyio.to_thread.current_default_thread_limiter()
        incoming.on_cancel = partial(self._leave, task, request_variable.get(), self._limiter)
        reply = AsgiReply(incoming)
        try:
            await response(request.scope, request.receive, reply.send)
            reply.check_finished()
        except BaseException as error:  # of a background task it comes too late for the client: only the log has it
            if not reply.finished:
                raise
            self.tell(incoming, error)
        finally:
            incoming.let_go()
            self._responding.discard(task)
            self._rested.set()

    def _leave(self, task: asyncio.Task[Any], request: RequestContext | None, limiter: anyio.CapacityLimiter) -> None:
        """Cancel a response that is being made."""
        cancel_calls(request)
        self._cancel_after_thread(task, limiter)

    def _cancel_after_thread(self, task: asyncio.Task[Any], limiter: anyio.CapacityLimiter) -> None:
        """Cancel the task, but not while it waits for a thread: that would be left behind, and go on without a slot."""
        if task not in limiter.statistics().borrowers:
            task.cancel()  # which does nothing to one that has ended
        else:
            self.loop.call_later(_THREAD_POLL_S, self._cancel_after_thread, task, limiter)

    # ---- for batches

    def outlet_of(self, incoming: Incoming, method: Method) -> Outlet | None:
        """Where the items of the call go; None when it has failed, for it asked for one result."""
        return self._streams.outlet_of(incoming, method)

    def respond(self, incoming: Incoming, request: HttpRequest, result: Any, deadline: float | None) -> None:
        """Answer an HTTP request with what takes a task: a response that is to be run, a stream, what is to be awaited,
        or one of ANSWERS.
        """

        async def run() -> None:
            try:
                self.enter(incoming, deadline)
                value = _response_of(result) if isinstance(result, ANSWERS) else result
                if inspect.isawaitable(value):
                    value = await value
                await self._respond(incoming, request, value)
            except BaseException as error:  # as in _run_http
                if inspect.iscoroutine(result):
                    result.close()  # where it has not begun
                self.fail(incoming, error)

        asyncio.Task(run(), loop=self.loop, name="call", context=contextvars.Context())

    # ---- in a thread

    def enter_thread(self, incoming: Incoming, deadline: float | None) -> RequestContext:
        """The first step of a call's work in a thread: its code sees its request. Raises what `check` raises."""
        request = RequestContext(incoming.meta, deadline, self.replica, None, incoming)
        incoming.on_cancel = partial(cancel_calls, request)
        request.check()  # after that: who leaves in between is seen by one of the two
        _set_request(request)
        return request

    def _in_thread(self, incoming: Incoming, method: Method, deadline: float | None) -> Done:
        """Run the call in this thread, in a context of its own; the loop does what is returned."""
        context = contextvars.Context()
        return context.run(self._work, incoming, method, deadline, context)

    def _work(self, incoming: Incoming, method: Method, deadline: float | None, context: contextvars.Context) -> Done:
        try:
            self.enter_thread(incoming, deadline)
            if incoming.flags & HTTP:
                return self._work_http(incoming, method, context)
            args, kwargs = _decode(incoming.body, incoming.buffers)
            result = method.function(*args, **kwargs)
            if inspect.isawaitable(result):
                return partial(self._go_on, incoming, method, None, result, context)
            return partial(incoming.answer, _encode_result(result, method))
        except BaseException as error:  # the top of the thread's work, as in _run_http
            return partial(incoming.fail, self.error_of(incoming, error))

    def _work_http(self, incoming: Incoming, method: Method, context: contextvars.Context) -> Done:
        request = HttpRequest(incoming)
        try:
            result = method.serve(request)
        except ANSWERS as error:
            result = _response_of(error)
        if isinstance(result, Response) or inspect.isawaitable(result) or is_stream(result):
            return partial(self._go_on, incoming, method, request, result, context)
        body, head = render(result)
        return partial(incoming.reply, body, head, HTTP)

    def _go_on(
        self,
        incoming: Incoming,
        method: Method,
        request: HttpRequest | None,
        result: Any,
        context: contextvars.Context,
    ) -> None:
        self.loop.create_task(self._run_rest(incoming, method, request, result), context=context)

    def _compare(self, incoming: Incoming) -> Done:
        """Compare the answers of a mirrored request: no request itself, it runs outside of any."""
        if self._comparer is None:
            self._comparer = Comparer()
        try:
            return partial(incoming.reply, contextvars.Context().run(self._comparer.compare, incoming))
        except BaseException as error:  # the top of the thread's work, as in _work
            return partial(incoming.fail, payload.encode_error(error))

    # ---- errors

    def _late(self, incoming: Incoming) -> RequestTimeoutError:
        meta = incoming.meta
        return RequestTimeoutError(
            f"the time of request {meta.request_id} is over: {meta.method} on {self.replica.replica_id} has not ended"
        )

    def fail(self, incoming: Incoming, error: BaseException) -> None:
        """The call ended with `error`: answer so, log it, and cancel the calls that it made."""
        if incoming.cancelled or incoming.expired:
            cancel_calls(request_variable.get())
        incoming.fail(self.error_of(incoming, error))

    def error_of(self, incoming: Incoming, error: BaseException) -> ErrorInfo:
        """What the caller gets of the error; the log gets the rest. In any thread."""
        if incoming.cancelled and isinstance(error, _LEAVING):
            return _GONE
        if incoming.expired and isinstance(error, _LEAVING):
            return self.tell(incoming, self._late(incoming))
        return self.tell(incoming, error)

    def tell(self, incoming: Incoming, error: BaseException) -> ErrorInfo:
        """Log the error for people, and make what the caller gets. Errors that say all in a line get a line."""
        meta = incoming.meta
        told = vars(error).pop(TOLD, None)  # which is of no interest to the caller
        info = payload.encode_error(error)
        if told is None or told != self.replica.replica_id:
            log_failure(f"request {meta.request_id}", f"{self.replica.deployment}.{meta.method}", error, info)
        else:
            vars(error)[TOLD] = told  # others may get the very error
        return info


def _encode_result(result: Any, method: Method) -> payload.Payload:
    if is_stream(result):
        raise stream_error(method.label)
    return _encode(result)


def _response_of(error: HTTPException | InputError) -> Response:
    """The response that Starlette makes of an HTTPException; what was asked cannot be answered, says an InputError."""
    if isinstance(error, InputError):
        return PlainTextResponse(str(error), status_code=400)
    if error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=error.headers)
    return PlainTextResponse(error.detail, status_code=error.status_code, headers=error.headers)
