"""The models of one function: the shell around `core.models`.

In: model ids, from code on event loops and in threads; hints of routers; the ends of what holds models. Out: models;
calls of the user's loader, asynchronous ones as tasks on the replica's loop, plain ones in threads; models that have to
go are closed. Whatever a loader does, only those fail who wait for that load.

Who may touch what: the core, and what is noted of loads, under LOCK; each change of it gives steps, which are done
after the lock is let go of, by whoever made the change. Code of users is never called under the lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from headrace.context import ReplicaContext, current_request, replica_variable
from headrace.core.loads import Cancel, Changed, Close, Give, Load, Loaded, Refuse, Start, Step
from headrace.core.models import Models
from headrace.replica.batch_items import Failure
from headrace.replica.batched_function import as_error
from headrace.replica.destroy import end_model, has_an_end
from headrace.replica.held import LOCK, Holder, Loading, holder_here, let_go_in_tasks, loading_variable
from headrace.replica.methods import Kind
from headrace.replica.model_load import (
    Blocked,
    Loader,
    Ticket,
    check_id,
    in_bytes,
    load_model,
    post,
    ran_out_of_time,
    reference,
    running_loop,
    spawn,
    wake_on,
)
from headrace.replica.shelf import Shelf
from headrace.spec.errors import ModelLoadError, RequestCancelledError
from headrace.spec.multiplexing import ANY_NUMBER
from headrace.wire.payload import traceback_text

log = logging.getLogger("headrace.replica")

_now = time.monotonic


class ModelTable:
    """The models that one function has loaded, for one instance in one replica. Its methods may be called anywhere."""

    def __init__(self, loader: Loader, owner: Any, replica: ReplicaContext | None) -> None:
        options = loader.options
        self.loader = loader
        self.replica = replica
        number = options.max_num_models_per_replica
        self.models: Models[Any] = Models(
            None if number == ANY_NUMBER else number,
            options.max_memory_bytes,
            one_at_a_time=loader.by_growth,
            cancellable=loader.kind is Kind.COROUTINE,
        )
        self._owner = reference(owner)
        self._tickets: dict[Load, Ticket] = {}
        self._parts: dict[Loaded[Any], Holder] = {}  # the models that a model was made of
        self._timer: asyncio.TimerHandle | None = None
        self._ends: Callable[[], object] = bool  # called at each end of a load or a closing
        self._shelf = Shelf.of(replica)
        self._shelf.add(self)

    def __repr__(self) -> str:
        with LOCK:
            models = self.models
            known = [(loaded.model, loaded.size_bytes) for loaded in models]
            loading = ", ".join(map(repr, models.loading))
        limit = "" if models.limit is None else f" of {models.limit}"
        ready = ", ".join(
            f"{model!r} {in_bytes(size)}" if self.loader.measures else repr(model) for model, size in known
        )
        text = (
            f"{len(known)}{limit} loaded" + (f": {ready}" if ready else "") + (f"; loading {loading}" * bool(loading))
        )
        return f"<models of {self.loader.label}: {text}>"

    def sizes(self) -> dict[str, int | None]:
        """The models that are ready, the least recently used first, with the bytes that they take where known."""
        with LOCK:
            return {loaded.model: loaded.size_bytes if self.loader.measures else None for loaded in self.models}

    # ---- requests

    def get(self, model: Any, owner: Any) -> Any:
        """The model: on an event loop something to be awaited, in a thread the model itself, when it is there.

        Outside of a replica what `async def` loads is to be awaited everywhere, as usual. Raises OptionError,
        OptionTypeError for what is no model id.
        """
        if type(model) is not str or not model:
            check_id(model, self.loader.label)
        holder = holder_here()
        held = None if holder is None else holder.held.get((self, model))
        if held is not None:
            value = held.value
        else:
            if holder is not None and holder.latest_alone:
                holder.let_go_of_others(self, model)
            with LOCK:
                held = self._find(model, holder)
                value = None if held is None else held.value
        to_await = running_loop() is not None or (self.replica is None and self.loader.kind is Kind.COROUTINE)
        if held is not None:
            return _given(value) if to_await else value
        return self._wait(model, holder, owner) if to_await else self._block(model, holder, owner)

    def _find(self, model: str, holder: Holder | None) -> Loaded[Any] | None:
        loaded = self._there(model, holder)
        if loaded is not None and holder is not None and holder.add(self, loaded):
            self.models.hold(loaded)
        return loaded

    def _there(self, model: str, holder: Holder | None) -> Loaded[Any] | None:
        loaded = self.models.find(model)
        if loaded is None and self.models.leaving and (holder is None or holder.is_insider()):
            loaded = self.models.find(model, insider=True)
        return loaded

    async def _wait(self, model: str, holder: Holder | None, owner: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        wake = partial(wake_on, loop, future)
        ticket = self._join(model, holder, owner, wake)
        try:
            if not ticket.done:
                await future
        except BaseException:  # who waits was cancelled, and it is passed on
            self._leave(ticket, holder, wake)
            raise
        return self._take(ticket, holder)

    def _block(self, model: str, holder: Holder | None, owner: Any) -> Any:
        waiter = Blocked()
        request = current_request()
        if request is not None:
            calls = request.calls
            if calls is None:
                calls = request.calls = set()
            calls.add(waiter)  # to be cancelled with the request, as calls by handles are
        try:
            if request is not None:
                request.check()  # after that: who leaves in between is seen by one of the two
            ticket = self._join(model, holder, owner, waiter.wake)
            try:
                while not ticket.done and not waiter.cancelled:
                    if not waiter.block(self._due()):
                        self._tick()
            except BaseException:  # KeyboardInterrupt, in the main thread of a script
                waiter.cancelled = True
                raise
            finally:
                if waiter.cancelled:
                    self._leave(ticket, holder, waiter.wake)
        finally:
            if request is not None and request.calls is not None:
                request.calls.discard(waiter)
        if not waiter.cancelled:
            return self._take(ticket, holder)
        if request is not None:
            request.check()
        raise RequestCancelledError(f"the call of {self.loader.label} was cancelled")

    def _join(self, model: str, holder: Holder | None, owner: Any, wake: Callable[[], None]) -> Ticket:
        """What to wait for; it may be done. The end is `_take`, or `_leave` for one who does not wait so long."""
        self._forget_dead(model)
        loading = loading_variable.get()
        with LOCK:
            loaded = self._there(model, holder)
            if loaded is not None:  # it has come meanwhile
                ticket = Ticket(Load(model, _now(), 0), owner, None, None)
                self.models.hold(loaded)
                ticket.end(loaded)
                return ticket
            if self.models.stopped:
                raise self._stopped(model).error
            self._check_not_in_circle(model, loading)
            must_not_wait = loading is not None or (holder is not None and holder.must_not_wait)
            load = self.models.ask(model, _now(), must_not_wait)
            ticket = self._ticket(load, owner, loading)
            ticket.wakes.append(wake)
            others = () if holder is None else tuple(holder.awaited)
            if holder is not None:
                holder.awaited.append((self, load))
            if loading is not None:
                loading.load.waits_for.append(load)
            todo = self._take_steps()
        self._perform(todo)
        for table, other in others:
            table.hurry(other)
        return ticket

    def _ticket(self, load: Load, owner: Any, loading: Loading | None) -> Ticket:
        ticket = self._tickets.get(load)
        if ticket is None:
            ticket = self._tickets[load] = Ticket(load, owner, running_loop(), loading)
        return ticket

    def _forget_dead(self, model: str) -> None:
        """A load whose loop has ended will never end itself."""
        with LOCK:
            load = self.models.load_of(model)
            ticket = None if load is None else self._tickets[load]
        if ticket is not None and ticket.home is not None and ticket.home.is_closed():
            self._failed(ticket, self._cancelled(ticket))

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

    def hurry(self, load: Load) -> None:
        """Who waits for this load is to get other models too, which it must not wait for."""
        with LOCK:
            if load in self._tickets:
                self.models.hurry(load, _now())
            todo = self._take_steps()
        self._perform(todo)

    def _leave(self, ticket: Ticket, holder: Holder | None, wake: Callable[[], None]) -> None:
        """Who waited for the load waits no more, and takes nothing."""
        request = current_request()
        kept = request is not None and ran_out_of_time(request)
        with LOCK:
            self._waits_no_more(ticket, holder)
            if not ticket.done:
                ticket.wakes.remove(wake)
                self.models.leave(ticket.load, _now(), kept)
            elif ticket.outcome is not None:
                self.models.release(ticket.outcome, _now())
            todo = self._take_steps()
        self._perform(todo)

    def _take(self, ticket: Ticket, holder: Holder | None) -> Any:
        """What has come of the load, for one who waited for it."""
        todo: list[Step] = []
        with LOCK:
            self._waits_no_more(ticket, holder)
            loaded = ticket.outcome
            value = None if loaded is None else loaded.value
            if loaded is not None and (holder is None or not holder.add(self, loaded)):
                self.models.release(loaded, _now())
                todo = self._take_steps()
        self._perform(todo)
        if ticket.error is not None:
            raise ticket.error.copy()
        return value

    def _waits_no_more(self, ticket: Ticket, holder: Holder | None) -> None:
        if holder is not None and (self, ticket.load) in holder.awaited:
            holder.awaited.remove((self, ticket.load))
        loading = loading_variable.get()
        if loading is not None and ticket.load in loading.load.waits_for:
            loading.load.waits_for.remove(ticket.load)

    def release(self, loaded: Loaded[Any]) -> None:
        """One that held the model has ended."""
        with LOCK:
            self.models.release(loaded, _now())
            todo = self._take_steps() if self.models.steps else ()
        if todo:
            self._perform(todo)

    def hint(self, model: str) -> None:
        """A router would like to have it loaded."""
        owner = self._owner()
        with LOCK:
            self.models.hint(model, _now())
            load = self.models.load_of(model)
            if load is not None:
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
                self._start(step.load, step.overdue)
            elif isinstance(step, Cancel):
                self._cancel(step.load)
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
        """Have somebody look again when a load has waited for long; threads outside of a replica look themselves."""
        loop = self._home(None)
        if loop is None or self._timer is not None or (due := self._due()) is None:
            return
        if loop is running_loop():
            self._timer = loop.call_later(max(0.0, due - _now()), self._tick)
        else:
            post(loop, self._set_timer)

    def _home(self, ticket: Ticket | None) -> asyncio.AbstractEventLoop | None:
        """The loop that loads run on: that of the replica, else the one on which a model was asked for."""
        loop = self.replica.loop if self.replica is not None else None
        if loop is None:
            loop = ticket.loop if ticket is not None else running_loop()
        return None if loop is None or loop.is_closed() else loop

    # ---- loads

    def _start(self, load: Load, overdue: bool) -> None:
        ticket = self._tickets.get(load)
        if ticket is None:
            return  # it has ended already: the replica stops
        if overdue:
            log.warning("%s loads %r beyond its limits: the others are in use for long", self.loader.label, load.model)
        context = contextvars.Context()
        context.run(self._enter, ticket.loading)
        ticket.home = self._home(ticket)
        spawn(partial(self._run, ticket), context, ticket.home, partial(self._ended, ticket))

    def _enter(self, loading: Loading | None) -> None:
        replica_variable.set(self.replica)
        loading_variable.set(loading)

    async def _run(self, ticket: Ticket) -> None:
        ticket.task = asyncio.current_task()
        if ticket.cancelled and self.loader.kind is Kind.COROUTINE:
            return
        began = _now()
        try:
            model, size = await load_model(self.loader, ticket)
        except asyncio.CancelledError:
            self._failed(ticket, self._cancelled(ticket))
        except BaseException as error:  # the top of a task: whatever a loader raises is for those who wait for it
            self._failed(ticket, error)
        else:
            if self.loader.by_growth:
                size = self._grown(ticket, size)
            self._loaded(ticket, model, size, _now() - began)

    def _grown(self, ticket: Ticket, grown: int) -> int:
        """What the model takes of what the process has grown by: other models took the rest, which its loader needed.

        A model that is loaded again may take memory that is still there from its last time: the largest counts.
        """
        loading = ticket.loading
        if loading.outer is not None:
            loading.outer.grown_bytes += grown
        own = max(0, grown - loading.grown_bytes)
        return max(own, self.models.size_of(ticket.load.model) or 0)

    def _loaded(self, ticket: Ticket, value: Any, size: int, took_s: float) -> None:
        model = ticket.load.model
        with LOCK:
            self._tickets.pop(ticket.load, None)
            loaded = self.models.loaded(ticket.load, value, size, _now())
            self._parts[loaded] = ticket.loading.holder
            if not ticket.done:
                ticket.end(loaded)
            todo = self._take_steps()
        measured = f", {in_bytes(size)}" if self.loader.measures else ""
        log.info("%s has loaded %r in %.3f s%s", self.loader.label, model, took_s, measured)
        most = self.loader.options.max_memory_bytes
        if most is not None and size > most:
            what = (self.loader.label, model, in_bytes(size), in_bytes(most))
            log.warning("%s: the model %r takes %s, more than max_memory_bytes (%s): no other stays beside it", *what)
        self._perform(todo)
        ticket.wake()
        self._ends()

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
        told = as_error(self.loader.label, error)
        quiet = self.replica is None or ticket.cancelled  # who called has the error; there is none
        with LOCK:
            if self._tickets.pop(ticket.load, None) is None:
                return
            self.models.failed(ticket.load, _now())
            if not ticket.done:
                ticket.end(None, Failure(told, "" if quiet or self.replica is None else self.replica.replica_id))
            todo = self._take_steps()
        if not quiet:
            text = traceback_text(told).rstrip()
            log.error("%s could not load %r:\n%s", self.loader.label, ticket.load.model, text)
        ticket.loading.holder.release()
        self._perform(todo)
        ticket.wake()
        self._ends()

    def _ended(self, ticket: Ticket) -> None:
        """Its task is over; one that never began has brought nothing."""
        self._failed(ticket, self._cancelled(ticket))

    def _cancel(self, load: Load) -> None:
        ticket = self._tickets.get(load)
        if ticket is not None and self.loader.kind is Kind.COROUTINE:
            ticket.cancel()

    def _cancelled(self, ticket: Ticket) -> ModelLoadError:
        return ModelLoadError(f"the load of {ticket.load.model!r} by {self.loader.label} was cancelled")

    def _stopped(self, model: str) -> Failure:
        return Failure(ModelLoadError(f"{self.loader.label} loads {model!r} no more: its replica stops"))

    # ---- closing

    def _close(self, loaded: Loaded[Any]) -> None:
        with LOCK:
            held, loaded.value = [loaded.value], None
            others = [*self.models, *self.models.leaving]
        if any(other.value is held[0] for other in others) or not has_an_end(held[0]):
            held.clear()
            self._closed(loaded)
            return
        context = contextvars.Context()
        context.run(self._enter, None)
        spawn(partial(end_model, held, self.loader.label), context, self._home(None), partial(self._closed, loaded))

    def _closed(self, loaded: Loaded[Any]) -> None:
        with LOCK:
            parts = self._parts.pop(loaded, None)
            self.models.closed(loaded, _now())
            todo = self._take_steps()
        log.debug("%s has closed %r", self.loader.label, loaded.model)
        if parts is not None:
            parts.release()
        self._perform(todo)
        self._ends()

    async def stop(self) -> None:
        """On the replica's loop: close all models, and load no more. Those that a call left behind still uses stay."""
        changed = asyncio.Event()
        self._ends = partial(post, asyncio.get_running_loop(), changed.set)
        if self._timer is not None:
            self._timer.cancel()
        with LOCK:
            self.models.stop(_now())
            waiting = [ticket for ticket in self._tickets.values() if not ticket.done]
            for ticket in waiting:
                ticket.end(None, self._stopped(ticket.load.model))
            todo = self._take_steps()
        self._perform(todo)
        for ticket in waiting:
            ticket.wake()
        let_go_in_tasks(self)
        while self.models.closing or (self._tickets and self.models.cancellable):
            changed.clear()
            await changed.wait()
        left = ", ".join(repr(loaded.model) for loaded in self.models.leaving)
        if left:
            log.warning("%s: calls that were left behind still use %s: not closed", self.loader.label, left)


async def _given(value: Any) -> Any:
    return value
