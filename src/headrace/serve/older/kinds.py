"""What a backend's code is like, and what it knows of itself while it runs.

In: the user's class or function. Out: whether it is awaited, or accepts batches; the tag, the size of the batch.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

import msgspec

from headrace.context import current_replica

ACCEPTS_BATCHES = "_serve_accept_batch"  # the mark of `accept_batch`

web: ContextVar[bool] = ContextVar("headrace_older_web", default=False)
batch_size: ContextVar[int | None] = ContextVar("headrace_older_batch_size", default=None)
under_construction: ContextVar[str] = ContextVar("headrace_older_tag", default="")


class ServedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What changes in place: how batches are made, which HTTP methods the endpoint takes, the user's own config."""

    max_batch_size: int = 1
    batch_wait_timeout_s: float = 0.0
    methods: tuple[str, ...] = ()
    user_config: Any = None


def accepts_batches(function: object) -> bool:
    """Whether `accept_batch` marked the function or method."""
    return bool(getattr(function, ACCEPTS_BATCHES, False))


def is_asynchronous(function: object) -> bool:
    """Whether a call of it is to be awaited."""
    return inspect.iscoroutinefunction(function)


def backend_tag() -> str:
    """The tag of the backend whose code runs now, "" outside of any."""
    replica = current_replica()
    servable = replica.servable_object if replica is not None else None
    tag = getattr(servable, "_backend_tag", None)
    return tag if isinstance(tag, str) else under_construction.get()
