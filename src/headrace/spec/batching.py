"""Options of a function that is called with many requests at once: `@serve.batch(...)`.

In: what users write, and the class or function that they deploy. Out: the options on the function; how many requests a
replica must take at once so that its batches can become full.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec

MARK = "__headrace_batch__"  # the attribute of a batched function that holds its BatchOptions


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How batches of one function are made, as `@serve.batch` says."""

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.0
    max_concurrent_batches: int = 1
    target_latency_s: float | None = None


def least_ongoing(target: Callable[..., Any]) -> int:
    """How many calls at once keep the batches of a deployment full while others are made: 0 where it has none."""
    members = [target] if not inspect.isclass(target) else [member for _, member in inspect.getmembers_static(target)]
    marks = [inspect.getattr_static(member, MARK, None) for member in members]
    sizes = [mark.max_batch_size * mark.max_concurrent_batches for mark in marks if isinstance(mark, BatchOptions)]
    return 2 * max(sizes, default=0)
