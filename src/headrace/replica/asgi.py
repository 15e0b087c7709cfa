"""The web application of one replica: made, bound to the instance, started; then every HTTP request goes to it.

In: what `serve.ingress` was given, and the user's instance. Out: an ASGI application for the invoker, which sees the
state of the lifespan and waits for its own threads; errors of the startup, as they were raised.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from headrace.context import ReplicaContext, RequestContext, current_request, request_variable
from headrace.replica.binding import Binding, as_written, is_bound, needs_binding
from headrace.replica.lifespan import Lifespan
from headrace.replica.threads import ThreadPool, in_thread
from headrace.replica.wsgi import WsgiAdapter
from headrace.spec.errors import OptionTypeError
from headrace.spec.ingress import BUILD_METHOD, Ingress, Interface, interface_of, is_coroutine_callable
from headrace.wire.webapps import copied

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class WebApplication:
    """The ASGI application that the replica's HTTP requests go to. `open_application` makes it."""

    def __init__(self, app: ASGIApp, lifespan: Lifespan, threads: RouteThreads, binding: Binding | None = None) -> None:
        self._app = app
        self._lifespan = lifespan
        self._state = lifespan.state
        self._threads = threads
        self._binding = binding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._state:
            scope["state"].update(self._state)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            await self._threads.left_by(current_request())
            raise

    def allow_threads(self, limit: int) -> None:
        """Let as many plain routes run at once as the replica takes calls."""
        allow_threads(limit)

    async def close(self, by: float) -> None:
        """Run its shutdown, until `by` in the loop's time."""
        await self._lifespan.shutdown(by)

    def release(self) -> None:
        """Leave the application as it was found; a lifespan that still runs is cancelled."""
        self._lifespan.cancel()
        if self._binding is not None:
            self._binding.undo()


class RouteThreads:
    """The threads that plain routes run in. The framework leaves them behind when a request is cancelled; a call keeps
    its slot until its thread has returned, so it waits here.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._in_work: set[int] = set()  # ids of the requests, which live as long
        self._waiting: list[asyncio.Future[None]] = []

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls are known here while they run."""
        in_work, waiting = self._in_work, self._waiting

        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            request = request_variable.get()
            in_work.add(id(request))
            try:
                return function(*args, **kwargs)
            finally:
                in_work.discard(id(request))
                if waiting:
                    self._loop.call_soon_threadsafe(self._wake)

        return noted

    async def left_by(self, request: RequestContext | None) -> None:
        """Until no thread works for the request, however often this is cancelled."""
        while id(request) in self._in_work:
            ended = self._loop.create_future()
            self._waiting.append(ended)
            # The thread takes itself out first and looks for waiting ones after; so one of the two sees the other.
            if id(request) not in self._in_work:
                return
            try:
                await ended
            except asyncio.CancelledError:
                continue

    def _wake(self) -> None:
        waiting = self._waiting[:]
        self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_result(None)


async def open_application(ingress: Ingress, replica: ReplicaContext, threads: ThreadPool) -> WebApplication:
    """Make the application ready for requests: its startup has run.

    Raises what the builder or the startup raise; OptionTypeError when the builder returned no application.
    """
    loop = asyncio.get_running_loop()
    app, interface = ingress.app, ingress.interface
    if interface is Interface.METHOD:
        app, interface = getattr(replica.servable_object, BUILD_METHOD), Interface.BUILDER
    if interface is Interface.BUILDER:
        builder, app = app, await _built(app)
        interface = _interface_of_built(builder, app)
    route_threads = RouteThreads(loop)
    if interface is Interface.WSGI:
        return WebApplication(WsgiAdapter(app, threads), Lifespan(_without_lifespan), route_threads)
    instance = replica.servable_object
    app, binding = _bound(app, instance, route_threads)
    app = _as_fastapi(app)
    allow_threads(replica.max_ongoing_requests)
    lifespan = Lifespan(app)
    try:
        await lifespan.startup()
    except BaseException:
        if binding is not None:
            binding.undo()
        raise
    return WebApplication(app, lifespan, route_threads, binding)


def _bound(app: Any, instance: object, threads: RouteThreads) -> tuple[Any, Binding | None]:
    """The application with its routes bound to the instance; a copy, where another replica of this process has it.

    One whose routes are no methods is shared: that it waits for its threads remains the first replica's affair.
    """
    if is_bound(app):
        with as_written(app):
            if not needs_binding(app, type(instance)):
                return app, None
            app = copied(app)
    binding = Binding(app, instance, threads.wrap)
    binding.bind()
    return app, binding


def allow_threads(limit: int) -> None:
    """Let as many plain routes run at once as the replica takes calls; frameworks allow 40 of their own accord."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = max(limiter.total_tokens, limit)


async def _built(builder: Callable[[], Any]) -> Any:
    if is_coroutine_callable(builder):
        return await builder()
    return await in_thread(builder, "build")


def _interface_of_built(builder: Callable[[], Any], app: Any) -> Interface:
    name = getattr(builder, "__name__", repr(builder))
    if app is None:
        raise OptionTypeError(f"{name}(), which serve.ingress was given, returned None: it must return the application")
    interface = interface_of(app)
    if interface is Interface.BUILDER or inspect.isclass(app):
        raise OptionTypeError(f"{name}(), which serve.ingress was given, returned {app!r} and no application")
    return interface


def _as_fastapi(app: Any) -> Any:
    """A FastAPI application around an APIRouter, which alone lacks handlers of errors; anything else as it is."""
    routing = sys.modules.get("fastapi.routing")
    if routing is None or not isinstance(app, routing.APIRouter):
        return app
    around = sys.modules["fastapi"].FastAPI()
    around.include_router(app)
    return around


async def _without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """WSGI has no lifespan."""
