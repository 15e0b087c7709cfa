"""Routes that are methods: bound to the replica's instance, once, before the first request.

In: an application, and the instance whose class was decorated with it. Out: the same application, in which the routes
of that class call the instance, and those of other classes are gone. Requests then pay nothing for `self`.

Modules, classes and closures know the application as the one object that it is, so the change is made in it, and taken
back at the end. Only where replicas of one process have the same application (in tests) does each but the first get a
copy.

FastAPI takes the `self` of a method for a query parameter when the route is declared; here it is taken out again. What
calls the route keeps hold of the route's `dependant`, so that is what changes, and the rest of the route stays as
FastAPI made it. A router that includes another lazily (FastAPI from 0.13x on) makes routes of its own from `endpoint`.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from headrace.spec.errors import OptionError
from headrace.spec.ingress import is_coroutine_callable
from headrace.wire.webapps import dependants_of, endpoints_of, routers_of

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def is_bound(app: object) -> bool:
    """Whether a replica of this process has bound the application to its instance."""
    return any(binding.app is app for binding in _bindings)


def needs_binding(app: object, cls: type) -> bool:
    """Whether a route of `app` is a method, of `cls` or of another class."""
    return any(_member(cls, endpoint) or _is_method(endpoint) for endpoint in endpoints_of(app))


@contextlib.contextmanager
def as_written(app: object) -> Iterator[None]:
    """For the length of the block the application is as its module made it; nothing may be awaited in there."""
    found = [binding for binding in _bindings if binding.app is app]
    for binding in found:
        binding.revert()
    try:
        yield
    finally:
        for binding in found:
            binding.apply()


class Binding:
    """What binding changed in the application, until `undo`."""

    def __init__(self, app: object, instance: object, wrap: Wrap) -> None:
        self.app = app
        self._instance = instance
        self._cls = type(instance)
        self._wrap = wrap
        self._changes: list[tuple[Any, str, Any, Any]] = []  # object, attribute, before, after

    def bind(self) -> None:
        """Bind the routes to the instance. Plain functions that routes call in a thread are wrapped.

        Raises OptionError for a route whose method a subclass replaced by one of another kind.
        """
        for router in list(routers_of(self.app)):
            self._bind_router(router)
        if hasattr(self.app, "openapi_schema"):
            self._change(self.app, "openapi_schema", None)
        self.apply()
        _bindings.append(self)

    def undo(self) -> None:
        """The application is as its module made it, and another replica of this process may bind it."""
        if self in _bindings:
            _bindings.remove(self)
            self.revert()

    def apply(self) -> None:
        """Make all changes."""
        for owner, attribute, _, after in self._changes:
            _set(owner, attribute, after)
        self._tell_routers()
        for router in list(routers_of(self.app)):
            self._bind_included(router)

    def revert(self) -> None:
        """Take all changes back."""
        for owner, attribute, before, _ in reversed(self._changes):
            _set(owner, attribute, before)
        self._tell_routers()

    def _change(self, owner: Any, attribute: str, after: Any) -> None:
        before = getattr(owner, attribute)
        self._changes.append((owner, attribute, before[:] if isinstance(before, list) else before, after))

    def _tell_routers(self) -> None:
        for router in list(routers_of(self.app)):
            changed = getattr(router, "_mark_routes_changed", None)
            if changed is not None:
                changed()

    def _bind_router(self, router: Any) -> None:
        kept = []
        for route in router.routes:
            endpoint = getattr(route, "endpoint", None)
            if endpoint is None or _member(self._cls, endpoint):
                kept.append(route if endpoint is None else self._bound_route(route, endpoint))
            elif not _is_method(endpoint):
                self._bind_dependencies(route)
                if hasattr(route, "dependant"):
                    self._call(route, endpoint)
                kept.append(route)
        self._change(router, "routes", kept)

    def _bind_included(self, router: Any) -> None:
        """The dependencies of the routes that an including router made of an included one's."""
        for route in router.routes:
            candidates = getattr(route, "effective_candidates", None)
            for candidate in candidates() if candidates is not None else ():
                for dependant in list(dependants_of(candidate))[1:]:
                    for attribute, value in self._bound_dependency(dependant):
                        _set(dependant, attribute, value)

    def _bound_route(self, route: Any, endpoint: Callable[..., Any]) -> Any:
        bound = self._bound(endpoint)
        if is_coroutine_callable(endpoint) != is_coroutine_callable(bound):
            raise OptionError(
                f"{self._cls.__name__}.{endpoint.__name__} replaces the method of the route {route.path!r}: one is "
                "async and the other is not; make both alike"
            )
        if not hasattr(route, "dependant"):
            return self._plain_route(route, bound)
        for kind, fields in _without_first(route.dependant, endpoint, bound):
            self._change(route.dependant, kind, fields)
        self._bind_dependencies(route)
        self._call(route, bound)
        return route

    def _call(self, route: Any, function: Callable[..., Any]) -> None:
        """Have the route call the function; in a thread, as one that is known while it runs."""
        target = inspect.unwrap(function)
        generates = inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)
        if inspect.isroutine(target) and not is_coroutine_callable(target) and not generates:
            function = self._wrap(function)
        if function is not route.endpoint:
            self._change(route, "endpoint", function)
            self._change(route.dependant, "call", function)

    def _plain_route(self, route: Any, bound: Callable[..., Any]) -> Any:
        """A route of Starlette, which calls its endpoint with the request."""
        if hasattr(route, "methods"):
            listed = {"methods": route.methods, "include_in_schema": route.include_in_schema}
            return type(route)(route.path, bound, name=route.name, **listed)
        return type(route)(route.path, bound, name=route.name)

    def _bind_dependencies(self, route: Any) -> None:
        """Dependencies that are methods of the instance, too."""
        for dependant in list(dependants_of(route))[1:]:
            for attribute, value in self._bound_dependency(dependant):
                self._change(dependant, attribute, value)

    def _bound_dependency(self, dependant: Any) -> list[tuple[str, Any]]:
        if not _member(self._cls, dependant.call):
            return []
        bound = self._bound(dependant.call)
        return [*_without_first(dependant, dependant.call, bound), ("call", bound)]

    def _bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The method as the instance has it; where a decorator above the route's hides it, itself."""
        name = function.__name__
        first = next(cls for cls in self._cls.__mro__ if name in vars(cls))
        member = vars(first)[name]
        if isinstance(member, types.FunctionType) and _is_of(first, function) and not _is_same(member, function):
            return types.MethodType(function, self._instance)
        bound: Callable[..., Any] = getattr(self._instance, name)
        return bound


