"""Options of a function that is called with many requests at once: `@serve.batch(...)`.

In: what users write, and the class or function that they deploy. Out: the options on the function, valid, or an error
that names the option, the value, and what would be right; how many requests a replica must take at once so that its
batches can become full.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

MARK = "__headrace_batch__"  # the attribute of a batched function that holds its BatchOptions

LARGEST_BATCH = 1 << 20
MOST_CONCURRENT = 1024
LONGEST_S = 3600.0


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How batches of one function are made, as `@serve.batch` says.

    A batch holds at most `max_batch_size` requests, or as many rows as its `batch_size_fn` counts; one request that is
    larger goes alone. `max_concurrent_batches` run at once. While fewer do, what waits leaves at once, or, with
    `batch_wait_timeout_s`, when the eldest has waited so long or the batch is full. With `target_latency_s` batches
    are made only so large that their requests are answered within it. With `allowed_batch_sizes` a batch is padded
    to the next of them.

    Raises OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.0
    max_concurrent_batches: int = 1
    target_latency_s: float | None = None
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_whole("max_batch_size", self.max_batch_size, LARGEST_BATCH)
        _check_whole("max_concurrent_batches", self.max_concurrent_batches, MOST_CONCURRENT)
        allowed = f"a number of seconds, from 0 to {LONGEST_S:.0f}"
        _check_seconds("batch_wait_timeout_s", self.batch_wait_timeout_s, allowed)
        if self.target_latency_s is not None:
            allowed = f"a number of seconds above 0 and at most {LONGEST_S:.0f}, or None"
            _check_seconds("target_latency_s", self.target_latency_s, allowed)
            if self.target_latency_s == 0:
                raise OptionError(f"batch: target_latency_s={self.target_latency_s!r} must be {allowed}")
        _check_sizes(self.allowed_batch_sizes, self.max_batch_size)


def batch_options(given: Mapping[str, Any]) -> BatchOptions:
    """The options of these names and values. Raises OptionError, OptionTypeError."""
    known = BatchOptions.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionTypeError(f"batch has no {name!r}: {hint(name, known)}")
    sizes = given.get("allowed_batch_sizes", ())
    if sizes is None or isinstance(sizes, list):
        given = {**given, "allowed_batch_sizes": tuple(sizes or ())}
    return BatchOptions(**given)


def least_ongoing(target: Callable[..., Any]) -> int:
    """How many calls at once keep the batches of a deployment full while others are made: 0 where it has none."""
    members = [target] if not inspect.isclass(target) else [member for _, member in inspect.getmembers_static(target)]
    marks = [_mark(member) for member in members]
    sizes = [mark.max_batch_size * mark.max_concurrent_batches for mark in marks if mark is not None]
    return 2 * max(sizes, default=0)


def _mark(member: object) -> BatchOptions | None:
    """The options of a batched function or method; static and class methods are looked into."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    mark = inspect.getattr_static(member, MARK, None)
    return mark if isinstance(mark, BatchOptions) else None


def _check_whole(name: str, value: object, most: int) -> None:
    allowed = f"a whole number from 1 to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"batch: {name}={value!r} must be {allowed}, not {type(value).__name__}")
    if not 1 <= value <= most:
        raise OptionError(f"batch: {name}={value!r} must be {allowed}")


def _check_seconds(name: str, value: object, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"batch: {name}={value!r} must be {allowed}")
    if not 0 <= value <= LONGEST_S:  # comparisons alone: an integer may be too large for a float
        raise OptionError(f"batch: {name}={value!r} must be {allowed}")


def _check_sizes(sizes: object, max_batch_size: int) -> None:
    allowed = f"whole numbers that grow, the last at least max_batch_size={max_batch_size}, such as (8, 32, 128)"
    if not isinstance(sizes, tuple) or not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise OptionTypeError(f"batch: allowed_batch_sizes={sizes!r} must be {allowed}")
    if not sizes:
        return
    grows = all(less < more for less, more in pairwise(sizes))
    if sizes[0] < 1 or not grows or sizes[-1] < max_batch_size:
        raise OptionError(f"batch: allowed_batch_sizes={sizes!r} must be {allowed}")
