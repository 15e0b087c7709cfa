"""A batched function, and what it gives for a batch: as many results as items, or errors in their places.

In: what a user's function returned, yielded or raised. Out: results one by one, errors that callers can be given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from typing import Any

import msgspec

from headrace.replica.methods import Kind
from headrace.spec.errors import BatchError, UserCodeError

_ENDS = (StopIteration, StopAsyncIteration)


class BatchedFunction(msgspec.Struct, frozen=True, eq=False):
    """A function of the user's that is called with batches, and the functions that say how those are made."""

    function: Callable[..., Any]
    kind: Kind
    label: str
    batch_size_fn: Callable[[list[Any]], int] | None = None
    pad_fn: Callable[[list[Any], int], Sequence[Any]] | None = None
    bucket_fn: Callable[[Any], Hashable] | None = None


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
    told = UserCodeError(f"{label} raised it{f': {error}' if str(error) else ''}", name)
    told.__cause__ = error
    return told


def copy_of(error: Exception) -> Exception:
    """A copy of an error, or the error itself where its class cannot be copied."""
    try:
        copied = copy.copy(error)
        alike = type(copied) is type(error) and copied.args == error.args
    except Exception:  # constructors and __reduce__ of users may raise anything
        return error
    if not alike:
        return error
    copied.__traceback__ = error.__traceback__
    copied.__cause__ = error.__cause__
    copied.__context__ = error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied


def is_end(value: Any) -> bool:
    """Whether a value says that the stream in its place has ended."""
    return value is StopIteration or value is StopAsyncIteration or isinstance(value, _ENDS)
