"""What waits for its place in a batch: one call of a batched function, made by code on an event loop or in a thread.

In: the arguments of the call, and the request that it belongs to. Out: to the batch, the arguments; to who made the
call, its own result or error, also where it has left meanwhile and nobody is to be told.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace.context import RequestContext, UnderWay
from headrace.replica.batched_function import copy_of
from headrace.spec.errors import InstanceError, RequestCancelledError
from headrace.wire.frames import CallMeta, ErrorInfo
from headrace.wire.payload import encode_error

if TYPE_CHECKING:
    from headrace.replica.batch_run import BatchRun
    from headrace.replica.batching import Batches

TOLD = "__headrace_told__"  # in an error: the id of the replica whose log has it
NO_OWNER: Any = object()  # in the place of the instance, for what is no method


class Item:
    """One call in a batch. It waits while `run` is None, and belongs to that run afterwards; all on the loop.

    `owner` is the instance whose method is called. `meta`, `deadline` and `call` are those of the request.
    """

    __slots__ = ("args", "call", "deadline", "gone", "kwargs", "meta", "owner", "run")

    def __init__(
        self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, request: RequestContext | None
    ) -> None:
        self.owner = owner
        self.args = args
        self.kwargs = kwargs
        self.run: BatchRun | None = None
        self.gone = False  # it is answered, or nobody waits for its answer
        self.meta: CallMeta | None = None
        self.deadline: float | None = None
        self.call: UnderWay | None = None
        if request is not None:
            self.meta = request.meta
            self.deadline = request.deadline
            self.call = request.call

    @property
    def first(self) -> Any:
        """What users' functions that look at single items get."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))  # type: ignore[union-attr]

    def settle(self, value: Any) -> None:
        """Its result has come. Never raises."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """It has failed, with an error of its own. Never raises."""
        raise NotImplementedError

    def fail_with(self, failure: Failure) -> None:
        """It has failed with all of its batch."""
        self.fail(failure.copy())

    def forsaken(self) -> None:
        """It had left while its batch ran, which has ended now."""

    def leave(self, batches: Batches) -> None:
        """Nobody waits for the answer any more."""
        if not self.gone:
            self.gone = True
            if self.run is not None:
                self.run.left(self)
            else:
                batches.batcher.discard(self)


class Failure:
    """Why a whole batch failed. `told`: the log has it, as of the replica of this id."""

    def __init__(self, error: Exception, told: str = "") -> None:
        self.error = error
        self._told = told

    def copy(self) -> Exception:
        """The error for one of many who get it: who raises it adds to the traceback of the copy alone."""
        copied = copy_of(self.error)
        if self._told:
            vars(copied)[TOLD] = self._told
        return copied

    @functools.cached_property
    def info(self) -> ErrorInfo:
        """As it is sent to callers."""
        return encode_error(self.error)


class AwaitedItem(Item, Coroutine[Any, Any, Any]):
    """A call that code on an event loop waits for: to be awaited, or made a task of, like what `async def` returns.

    It waits for its batch from the start, not only once it is awaited, unless it was made where no loop runs.
    """

    __slots__ = ("_batches", "_find", "_future", "_steps")

    def __init__(
        self, find: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, request: Any
    ) -> None:
        self.owner = owner  # and so on: as Item does it, for this is made for every call
        self.args = args
        self.kwargs = kwargs
        self.run = None
        self.gone = False
        if request is None:
            self.meta = self.deadline = self.call = None
        else:
            self.meta, self.deadline, self.call = request.meta, request.deadline, request.call
        self._find = find  # gives the Batches of the running loop
        self._batches: Batches | None = None
        self._future: asyncio.Future[Any] | None = None
        self._steps: Generator[Any, Any, Any] | None = None

    def __repr__(self) -> str:
        of = f" of {self._batches.label}" if self._batches is not None else ""
        return f"<batched call{of}, to be awaited: {'answered' if self.gone else 'waiting'}>"

    def start(self, batches: Batches) -> None:
        """Wait for a batch of these."""
        self._batches = batches
        self._future = batches.loop.create_future()
        batches.put(self)

    def settle(self, value: Any) -> None:
        self.gone = True
        future = self._future
        if future is not None and not future.done():
            future.set_result(value)

    def fail(self, error: Exception) -> None:
        self.gone = True
        future = self._future
        if future is not None and not future.done():
            future.set_exception(error)

    def _wait(self) -> Generator[Any, Any, Any]:
        if self._future is None:
            self.start(self._find())
        assert self._future is not None
        try:
            return (yield from self._future)
        except BaseException:  # its own error; or who waits was cancelled, and it is passed on
            self._leave()
            raise

    def _leave(self) -> None:
        if self._batches is None:
            self.gone = True
        else:
            self.leave(self._batches)

    __await__ = _wait

    def send(self, value: Any) -> Any:
        if self._steps is None:
            self._steps = self._wait()
        return self._steps.send(value)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None, /) -> Any:
        if self._steps is None:
            self._steps = self._wait()
            self._leave()
        return self._steps.throw(kind if value is None else value)

    def close(self) -> None:
        self._leave()
        if self._steps is not None:
            self._steps.close()


class BlockedItem(Item):
    """A call that a thread waits for."""

    __slots__ = ("_batches", "_cancelled", "_error", "_lock", "_request", "_value")

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
        self._lock = threading.Lock()
        self._lock.acquire()
        self._value: Any = None
        self._error: Exception | None = None
        self._cancelled = False

    def result(self) -> Any:
        """In the thread: its result, when it has come. Raises its error, RequestCancelledError, RequestTimeoutError."""
        request = self._request
        try:
            enroll(request, self)
            if not self._batches.post(self._start):
                raise InstanceError(f"{self._batches.label} was called in a replica that has ended")
            self._lock.acquire()
        finally:
            strike_off(request, self)
        if self._cancelled:
            if request is not None:
                request.check()
            raise RequestCancelledError(f"the call of {self._batches.label} was cancelled")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        """From any thread: the thread is to wait no longer."""
        if not self._cancelled:
            self._cancelled = True
            self._batches.post(self._cancel)

    def _start(self) -> None:
        if not self._cancelled:
            self._batches.put(self)

    def _cancel(self) -> None:
        if not self.gone:
            self.leave(self._batches)
            self._lock.release()

    def settle(self, value: Any) -> None:
        if not self.gone:
            self.gone = True
            self._value = value
            self._lock.release()

    def fail(self, error: Exception) -> None:
        if not self.gone:
            self.gone = True
            self._error = error
            self._lock.release()


def enroll(request: RequestContext | None, call: Any) -> None:
    """Have `call` cancelled with the request, as calls by handles are. Raises what `check` raises."""
    if request is not None:
        calls = request.calls
        if calls is None:
            calls = request.calls = set()
        calls.add(call)
        request.check()  # after that: who leaves in between is seen by one of the two


def strike_off(request: RequestContext | None, call: Any) -> None:
    """The call has ended."""
    if request is not None and request.calls is not None:
        request.calls.discard(call)