_bindings: list[Binding] = []  # of this process: an application of a module is one object for all of its replicas


def _set(owner: Any, attribute: str, value: Any) -> None:
    if isinstance(value, list):
        getattr(owner, attribute)[:] = value  # others hold the very list
    else:
        setattr(owner, attribute, value)


def _without_first(dependant: Any, function: Callable[..., Any], bound: Callable[..., Any]) -> list[tuple[str, Any]]:
    """The parameters of a dependant without the one that binding filled."""
    if not inspect.ismethod(bound) and getattr(bound, "__self__", None) is None:
        return []
    name = next(iter(inspect.signature(function).parameters), "")
    kinds = ("query_params", "path_params", "header_params", "cookie_params", "body_params")
    return [(kind, [field for field in getattr(dependant, kind) if field.name != name]) for kind in kinds]


def _is_function(value: Any) -> bool:
    """Whether it is a function, or what a decorator put in place of one that is bound to instances as that was."""
    return inspect.isfunction(value) or (
        hasattr(type(value), "__get__") and inspect.isfunction(getattr(value, "__wrapped__", None))
    )


def _is_of(cls: type, function: Any) -> bool:
    named = function.__qualname__ == f"{cls.__qualname__}.{function.__name__}"
    return bool(named and function.__module__ == cls.__module__)


def _is_same(member: Any, function: Any) -> bool:
    """Whether it is the function, or the function in a copy of the application; a wrapper of it is not."""
    if member is function:
        return True
    return bool(member.__qualname__ == function.__qualname__ and not hasattr(member, "__wrapped__"))


def _member(cls: type, function: Any) -> bool:
    """Whether the function was written in the body of the class, or of a base of it."""
    name = getattr(function, "__name__", None)
    if not _is_function(function) and not isinstance(function, staticmethod):
        return False
    for one in cls.__mro__:
        member = vars(one).get(name or "")
        if member is not None and (getattr(member, "__func__", member) is function or _is_of(one, function)):
            return True
    return False


def _is_method(function: Any) -> bool:
    """Whether the function was written in the body of a class and wants an instance of it."""
    if not _is_function(function):
        return False
    outer = function.__qualname__.rpartition(".")[0]
    first = next(iter(inspect.signature(function).parameters), "")
    return bool(outer) and not outer.endswith("<locals>") and first == "self"
