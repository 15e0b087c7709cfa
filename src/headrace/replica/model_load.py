"""One load of a model: the call of the user's loader, what the model takes, and those who wait for it.

In: the loader, the instance and the model id. Out: the model and its size; the wake-up of those who wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from headrace.context import RequestContext
from headrace.core.loads import Load, Loaded
from headrace.replica.batch_items import Failure
from headrace.replica.destroy import end_model
from headrace.replica.held import Loading
from headrace.replica.memory import taken
from headrace.replica.methods import Kind
from headrace.replica.threads import in_thread
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.multiplexing import MultiplexOptions

LATE_S = 0.25  # a caller that leaves so long before its deadline, or less, has seen it come

running_loop = asyncio._get_running_loop

_tasks: set[asyncio.Task[None]] = set()  # loops themselves do not keep tasks alive


class Loader(msgspec.Struct, frozen=True, eq=False):
    """A function of the user's that loads models. `takes_self`: it is a method."""

    function: Callable[..., Any]
    kind: Kind
    label: str
    options: MultiplexOptions
    memory_fn: Callable[[Any], Any] | None = None
    takes_self: bool = True

    @property
    def by_growth(self) -> bool:
        """Whether what a model takes is what the process grows by while it is loaded."""
        return self.options.max_memory_bytes is not None and self.memory_fn is None

    @property
    def measures(self) -> bool:
        """Whether it is known what its models take."""
        return self.options.max_memory_bytes is not None or self.memory_fn is not None


class Ticket:
    """A load, and those who wait for it. Its end is noted under LOCK, together with what the core says of it."""

    __slots__ = ("cancelled", "done", "error", "home", "load", "loading", "loop", "outcome", "owner", "task", "wakes")

    def __init__(self, load: Load, owner: Any, loop: asyncio.AbstractEventLoop | None, outer: Loading | None) -> None:
        self.load = load
        self.owner = owner
        self.loop = loop  # where it was asked for
        self.home: asyncio.AbstractEventLoop | None = None  # where it runs
        self.loading = Loading(load, outer)
        self.wakes: list[Callable[[], None]] = []
        self.done = False
        self.outcome: Loaded[Any] | None = None
        self.error: Failure | None = None
        self.cancelled = False
        self.task: asyncio.Task[Any] | None = None  # from its first step on

    def __repr__(self) -> str:
        return f"<Ticket of {self.load}{' done' if self.done else ''}{' cancelled' if self.cancelled else ''}>"

    def end(self, outcome: Loaded[Any] | None, error: Failure | None = None) -> None:
        """Under LOCK; `wake` follows."""
        self.done = True
        self.outcome = outcome
        self.error = error

    def wake(self) -> None:
        wakes, self.wakes = self.wakes, []
        for wake in wakes:
            wake()

    def cancel(self) -> None:
        """Nobody wants it any more. A thread cannot be stopped."""
        self.cancelled = True
        task = self.task
        if task is None:
            return
        if task.get_loop() is running_loop():
            task.cancel()
        else:
            post(task.get_loop(), task.cancel)


async def load_model(loader: Loader, ticket: Ticket) -> tuple[Any, int]:
    """The model, and what it takes."""
    before = await in_thread(partial(taken, clean=True), "measure") if loader.by_growth else None
    args = (ticket.owner, ticket.load.model) if loader.takes_self else (ticket.load.model,)
    work = partial(loader.function, *args)
    if loader.kind is Kind.COROUTINE:
        model = await work()
    else:
        model = await in_thread(work, "load")
        if inspect.isawaitable(model):
            model = await model
    if before is not None:
        return model, (await in_thread(taken, "measure")).grown_since(before)
    if loader.memory_fn is None:
        return model, 0
    try:
        return model, await _measure(loader, model)
    except BaseException:
        held = [model]
        del model
        await end_model(held, loader.label)
        raise


async def _measure(loader: Loader, model: Any) -> int:
    assert loader.memory_fn is not None
    size = await in_thread(partial(loader.memory_fn, model), "measure")
    if inspect.isawaitable(size):
        size = await size
    if isinstance(size, bool) or not hasattr(size, "__index__") or size < 0:
        raise OptionTypeError(
            f"the memory_fn of {loader.label} gave {size!r}: it is to give a whole number of bytes, from 0 on"
        )
    return int(size)


def check_id(model: object, label: str) -> None:
    """Raises OptionError, OptionTypeError for what is no model id."""
    if not isinstance(model, str):
        raise OptionTypeError(f"{label}: the model id {model!r} must be a string, not {type(model).__name__}")
    if not model:
        raise OptionError(
            f"{label}: the model id is empty: the request names no model (by the header serve_multiplexed_model_id, or "
            "handle.options(multiplexed_model_id=...))"
        )


def reference(owner: Any) -> Callable[[], Any]:
    """What gives the owner, without keeping it alive where that can be."""
    try:
        return weakref.ref(owner)
    except TypeError:  # None, and instances with __slots__ but no __weakref__ among them
        return lambda: owner


def in_bytes(size: int) -> str:
    """As people read it."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} B"


# ---- who waits


class Blocked:
    """A thread that waits."""

    __slots__ = ("_event", "cancelled")

    def __init__(self) -> None:
        self._event = threading.Event()
        self.cancelled = False

    def block(self, until: float | None) -> bool:
        """Wait until woken, or until this time. False: it has come."""
        return self._event.wait(None if until is None else max(0.0, until - time.monotonic()))

    def wake(self) -> None:
        self._event.set()

    def cancel(self) -> None:
        """From any thread: it is to wait no longer."""
        self.cancelled = True
        self._event.set()


def ran_out_of_time(request: RequestContext) -> bool:
    """Whether a request that waits no more was not left by its caller: its model is wanted all the same."""
    left = request.call is not None and request.call.cancelled
    remaining = request.remaining_s
    return not left or (remaining is not None and remaining < LATE_S)


def wake_on(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Have whoever awaits the future, on this loop, go on. From any thread."""
    if loop is running_loop():
        _resolve(future)
    else:
        post(loop, partial(_resolve, future))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# ---- where things run


def post(loop: asyncio.AbstractEventLoop, act: Callable[[], Any]) -> bool:
    """Have the loop call this. False: it has ended."""
    try:
        loop.call_soon_threadsafe(act)
    except RuntimeError:
        return False
    return True


def spawn(
    work: Callable[[], Coroutine[Any, Any, None]],
    context: contextvars.Context,
    loop: asyncio.AbstractEventLoop | None,
    ended: Callable[[], None],
) -> None:
    """Run this on the loop; where there is none, on a loop of its own in a thread. Then `ended` is called, whatever
    came of it: a task that is cancelled before its first step never takes it.
    """

    def begin() -> None:
        assert loop is not None
        task = loop.create_task(work(), name="model", context=context)
        _tasks.add(task)
        task.add_done_callback(done)

    def done(task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        ended()

    def apart() -> None:
        try:
            context.run(asyncio.run, work())
        finally:
            ended()

    if loop is None:
        threading.Thread(target=apart, name="headrace-model", daemon=True).start()
    elif loop is running_loop():
        begin()
    elif not post(loop, begin):
        ended()
