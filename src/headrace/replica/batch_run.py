"""One batch at work: what its function is called with, and what came of it, item by item.

In: the items of a batch. Out: a call of the user's function with lists of them, asynchronous as a task on the loop,
plain in a thread; to each item its result. The function runs for a request that is made of those of its items.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.context import ReplicaContext, RequestContext, replica_variable, request_variable
from headrace.core.batching import Batch
from headrace.handle import cancel_calls
from headrace.replica.batch_items import NO_OWNER, Item
from headrace.replica.batched_function import BatchedFunction, as_error, copy_of, values_of
from headrace.replica.held import Holder
from headrace.replica.methods import Kind
from headrace.replica.threads import Done
from headrace.spec.errors import BatchError, RequestCancelledError

if TYPE_CHECKING:
    from headrace.replica.batching import Batches


class BatchRun:
    """One batch that runs. Its function sees it as the call that it works for: `cancelled` when all items have left."""

    __slots__ = ("batch", "batches", "cancelled", "expected", "expired", "items", "live", "models", "request", "task")

    def __init__(self, batches: Batches, batch: Batch[Item], items: list[Item]) -> None:
        self.batches = batches
        self.batch = batch
        self.items = items
        self.live = self.expected = len(items)  # who still wants a result, and how many the function is to give
        self.cancelled = False
        self.expired = False
        self.task: asyncio.Task[Any] | None = None
        self.request: RequestContext | None = None
        self.models = Holder(insider=True)  # a call that holds a model may wait for this batch
        for item in items:
            item.run = self

    def __repr__(self) -> str:
        return f"<BatchRun of {self.batches.label}: {self.live} of {len(self.items)} wanted>"

    def left(self, item: Item) -> None:
        """One of its items has left; with the last, nobody wants it any more."""
        self.live -= 1
        if not self.live and not self.cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Stop it: nobody wants what it will give."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()
        cancel_calls(self.request)

    def context(self, replica: ReplicaContext | None) -> contextvars.Context:
        """A context of its own, in which the request is that of the whole batch."""
        context = contextvars.Context()
        self.request = self._request_of_all(replica)
        context.run(_set, self.request, replica)
        return context

    def _request_of_all(self, replica: ReplicaContext | None) -> RequestContext | None:
        metas = [item.meta for item in self.items if item.meta is not None]
        if not metas:
            return None
        meta = metas[0]
        priority = max([each.priority for each in metas])
        session = meta.sticky if all(each.sticky == meta.sticky for each in metas) else None
        if priority != meta.priority or session != meta.sticky:
            meta = msgspec.structs.replace(meta, priority=priority, sticky=session)
        deadline: float | None = 0.0
        for item in self.items:
            if item.deadline is None:
                deadline = None
                break
            assert deadline is not None
            deadline = max(deadline, item.deadline)
        return RequestContext(meta, deadline, replica, None, self)

    # ---- at work

    def start(self, context: contextvars.Context) -> None:
        """Call the function, in this context. Raises RuntimeError where that takes a thread and none can be had."""
        batches = self.batches
        if batches.function.kind is Kind.COROUTINE:
            asyncio.Task(self._run(), loop=batches.loop, name="batch", context=context)
        else:
            batches.threads().submit(partial(context.run, self._run_in_thread, context))

    async def _run(self) -> None:
        try:
            values = self.values(await self._enter(self.call()))
        except BaseException as error:  # the top of the task: whatever user code raises fails this batch alone
            self.batches.failed(self, self.cause(error))
        else:
            self._settle(values)

    async def _enter(self, awaitable: Any) -> Any:
        # As calls do: a task that is cancelled before its first step never takes it, so it is not known before.
        self.task = asyncio.current_task(self.batches.loop)
        if self.cancelled:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise asyncio.CancelledError
        return await awaitable

    def cause(self, error: BaseException) -> BaseException:
        """Why a task of the batch has failed: where it was cancelled from outside, not what that raised in it."""
        if isinstance(error, asyncio.CancelledError) and self.task is not None and self.task.cancelling():
            return RequestCancelledError(f"a batch of {self.batches.label} was cancelled")
        return error

    def _run_in_thread(self, context: contextvars.Context) -> Done:
        try:
            if self.request is not None:
                self.request.check()
            result = self.call()
            if inspect.isawaitable(result):
                return partial(self._go_on, result, context)
            return partial(self._settle, self.values(result))
        except BaseException as error:  # the top of the thread's work, as in _run
            return partial(self.batches.failed, self, error)

    def _go_on(self, awaitable: Any, context: contextvars.Context) -> None:
        """A plain function that returned something to be awaited: it is, on the loop."""

        async def rest() -> None:
            try:
                values = self.values(await self._enter(awaitable))
            except BaseException as error:  # as in _run
                self.batches.failed(self, self.cause(error))
            else:
                self._settle(values)

        asyncio.Task(rest(), loop=self.batches.loop, name="batch", context=context)

    def _settle(self, values: Sequence[Any]) -> None:
        """The next batch starts first: its thread computes while the results of this one are sent."""
        self.batches.end(self, learn=True)
        for item, value in zip(self.items, values, strict=False):  # more values: those of the padding
            if item.gone:
                item.forsaken()
            elif isinstance(value, BaseException):
                item.fail(copy_of(as_error(self.batches.label, value)))
            else:
                item.settle(value)
        self.let_go()

    def let_go(self) -> None:
        """All has been told: leave no cycles to the collector."""
        for item in self.items:
            item.run = None

    # ---- what the function is called with

    def call(self) -> Any:
        """Call the user's function with the items."""
        function = self.batches.function
        first = self.items[0]
        args: list[Any]
        if len(first.args) == 1 and first.kwargs is None:
            args, kwargs = [self._padded(function, [item.args[0] for item in self.items])], {}
        else:
            args = [
                self._padded(function, [item.args[place] for item in self.items]) for place in range(len(first.args))
            ]
            kwargs = {
                name: self._padded(function, [item.kwargs[name] for item in self.items])  # type: ignore[index]
                for name in first.kwargs or ()
            }
        if first.owner is not NO_OWNER:
            args.insert(0, first.owner)
        return function.function(*args, **kwargs)

    def _padded(self, function: BatchedFunction, items: list[Any]) -> list[Any]:
        rows, padded_rows = self.batch.size, self.batch.padded_size
        if padded_rows > rows:
            if function.pad_fn is None:
                items = items + items[-1:] * (padded_rows - len(items))
            else:
                items = self._padded_by(function, items, padded_rows)
            self.expected = len(items)
        return items

    def _padded_by(self, function: BatchedFunction, items: list[Any], rows: int) -> list[Any]:
        assert function.pad_fn is not None
        padded = list(function.pad_fn(items, rows))
        wrong = len(padded) < len(items) if function.batch_size_fn is not None else len(padded) != rows
        if wrong:
            raise BatchError(
                f"the pad_fn of {function.label} made {len(padded)} items of a batch of {len(items)}, which was to be "
                f"padded to {rows}"
            )
        return padded

    def values(self, result: Any) -> Sequence[Any]:
        """The results of the items, from what the function returned or yielded. Raises BatchError."""
        return values_of(self.batches.function, result, self.expected)


def _set(request: RequestContext | None, replica: ReplicaContext | None) -> None:
    request_variable.set(request)
    replica_variable.set(replica)
