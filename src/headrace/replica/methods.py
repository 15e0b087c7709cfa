"""The methods of a servable as calls find them: by name, with what kind each is and how a request is handed to it.

In: the user's instance or function, and a name from a call. Out: a Method, or MethodNotFound with the nearest name.
"""

from __future__ import annotations

import difflib
import enum
import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.spec.errors import MethodNotFound

if TYPE_CHECKING:
    import asyncio

    from headrace.context import ReplicaContext
    from headrace.replica.batched_function import BatchedFunction
    from headrace.replica.batching import Batches
    from headrace.replica.request import HttpRequest


class Kind(enum.Enum):
    """How a method runs: on the loop or in a thread, to one result or to many."""

    COROUTINE = "coroutine"
    PLAIN = "plain"
    ASYNC_GENERATOR = "asynchronous generator"
    GENERATOR = "generator"


GENERATORS = frozenset((Kind.ASYNC_GENERATOR, Kind.GENERATOR))


class Method(msgspec.Struct, frozen=True):
    """A method as it is called: `serve` with the Request of an HTTP call, `function` with the arguments of others.

    `label` names it for people. `on_loop`: its body runs on the event loop. `batched` is the batched function that it
    is, None where it is none.
    """

    name: str
    label: str
    function: Callable[..., Any]
    serve: Callable[[HttpRequest], Any]
    kind: Kind
    on_loop: bool
    streams: bool
    batched: BatchedMethod | None = None


class BatchedMethod:
    """What `@serve.batch` makes of a function, or of a method of an instance; `serve/batching.py` has the two kinds."""

    __slots__ = ()

    @property
    def batched(self) -> BatchedFunction:
        """What it decorated."""
        raise NotImplementedError

    @property
    def batch_owner(self) -> Any:
        """The instance, or NO_OWNER."""
        raise NotImplementedError

    def batches(self, loop: asyncio.AbstractEventLoop, replica: ReplicaContext | None) -> Batches:
        """Its batches on this loop, in this replica."""
        raise NotImplementedError

    def batch_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        """The arguments as all calls have them that may share a batch. Raises TypeError where they do not fit."""
        raise NotImplementedError


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
    target = function.__call__ if name == "__call__" and not inspect.isroutine(function) else function
    kind = kind_of(target)
    serve = function if _takes_an_argument(target) else partial(_without_request, function)
    on_loop = kind in (Kind.COROUTINE, Kind.ASYNC_GENERATOR)
    label = f"{_name_of(servable)}.{name}"
    return Method(name, label, function, serve, kind, on_loop, kind in GENERATORS, as_batched(target))


def kind_of(function: object) -> Kind:
    """The kind of a function or bound method. A batched one is called on the loop, however its batches run."""
    batched = as_batched(function)
    if batched is not None:
        return Kind.ASYNC_GENERATOR if batched.batched.kind in GENERATORS else Kind.COROUTINE
    if inspect.iscoroutinefunction(function):
        return Kind.COROUTINE
    if inspect.isasyncgenfunction(function):
        return Kind.ASYNC_GENERATOR
    return Kind.GENERATOR if inspect.isgeneratorfunction(function) else Kind.PLAIN


def as_batched(function: object) -> BatchedMethod | None:
    """The function or method, if `@serve.batch` decorated it."""
    return function if isinstance(function, BatchedMethod) else None


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of an extension module, without a signature
        return True


def _without_request(function: Callable[[], Any], request: HttpRequest) -> Any:
    return function()


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
