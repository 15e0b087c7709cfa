"""How objects of users come to their end: their destructors are called where they may wait or be asynchronous.

In: an instance, and what is to be called. Out: nothing; what user code raises is raised.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from headrace.replica.threads import in_thread

log = logging.getLogger("headrace.replica")


async def call(work: Callable[[], Any], method: Callable[..., Any], name: str) -> None:
    """Call `work`, awaiting it where `method` is a coroutine function, else in a thread."""
    if inspect.iscoroutinefunction(method):
        await work()
        return
    result = await in_thread(work, name)
    if inspect.isawaitable(result):
        await result


def disarm(instance: object) -> None:
    """Keep the interpreter from calling `__del__` a second time when it collects the instance."""
    kind: Any = type(instance)
    try:
        spent = type(kind)(
            kind.__name__, (kind,), {"__slots__": (), "__module__": kind.__module__, "__del__": _nothing}
        )
        instance.__class__ = spent
    except Exception as error:  # layouts that do not fit, and what metaclasses and __init_subclass__ of users raise
        log.debug("the __del__ of %r may run a second time: %s", kind.__name__, error)


def _nothing(_: object) -> None:
    """The destructor of what is destroyed already."""
