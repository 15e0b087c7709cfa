"""Web applications on their way into a replica, where they travel by value, and their parts for a digest.

In: FastAPI, Starlette, WSGI applications of modules that no replica can import (`__main__`, notebooks). Out: what
pickle needs to carry them; an import path where a module has the very object; their parts, each of which counts in the
digest. Where an application is imported with its module, nothing of this is asked.

The frameworks are known by what is loaded: nothing here imports them.
"""

from __future__ import annotations

import copyreg
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle

from headrace.spec.errors import PayloadError
from headrace.wire.code import is_importable


def import_path_of(value: object) -> tuple[str, str] | None:
    """The module, which a process with our `sys.path` can import, and the attribute of it that is this very object."""
    if value is None:
        return None  # which many modules have
    for name, module in list(sys.modules.items()):
        if name == "__main__" or not isinstance(module, ModuleType):
            continue
        for attribute, found in list(vars(module).items()):
            if found is value and is_importable(name, module):
                return name, attribute
    return None


def comes_with_its_module(app: object) -> bool:
    """Whether importing the module of `app` elsewhere makes it whole: all its routes are of importable modules."""
    return all(_is_of_importable_module(endpoint) for endpoint in endpoints_of(app))


def _is_of_importable_module(endpoint: object) -> bool:
    name = getattr(inspect.unwrap(endpoint), "__module__", None) if callable(endpoint) else None
    module = sys.modules.get(name or "")
    return module is None or is_importable(module.__name__, module)


# ---- what an application is made of


def routers_of(app: object) -> Iterator[Any]:
    """Every object with a list of routes in `app`: its router, included routers, mounted applications, once each."""
    seen: set[int] = set()
    waiting: list[Any] = [app]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        router = getattr(one, "router", None)
        if router is not None and isinstance(getattr(router, "routes", None), list):
            waiting.append(router)
        elif isinstance(getattr(one, "routes", None), list):
            yield one
            for route in one.routes:
                if getattr(route, "endpoint", None) is None:
                    # An included router (of FastAPI that includes lazily), or what is mounted.
                    waiting += [getattr(route, "original_router", None), getattr(route, "app", None)]
        elif not isinstance(one, FunctionType):
            waiting.append(getattr(one, "app", None))  # a middleware around what it was given


def endpoints_of(app: object) -> list[Any]:
    """What the routes of `app` call: of FastAPI, Starlette and Flask."""
    views = getattr(app, "view_functions", None)
    if isinstance(views, dict):
        return list(views.values())
    routes = (route for router in routers_of(app) for route in router.routes)
    return [route.endpoint for route in routes if getattr(route, "endpoint", None) is not None]


def dependants_of(route: object) -> Iterator[Any]:
    """What FastAPI found out about the parameters of a route, and of its dependencies, in depth."""
    waiting = [getattr(route, "dependant", None)]
    while waiting:
        one = waiting.pop()
        if one is not None:
            yield one
            waiting += one.dependencies


def parts_of(app: object) -> list[Any]:
    """What makes one application another: routes and what they call, middleware, handlers, lifespan; else itself."""
    routers = list(routers_of(app))
    if not routers:
        return [app]
    parts: list[Any] = [type(app).__qualname__]
    parts += [str(getattr(app, name, "")) for name in ("title", "version", "description", "root_path")]
    for router in routers:
        parts += [*_hooks_of(router), len(router.routes)]
        for route in router.routes:
            methods = sorted(getattr(route, "methods", None) or ())
            parts += [type(route).__qualname__, str(getattr(route, "path", "")), str(methods)]
            parts.append(getattr(route, "response_model", None))
            included = getattr(route, "include_context", None)
            if included is not None:
                parts += [included.prefix, [depends.dependency for depends in included.dependencies]]
            mounted = getattr(route, "app", None)
            if isinstance(mounted, FunctionType) and not hasattr(route, "endpoint"):
                parts.append(mounted)
            for call in [getattr(route, "endpoint", None), *(dependant.call for dependant in dependants_of(route))]:
                own = getattr(call, "__module__", "") == "fastapi.applications"  # of its pages about itself
                parts += [call.__qualname__] if own else [call, getattr(call, "__annotations__", None)]
    for middleware in getattr(app, "user_middleware", ()):
        parts += [middleware.cls, list(getattr(middleware, "args", ())), dict(middleware.kwargs)]
    for key, handler in getattr(app, "exception_handlers", {}).items():
        parts += [key, handler]
    return parts


def _hooks_of(router: Any) -> Iterable[Any]:
    yield from _lifespans_in(getattr(router, "lifespan_context", None))
    yield list(getattr(router, "on_startup", ()))
    yield list(getattr(router, "on_shutdown", ()))


def _lifespans_in(lifespan: object) -> Iterator[FunctionType]:
    """The user's own: FastAPI merges those of routers that include each other in functions of its own."""
    if not isinstance(lifespan, FunctionType):
        return
    if lifespan.__module__ != "fastapi.routing":
        yield lifespan
        return
    for cell in lifespan.__closure__ or ():
        yield from _lifespans_in(cell.cell_contents)


# ---- by value


def make_portable(app: object) -> None:
    """Ready `app` for being pickled by value, as cloudpickle does it with what `__main__` refers to.

    Annotations that are text are resolved where their names are known: a replica has only the names that code uses.
    """
    _register_reducers()
    for router in routers_of(app):
        for route in router.routes:
            calls = [getattr(route, "endpoint", None), *(dependant.call for dependant in dependants_of(route))]
            for call in calls:
                function = inspect.unwrap(call) if callable(call) else None
                if isinstance(function, FunctionType) and not _is_of_importable_module(function):
                    _resolve_annotations(function)


def _resolve_annotations(function: FunctionType) -> None:
    written = function.__annotations__
    if not any(isinstance(annotation, str) for annotation in written.values()):
        return
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # an annotation may be any expression: FastAPI tells what is wrong with it where that matters
        return
    function.__annotations__ = {
        name: None if isinstance(written[name], str) and hint is type(None) else hint for name, hint in hints.items()
    }


def copied(app: Any) -> Any:
    """A copy of the application, for one of several replicas in a process. Raises PayloadError when it has none."""
    _register_reducers()
    try:
        return cloudpickle.loads(cloudpickle.dumps(app))
    except Exception as error:  # whatever a __reduce__ in it raises
        raise PayloadError(
            f"{type(app).__name__} cannot be copied for the several replicas of this process ({type(error).__name__}: "
            f"{error}): give serve.ingress a function that makes the application"
        ) from error


def _register_reducers() -> None:
    """What pickle alone gets wrong of FastAPI and Starlette: an object with `__getattr__`, and one with a lock."""
    datastructures = sys.modules.get("starlette.datastructures")
    if datastructures is not None:
        copyreg.pickle(datastructures.State, _reduce_state)
    included = getattr(sys.modules.get("fastapi.routing"), "_IncludedRouter", None)
    if included is not None:
        copyreg.pickle(included, _reduce_included)


def _reduce_state(state: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return type(state), (dict(state._state),)


def _reduce_included(included: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return type(included), (included.original_router, included.include_context)
