"""`@serve.ingress(app)`: a class whose HTTP requests a web application answers, and applications served as they are.

In: FastAPI, Starlette, Flask, any ASGI or WSGI application, or a function that makes one. Out: the class, which knows
it; for an application alone, a bound deployment of a class that was made for it.
"""

from __future__ import annotations

import copyreg
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from headrace.serve.deployment import Application, Deployment, deployment
from headrace.spec.errors import OptionTypeError, PayloadError
from headrace.spec.ingress import (
    ATTRIBUTE,
    BUILD_METHOD,
    Ingress,
    Interface,
    ingress_of,
    interface_of,
    looks_like_application,
)

C = TypeVar("C", bound=type)

FROM_THE_CLASS: Any = object()  # not None, which is what a function returns that forgot to return the application


class Decorator(Protocol):
    """What `serve.ingress(app)` is: it decorates a class, or makes one."""

    @overload
    def __call__(self) -> type: ...
    @overload
    def __call__(self, decorated: C, /) -> C: ...


def ingress(app: Any = FROM_THE_CLASS) -> Decorator:
    """Answer the HTTP requests of a deployment with a web application: put it between `@serve.deployment` and a class.

    `app` is a FastAPI application or APIRouter, any ASGI application, a WSGI application (Flask's), or a function
    without arguments that returns one of these and is called in each replica. Methods that are routes of the
    application (`@app.get("/")` in the class) are called with the replica's instance as `self`; by handle, all methods
    of the class are called as ever. Raises OptionTypeError for what is none of these.

    Without `app`, the class's method `__serve_build_asgi_app__`, called after the constructor, returns it. Without a
    class, `serve.ingress(app)()` returns one that has no routes of its own, and can be bound with anything.
    """
    if isinstance(app, Deployment | Application):
        raise OptionTypeError(f"serve.ingress takes a web application, not {app!r}: decorate a class with it")
    if inspect.isclass(app) and not any("__call__" in vars(base) for base in app.__mro__):
        raise OptionTypeError(
            f"serve.ingress({app.__name__}) was given the class: write @serve.ingress(app), with the web application"
        )
    late = app is FROM_THE_CLASS
    declared = Ingress(None, Interface.METHOD) if late else Ingress(app, interface_of(app))

    def decorate(decorated: Any = None, /) -> Any:
        if decorated is None:
            decorated = type("ASGIIngressDeployment", (), {"__init__": _take_anything})
        if isinstance(decorated, Deployment):
            raise OptionTypeError(
                f"@serve.ingress stands above @serve.deployment of {decorated.name!r}: write @serve.deployment first "
                "(on top), then @serve.ingress(app), then the class"
            )
        if not inspect.isclass(decorated):
            raise OptionTypeError(
                f"@serve.ingress(app) decorates a class, not {decorated!r}: `class Web: pass` is enough, and "
                "serve.run(app) serves an application that needs none"
            )
        if ATTRIBUTE in vars(decorated):
            raise OptionTypeError(f"{decorated.__name__} has an ingress already: give another one to a subclass of it")
        if late and not hasattr(decorated, BUILD_METHOD):
            raise OptionTypeError(
                f"serve.ingress() without an application takes it from a method of the class, and "
                f"{decorated.__name__} has no {BUILD_METHOD}: give one of the two"
            )
        setattr(decorated, ATTRIBUTE, declared)
        copyreg.pickle(Ingress, _reduce)
        return decorated

    return decorate


def _take_anything(self: object, *args: Any, **kwargs: Any) -> None:
    """The constructor of a class that was made for an application: what it is bound with belongs to its graph."""


def complete(target: object) -> None:
    """Ready the web application of a class for its way into replicas, now that it has all its routes."""
    declared = ingress_of(target)
    if declared is not None and declared.interface is Interface.ASGI:
        from headrace.wire.webapps import make_portable

        make_portable(declared.app)


def as_application(value: Any, name: str = "") -> Any:
    """A bound deployment of the ASGI or WSGI application that `value` is; anything else as it is.

    `name` is that of the deployment; by default the name of the module that has the application.
    """
    if isinstance(value, Application | Deployment) or not looks_like_application(value):
        return value
    name = name or _name_of(value)
    made = type(name, (), {"__doc__": f"Serves {type(value).__name__} as it is."})
    return deployment(name)(ingress(value)(made)).bind()


def _name_of(app: Any) -> str:
    from headrace.wire.webapps import import_path_of

    path = import_path_of(app)
    if path is not None:
        return path[0].rpartition(".")[2]
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    stem = Path(file).stem if file else ""
    return stem if stem.isidentifier() and stem != "__main__" else type(app).__name__


def imported(module: str, attribute: str, interface: str) -> Ingress:
    """The Ingress of an application that its module has; what pickle calls in a replica."""
    return Ingress(getattr(importlib.import_module(module), attribute), Interface(interface))


def _reduce(value: Ingress) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """By the path of its module where that has all of it, for few applications can be pickled; else by value."""
    from headrace.wire.webapps import comes_with_its_module, import_path_of

    path = import_path_of(value.app) if comes_with_its_module(value.app) else None
    if path is None and hasattr(value.app, "wsgi_app"):
        raise PayloadError(
            f"{value.app!r} cannot be sent to a replica, as no module that a replica can import has it: keep it in a "
            "module and run it by `headrace run module:app`, or give serve.ingress a function that makes it"
        )
    if path is None:
        return Ingress, (value.app, value.interface)
    return imported, (*path, value.interface.value)
