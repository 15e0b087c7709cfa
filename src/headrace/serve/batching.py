"""`@serve.batch`: a function of many items that is called with one at a time.

In: the user's function, which takes lists and returns a list. Out: what stands in its place, a function or method of
single items; each call waits for its place in a batch (`replica/batching.py` makes those).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from headrace.context import ReplicaContext, current_replica, current_request
from headrace.replica.batch_items import NO_OWNER, AwaitedItem, BlockedItem
from headrace.replica.batched_function import BatchedFunction, as_error, is_end, values_of
from headrace.replica.batched_readers import AwaitedStream, BlockedStream
from headrace.replica.batching import Batches
from headrace.replica.methods import GENERATORS, BatchedMethod, Kind, kind_of
from headrace.serve.deployment import Deployment
from headrace.spec.batching import MARK, BatchOptions, batch_options
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

__all__ = ["batch"]

_running_loop = asyncio._get_running_loop
_making = threading.RLock()  # of states and batches; reentrant, since a destructor may run anywhere
_FUNCTIONS = ("batch_size_fn", "pad_fn", "bucket_fn")


def batch(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Call a model with many items at once: `@serve.batch`, or `@serve.batch(max_batch_size=32)`.

    The function (or method; `async def` or plain, or a generator) takes a list and returns one of the same length; it
    is called with one item, and gives one result. While it is idle, what has come leaves at once as a batch; while it
    works, calls gather for the next.

    Raises OptionError for a value that is not allowed, OptionTypeError for a wrong type and for an unknown option (with
    the nearest known one).
    """
    known = (*BatchOptions.__struct_fields__, *_FUNCTIONS)
    for name in options:
        if name not in known:
            raise OptionTypeError(f"batch has no {name!r}: {hint(name, known)}")
    functions = {name: options.pop(name) for name in _FUNCTIONS if name in options}
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise OptionTypeError(f"batch: {name}={value!r} must be a function, or None")
    parsed = batch_options(options)
    if functions.get("pad_fn") is not None and not parsed.allowed_batch_sizes:
        raise OptionError("batch: pad_fn is called where a batch is padded to one of allowed_batch_sizes: give those")
    if functions.get("batch_size_fn") is not None and parsed.allowed_batch_sizes and not functions.get("pad_fn"):
        raise OptionError(
            "batch: with batch_size_fn, allowed_batch_sizes need a pad_fn: only that knows how to add rows"
        )

    def decorate(decorated: Any) -> Any:
        if isinstance(decorated, staticmethod | classmethod):
            return type(decorated)(decorate(decorated.__func__))
        if isinstance(decorated, Batched):
            raise OptionTypeError(f"{decorated!r} is batched already")
        if inspect.isclass(decorated) or isinstance(decorated, Deployment) or not callable(decorated):
            raise OptionTypeError(f"@serve.batch decorates a function or a method, not {decorated!r}")
        return Batched(decorated, parsed, functions)

    return decorate if function is None else decorate(function)


class _State:
    """The batches of one instance, by the loop and the replica that they run in; and their options."""

    __slots__ = ("_latest", "batches", "options", "owner")

    def __init__(self, owner: Callable[[], Any], options: BatchOptions) -> None:
        self.owner = owner
        self.options = options
        self.batches: dict[tuple[asyncio.AbstractEventLoop, ReplicaContext | None], Batches] = {}
        self._latest: Batches | None = None

    def find(
        self, function: BatchedFunction, loop: asyncio.AbstractEventLoop, replica: ReplicaContext | None
    ) -> Batches:
        latest = self._latest
        if latest is not None and latest.loop is loop and latest.replica is replica:
            return latest
        with _making:
            found = self.batches.get((loop, replica))
            if found is None:
                for key in [key for key in self.batches if key[0].is_closed()]:
                    del self.batches[key]
                found = self.batches[loop, replica] = Batches(function, self.options, loop, replica)
            self._latest = found
        return found

    def change(self, changes: dict[str, Any]) -> None:
        with _making:
            self.options = options = msgspec.structs.replace(self.options, **changes)
            found = list(self.batches.items())
        for (loop, _), batches in found:
            if not loop.is_closed():
                batches.post(functools.partial(batches.configure, options))


