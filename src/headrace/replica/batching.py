"""The batches of one function on one event loop: the shell around `core.batching`.

In: items, from code on the loop and in threads. Out: batches that start (`batch_run.py`, `batched_streams.py`), and
items that fail without one. Whatever a batch function does, only its own batch's items fail.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from headrace.context import ReplicaContext, replica_variable
from headrace.core.batching import Batch, Batcher
from headrace.replica.batch_items import Failure, Item
from headrace.replica.batch_run import BatchRun
from headrace.replica.batched_function import BatchedFunction, as_error, copy_of
from headrace.replica.batched_streams import StreamRun
from headrace.replica.failure import log_failure
from headrace.replica.methods import GENERATORS
from headrace.replica.threads import ThreadPool
from headrace.spec.batching import BatchOptions
from headrace.spec.errors import BackPressureError, BatchError, InputError, RequestCancelledError, RequestTimeoutError

log = logging.getLogger("headrace.replica")

_now = time.monotonic
NAMED_IN_LOG = 5  # requests of a failed batch
STALL_S = 10.0


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
        self.stall_s = STALL_S  # how long a reader of a stream may hold up the others of its batch
        self._bucket_fn = function.bucket_fn
        self._streams = function.kind in GENERATORS
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: float | None = None
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False
        self._pool: ThreadPool | None = None
        self._warn_if_capped(options)

    def __repr__(self) -> str:
        return f"<Batches of {self.label}: {self.batcher!r}>"

    def configure(self, options: BatchOptions) -> None:
        """Other options from now on."""
        if options.max_batch_size != self.batcher.options.max_batch_size:
            self._warn_if_capped(options)
        self.batcher.configure(options)
        if self._pool is not None:
            self._pool.resize(options.max_concurrent_batches)
        self._schedule()

    # ---- what comes

    def put(self, item: Item) -> None:
        """The item waits for a batch, which may leave at the end of this tick."""
        meta = item.meta
        key: Any = None
        if item.call is not None and self._waits_for_itself(item.call):
            item.fail(
                BatchError(
                    f"{self.label} is called by its own batch function, and would wait for itself: call a function of "
                    "its own for what the two have in common, or set max_concurrent_batches"
                )
            )
            return
        try:
            if self._bucket_fn is not None:
                key = self._bucket_fn(item.first)
                hash(key)
        except BaseException as error:  # of the user's bucket_fn: it is this item's alone
            item.fail(as_error(f"the bucket_fn of {self.label}", error))
            return
        waited_s, priority, model, revision = 0.0, 0, None, 0
        if meta is not None:
            waited_s, priority, model = meta.waited_s, meta.priority, meta.model_id
            if self._by_revision:
                revision = meta.revision
        if key is not None or model or revision or item.kwargs is not None:
            # What only items have in common that may share a batch; the last: names of arguments.
            names = None if item.kwargs is None else (len(item.args), *item.kwargs)
            key = (key, model, revision, names)
        self.batcher.add(item, key, _now(), waited_s=waited_s, deadline=item.deadline, priority=priority)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush, context=self._context)

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

    def _waits_for_itself(self, call: object) -> bool:
        """Whether code of `call` is the batch function at work, and no other batch can start before it has ended."""
        if not isinstance(call, BatchRun) or call.batches is not self or call.request is None:
            return False
        return self.batcher.options.max_concurrent_batches == 1

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
        if batcher.failed:
            for item, error in batcher.failed:
                item.fail(copy_of(as_error(f"the batch_size_fn of {self.label}", error)))
            batcher.failed.clear()
        if batcher.shed:
            refusal = BackPressureError(f"{self.label} cannot answer in the time that there is: it was not started")
            failure = Failure(refusal, "" if self.replica is None else self.replica.replica_id)
            for item in batcher.shed:
                item.fail_with(failure)
            batcher.shed.clear()
        self._set_timer(batcher.due())

    def _set_timer(self, due: float | None) -> None:
        timer = self._timer
        if timer is not None:
            if due is not None and due == self._timer_due:  # uvloop's handles do not say for something due at once
                return
            timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_due = due
            self._timer = self.loop.call_at(due, self._on_timer, context=self._context)

    def _measure(self, items: Sequence[Item]) -> int:
        assert self.function.batch_size_fn is not None
        try:
            return self.function.batch_size_fn([item.first for item in items])
        except Exception:
            raise
        except BaseException as error:  # a SystemExit of the user's would end the loop
            raise as_error(f"the batch_size_fn of {self.label}", error) from error

    def _start(self, batch: Batch[Item], now: float) -> None:
        items = [item for item in batch.items if not self._too_late(item, now)]
        if not items:
            self.batcher.ended(batch, now, learn=False)
            return
        if len(items) < len(batch.items):
            batch.size = len(items) if self.function.batch_size_fn is None else 0  # unknown: less than it was
            if not self.batcher.options.allowed_batch_sizes:
                batch.padded_size = batch.size
        run = (StreamRun if self._streams else BatchRun)(self, batch, items)
        try:
            run.start(run.context(self.replica))
        except RuntimeError as error:
            self.failed(run, error)

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

    def threads(self) -> ThreadPool:
        """Those of this function alone: calls wait for batches in other threads."""
        if self._pool is None:
            self._pool = ThreadPool(self.loop, self.batcher.options.max_concurrent_batches, "batch")
            weakref.finalize(self, self._pool.close).atexit = False
        return self._pool

    # ---- what has ended

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
        run.let_go()

    def end(self, run: BatchRun, learn: bool) -> None:
        """The batch runs no more. The next starts now."""
        run.task = None
        run.request = None  # which names the run, and is nothing that the collector looks through
        run.models.release()
        self.batcher.ended(run.batch, _now(), learn)
        self._release()

    def _tell(self, live: list[Item], error: Exception) -> str:
        """Have the log tell it once. The id of the replica whose log that is; "" for none: the callers have it."""
        if self.replica is None or _is_response(error):
            return ""
        ids = [item.meta.request_id for item in live if item.meta is not None]
        more = f" and {len(ids) - NAMED_IN_LOG} more" if len(ids) > NAMED_IN_LOG else ""
        who = (
            f"{'request' if len(ids) == 1 else 'requests'} {', '.join(ids[:NAMED_IN_LOG])}{more}" if ids else "a batch"
        )
        log_failure(who, f"{self.replica.deployment}: {self.label}", error)
        return self.replica.replica_id

    def _warn_if_capped(self, options: BatchOptions) -> None:
        replica, most = self.replica, options.max_batch_size * options.max_concurrent_batches
        if replica is not None and 0 < replica.max_ongoing_requests < most and self.function.batch_size_fn is None:
            log.warning(
                "%s: max_ongoing_requests=%d of %s is less than max_batch_size × max_concurrent_batches = %d: batches "
                "become full only where a request makes several calls",
                *(self.label, replica.max_ongoing_requests, replica.deployment, most),
            )


def _is_response(error: Exception) -> bool:
    """Whether it is an answer rather than a failure: an InputError, or Starlette's, where that is in use."""
    exceptions = sys.modules.get("starlette.exceptions")
    return isinstance(error, InputError) or (exceptions is not None and isinstance(error, exceptions.HTTPException))
