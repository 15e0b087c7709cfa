"""Threads for what must not run on the event loop: plain methods of users, constructors, imports.

In: work from the loop's thread, to be done in another. Out: what each work returns, an action, done back on the loop.
Not concurrent.futures: one wake-up of the loop brings back all that ended meanwhile, no future is made per call, an
outcome may be any exception, and a thread that never returns does not keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")

Done = Callable[[], None]
Work = Callable[[], Done]

_LOOK_S = 1.0  # between looks for a loop that closed


class ThreadPool:
    """At most `size` daemon threads, started when first needed. All methods are called on the loop's thread."""

    __slots__ = ("_busy", "_ended", "_loop", "_name", "_size", "_threads", "_woken", "_works")

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, name: str = "call") -> None:
        self._loop = loop
        self._size = size
        self._name = name
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._ended: deque[Done] = deque()
        self._woken = False
        self._threads = 0
        self._busy = 0  # works submitted whose end the loop has not seen

    def __repr__(self) -> str:
        return f"<ThreadPool {self._name} busy={self._busy} threads={self._threads}/{self._size}>"

    def submit(self, work: Work) -> None:
        """Have a thread call `work`, and the loop what that returns. `work` must not raise."""
        self._busy += 1
        if self._busy > self._threads and self._threads < self._size:
            thread = threading.Thread(target=self._run, name=f"headrace-{self._name}-{self._threads}", daemon=True)
            self._threads += 1
            thread.start()
        self._works.put(work)

    def resize(self, size: int) -> None:
        """Start at most `size` threads from now on; those there are stay."""
        self._size = size

    def close(self) -> None:
        """Let the threads end, each after the work that it is at."""
        for _ in range(self._threads):
            self._works.put(None)

    def _run(self) -> None:
        get, ended = self._works.get, self._ended
        while True:
            try:
                work = get(timeout=_LOOK_S if ended else None)
            except queue.Empty:
                if self._loop.is_closed():
                    ended.clear()  # it closed before it took them; what they hold would never go
                continue
            if work is None:
                return
            ended.append(work())
            del work  # the thread may wait for long, and must not hold what it has done with
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._drain)
                except RuntimeError:
                    ended.clear()
                    return  # the loop is closed: nobody waits for this any more

    def _drain(self) -> None:
        # First the flag, then the queue: whoever appends after the last popleft sees the flag down and wakes the loop.
        self._woken = False
        ended = self._ended
        while ended:
            self._busy -= 1
            ended.popleft()()


async def in_thread(function: Callable[[], T], name: str) -> T:
    """The result of `function`, called in a thread of its own with the caller's context variables.

    When the waiting task is cancelled the thread goes on alone: nothing can stop it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(outcome: tuple[T | None, BaseException | None]) -> None:
        if not done.done():
            done.set_result(outcome)

    def run() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = context.run(function), None
        except BaseException as error:  # the top of a thread: whatever it is, the waiting task raises it
            outcome = None, error
        try:
            loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            return  # the loop is closed: nobody waits for this any more

    threading.Thread(target=run, name=f"headrace-{name}", daemon=True).start()
    result, error = await done
    if error is not None:
        raise error
    return cast(T, result)