class _Settings(BatchedMethod):
    """How the batches of a function are made, and the ways to change that while it runs."""

    __slots__ = ()

    def set_max_batch_size(self, new_max_batch_size: int) -> None:
        """Batches have at most so many items (rows, with batch_size_fn) from now on."""
        self._change(max_batch_size=new_max_batch_size)

    def set_batch_wait_timeout_s(self, new_batch_wait_timeout_s: float) -> None:
        """The first of a batch waits at most so long for it to become full, from now on."""
        self._change(batch_wait_timeout_s=new_batch_wait_timeout_s)

    def set_max_concurrent_batches(self, new_max_concurrent_batches: int) -> None:
        """So many batches run at once from now on."""
        self._change(max_concurrent_batches=new_max_concurrent_batches)

    def set_target_latency_s(self, new_target_latency_s: float | None) -> None:
        """Batches are made so that their requests are answered in this time, from now on; None: of any duration."""
        self._change(target_latency_s=new_target_latency_s)

    @property
    def batch_options(self) -> BatchOptions:
        """How batches are made now."""
        raise NotImplementedError

    def _change(self, **changes: Any) -> None:
        raise NotImplementedError

    def _get_max_batch_size(self) -> int:
        return self.batch_options.max_batch_size

    def _get_batch_wait_timeout_s(self) -> float:
        return self.batch_options.batch_wait_timeout_s


