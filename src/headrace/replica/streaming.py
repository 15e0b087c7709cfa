"""Results that come in parts: what generators yield, on its way to a caller that may read slowly.

In: generators of user code, asynchronous ones on the loop, plain ones in threads. Out: their items, through an Outlet
that says when there is room for more; so a generator is held back where its items are not read.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.context import request_variable
from headrace.handle import cancel_calls
from headrace.replica.methods import Method
from headrace.replica.outlet import BodyOutlet, ItemOutlet, Outlet
from headrace.replica.request import HttpRequest
from headrace.replica.threads import Done
from headrace.spec.errors import GeneratorError, RequestCancelledError
from headrace.wire import payload
from headrace.wire.frames import HTTP, STREAM, WINDOW_BYTES
from headrace.wire.items import cost
from headrace.wire.payload import Payload

if TYPE_CHECKING:
    from headrace.replica.incoming import Incoming
    from headrace.replica.invoke import Invoker

_decode = payload.decode

# What a thread may be ahead of the loop; beyond the reader's own window.
AHEAD_BYTES = WINDOW_BYTES // 4


def is_stream(result: object) -> bool:
    """Whether a result is to be iterated over: a generator of either kind."""
    return inspect.isgenerator(result) or inspect.isasyncgen(result)


async def send_all(outlet: Outlet, items: AsyncGenerator[Any, Any]) -> None:
    """Send the items of an asynchronous generator as they come, then close it, whatever happens."""
    encode, put = outlet.encode, outlet.put
    try:
        async for item in items:
            if not put(encode(item)):
                await outlet.room()
    finally:
        await items.aclose()
    outlet.end()


class ThreadedItems:
    """The way of items from a thread to the loop. The thread waits when it is too far ahead.

    `put` is the thread's; `cancel` and `finish` are the loop's.
    """

    __slots__ = (
        "_ahead",
        "_broken",
        "_end",
        "_lock",
        "_loop",
        "_outlet",
        "_queue",
        "_resuming",
        "_stopped",
        "_taken",
        "_woken",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, outlet: Outlet) -> None:
        self._loop = loop
        self._outlet = outlet
        self._queue: deque[Payload | bytes] = deque()
        self._woken = False
        self._ahead = 0  # what the thread has put, counted by it
        self._taken = 0  # what the loop has sent, counted by the loop
        self._lock: threading.Lock | None = None  # held while the thread waits for it
        self._stopped = False
        self._broken: Exception | None = None  # why no more can be sent, where it is not that nobody waits
        self._resuming: asyncio.Task[None] | None = None
        self._end: Callable[[], None] | None = None

    def put(self, item: Any) -> None:
        """Hand an item to the loop. Raises RequestCancelledError when nobody waits for it any more."""
        encoded = self._outlet.encode(item)
        self._ahead += _size(encoded)
        self._queue.append(encoded)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)
        if self._ahead - self._taken >= AHEAD_BYTES:
            self._wait()
        if self._stopped:
            raise self._broken or RequestCancelledError("nobody waits for the items any more")

    def _wait(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        self._lock = lock
        # The loop takes first and looks for the lock after; so one of the two sees the other.
        if self._ahead - self._taken >= AHEAD_BYTES and not self._stopped:
            lock.acquire()
        self._lock = None

    def cancel(self) -> None:
        """Nobody waits any more: the thread's next `put` raises."""
        self._stopped = True
        self._release()

    def finish(self, end: Callable[[], None]) -> None:
        """On the loop, when the thread has ended: call `end` once all its items are sent."""
        self._end = end
        self._drain()

    def _release(self) -> None:
        lock = self._lock
        if lock is not None and lock.locked():
            self._lock = None
            lock.release()

    def _drain(self) -> None:
        # First the flag, then the queue: whoever appends after the last popleft sees the flag down and wakes the loop.
        self._woken = False
        queue = self._queue
        while queue and self._resuming is None:
            encoded = queue.popleft()
            self._taken += _size(encoded)
            if not self._outlet.put(encoded) and not self._stopped:
                self._resuming = self._loop.create_task(self._resume(), name="room")
        if self._ahead - self._taken < AHEAD_BYTES:
            self._release()
        if self._end is not None and not queue and self._resuming is None:
            end, self._end = self._end, None
            end()

    async def _resume(self) -> None:
        try:
            await self._outlet.room()
        except (RequestCancelledError, TimeoutError):
            self._stopped = True
        except Exception as error:  # the top of the task: the thread, which may wait for it, is to learn of it
            self._broken = error
            self._stopped = True
        self._resuming = None
        self._drain()


def _size(encoded: Payload | bytes) -> int:
    if isinstance(encoded, bytes):
        return cost(len(encoded))
    return cost(len(encoded.data) + sum(map(len, encoded.buffers)))


