"""The web application that a deployment answers its HTTP requests with: what kind it is, and where a class keeps it.

In: an object of the user. Out: an Ingress that names its kind, or OptionTypeError that says what would be right.
Nothing of any web framework is imported to find out: the way it is called tells.
"""

from __future__ import annotations

import enum
import functools
import inspect
from typing import Any

from headrace.spec.errors import OptionTypeError

ATTRIBUTE = "__headrace_ingress__"
BUILD_METHOD = "__serve_build_asgi_app__"
EXPECTED = (
    "a FastAPI application or APIRouter, any ASGI application (called with scope, receive, send), a WSGI application "
    "such as Flask's (called with environ, start_response), or a function without arguments that returns one of these"
)


class Interface(enum.Enum):
    """How a web application is called."""

    ASGI = "asgi"
    WSGI = "wsgi"
    BUILDER = "builder"  # a function that makes the application, in each replica its own
    METHOD = "method"  # a method of the instance that makes it: BUILD_METHOD


class Ingress:
    """What `serve.ingress` was given. Classes hold it as an attribute, so subclasses have it too."""

    __slots__ = ("app", "interface")

    def __init__(self, app: Any, interface: Interface) -> None:
        self.app = app
        self.interface = interface

    def __repr__(self) -> str:
        return f"<Ingress {self.interface.value} {self.app!r}>"


def ingress_of(target: object) -> Ingress | None:
    """The Ingress of a class that was decorated with `serve.ingress`, or whose base was."""
    if not inspect.isclass(target):
        return None
    found = getattr(target, ATTRIBUTE, None)
    return found if isinstance(found, Ingress) else None


def interface_of(app: object) -> Interface:
    """How `app` is called. Raises OptionTypeError for what is no web application."""
    if inspect.isclass(app) and _parameters(app) != ["scope", "receive", "send"]:
        raise _wrong(app, f"is a class: give an instance of it, such as {app.__name__}()")
    if not callable(app):
        raise _wrong(app, "cannot be called")
    try:
        needed, takes_any = _positional(app)
    except (TypeError, ValueError):  # of an extension module, without a signature
        needed, takes_any = 0, True
    if takes_any and needed < 2:
        if hasattr(app, "wsgi_app"):
            return Interface.WSGI
        if is_coroutine_callable(app):
            return Interface.ASGI
        raise _wrong(app, "takes any arguments, so that it cannot be told how to call it")
    if needed == 3:
        return Interface.ASGI
    if needed == 2 and not is_coroutine_callable(app):
        return Interface.WSGI
    if needed == 0 and (inspect.isroutine(app) or isinstance(app, functools.partial)):
        return Interface.BUILDER
    if needed == 1:
        raise _wrong(app, "takes one argument: ASGI 3 is called with scope, receive and send")
    raise _wrong(app, f"takes {needed} arguments")


def looks_like_application(value: object) -> bool:
    """Whether `value` is an ASGI or WSGI application and not merely a function with as many parameters."""
    if inspect.isclass(value) or not callable(value):
        return False
    if inspect.isroutine(value) or isinstance(value, functools.partial):
        names = [name.lstrip("_") for name in _parameters(value)]
        return names in (["scope", "receive", "send"], ["environ", "start_response"])
    try:
        return interface_of(value) is not Interface.BUILDER
    except OptionTypeError:
        return False


def is_coroutine_callable(value: object) -> bool:
    """Whether calling it makes a coroutine: a function, a partial of one, or an object with such a `__call__`."""
    while isinstance(value, functools.partial):
        value = value.func
    if inspect.iscoroutinefunction(value):
        return True
    if inspect.isroutine(value) or not callable(value):
        return False
    return inspect.iscoroutinefunction(type(value).__call__)


def _parameters(value: Any) -> list[str]:
    try:
        return list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return []


def _positional(value: Any) -> tuple[int, bool]:
    """How many positional arguments it needs, and whether it takes any number of them."""
    kinds = inspect.Parameter
    parameters = inspect.signature(value).parameters.values()
    plain = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    needed = sum(p.kind in plain and p.default is kinds.empty for p in parameters)
    return needed, any(p.kind is kinds.VAR_POSITIONAL for p in parameters)


def _wrong(app: object, why: str) -> OptionTypeError:
    shown = f"{app!r:.200}"
    return OptionTypeError(f"serve.ingress({shown}): {type(app).__name__} {why}; it takes {EXPECTED}")