class Batched(_Settings):
    """A batched function, as it stands in its module or in its class."""

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Any], options: BatchOptions, functions: dict[str, Any]) -> None:
        self.__name__ = self.__qualname__ = type(function).__name__  # where the function has no name of its own
        functools.update_wrapper(self, function)
        setattr(self, MARK, options)
        self._functions = functions
        label = getattr(function, "__qualname__", None) or repr(function)
        self._function = BatchedFunction(function, kind_of(function), label.rpartition("<locals>.")[2], **functions)
        self._streams = self._function.kind in GENERATORS
        self._is_method = False
        self._attribute = getattr(function, "__name__", "")
        self._signature: inspect.Signature | None = None
        self._states: dict[int, _State] = {}

    def __repr__(self) -> str:
        return f"<batched {self._function.label}>"

    def __set_name__(self, owner: type, name: str) -> None:
        self._is_method = True
        self._attribute = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else BoundBatched(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and self._takes_self(args):
            return self._call(args[0], args[1:], kwargs)
        return self._call(NO_OWNER, args, kwargs)

    def _takes_self(self, args: tuple[Any, ...]) -> bool:
        """Whether this is a method called by its class (`Model.predict(model, item)`)."""
        if self._is_method:
            return True
        scope = self.__qualname__.rpartition(".")[0]
        if not scope or scope.endswith("<locals>"):
            return False
        classes = (args[0] if inspect.isclass(args[0]) else type(args[0])).__mro__
        return any(cls.__qualname__ == scope and cls.__module__ == self.__module__ for cls in classes)

    def __reduce__(self) -> Any:
        if _found_by_name(self):
            return self.__qualname__
        state = {name: value for name, value in vars(self).items() if name not in ("_states", "_signature")}
        return _remake, (self._function.function, getattr(self, MARK), self._functions), state

    # ---- for replicas

    @property
    def batched(self) -> BatchedFunction:
        return self._function

    @property
    def batch_owner(self) -> Any:
        return NO_OWNER

    def batches(self, loop: asyncio.AbstractEventLoop, replica: ReplicaContext | None) -> Batches:
        return self._batches(NO_OWNER, loop, replica)

    def batch_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        return self._arguments(NO_OWNER, args, kwargs)

    # ---- its settings

    @property
    def batch_options(self) -> BatchOptions:
        options: BatchOptions = getattr(self, MARK)
        return options

    def _change(self, **changes: Any) -> None:
        setattr(self, MARK, msgspec.structs.replace(self.batch_options, **changes))
        for state in list(self._states.values()):
            state.change(changes)

    def _state(self, instance: Any) -> _State:
        state = self._states.get(id(instance))
        if state is None or state.owner() is not instance:
            with _making:
                state = self._states.get(id(instance))  # maybe another thread has made it meanwhile
                if state is None or state.owner() is not instance:
                    state = self._states[id(instance)] = _State(self._reference(instance), self.batch_options)
        return state

    def _reference(self, instance: Any) -> Callable[[], Any]:
        states, key = self._states, id(instance)

        def forget(reference: Any) -> None:
            state = states.get(key)
            if state is not None and state.owner is reference:
                del states[key]

        try:
            return weakref.ref(instance, forget)
        except TypeError:  # with __slots__, and no __weakref__ among them: it lives as long as its class
            return lambda: instance

    # ---- its calls

    def _batches(self, instance: Any, loop: asyncio.AbstractEventLoop, replica: ReplicaContext | None) -> Batches:
        return self._state(instance).find(self._function, loop, replica)

    def _call(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named: dict[str, Any] | None = None
        if kwargs or len(args) != 1:
            args, named = self._arguments(instance, args, kwargs)
        loop = _running_loop()
        if loop is None:
            return self._call_in_thread(instance, args, named)
        request = current_request()
        replica = request.replica if request is not None and request.replica is not None else current_replica()
        batches = self._state(instance).find(self._function, loop, replica)
        if self._streams:
            stream = AwaitedStream(None, instance, args, named, request)
            stream.start(batches)
            return stream.iterate()
        item = AwaitedItem(None, instance, args, named, request)
        item.start(batches)
        return item

    def _call_in_thread(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        replica, request, streams = current_replica(), current_request(), self._streams
        if replica is not None and replica.loop is not None:
            batches = self._batches(instance, replica.loop, replica)
            if streams:
                return BlockedStream(batches, instance, args, kwargs, request).iterate()
            return BlockedItem(batches, instance, args, kwargs, request).result()
        if self._function.kind is Kind.PLAIN:
            return self._one_of(self._function.function(*_lists_of_one(instance, args), **_named_of_one(kwargs)))
        if self._function.kind is Kind.GENERATOR:
            return self._iterate_alone(self._function.function(*_lists_of_one(instance, args), **_named_of_one(kwargs)))
        find = functools.partial(self._batches_here, instance)
        if streams:
            return AwaitedStream(find, instance, args, kwargs, request).iterate()
        return AwaitedItem(find, instance, args, kwargs, request)

    def _one_of(self, result: Any) -> Any:
        """The result of a batch of one."""
        value = values_of(self._function, result, 1)[0]
        if isinstance(value, BaseException):
            raise as_error(self._function.label, value)
        return value

    def _iterate_alone(self, generator: Generator[Any, None, None]) -> Generator[Any, None, None]:
        try:
            for result in generator:
                value = values_of(self._function, result, 1)[0]
                if is_end(value):
                    return
                yield self._one_of(result)
        finally:
            generator.close()

    def _batches_here(self, instance: Any) -> Batches:
        return self._batches(instance, asyncio.get_running_loop(), current_replica())

    def _arguments(
        self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        """The arguments as all calls have them that may share a batch. Raises TypeError where they do not fit."""
        if self._signature is None:
            self._signature = inspect.signature(self._function.function)
        owner = () if instance is NO_OWNER else (instance,)
        try:
            bound = self._signature.bind(*owner, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._function.label}: {error}") from None
        args = bound.args[len(owner) :]
        if not args and not bound.kwargs:
            raise TypeError(f"{self._function.label} is called with one item, and was called with none")
        return args, None if len(args) == 1 and not bound.kwargs else dict(bound.kwargs)


class BoundBatched(_Settings):  # a batched method of an instance; its docstring is that of the function
    __slots__ = ("__self__", "_batched")

    def __init__(self, batched: Batched, instance: Any) -> None:
        self._batched = batched
        self.__self__ = instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._batched._call(self.__self__, args, kwargs)

    def __repr__(self) -> str:
        return f"<batched {self._batched._function.label} of {self.__self__!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundBatched):
            return NotImplemented
        return self.__self__ is other.__self__ and self._batched is other._batched

    def __hash__(self) -> int:
        return hash((id(self.__self__), id(self._batched)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batched, name)

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self._batched._attribute)

    # ---- for replicas

    @property
    def batched(self) -> BatchedFunction:
        return self._batched._function

    @property
    def batch_owner(self) -> Any:
        return self.__self__

    def batches(self, loop: asyncio.AbstractEventLoop, replica: ReplicaContext | None) -> Batches:
        return self._batched._batches(self.__self__, loop, replica)

    def batch_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        return self._batched._arguments(self.__self__, args, kwargs)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._batched.__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._batched._function.function.__get__(self.__self__))

    @property
    def batch_options(self) -> BatchOptions:
        return self._batched._state(self.__self__).options

    def _change(self, **changes: Any) -> None:
        self._batched._state(self.__self__).change(changes)


def _lists_of_one(instance: Any, args: tuple[Any, ...]) -> list[Any]:
    lists: list[Any] = [[value] for value in args]
    return lists if instance is NO_OWNER else [instance, *lists]


def _named_of_one(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {name: [value] for name, value in (kwargs or {}).items()}


def _remake(function: Callable[..., Any], options: BatchOptions, functions: dict[str, Any]) -> Batched:
    return Batched(function, options, functions)


def _found_by_name(batched: Batched) -> bool:
    """Whether another process finds it by importing its module."""
    from headrace.wire.code import is_importable

    found: Any = sys.modules.get(batched.__module__)
    if found is None or not is_importable(batched.__module__, found):
        return False
    for name in batched.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is batched
