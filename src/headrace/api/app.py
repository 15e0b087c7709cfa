"""The API as an ASGI application: the guard first, then the limits, then the route.

In: requests from anybody who can reach the port. Out: replies of the handlers, and every error as JSON. Nothing of a
request is looked at by a route, and none of its body is read, before the guard has let it pass.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as PathRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.api import applications, rollouts
from headrace.api.about import about_routes
from headrace.api.desk import Desk
from headrace.api.errors import (
    BodyTimeout,
    BodyTooLarge,
    Busy,
    MethodNotAllowed,
    RouteNotFound,
    body_of,
    headers_of,
    status_of,
)
from headrace.api.guard import Guard, check_head, check_json
from headrace.api.route import Call, Reply, Route, decoded, query_of
from headrace.spec.errors import CallerError, HeadraceError, OptionError

MAX_BODY_BYTES = 8 * 1024 * 1024
BODY_TIMEOUT_S = 30.0
MOST_REQUESTS = 200
MOST_PARAMETERS = 20

logger = logging.getLogger(__name__)

_ALWAYS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def all_routes() -> tuple[Route, ...]:
    """Every route of the API."""
    routes = (*applications.ROUTES, *rollouts.ROUTES)
    return (*about_routes(routes), *routes)


class Api:
    """The ASGI application. `max_body_bytes` and `body_timeout_s` bound what one request may bring, and how slowly."""

    def __init__(
        self,
        guard: Guard,
        desk: Desk,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._guard = guard
        self._desk = desk
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._under_way = 0
        self._router = _router(all_routes(), self._answer)

    def __repr__(self) -> str:
        return f"<Api of {self._desk!r}, {self._under_way} requests>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the API serves HTTP, not {scope['type']}")
        self._under_way += 1
        try:
            await self._serve(scope, receive, send)
        except HeadraceError as error:
            await _refusal(error)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception:  # the top of a request: what we did not foresee is ours to read, not the client's
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await _refusal(HeadraceError("the API failed; its log says how"))(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_head(scope["headers"], scope.get("raw_path", b"") + scope["query_string"])
        self._guard.check_sender(scope["headers"], scope["scheme"])
        if self._under_way > MOST_REQUESTS:
            raise Busy(f"{MOST_REQUESTS} requests are under way already")
        if not scope["path"].startswith("/"):
            raise CallerError(f"the request is for {scope['path'][:200]!r}, which is no path")
        await self._router(scope, receive, send)

    async def _answer(self, request: Request, routes: Sequence[Route]) -> Response:
        """Answer a request for the path of these routes, one for each method."""
        method = "GET" if request.method == "HEAD" else request.method
        route = next((each for each in routes if each.method == method), None)
        if route is None or not route.is_open:
            self._guard.check_token(request.scope["headers"])
        if not routes:
            raise RouteNotFound(f"there is nothing at {request.url.path[:200]!r}; GET / lists what there is")
        if route is None:
            allowed = sorted({each.method for each in routes} | {"HEAD" for each in routes if each.method == "GET"})
            raise MethodNotAllowed(f"{request.method[:20]} is not for this path: {', '.join(allowed)}", tuple(allowed))
        reply = await route.handler(await self._call(route, request))
        return _response(reply, route)

    async def _call(self, route: Route, request: Request) -> Call:
        try:
            pairs = parse_qsl(
                request.url.query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS, errors="strict"
            )
        except ValueError as error:
            raise OptionError(f"the query cannot be read: {error}") from None
        query = query_of(route, pairs)
        headers = dict(request.headers.items())
        if not route.conditional:
            for name in ("if-match", "if-none-match"):
                if name in headers:
                    raise OptionError(f"{name}: this route does not go by it, so it cannot be kept to")
        if route.method in ("PUT", "POST"):
            check_json(request.scope["headers"])
        body = decoded(route, await self._body(request)) if route.body is not None else None
        name = request.path_params.get("name", "")
        return Call(name, query, headers, body, self._desk, request.is_disconnected)

    async def _body(self, request: Request) -> bytes:
        too_large = BodyTooLarge(f"the body is larger than {self._max_body_bytes} bytes")
        told = request.headers.get("content-length", "0")
        if not told.isdigit() or int(told[:20]) > self._max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_body_bytes:
                        raise too_large
        except TimeoutError:
            raise BodyTimeout(f"the body did not arrive within {self._body_timeout_s:g} s") from None
        return bytes(body)


def _router(routes: Sequence[Route], answer: Callable[[Request, Sequence[Route]], Awaitable[Response]]) -> ASGIApp:
    by_path: dict[str, list[Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, []).append(route)
    table = []
    for path, each in by_path.items():
        # With and without the slash at its end, as a client of either habit expects.
        for spelling in {path, path.rstrip("/") + "/"}:
            table.append(PathRoute(spelling, _Endpoint(each, answer)))
    return Router([*table, PathRoute("/{rest:path}", _Endpoint((), answer))], redirect_slashes=False)


class _Endpoint:
    """All methods of a path."""

    def __init__(
        self, routes: Sequence[Route], answer: Callable[[Request, Sequence[Route]], Awaitable[Response]]
    ) -> None:
        self._routes = routes
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive), self._routes)
        await response(scope, receive, send)


def _response(reply: Reply, route: Route) -> Response:
    body = reply.body if isinstance(reply.body, bytes) else msgspec.json.encode(reply.body)
    return Response(body, route.status, {**_ALWAYS, **reply.headers}, reply.media_type)


def _refusal(error: HeadraceError) -> Response:
    headers = {**_ALWAYS, **headers_of(error)}
    if isinstance(error, CallerError):
        headers["connection"] = "close"  # what is left of its body is not waited for
    return Response(body_of(error), status_of(error), headers, "application/json")
