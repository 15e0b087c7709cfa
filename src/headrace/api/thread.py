"""Work that blocks, beside the event loop: each in a thread of its own, so that none waits for another.

In: functions. Out: what they return or raise, on the loop. The threads are daemons: an answer that is not there yet
must not keep the process from its end, as those of an executor would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(what: str, work: Callable[[], _T]) -> _T:
    """What the function returns. Cancelled, it still goes on to its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        outcome: Callable[[], object]
        try:
            outcome = partial(future.set_result, work())
        except Exception as error:  # the top of a thread: whoever awaits it gets it, whatever it is
            outcome = partial(future.set_exception, error)
        try:
            loop.call_soon_threadsafe(lambda: future.cancelled() or outcome())
        except RuntimeError:
            pass  # the loop is closed: the process ends, and nobody waits

    threading.Thread(target=run, name=what, daemon=True).start()
    return await future
