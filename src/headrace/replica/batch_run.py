"""One batch at work: what its function is called with, and what came of it, item by item.

In: the items of a batch. Out: the arguments as lists, padded where that is asked for; the results, one for each item;
the request that the function works for, made of those of its items.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.context import ReplicaContext, RequestContext, replica_variable, request_variable
from headrace.core.batching import Batch
from headrace.handle import cancel_calls
from headrace.replica.batch_items import NO_OWNER, Item
from headrace.replica.held import Holder
from headrace.replica.methods import Kind
from headrace.spec.errors import HeadraceError, UserCodeError

if TYPE_CHECKING:
    from headrace.replica.batching import Batches


class BatchedFunction(msgspec.Struct, frozen=True, eq=False):
    """A function of the user's that is called with batches, and the functions that say how those are made."""

    function: Callable[..., Any]
    kind: Kind
    label: str
    batch_size_fn: Callable[[list[Any]], int] | None = None
    pad_fn: Callable[[list[Any], int], Sequence[Any]] | None = None
    bucket_fn: Callable[[Any], Hashable] | None = None


class BatchError(HeadraceError, RuntimeError):
    """A batch function did not do its part: it returned no sequence, or one of a wrong length."""


class BatchRun:
    """One batch that runs. Its function sees it as the call that it works for: `cancelled` when all items have left."""

    __slots__ = ("batch", "batches", "cancelled", "expired", "items", "live", "models", "request", "task")

    def __init__(self, batches: Batches, batch: Batch[Item], items: list[Item]) -> None:
        self.batches = batches
        self.batch = batch
        self.items = items
        self.live = len(items)
        self.cancelled = False
        self.expired = False
        self.models: Any = None  # what holds the models that its code was given
        self.task: asyncio.Task[Any] | None = None
        self.request: RequestContext | None = None
        self.models = Holder(insider=True)  # a call that holds a model may wait for this batch
        for item in items:
            item.run = self

    def __repr__(self) -> str:
        return f"<BatchRun of {self.batches.label}: {self.live} of {len(self.items)} wanted>"

    def left(self, item: Item) -> None:
        """One of its items has left; with the last, nobody wants it any more."""
        self.live -= 1
        if not self.live and not self.cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Stop it: nobody wants what it will give."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()
        cancel_calls(self.request)

    def context(self, replica: ReplicaContext | None) -> contextvars.Context:
        """A context of its own, in which the request is that of the whole batch."""
        context = contextvars.Context()
        self.request = self._request_of_all(replica)
        context.run(_set, self.request, replica)
        return context

    def _request_of_all(self, replica: ReplicaContext | None) -> RequestContext | None:
        metas = [item.meta for item in self.items if item.meta is not None]
        if not metas:
            return None
        first = metas[0]
        priority = max(meta.priority for meta in metas)
        meta = first if priority == first.priority else msgspec.structs.replace(first, priority=priority)
        deadline: float | None = 0.0
        for item in self.items:
            if item.deadline is None:
                deadline = None
                break
            assert deadline is not None
            deadline = max(deadline, item.deadline)
        return RequestContext(meta, deadline, replica, None, self)

    # ---- what the function is called with

    def call(self, function: BatchedFunction) -> Any:
        """Call the user's function with the items."""
        first = self.items[0]
        args: list[Any]
        if len(first.args) == 1 and first.kwargs is None:
            args, kwargs = [self._padded(function, [item.args[0] for item in self.items])], {}
        else:
            args = [
                self._padded(function, [item.args[place] for item in self.items]) for place in range(len(first.args))
            ]
            kwargs = {
                name: self._padded(function, [item.kwargs[name] for item in self.items])  # type: ignore[index]
                for name in first.kwargs or ()
            }
        if first.owner is not NO_OWNER:
            args.insert(0, first.owner)
        return function.function(*args, **kwargs)

    def _padded(self, function: BatchedFunction, items: list[Any]) -> list[Any]:
        batch = self.batch
        if batch.padded_size <= batch.size:
            return items
        if function.pad_fn is None:
            return items + items[-1:] * (self.expected - len(items))
        padded = list(function.pad_fn(items, batch.padded_size))
        if len(padded) != self.expected:
            raise BatchError(
                f"the pad_fn of {function.label} gave {len(padded)} items where a batch of {len(items)} is padded to "
                f"{batch.padded_size}: return {self.expected}"
            )
        return padded

    @property
    def expected(self) -> int:
        """How many items the function is called with."""
        return len(self.items) + self.batch.padded_size - self.batch.size

    def values(self, function: BatchedFunction, result: Any) -> Sequence[Any]:
        """The results of the items, from what the function returned or yielded. Raises BatchError."""
        return values_of(function, result, self.expected)


def _set(request: RequestContext | None, replica: ReplicaContext | None) -> None:
    request_variable.set(request)
    replica_variable.set(replica)


def values_of(function: BatchedFunction, result: Any, expected: int) -> Sequence[Any]:
    """What a batch function gave for `expected` items, one by one. Raises BatchError for what is no such sequence."""
    kind = type(result)
    if kind is not list and kind is not tuple:
        if (
            isinstance(result, str | bytes | bytearray | memoryview | Mapping | Set)
            or not hasattr(kind, "__len__")
            or not hasattr(kind, "__getitem__")
            or hasattr(kind, "iterrows")  # a data frame, whose items are its columns
        ):
            raise BatchError(
                f"{function.label} was called with a batch of {expected}, and gave {_described(result)}: give a list "
                "(or another sequence) with one result for each item"
            )
        result = list(result)
    if len(result) != expected:
        raise BatchError(
            f"{function.label} was called with a batch of {expected}, and gave {len(result)} results: give one for "
            "each item, in their order"
        )
    return result  # type: ignore[no-any-return]


def _described(result: Any) -> str:
    name = type(result).__name__
    if name == "DataFrame":
        return "a DataFrame (to_dict('records') makes a list of it)"
    return "None" if result is None else f"a {name}"


def as_error(label: str, error: BaseException) -> Exception:
    """The error as callers get it: one that means something to the loop or to the interpreter only by its name."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    name = type(error).__name__
    told = UserCodeError(f"{label} raised {name}{f': {error}' if str(error) else ''}", name)
    told.__cause__ = error
    return told
