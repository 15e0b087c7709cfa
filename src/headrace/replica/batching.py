"""The batches of one function on one event loop: the shell around `core.batching`.

In: items, from code on the loop and in threads. Out: calls of the user's function with lists of them, asynchronous ones
as tasks on the loop, plain ones in threads of their own; to each item its result. Whatever a batch function does, only
its own batch's items fail.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from headrace.context import ReplicaContext, replica_variable
from headrace.core.batching import Batch, Batcher
from headrace.replica.batch_items import Failure, Item, copy_of
from headrace.replica.batch_run import BatchedFunction, BatchRun, as_error
from headrace.replica.batched_streams import StreamRun
from headrace.replica.failure import log_failure
from headrace.replica.methods import GENERATORS, Kind
from headrace.replica.threads import Done, ThreadPool
from headrace.spec.batching import BatchOptions
from headrace.spec.errors import BackPressureError, RequestCancelledError, RequestTimeoutError

_now = time.monotonic
NAMED_IN_LOG = 5  # requests of a failed batch


class Batches:
    """What waits and runs of one batched function, of one instance, on one loop. All but `post` is the loop's."""

    def __init__(
        self,
        function: BatchedFunction,
        options: BatchOptions,
        loop: asyncio.AbstractEventLoop,
        replica: ReplicaContext | None,
    ) -> None:
        self.function = function
        self.label = function.label
        self.loop = loop
        self.replica = replica
        self.batcher: Batcher[Item] = Batcher(options, None if function.batch_size_fn is None else self._measure)
        self._context = contextvars.Context()  # of callbacks: that of the request that first put an item is not theirs
        self._context.run(replica_variable.set, replica)
        self._by_revision = replica is not None and replica.holds_handles
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False
        self._pool: ThreadPool | None = None

    def __repr__(self) -> str:
        return f"<Batches of {self.label}: {self.batcher!r}>"

    def configure(self, options: BatchOptions) -> None:
        """Other options from now on."""
        self.batcher.configure(options)
        if self._pool is not None:
            self._pool.resize(options.max_concurrent_batches)
        self._schedule()

    # ---- what comes

    def put(self, item: Item) -> None:
        """The item waits for a batch, which may leave at the end of this tick."""
        try:
            key = self._key(item)
            hash(key)
        except Exception as error:  # of the user's bucket_fn: it is this item's alone
            item.fail(error)
            return
        meta = item.meta
        waited_s = 0.0 if meta is None else meta.waited_s
        priority = 0 if meta is None else meta.priority
        self.batcher.add(item, key, _now(), waited_s=waited_s, deadline=item.deadline, priority=priority)
        if not self._scheduled:
            self._schedule()

    def _key(self, item: Item) -> Any:
        """What only items have in common that may share a batch: model, revision, bucket, and names of arguments."""
        meta, bucket_fn = item.meta, self.function.bucket_fn
        model = None if meta is None else meta.model_id
        revision = meta.revision if self._by_revision and meta is not None else 0
        shape = None if item.kwargs is None else (len(item.args), *item.kwargs)
        if bucket_fn is None:
            return (model, revision, shape) if model or revision or shape else None
        return model, revision, shape, bucket_fn(item.first)

    def post(self, action: Callable[[], None]) -> bool:
        """From any thread: have the loop do it. False: the loop has ended."""
        self._posted.append(action)
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._do_posted, context=self._context)
            except RuntimeError:
                return False
        return True

    def _do_posted(self) -> None:
        # First the flag, then the queue: whoever appends after the last popleft sees the flag down and wakes the loop.
        self._woken = False
        posted = self._posted
        while posted:
            posted.popleft()()

    # ---- what leaves

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush, context=self._context)

    def _flush(self) -> None:
        self._scheduled = False
        self._release()

    def _on_timer(self) -> None:
        self._timer = None
        self._release()

    def _release(self) -> None:
        """Start what may start, refuse what is to be refused, and see to it that this is asked again in time."""
        batcher, now = self.batcher, _now()
        while (batch := batcher.next(now)) is not None:
            self._start(batch, now)
        while batcher.failed:
            item, error = batcher.failed.pop()
            item.fail(error)
        while batcher.shed:
            item = batcher.shed.pop()
            item.fail(BackPressureError(f"{self.label} cannot answer in the time that there is: it was not started"))
        self._set_timer(batcher.due())

    def _set_timer(self, due: float | None) -> None:
        timer = self._timer
        if timer is not None:
            if due is not None and timer.when() == due:
                return
            timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self.loop.call_at(due, self._on_timer, context=self._context)

    def _measure(self, items: Sequence[Item]) -> int:
        assert self.function.batch_size_fn is not None
        size = self.function.batch_size_fn([item.first for item in items])
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 0:
            raise TypeError(f"the batch_size_fn of {self.label} gave {size!r}: it is to give a whole number")
        return int(size)

    def _start(self, batch: Batch[Item], now: float) -> None:
        items = [item for item in batch.items if not self._too_late(item, now)]
        if not items:
            self.batcher.ended(batch, now, learn=False)
            return
        batch.size -= len(batch.items) - len(items)
        kind = self.function.kind
        if kind in GENERATORS:
            stream = StreamRun(self, batch, items)
            context = stream.context(self.replica)
            if kind is Kind.ASYNC_GENERATOR:
                asyncio.Task(stream.run(), loop=self.loop, name="batch", context=context)
            else:
                self._threads().submit(partial(context.run, stream.in_thread))
            return
        run = BatchRun(self, batch, items)
        context = run.context(self.replica)
        if kind is Kind.COROUTINE:
            asyncio.Task(self._run(run), loop=self.loop, name="batch", context=context)
        else:
            self._threads().submit(partial(context.run, self._in_thread, run, context))

    def _too_late(self, item: Item, now: float) -> bool:
        """Whether nobody waits for the item any more: then it is told so."""
        call = item.call
        if call is not None and (call.cancelled or call.expired):
            item.fail(RequestCancelledError(f"the caller of {self.label} has left"))
        elif item.deadline is not None and now >= item.deadline:
            item.fail(RequestTimeoutError(f"the time of a call of {self.label} was over before its batch started"))
        else:
            return False
        return True

    def _threads(self) -> ThreadPool:
        if self._pool is None:
            self._pool = ThreadPool(self.loop, self.batcher.options.max_concurrent_batches, "batch")
            weakref.finalize(self, self._pool.close).atexit = False
        return self._pool

    # ---- at work

    async def _run(self, run: BatchRun) -> None:
        try:
            result = await self._enter(run, run.call(self.function))
            values = run.values(self.function, result)
        except BaseException as error:  # the top of the task: whatever user code raises fails this batch alone
            self.failed(run, error)
        else:
            self._done(run, values)

    async def _enter(self, run: BatchRun, awaitable: Any) -> Any:
        # As calls do: a task that is cancelled before its first step never takes it, so it is not known before.
        run.task = asyncio.current_task(self.loop)
        if run.cancelled:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise asyncio.CancelledError
        return await awaitable

    def _in_thread(self, run: BatchRun, context: contextvars.Context) -> Done:
        try:
            if run.request is not None:
                run.request.check()
            result = run.call(self.function)
            if inspect.isawaitable(result):
                return partial(self._go_on, run, result, context)
            return partial(self._done, run, run.values(self.function, result))
        except BaseException as error:  # the top of the thread's work, as in _run
            return partial(self.failed, run, error)

    def _go_on(self, run: BatchRun, awaitable: Any, context: contextvars.Context) -> None:
        """A plain function that returned something to be awaited: it is, on the loop."""

        async def rest() -> None:
            try:
                values = run.values(self.function, await self._enter(run, awaitable))
            except BaseException as error:  # as in _run
                self.failed(run, error)
            else:
                self._done(run, values)

        asyncio.Task(rest(), loop=self.loop, name="batch", context=context)

    def _done(self, run: BatchRun, values: Sequence[Any]) -> None:
        """The next batch starts first: its thread computes while the results of this one are sent."""
        self.end(run, learn=True)
        for item, value in zip(run.items, values, strict=False):  # more values: those of the padding
            if item.gone:
                item.forsaken()
            elif isinstance(value, BaseException):
                item.fail(copy_of(as_error(self.label, value)))
            else:
                item.settle(value)

    def failed(self, run: BatchRun, error: BaseException) -> None:
        """The batch has ended with an error, which all get that still wait."""
        if self.loop.is_closed():
            return  # a task that is left over when all has ended
        self.end(run, learn=False)
        live = [item for item in run.items if not item.gone]
        if len(live) < len(run.items):
            for item in run.items:
                if item.gone:
                    item.forsaken()
        if live:
            told = as_error(self.label, error)
            failure = Failure(told, self._tell(live, told))
            for item in live:
                item.fail_with(failure)

    def end(self, run: BatchRun, learn: bool) -> None:
        """The batch runs no more. The next starts now."""
        run.task = None
        run.models.release()
        self.batcher.ended(run.batch, _now(), learn)
        self._release()

    def _tell(self, live: list[Item], error: Exception) -> str:
        """Have the log tell it once. The id of the replica whose log that is; "" for none: the callers have it."""
        if self.replica is None:
            return ""
        ids = [item.meta.request_id for item in live if item.meta is not None]
        more = f" and {len(ids) - NAMED_IN_LOG} more" if len(ids) > NAMED_IN_LOG else ""
        who = (
            f"{'request' if len(ids) == 1 else 'requests'} {', '.join(ids[:NAMED_IN_LOG])}{more}" if ids else "a batch"
        )
        log_failure(who, f"{self.replica.deployment}: {self.label}", error)
        return self.replica.replica_id
