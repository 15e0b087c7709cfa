"""Batches of generators: each `yield` gives a list with a value for each of the batch, and each reader gets its own.

In: what the generator yields, from the loop or from its thread. Out: values to the readers: code that iterates on a
loop or in a thread, or the call itself (`batched_calls.py`). Who reads slowly holds up the others of its batch only for
so long; who has all that it wants is not waited for.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.replica.batch_items import Item
from headrace.replica.batch_run import BatchRun
from headrace.replica.batched_function import as_error, copy_of, is_end
from headrace.replica.methods import Kind
from headrace.replica.threads import Done
from headrace.spec.errors import RequestTimeoutError

if TYPE_CHECKING:
    from headrace.core.batching import Batch
    from headrace.replica.batching import Batches

AHEAD = 256  # values that a reader may be behind
AHEAD_OF_LOOP = 16  # lists that a thread may be ahead of the loop

_now = time.monotonic


class StreamItem(Item):
    """One reader of a batch of generators. `moved` is when it last took a value, or fell too far behind."""

    __slots__ = ("moved",)

    moved: float

    def put(self, value: Any) -> bool:
        """Its next value. False: it is too far behind, and calls `made_room` of its run when it is not any more."""
        raise NotImplementedError

    def settle(self, value: Any) -> None:
        """There is no more; `value` says nothing."""
        raise NotImplementedError


class StreamRun(BatchRun):
    """A batch whose function is a generator. All on the loop, but for the generator of a thread."""

    __slots__ = ("_way", "full", "paused", "waiter")

    def __init__(self, batches: Batches, batch: Batch[Item], items: list[Item]) -> None:
        super().__init__(batches, batch, items)
        self.full: set[StreamItem] = set()
        self.paused = False  # ever
        self.waiter: asyncio.Future[None] | None = None
        self._way: _Way | None = None

    def left(self, item: Item) -> None:
        assert isinstance(item, StreamItem)
        self.made_room(item)
        super().left(item)

    def cancel(self) -> None:
        super().cancel()
        self._wake()
        if self._way is not None:
            self._way.stop()

    # ---- values to readers

    def deliver(self, values: Sequence[Any]) -> bool:
        """Give each its value. False: nobody has wanted any since before the last."""
        if not self.live:
            return False
        for item, value in zip(self.items, values, strict=False):  # more values: those of the padding
            assert isinstance(item, StreamItem)
            if item.gone:
                continue
            if is_end(value):
                item.settle(None)
            elif isinstance(value, BaseException):
                item.fail(copy_of(as_error(self.batches.label, value)))
            elif not item.put(value) and not item.gone:
                item.moved = _now()
                self.full.add(item)
        self.live = sum(not item.gone for item in self.items)
        return True

    def made_room(self, item: StreamItem) -> None:
        """The reader is not too far behind any more."""
        self.full.discard(item)
        if not self.full:
            self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def room(self) -> None:
        """Until no reader is too far behind; those that stay so while others wait are failed."""
        loop = self.batches.loop
        while self.full and not self.cancelled:
            self.paused = True
            timer: asyncio.TimerHandle | None = None
            if self.live > len(self.full):
                latest = _now() - self.batches.stall_s
                for item in [item for item in self.full if item.moved <= latest]:
                    self._fail_stalled(item)
                if not self.full:
                    return
                oldest = min(item.moved for item in self.full)
                timer = loop.call_at(oldest + self.batches.stall_s, self._wake)
            self.waiter = loop.create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
                if timer is not None:
                    timer.cancel()

    def _fail_stalled(self, item: StreamItem) -> None:
        self.full.discard(item)
        self.live -= 1
        label, stall_s = self.batches.label, self.batches.stall_s
        item.fail(
            RequestTimeoutError(f"a stream of {label} was not read for {stall_s:g} s, while others of its batch waited")
        )

    # ---- the generator

    def start(self, context: contextvars.Context) -> None:
        batches = self.batches
        if batches.function.kind is Kind.ASYNC_GENERATOR:
            asyncio.Task(self._iterate(), loop=batches.loop, name="batch", context=context)
        else:
            batches.threads().submit(partial(context.run, self._iterate_in_thread))

    async def _iterate(self) -> None:
        """An asynchronous generator, to its end."""
        batches = self.batches
        try:
            self.task = asyncio.current_task(batches.loop)
            if self.cancelled:
                raise asyncio.CancelledError
            generator = self.call()
            try:
                async for result in generator:
                    if not self.deliver(self.values(result)):
                        break
                    if self.full:
                        await self.room()
                    else:
                        await asyncio.sleep(0)  # a generator that only computes: what it made so far is to leave
            finally:
                await generator.aclose()
        except BaseException as error:  # the top of the task: whatever user code raises fails this batch alone
            batches.failed(self, self.cause(error))
        else:
            self._finish()

    def _iterate_in_thread(self) -> Done:
        """A plain generator, to its end."""
        batches = self.batches
        way = self._way = _Way(self)
        try:
            if self.request is not None:
                self.request.check()
            generator = self.call()
            try:
                for result in generator:
                    way.put(self.values(result))
            finally:
                generator.close()
        except _NoneWants:
            return partial(way.finish, self._finish)
        except BaseException as error:  # as in run
            return partial(way.finish, partial(batches.failed, self, error))
        return partial(way.finish, self._finish)

    def _finish(self) -> None:
        self.batches.end(self, learn=not self.paused and not self.cancelled)
        for item in self.items:
            if not item.gone:
                item.settle(None)
        self.let_go()


class _NoneWants(Exception):
    """To leave a generator that nobody reads any more."""


class _Way:
    """The way of lists from the thread of a generator to the loop. `put` is the thread's, all else the loop's."""

    __slots__ = ("_end", "_lock", "_queue", "_resuming", "_run", "_stopped", "_woken")

    def __init__(self, run: StreamRun) -> None:
        self._run = run
        self._queue: deque[Sequence[Any]] = deque()
        self._woken = False
        self._stopped = False
        self._lock: threading.Lock | None = None  # held while the thread waits for it
        self._resuming: asyncio.Task[None] | None = None
        self._end: Callable[[], None] | None = None

    def put(self, values: Sequence[Any]) -> None:
        queue = self._queue
        queue.append(values)
        if not self._woken:
            self._woken = True
            self._run.batches.post(self._drain)
        if len(queue) >= AHEAD_OF_LOOP:
            lock = threading.Lock()
            lock.acquire()
            self._lock = lock
            # The loop takes first and looks for the lock after; so one of the two sees the other.
            if len(queue) >= AHEAD_OF_LOOP and not (self._stopped or self._run.cancelled):
                lock.acquire()
        if self._stopped or self._run.cancelled:
            raise _NoneWants

    def stop(self) -> None:
        """Nobody wants more: the thread's next `put` raises."""
        self._stopped = True
        self._release()

    def finish(self, end: Callable[[], None]) -> None:
        """The thread has ended: call `end` once all is delivered."""
        self._end = end
        self._drain()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _drain(self) -> None:
        # First the flag, then the queue: whoever appends after the last popleft sees the flag down and wakes the loop.
        self._woken = False
        queue, run = self._queue, self._run
        while queue and not self._stopped and self._resuming is None:
            if not run.deliver(queue.popleft()):
                self._stopped = True
            elif run.full:
                self._resuming = run.batches.loop.create_task(self._resume(), name="room")
        if self._stopped:
            queue.clear()
        if len(queue) < AHEAD_OF_LOOP:
            self._release()
        if self._end is not None and not queue and self._resuming is None:
            end, self._end = self._end, None
            end()

    async def _resume(self) -> None:
        await self._run.room()
        self._resuming = None
        self._drain()
