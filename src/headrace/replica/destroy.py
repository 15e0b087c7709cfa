"""How objects of users come to their end: what is called then may be asynchronous, may take long, may raise.

In: an instance or a model. Out: nothing; what an instance's code raises is raised, what a model's does is logged.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from headrace.replica.threads import in_thread
from headrace.wire.payload import traceback_text

log = logging.getLogger("headrace.replica")

CLOSE_S = 10.0  # what closing a model may take before its room is given to another


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


async def end_model(held: list[Any], whose: str) -> None:
    """Close the one model in the list, which is the last to refer to it; one without `close` by its destructor.

    Whatever the model's code does is logged and no more. Afterwards nothing here refers to the model.
    """
    what = f"{whose}: closing a model ({type(held[0]).__name__})"
    try:
        async with asyncio.timeout(CLOSE_S) as limit:
            await _end(held)
    except BaseException as error:  # the top of what a model's code does at its end: it changes nothing for others
        if limit.expired():
            log.error("%s has not ended within %g s", what, CLOSE_S)
        else:
            log.error("%s raised\n%s", what, traceback_text(error).rstrip())


async def _end(held: list[Any]) -> None:
    close = _close_of(held[0])
    if close is None and inspect.iscoroutinefunction(getattr(type(held[0]), "__del__", None)):
        model = held.pop()
        await model.__del__()
        disarm(model)
    elif inspect.iscoroutinefunction(close):
        held.clear()
        await close()
    else:
        work = [held.clear if close is None else close]
        if close is not None:
            held.clear()
        del close
        result = await in_thread(partial(_call_last, work), "close")
        if inspect.isawaitable(result):
            await result


def _call_last(work: list[Callable[[], Any]]) -> Any:
    """Call it, and refer to it no longer: whoever waits for the call goes on before the thread has ended."""
    return work.pop()()


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