def put_all(way: ThreadedItems, items: Iterator[Any]) -> None:
    """In a thread: send the items of a plain generator, then close it, whatever happens."""
    try:
        for item in items:
            way.put(item)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def send_in_thread(
    loop: asyncio.AbstractEventLoop,
    incoming: Incoming,
    outlet: Outlet,
    items: Iterable[Any],
    failure: Callable[[BaseException], Done],
) -> Done:
    """In a thread, in the context of the call: send what a plain generator yields, or any other iterable.

    The loop does what is returned: it ends the call when all has been sent, or does what `failure` says of the error.
    """
    way = ThreadedItems(loop, outlet)
    request = request_variable.get()

    def stop() -> None:
        way.cancel()
        cancel_calls(request)

    incoming.on_cancel = stop
    if incoming.cancelled or incoming.expired:
        stop()  # it came before that
    try:
        put_all(way, iter(items))
    except BaseException as error:  # the top of the thread's work
        return partial(way.finish, failure(error))
    return partial(way.finish, outlet.end)


class Streams:
    """Runs the calls of one replica whose methods are generators, or return one."""

    def __init__(self, invoker: Invoker) -> None:
        self._invoker = invoker

    def start(self, incoming: Incoming, method: Method, deadline: float | None) -> None:
        outlet = self.outlet_of(incoming, method)
        if outlet is None:
            return
        if method.on_loop:
            asyncio.Task(self._run(incoming, method, outlet, deadline), loop=self._invoker.loop, name="call")
        else:
            self._invoker.threads.submit(partial(self._in_thread, incoming, method, outlet, deadline))

    def outlet_of(self, incoming: Incoming, method: Method) -> Outlet | None:
        """Where the items of the call go; None when it has failed, for it asked for one result."""
        if incoming.flags & HTTP:
            return BodyOutlet(incoming)
        if incoming.flags & STREAM:
            return ItemOutlet(incoming)
        incoming.fail(self._invoker.tell(incoming, stream_error(method.label, "is")))
        return None

    async def _run(self, incoming: Incoming, method: Method, outlet: Outlet, deadline: float | None) -> None:
        try:
            self._invoker.enter(incoming, deadline)
            if incoming.flags & HTTP:
                result = method.serve(HttpRequest(incoming))
            else:
                args, kwargs = _decode(incoming.body, incoming.buffers)
                result = method.function(*args, **kwargs)
                if inspect.isawaitable(result):
                    result = await result
            await self.send(incoming, outlet, result, method.label)
        except BaseException as error:  # as in _run_http
            self._invoker.fail(incoming, error)

    async def send(self, incoming: Incoming, outlet: Outlet, result: Any, label: str) -> None:
        """Send what a generator yields; a plain one runs in a thread."""
        if inspect.isasyncgen(result):
            await send_all(outlet, result)
        elif inspect.isgenerator(result):
            context = contextvars.copy_context()
            self._invoker.threads.submit(partial(context.run, self._iterate, incoming, outlet, result))
        else:
            raise _no_generator(label, result)

    def _in_thread(self, incoming: Incoming, method: Method, outlet: Outlet, deadline: float | None) -> Done:
        context = contextvars.Context()
        return context.run(self._work, incoming, method, outlet, deadline, context)

    def _work(
        self,
        incoming: Incoming,
        method: Method,
        outlet: Outlet,
        deadline: float | None,
        context: contextvars.Context,
    ) -> Done:
        try:
            self._invoker.enter_thread(incoming, deadline)
            if incoming.flags & HTTP:
                result = method.serve(HttpRequest(incoming))
            else:
                args, kwargs = _decode(incoming.body, incoming.buffers)
                result = method.function(*args, **kwargs)
        except BaseException as error:  # the top of the thread's work, as in _run_http
            return partial(incoming.fail, self._invoker.error_of(incoming, error))
        if inspect.isgenerator(result):
            return self._iterate(incoming, outlet, result)
        return lambda: self._go_on(incoming, method, outlet, result, context)

    def _go_on(
        self, incoming: Incoming, method: Method, outlet: Outlet, result: Any, context: contextvars.Context
    ) -> None:
        """A plain method that returned something else than a generator of its own kind: the loop finds out."""

        async def run() -> None:
            try:
                items = await self._invoker.enter_again(incoming, result)
                await self.send(incoming, outlet, items, method.label)
            except BaseException as error:  # as in _run_http
                self._invoker.fail(incoming, error)

        self._invoker.loop.create_task(run(), context=context)

    def _iterate(self, incoming: Incoming, outlet: Outlet, items: Generator[Any, Any, Any]) -> Done:
        """In a thread: send what the generator yields."""
        return send_in_thread(
            self._invoker.loop,
            incoming,
            outlet,
            items,
            lambda error: partial(incoming.fail, self._invoker.error_of(incoming, error)),
        )


def stream_error(label: str, verb: str = "returned") -> GeneratorError:
    """A generator where one result was asked for."""
    return GeneratorError(
        f"{label} {verb} a generator: call it by handle.options(stream=True), and iterate over what "
        ".remote(...) returns"
    )


def _no_generator(label: str, result: object) -> GeneratorError:
    return GeneratorError(
        f"{label} was called with stream=True, and returned no generator but {type(result).__name__}: call it without, "
        "or have it yield"
    )
