"""The models of one function: the shell around `core.models`.

In: model ids, from code on event loops and in threads; hints of routers; the ends of what holds models. Out: models;
calls of the user's loader, asynchronous ones as tasks on the replica's loop, plain ones in threads; models that have to
go are closed. Whatever a loader does, only those fail who wait for that load.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from headrace.context import ReplicaContext, current_request, replica_variable
from headrace.core.models import Cancel, Changed, Close, Give, Load, Loaded, Models, Refuse, Start, Step
from headrace.replica.batch_items import Failure
from headrace.replica.batched_function import as_error
from headrace.replica.destroy import call, disarm
from headrace.replica.held import LOCK, Holder, Loading, holder_here, let_go_in_tasks, loading_variable
from headrace.replica.memory import give_back, resident_bytes
from headrace.replica.methods import Kind
from headrace.replica.shelf import Shelf
from headrace.replica.threads import in_thread
from headrace.spec.errors import ModelLoadError, OptionError, OptionTypeError, RequestCancelledError
from headrace.spec.multiplexing import ANY_NUMBER, MultiplexOptions
from headrace.wire.payload import traceback_text

log = logging.getLogger("headrace.replica")

CLOSE_S = 10.0  # what closing a model may take before its room is given to another

_now = time.monotonic
_running_loop = asyncio._get_running_loop


class Loader(msgspec.Struct, frozen=True, eq=False):
    """A function of the user's that loads models. `takes_self`: it is a method."""

    function: Callable[..., Any]
    kind: Kind
    label: str
    options: MultiplexOptions
    memory_fn: Callable[[Any], Any] | None = None
    takes_self: bool = True

    @property
    def measures(self) -> bool:
        """Whether it is known what its models take."""
        return self.memory_fn is not None or self.options.max_memory_bytes is not None


class _Ticket:
    """A load, and those who wait for it. What it says of its end is written under LOCK, with what the core says."""

    __slots__ = ("cancelled", "done", "error", "keep", "load", "loading", "loop", "outcome", "owner", "task", "wakes")

    def __init__(self, load: Load, owner: Any, loop: asyncio.AbstractEventLoop | None, outer: Loading | None) -> None:
        self.load = load
        self.owner = owner
        self.loop = loop  # where it was asked for
        self.loading = Loading(load, outer)
        self.wakes: list[Callable[[], None]] = []
        self.done = False
        self.outcome: Loaded[Any] | None = None
        self.error: Failure | None = None
        self.cancelled = False
        self.task: asyncio.Task[Any] | None = None  # from its first step on
        self.keep: asyncio.Task[Any] | None = None  # the loop itself does not

    def end(self, outcome: Loaded[Any] | None, error: Failure | None = None) -> None:
        """Under LOCK; `wake` follows."""
        self.done = True
        self.outcome = outcome
        self.error = error

    def wake(self) -> None:
        wakes, self.wakes = self.wakes, []
        for wake in wakes:
            wake()


