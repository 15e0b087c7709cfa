"""How objects of users come to their end: what is called then may be asynchronous, may take long, may raise.

In: an instance or a model. Out: nothing; what user code raises is raised.
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


def has_an_end(model: Any) -> bool:
    """Whether something is to be called when the model goes."""
    return not inspect.isclass(model) and (_close_of(model) is not None or hasattr(type(model), "__del__"))


async def end(held: list[Any]) -> None:
    """Close the one model in the list, which is the last to refer to it; one without `close` by its destructor."""
    model = held.pop()
    close = _close_of(model)
    if close is not None:
        await call(close, close, "close")
    elif inspect.iscoroutinefunction(getattr(type(model), "__del__", None)):
        await model.__del__()
        disarm(model)
    else:
        held.append(model)
        del model
        await in_thread(held.clear, "del")  # where others refer to it, it lives on as long as they do


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


def _close_of(model: Any) -> Callable[[], Any] | None:
    try:
        close = getattr(model, "close", None)
    except Exception as error:  # attributes of users may be made by their code
        log.debug("%r is taken to have no close: %s", type(model).__name__, error)
        return None
    return close if callable(close) else None


def _nothing(_: object) -> None:
    """The destructor of what is destroyed already."""
