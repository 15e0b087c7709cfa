"""Many models in one replica: `@serve.multiplexed` on what loads one, and the model id that a request names.

In: the user's function, which loads a model by its id. Out: what stands in its place, a function or method that gives
the model where it is loaded, and loads it where it is not (`replica/multiplexing.py` does that).
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, overload

from headrace.context import ModelBoard, ReplicaContext, current_replica, current_request
from headrace.replica.held import LOCK, loading_variable
from headrace.replica.memory import can_measure
from headrace.replica.methods import GENERATORS, kind_of
from headrace.replica.model_load import Loader
from headrace.replica.multiplexing import ModelTable
from headrace.serve.deployment import Deployment
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.multiplexing import MARK, MultiplexOptions, multiplex_options

__all__ = ["get_multiplexed_model_id", "multiplexed"]

F = TypeVar("F", bound=Callable[..., Any])
_TABLES = "__headrace_models__"  # the entry of an instance's __dict__ that holds its tables
NO_OWNER: Any = None


@overload
def multiplexed(func: F, /) -> F: ...
@overload
def multiplexed(
    *,
    max_num_models_per_replica: int = 3,
    max_memory_bytes: int | None = None,
    memory_fn: Callable[[Any], int] | None = None,
) -> Callable[[F], F]: ...
def multiplexed(func: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Keep the models that a function loads: `@serve.multiplexed`, `@serve.multiplexed(max_num_models_per_replica=9)`.

    The function (or method; `async def` or plain) takes a model id and returns the model. What stands in its place
    gives the model that is loaded: to be awaited in asynchronous code, at once in a thread. A model is loaded once,
    however many wait for it. Beyond `max_num_models_per_replica` (-1: any number), and beyond `max_memory_bytes`
    together, the least recently used is closed: by its `close()`, else by its destructor, when no request uses it any
    more. What a model takes is what `memory_fn(model)` says, else what the process grew by while it was loaded.

    Raises OptionError for a value that is not allowed, OptionTypeError for a wrong type and for an unknown option (with
    the nearest known one).
    """
    parsed = multiplex_options({name: value for name, value in options.items() if name != "memory_fn"})
    memory_fn = options.get("memory_fn")
    if memory_fn is not None and not callable(memory_fn):
        raise OptionTypeError(f"multiplexed: memory_fn={memory_fn!r} must be a function of a model, or None")
    if parsed.max_memory_bytes is not None and memory_fn is None and not can_measure():
        raise OptionError("multiplexed: max_memory_bytes needs a memory_fn here: this system does not tell what grows")

    def decorate(decorated: Any) -> Any:
        if isinstance(decorated, staticmethod | classmethod):
            return type(decorated)(decorate(decorated.__func__))
        return Multiplexed(decorated, parsed, memory_fn)

    return decorate if func is None else decorate(func)


def get_multiplexed_model_id() -> str:
    """The model id of the request that the calling code works for, or of the model that it loads.

    "" when the request names none, and outside of any.
    """
    request = current_request()
    if request is not None:
        return request.model_id or ""
    loading = loading_variable.get()
    return "" if loading is None else loading.load.model