class ModelTable:
    """The models that one function has loaded, for one instance in one replica. All methods in any thread."""

    def __init__(self, loader: Loader, owner: Any, replica: ReplicaContext | None) -> None:
        options = loader.options
        self.loader = loader
        self.replica = replica
        number = options.max_num_models_per_replica
        self.models: Models[Any] = Models(
            None if number == ANY_NUMBER else number,
            options.max_memory_bytes,
            one_at_a_time=options.max_memory_bytes is not None and loader.memory_fn is None,
            cancellable=loader.kind is Kind.COROUTINE,
        )
        self._owner = _reference(owner)
        self._tickets: dict[Load, _Ticket] = {}
        self._parts: dict[Loaded[Any], Holder] = {}  # the models that a model was made of
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: Callable[[], object] | None = None
        self._shelf = Shelf.of(replica)
        self._shelf.add(self)

    def __repr__(self) -> str:
        return f"<models of {self.loader.label}: {self.describe()}>"

    def describe(self) -> str:
        with LOCK:
            models = self.models
            ready = [
                f"{loaded.model!r}{f' ({_bytes(loaded.size_bytes)})' if self.loader.measures else ''}"
                for loaded in models
            ]
            limit = "" if models.limit is None else f" of {models.limit}"
            text = f"{len(ready)}{limit} loaded: {', '.join(ready) or 'none'}"
            if models.loading:
                text += f"; loading {', '.join(map(repr, models.loading))}"
            return text

    def sizes(self) -> dict[str, int | None]:
        """The models that are ready, the least recently used first, with the bytes that they take where known."""
        with LOCK:
            return {loaded.model: loaded.size_bytes if self.loader.measures else None for loaded in self.models}

    # ---- requests

    def get(self, model: Any, owner: Any) -> Any:
        """The model: on an event loop something to be awaited, in a thread the model itself, when it is there."""
        _check_id(model, self.loader.label)
        holder = holder_here()
        loaded = None if holder is None else holder.get(self, model)
        if loaded is None:
            if holder is not None and holder.latest_alone:
                holder.let_go_of_others(self, model)
            with LOCK:
                loaded = self._find(model, holder)
        on_loop = _running_loop() is not None
        if loaded is not None:
            return _given(loaded.value) if on_loop else loaded.value
        return self._wait(model, holder, owner) if on_loop else self._block(model, holder, owner)

    def _find(self, model: str, holder: Holder | None) -> Loaded[Any] | None:
        loaded = self.models.find(model, insider=holder is None or holder.is_insider())
        if loaded is not None and holder is not None and holder.add(self, loaded):
            self.models.hold(loaded)
        return loaded

    async def _wait(self, model: str, holder: Holder | None, owner: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        wake = partial(_wake_on, loop, future)
        found = self._join(model, holder, owner, wake)
        if isinstance(found, Loaded):
            return found.value
        try:
            if not found.done:
                await future
        except BaseException:  # who waits was cancelled, and it is passed on
            self._leave(found, wake)
            raise
        return self._take(found, holder)

    def _block(self, model: str, holder: Holder | None, owner: Any) -> Any:
        waiter = _Blocked()
        request = current_request()
        if request is not None:
            calls = request.calls
            if calls is None:
                calls = request.calls = set()
            calls.add(waiter)  # to be cancelled with the request, as calls by handles are
            request.check()  # after that: who leaves in between is seen by one of the two
        found = None
        try:
            found = self._join(model, holder, owner, waiter.wake)
            if isinstance(found, Loaded):
                return found.value
            while not found.done and not waiter.cancelled:
                waiter.block(self._due())
                self._tick()
        except BaseException:  # KeyboardInterrupt, in the main thread
            waiter.cancelled = True
            raise
        finally:
            if request is not None and request.calls is not None:
                request.calls.discard(waiter)
            if isinstance(found, _Ticket) and waiter.cancelled:
                self._leave(found, waiter.wake)
        if waiter.cancelled:
            if request is not None:
                request.check()
            raise RequestCancelledError(f"the call of {self.loader.label} was cancelled")
        return self._take(found, holder)

    def _join(self, model: str, holder: Holder | None, owner: Any, wake: Callable[[], None]) -> Loaded[Any] | _Ticket:
        """The model if it is there by now, else the load to wait for."""
        loading = loading_variable.get()
        with LOCK:
            loaded = self._find(model, holder)
            if loaded is not None:
                return loaded
            if self.models.stopped:
                raise self._stopped(model).error
            self._check_not_in_circle(model, loading)
            must_not_wait = loading is not None or (holder is not None and holder.must_not_wait)
            load = self.models.ask(model, _now(), must_not_wait)
            ticket = self._ticket(load, owner, loading)
            ticket.wakes.append(wake)
            if loading is not None:
                loading.load.waits_for.append(load)
            todo = self._take_steps()
        self._perform(todo)
        return ticket

    def _ticket(self, load: Load, owner: Any, loading: Loading | None) -> _Ticket:
        ticket = self._tickets.get(load)
        if ticket is None:
            ticket = self._tickets[load] = _Ticket(load, owner, _running_loop(), loading)
        return ticket

    def _check_not_in_circle(self, model: str, loading: Loading | None) -> None:
        load = self.models.load_of(model)
        if loading is None or load is None or not load.leads_to(loading.load):
            return
        if load is loading.load:
            raise ModelLoadError(
                f"{self.loader.label} asks for {model!r} while it loads that very model, and would wait for itself"
            )
        raise ModelLoadError(
            f"while {loading.load.model!r} is loaded, {model!r} is asked for, whose own load waits for "
            f"{loading.load.model!r}: neither would ever end"
        )

    def _leave(self, ticket: _Ticket, wake: Callable[[], None]) -> None:
        """Who waited for the load waits no more, and takes nothing."""
        request = current_request()
        under_way = None if request is None else request.call
        # One whose time was over wants the model all the same: without it the next would be as late.
        kept = under_way is not None and not under_way.cancelled
        with LOCK:
            self._waits_no_more(ticket)
            if not ticket.done:
                ticket.wakes.remove(wake)
                self.models.leave(ticket.load, _now(), kept)
            elif ticket.outcome is not None:
                self.models.release(ticket.outcome, _now())
            todo = self._take_steps()
        self._perform(todo)

    def _take(self, ticket: _Ticket, holder: Holder | None) -> Any:
        """What has come of the load, for one who waited for it."""
        todo: list[Step] = []
        with LOCK:
            self._waits_no_more(ticket)
            loaded = ticket.outcome
            value = None if loaded is None else loaded.value
            if loaded is not None and (holder is None or not holder.add(self, loaded)):
                self.models.release(loaded, _now())
                todo = self._take_steps()
        self._perform(todo)
        if ticket.error is not None:
            raise ticket.error.copy()
        return value

    def _waits_no_more(self, ticket: _Ticket) -> None:
        loading = loading_variable.get()
        if loading is not None and ticket.load in loading.load.waits_for:
            loading.load.waits_for.remove(ticket.load)

    def release(self, loaded: Loaded[Any]) -> None:
        """One that held the model has ended."""
        with LOCK:
            self.models.release(loaded, _now())
            todo = self._take_steps()
        self._perform(todo)

    def hint(self, model: str) -> None:
        """A router would like to have it loaded."""
        with LOCK:
            self.models.hint(model, _now())
            load = self.models.load_of(model)
            owner = self._owner()
            if load is not None and load not in self._tickets:
                self._ticket(load, owner, None)
            todo = self._take_steps()
        self._perform(todo)

    # ---- what the core says is due

    def _take_steps(self) -> list[Step]:
        """The steps that are due now. Under the LOCK in which they came up: no load that has ended seems to go on."""
        steps, self.models.steps = self.models.steps, []
        for step in steps:
            if isinstance(step, Give):
                self._tickets[step.load].end(step.loaded)
            elif isinstance(step, Refuse):
                self._tickets[step.load].end(None, self._stopped(step.load.model))
        return steps

    def _perform(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, Start):
                self._start(self._tickets[step.load])
            elif isinstance(step, Cancel):
                self._cancel(self._tickets[step.load])
            elif isinstance(step, Give | Refuse):
                self._tickets.pop(step.load).wake()
            elif isinstance(step, Close):
                self._close(step.loaded)
            elif isinstance(step, Changed):
                self._shelf.changed(step.model)
        if steps:
            self._set_timer()

    def _due(self) -> float | None:
        with LOCK:
            return self.models.due(_now())

    def _tick(self) -> None:
        self._timer = None
        with LOCK:
            self.models.tick(_now())
            todo = self._take_steps()
        self._perform(todo)
        self._set_timer()

    def _set_timer(self) -> None:
        """Have somebody look again when a load has waited for long. Threads outside of a replica look themselves."""
        loop = self._home(None)
        if loop is None or self._timer is not None or self._due() is None:
            return
        if loop is not _running_loop():
            _post(loop, self._set_timer)
            return
        due = self._due()
        if due is not None:
            self._timer = loop.call_later(max(0.0, due - _now()), self._tick)

    def _home(self, ticket: _Ticket | None) -> asyncio.AbstractEventLoop | None:
        """The loop that loads run on: that of the replica, else the one on which a model was asked for."""
        loop = self.replica.loop if self.replica is not None else None
        if loop is None:
            loop = ticket.loop if ticket is not None else _running_loop()
        return None if loop is None or loop.is_closed() else loop

    # ---- loads

    def _start(self, ticket: _Ticket) -> None:
        context = contextvars.Context()
        context.run(self._enter, ticket.loading)
        self._spawn(partial(self._run, ticket), context, self._home(ticket), partial(self._ended, ticket))

    def _enter(self, loading: Loading | None) -> None:
        replica_variable.set(self.replica)
        loading_variable.set(loading)

    def _spawn(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        context: contextvars.Context,
        loop: asyncio.AbstractEventLoop | None,
        ended: Callable[[asyncio.Task[Any] | None], None],
    ) -> None:
        """Run this on the loop; where there is none, on a loop of its own in a thread."""

        def begin() -> None:
            assert loop is not None
            task = loop.create_task(work(), name="model", context=context)
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)
            task.add_done_callback(ended)

        if loop is None:
            run = partial(context.run, _run_apart, work, ended)
            threading.Thread(target=run, name="headrace-model", daemon=True).start()
        elif loop is _running_loop():
            begin()
        elif not _post(loop, begin):
            ended(None)

    async def _run(self, ticket: _Ticket) -> None:
        ticket.task = asyncio.current_task()
        if ticket.cancelled:
            return
        began = _now()
        try:
            value, size = await self._load(ticket)
        except asyncio.CancelledError:
            self._failed(ticket, self._cancelled(ticket))
        except BaseException as error:  # the top of a task: whatever a loader raises is for those who wait for it
            self._failed(ticket, error)
        else:
            self._loaded(ticket, value, size, _now() - began)

    async def _load(self, ticket: _Ticket) -> tuple[Any, int]:
        """The model, and what it takes."""
        model, loader = ticket.load.model, self.loader
        by_growth = loader.memory_fn is None and loader.options.max_memory_bytes is not None
        before = await in_thread(_before_growth, "measure") if by_growth else 0
        args = (ticket.owner, model) if loader.takes_self else (model,)
        work = partial(loader.function, *args)
        value = await (work() if loader.kind is Kind.COROUTINE else in_thread(work, "load"))
        if loader.kind is not Kind.COROUTINE and inspect.isawaitable(value):
            value = await value
        if by_growth:
            return value, self._grown(ticket, max(0, resident_bytes() - before))
        if loader.memory_fn is None:
            return value, 0
        try:
            return value, await self._measure(loader.memory_fn, value)
        except BaseException:
            await self._end_of(value)
            raise

    def _grown(self, ticket: _Ticket, grown: int) -> int:
        """What the process has grown by, but for what other models took meanwhile that the loader asked for.

        A model that is loaded again may take memory that is still there from its last time: the largest counts.
        """
        loading = ticket.loading
        outer = loading.outer
        if outer is not None:
            outer.grown_bytes += grown
        own = max(0, grown - loading.grown_bytes)
        return max(own, self.models.size_of(ticket.load.model) or 0)

    async def _measure(self, memory_fn: Callable[[Any], Any], value: Any) -> int:
        size = await in_thread(partial(memory_fn, value), "measure")
        if inspect.isawaitable(size):
            size = await size
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 0:
            raise OptionTypeError(
                f"the memory_fn of {self.loader.label} gave {size!r}: it is to give a whole number of bytes"
            )
        return int(size)

    def _loaded(self, ticket: _Ticket, value: Any, size: int, took_s: float) -> None:
        with LOCK:
            if ticket.done:
                pass
            self._tickets.pop(ticket.load, None)
            loaded = self.models.loaded(ticket.load, value, size, _now())
            if not ticket.done:
                ticket.end(loaded)
            self._parts[loaded] = ticket.loading.holder
            todo = self._take_steps()
            known = f"{len(list(self.models))} loaded"
        measured = f", {_bytes(size)}" if self.loader.measures else ""
        log.info("%s loaded %r in %.3f s%s (%s)", self.loader.label, ticket.load.model, took_s, measured, known)
        most = self.loader.options.max_memory_bytes
        if most is not None and size > most:
            log.warning(
                "%s: the model %r takes %s, more than max_memory_bytes (%s): no other stays beside it",
                self.loader.label,
                ticket.load.model,
                _bytes(size),
                _bytes(most),
            )
        self._perform(todo)
        ticket.wake()

    def _cancelled(self, ticket: _Ticket) -> ModelLoadError:
        return ModelLoadError(f"the load of {ticket.load.model!r} by {self.loader.label} was cancelled")

    def _stopped(self, model: str) -> Failure:
        return Failure(ModelLoadError(f"{self.loader.label} loads {model!r} no more: its replica stops"))

    def _failed(self, ticket: _Ticket, error: BaseException) -> None:
        told = as_error(self.loader.label, error)
        logged = "" if self.replica is None or ticket.cancelled else self.replica.replica_id
        with LOCK:
            if self._tickets.pop(ticket.load, None) is None:
                return
            waiters = ticket.load.waiters
            self.models.failed(ticket.load, _now())
            if not ticket.done:
                ticket.end(None, Failure(told, logged))
            todo = self._take_steps()
        if logged:
            text = traceback_text(told).rstrip()
            log.error(
                "%s could not load %r, for which %d waited:\n%s", self.loader.label, ticket.load.model, waiters, text
            )
        ticket.loading.holder.release()
        self._perform(todo)
        ticket.wake()

    def _ended(self, ticket: _Ticket, task: asyncio.Task[Any] | None) -> None:
        """Its task is over: it may never have run, where it was cancelled before or its loop has ended."""
        self._failed(ticket, self._cancelled(ticket))

    def _cancel(self, ticket: _Ticket) -> None:
        ticket.cancelled = True
        task = ticket.task
        if task is not None and self.loader.kind is Kind.COROUTINE:
            loop = task.get_loop()
            if loop is _running_loop():
                task.cancel()
            else:
                _post(loop, task.cancel)

    # ---- closing

    def _close(self, loaded: Loaded[Any]) -> None:
        value, loaded.value = loaded.value, None
        with LOCK:
            others = [*self.models, *self.models.leaving]
        shared = value is None or any(other.value is value for other in others)
        if shared or not _has_an_end(value):
            del value
            self._closed(loaded)
            return
        context = contextvars.Context()
        context.run(self._enter, None)
        box = [value]
        del value
        self._spawn(partial(self._end_in, box), context, self._home(None), lambda _: self._closed(loaded))

    async def _end_in(self, box: list[Any]) -> None:
        await self._end_of(box.pop())

    async def _end_of(self, value: Any) -> None:
        """Close the model, or have its destructor run; whatever that does."""
        what = type(value).__name__
        try:
            async with asyncio.timeout(CLOSE_S):
                await _end(value)
        except TimeoutError:
            log.error("%s: closing a model (%s) has not ended within %g s", self.loader.label, what, CLOSE_S)
        except BaseException as error:  # the top of a task: errors of users' code change nothing
            log.error("%s: closing a model (%s) raised\n%s", self.loader.label, what, traceback_text(error).rstrip())

    def _closed(self, loaded: Loaded[Any]) -> None:
        with LOCK:
            parts = self._parts.pop(loaded, None)
            self.models.closed(loaded, _now())
            todo = self._take_steps()
        log.debug("%s has closed %r", self.loader.label, loaded.model)
        if parts is not None:
            parts.release()
        self._perform(todo)
        if self._emptied is not None:
            self._emptied()

    async def stop(self) -> None:
        """On the replica's loop: close all models, and load no more. Those that a call left behind still uses stay."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        self._emptied = partial(_post, loop, changed.set)
        if self._timer is not None:
            self._timer.cancel()
        with LOCK:
            self.models.stop(_now())
            for ticket in self._tickets.values():
                if not ticket.done:
                    ticket.end(None, self._stopped(ticket.load.model))
            waiting = list(self._tickets.values())
            todo = self._take_steps()
        self._perform(todo)
        for ticket in waiting:
            ticket.wake()
        let_go_in_tasks(self)
        while self.models.closing:
            changed.clear()
            await changed.wait()
        if self.models.leaving:
            names = ", ".join(repr(loaded.model) for loaded in self.models.leaving)
            log.warning(
                "%s: the models %s are used by calls that were left behind, and not closed", self.loader.label, names
            )


_tasks: set[asyncio.Task[Any]] = set()  # loops themselves do not keep tasks alive


class _Blocked:
    """A thread that waits."""

    __slots__ = ("_event", "cancelled")

    def __init__(self) -> None:
        self._event = threading.Event()
        self.cancelled = False

    def block(self, until: float | None) -> None:
        self._event.wait(None if until is None else max(0.0, until - _now()))

    def wake(self) -> None:
        self._event.set()

    def cancel(self) -> None:
        """From any thread: it is to wait no longer."""
        self.cancelled = True
        self._event.set()


async def _given(value: Any) -> Any:
    return value


def _check_id(model: object, label: str) -> None:
    if not isinstance(model, str):
        raise OptionTypeError(f"{label}: the model id {model!r} must be a string, not {type(model).__name__}")
    if not model:
        raise OptionError(
            f"{label}: the model id is empty: the request names no model (by the header serve_multiplexed_model_id, or "
            "handle.options(multiplexed_model_id=...))"
        )


def _before_growth() -> int:
    give_back()
    return resident_bytes()


def _has_an_end(value: Any) -> bool:
    """Whether something is to be called when the model goes."""
    return not inspect.isclass(value) and (_close_of(value) is not None or hasattr(type(value), "__del__"))


def _close_of(value: Any) -> Callable[[], Any] | None:
    close = getattr(value, "close", None)
    return close if callable(close) else None


async def _end(value: Any) -> None:
    close = _close_of(value)
    if close is not None:
        await call(close, close, "close")
    elif inspect.iscoroutinefunction(type(value).__del__):
        await value.__del__()
        disarm(value)
    else:
        box = [value]
        del value
        await in_thread(box.clear, "del")


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} B"


def _reference(owner: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(owner)
    except TypeError:  # None, and instances with __slots__ but no __weakref__ among them
        return lambda: owner


def _post(loop: asyncio.AbstractEventLoop, act: Callable[[], Any]) -> bool:
    """Have the loop call this. False: it has ended."""
    try:
        loop.call_soon_threadsafe(act)
    except RuntimeError:
        return False
    return True


def _wake_on(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    if loop is _running_loop():
        _resolve(future)
    else:
        _post(loop, partial(_resolve, future))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _run_apart(work: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[None], None]) -> None:
    asyncio.run(work())
    ended(None)
