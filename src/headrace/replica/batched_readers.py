"""Readers of what a batch of generators yields in their places: code on an event loop, and code in a thread.

In: values, from the batch. Out: the same to whoever iterates; to the batch, that a reader has caught up, or has left.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.context import RequestContext
from headrace.replica.batch_items import enroll, strike_off
from headrace.replica.batched_streams import AHEAD, StreamItem, StreamRun
from headrace.spec.errors import InstanceError, RequestCancelledError

if TYPE_CHECKING:
    from headrace.replica.batching import Batches

_now = time.monotonic


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