class Multiplexed:
    """A function that loads models, as it stands in its module or in its class."""

    __qualname__: str

    def __init__(self, function: Callable[..., Any], options: MultiplexOptions, memory_fn: Any = None) -> None:
        self._loader = _loader_of(function, options, memory_fn)
        self._takes_self = self._loader.takes_self
        functools.update_wrapper(self, function)
        setattr(self, MARK, options)
        self._elsewhere: dict[int, tuple[Any, _Tables]] = {}  # of owners that have no __dict__ for it

    def __repr__(self) -> str:
        return f"<multiplexed {self._loader.label}>"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return BoundMultiplexed(self, instance) if self._takes_self and instance is not None else self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._takes_self:
            if not args:
                raise TypeError(f"{self._loader.label} is a method: it is called with an instance and a model id")
            return self._get(args[0], args[1:], kwargs)
        return self._get(NO_OWNER, args, kwargs)

    def __reduce__(self) -> Any:
        if _found_by_name(self):
            return self.__qualname__
        loader = self._loader
        return Multiplexed, (loader.function, loader.options, loader.memory_fn)

    # ---- what it has loaded

    @property
    def models(self) -> dict[str, int | None]:
        """The models that are loaded here, the least recently used first, with the bytes that they take where known."""
        return self._table(NO_OWNER, current_replica()).sizes()

    def prepare(self, replica: ReplicaContext) -> None:
        """Have a table, before the first request."""
        if not self._takes_self:
            self._table(NO_OWNER, replica)

    def _get(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs or len(args) != 1:
            args = self._bind(owner, args, kwargs)
        return self._table(owner, current_replica()).get(args[0], owner)

    def _bind(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The model id alone. Raises TypeError where the arguments do not fit."""
        owners = (owner,) if self._takes_self else ()
        try:
            bound = inspect.signature(self._loader.function).bind(*owners, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._loader.label}: {error}") from None
        return (*bound.args, *bound.kwargs.values())[len(owners) :]

    def _table(self, owner: Any, replica: ReplicaContext | None) -> ModelTable:
        try:
            tables: _Tables = owner.__dict__[_TABLES]
            if tables.owner_id != id(owner):
                tables = self._tables(owner)
        except (AttributeError, KeyError):
            tables = self._tables(owner)
        key = (self, None if replica is None else replica.models)
        table = tables.get(key)
        if table is None:
            with LOCK:
                table = tables.get(key)
                if table is None and replica is None and owner is not NO_OWNER:
                    # A thread or task of the user's own, which knows of no replica: its instance does.
                    table = next((known for (function, _), known in tables.items() if function is self), None)
                if table is None:
                    table = tables[key] = ModelTable(self._loader, owner, replica)
        return table

    def _tables(self, owner: Any) -> _Tables:
        try:
            own = vars(owner)
            tables: _Tables | None = own.get(_TABLES)
            if tables is not None and tables.owner_id == id(owner):
                return tables
            with LOCK:
                tables = own.get(_TABLES)
                if tables is None or tables.owner_id != id(owner):  # a copy of an instance copies its __dict__
                    tables = own[_TABLES] = _Tables(id(owner))
                return tables
        except TypeError:  # no __dict__, or one that cannot be written to
            return self._tables_elsewhere(owner)

    def _tables_elsewhere(self, owner: Any) -> _Tables:
        key = id(owner)
        with LOCK:
            known = self._elsewhere.get(key)
            if known is not None and known[0]() is owner:
                return known[1]
            tables = _Tables(key)
            self._elsewhere[key] = (_reference(owner, functools.partial(self._elsewhere.pop, key, None)), tables)
            return tables


class BoundMultiplexed:
    """A method that loads models, of one instance."""

    __slots__ = ("__self__", "_multiplexed")

    def __init__(self, multiplexed: Multiplexed, instance: Any) -> None:
        self._multiplexed = multiplexed
        self.__self__ = instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function, owner = self._multiplexed, self.__self__
        if kwargs or len(args) != 1:
            args = function._bind(owner, args, kwargs)
        return function._table(owner, current_replica()).get(args[0], owner)

    def __repr__(self) -> str:
        return repr(self._multiplexed._table(self.__self__, current_replica()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundMultiplexed):
            return NotImplemented
        return self.__self__ is other.__self__ and self._multiplexed is other._multiplexed

    def __hash__(self) -> int:
        return hash((id(self.__self__), id(self._multiplexed)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._multiplexed, name)

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self._multiplexed.__name__)  # type: ignore[attr-defined]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._multiplexed._loader.function.__get__(self.__self__))

    @property
    def models(self) -> dict[str, int | None]:
        """The models that are loaded here, the least recently used first, with the bytes that they take where known."""
        return self._multiplexed._table(self.__self__, current_replica()).sizes()

    def prepare(self, replica: ReplicaContext) -> None:
        """Have a table, before the first request."""
        self._multiplexed._table(self.__self__, replica)


class _Tables(dict[tuple[Multiplexed, "ModelBoard | None"], ModelTable]):
    """The tables of one instance, by function and replica. A copy of the instance, or its pickle, begins without."""

    def __init__(self, owner_id: int = 0) -> None:
        self.owner_id = owner_id

    def __reduce__(self) -> Any:
        return _Tables, ()

    def __deepcopy__(self, memo: Any) -> _Tables:
        return _Tables()


def _loader_of(function: Any, options: MultiplexOptions, memory_fn: Any) -> Loader:
    """What is to be known of the function. Raises OptionTypeError for one that cannot load models."""
    if isinstance(function, Multiplexed):
        raise OptionTypeError(f"{function!r} is multiplexed already")
    if inspect.isclass(function) or isinstance(function, Deployment) or not callable(function):
        raise OptionTypeError(
            f"@serve.multiplexed decorates a function or method that takes a model id and returns the model, not "
            f"{function!r}"
        )
    label = (getattr(function, "__qualname__", None) or repr(function)).rpartition("<locals>.")[2]
    kind = kind_of(function)
    if kind in GENERATORS:
        raise OptionTypeError(f"@serve.multiplexed: {label} is a generator: a model is what a function returns")
    takes_self = _takes_self(function, label)
    return Loader(function, kind, label, options, memory_fn, takes_self)


def _takes_self(function: Callable[..., Any], label: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != len(parameters) or len(positional) not in (1, 2):
        given = ", ".join(map(str, parameters))
        raise OptionTypeError(
            f"@serve.multiplexed: {label}({given}) must take a model id alone: (self, model_id) as a method, or "
            "(model_id) as a function"
        )
    return len(positional) == 2


def _found_by_name(function: Multiplexed) -> bool:
    """Whether another process finds it by importing its module."""
    from headrace.wire.code import is_importable

    found: Any = sys.modules.get(function.__module__)
    if found is None or not is_importable(function.__module__, found):
        return False
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _reference(owner: Any, gone: Callable[[], Any]) -> Callable[[], Any]:
    try:
        return weakref.ref(owner, lambda _: gone())
    except TypeError:  # with __slots__, and no __weakref__ among them: it lives as long as its class
        return lambda: owner
