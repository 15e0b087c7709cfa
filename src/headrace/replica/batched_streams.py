"""Batches of generators: each `yield` gives a list with a value for each of the batch, and each reader gets its own.

In: what the generator yields, from the loop or from its thread. Out: values to the readers: code that iterates on a
loop or in a thread, or the call itself (`batched_calls.py`). Who reads slowly holds up the others of its batch only for
so long; who has all that it wants is not waited for.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.context import RequestContext
from headrace.replica.batch_items import Item, copy_of, enroll, strike_off
from headrace.replica.batch_run import BatchRun, as_error
from headrace.replica.threads import Done
from headrace.spec.errors import InstanceError, RequestCancelledError, RequestTimeoutError

if TYPE_CHECKING:
    from headrace.core.batching import Batch
    from headrace.replica.batching import Batches

AHEAD = 256  # values that a reader may be behind
STALL_S = 10.0  # so long may one that is further behind hold up the others
AHEAD_OF_LOOP = 16  # lists that a thread may be ahead of the loop

_ENDS = (StopIteration, StopAsyncIteration)
_now = time.monotonic


def is_end(value: Any) -> bool:
    """Whether a value says that the stream in its place has ended."""
    return value is StopIteration or value is StopAsyncIteration or isinstance(value, _ENDS)


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
    """A batch whose function is a generator. All but `in_thread` on the loop."""

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
                latest = _now() - STALL_S
                for item in [item for item in self.full if item.moved <= latest]:
                    self._fail_stalled(item)
                if not self.full:
                    return
                oldest = min(item.moved for item in self.full)
                timer = loop.call_at(oldest + STALL_S, self._wake)
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
        item.fail(
            RequestTimeoutError(
                f"a stream of {self.batches.label} was not read for {STALL_S:g} s, while others of its batch waited"
            )
        )

    # ---- the generator

    async def run(self) -> None:
        """An asynchronous generator, to its end."""
        batches = self.batches
        try:
            self.task = asyncio.current_task(batches.loop)
            if self.cancelled:
                raise asyncio.CancelledError
            generator = self.call(batches.function)
            try:
                async for result in generator:
                    if not self.deliver(self.values(batches.function, result)):
                        break
                    if self.full:
                        await self.room()
            finally:
                await generator.aclose()
        except BaseException as error:  # the top of the task: whatever user code raises fails this batch alone
            batches.failed(self, error)
        else:
            self._finish()

    def in_thread(self) -> Done:
        """A plain generator, to its end."""
        batches = self.batches
        way = self._way = _Way(self)
        try:
            if self.request is not None:
                self.request.check()
            generator = self.call(batches.function)
            try:
                for result in generator:
                    way.put(self.values(batches.function, result))
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


class AwaitedStream(StreamItem):
    """A reader on an event loop."""

    __slots__ = ("_batches", "_ended", "_error", "_find", "_values", "_waiter")

    def __init__(
        self,
        find: Callable[[], Batches] | None,
        owner: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        request: RequestContext | None,
    ) -> None:
        super().__init__(owner, args, kwargs, request)
        self._find = find  # gives the Batches of the running loop
        self._batches: Batches | None = None
        self._values: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: Exception | None = None

    def start(self, batches: Batches) -> None:
        """Wait for a batch of these."""
        self._batches = batches
        batches.put(self)

    def iterate(self) -> AsyncGenerator[Any, None]:
        """What the user iterates over. When it is let go of, the reader has left."""
        generator = self._read()
        weakref.finalize(generator, self._let_go).atexit = False
        return generator

    async def _read(self) -> AsyncGenerator[Any, None]:
        if self._batches is None:
            assert self._find is not None
            self.start(self._find())
        assert self._batches is not None
        values = self._values
        try:
            while True:
                if values:
                    value = values.popleft()
                    self._took()
                    yield value
                elif self._ended:
                    if self._error is not None:
                        raise self._error
                    return
                else:
                    self._waiter = self._batches.loop.create_future()
                    await self._waiter
        finally:
            self.leave(self._batches)

    def _took(self) -> None:
        run = self.run
        if isinstance(run, StreamRun) and self in run.full:
            self.moved = _now()
            if len(self._values) <= AHEAD // 2:
                run.made_room(self)

    def _let_go(self) -> None:
        """From any thread, also in the midst of anything: nobody can read it any more."""
        if not self.gone and self._batches is not None:
            self._batches.post(partial(self.leave, self._batches))

    def put(self, value: Any) -> bool:
        self._values.append(value)
        self._wake()
        return len(self._values) <= AHEAD

    def settle(self, value: Any) -> None:
        self.gone = self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.settle(None)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class BlockedStream(StreamItem):
    """A reader in a thread."""

    __slots__ = ("_batches", "_cancelled", "_ended", "_error", "_full", "_lock", "_request", "_values")

    def __init__(
        self,
        batches: Batches,
        owner: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        request: RequestContext | None,
    ) -> None:
        super().__init__(owner, args, kwargs, request)
        self._batches = batches
        self._request = request
        self._values: deque[Any] = deque()
        self._lock: threading.Lock | None = None  # held while the thread waits for it
        self._full = False
        self._ended = False
        self._cancelled = False
        self._error: Exception | None = None

    def iterate(self) -> Generator[Any, None, None]:
        """What the user iterates over. It waits for a batch from now on."""
        if not self._batches.post(self._start):
            raise InstanceError(f"{self._batches.label} was called in a replica that has ended")
        generator = self._read()
        weakref.finalize(generator, self._let_go).atexit = False
        return generator

    def _read(self) -> Generator[Any, None, None]:
        values, request = self._values, self._request
        try:
            enroll(request, self)
            while True:
                if self._cancelled:
                    if request is not None:
                        request.check()
                    raise RequestCancelledError(f"the call of {self._batches.label} was cancelled")
                if values:
                    yield self._take()
                elif self._ended:
                    if self._error is not None:
                        raise self._error
                    return
                else:
                    self._wait()
        finally:
            strike_off(request, self)
            self._let_go()

    def _take(self) -> Any:
        value = self._values.popleft()
        if self._full:
            self.moved = _now()
            if len(self._values) <= AHEAD // 2:
                self._full = False
                self._batches.post(self._made_room)
        return value

    def _wait(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        self._lock = lock
        # The loop appends first and looks for the lock after; so one of the two sees the other.
        if not (self._values or self._ended or self._cancelled):
            lock.acquire()

    def cancel(self) -> None:
        """From any thread: the reader is to wait no longer."""
        self._cancelled = True
        self._let_go()

    def _let_go(self) -> None:
        if not self.gone or self._cancelled:
            self._batches.post(self._leave)

    def _start(self) -> None:
        if not self.gone:
            self._batches.put(self)

    def _leave(self) -> None:
        self.leave(self._batches)
        self._wake()

    def _made_room(self) -> None:
        if isinstance(self.run, StreamRun):
            self.run.made_room(self)

    def put(self, value: Any) -> bool:
        values = self._values
        values.append(value)
        self._wake()
        if len(values) > AHEAD:
            # The thread takes first and looks at this after; so one of the two sees the other.
            self._full = True
            if len(values) <= AHEAD // 2:
                self._full = False
        return not self._full

    def settle(self, value: Any) -> None:
        self.gone = self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.settle(None)

    def _wake(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
