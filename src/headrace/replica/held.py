"""Which models a request holds: from when it was given one until it has ended.

In: models as they are given, and the ends of requests, batches, loads and tasks. Out: to the table that gave a model,
that one user of it has ended. A model that nobody holds may be closed at any time.

What holds is the call itself, not the context of its code: that one lives on in whatever a library leaves running.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from headrace.context import request_variable
from headrace.core.loads import Load, Loaded

if TYPE_CHECKING:
    from headrace.replica.multiplexing import ModelTable

# Of all tables and holders: what is done under it takes microseconds, and calls no code of users. Reentrant, since the
# interpreter may run a destructor anywhere.
LOCK = threading.RLock()

_holding: dict[str, int] = {}  # request id -> how many of its calls hold models here
_of_tasks: WeakKeyDictionary[asyncio.Task[Any], Holder] = WeakKeyDictionary()


class Holder:
    """What one call (a batch, a load, a task) holds. `insider`: calls that hold models may wait for its code.

    `held` is what it was given, whatever has become of that otherwise. `latest_alone`: of each table the model that it
    was given last, for nobody says when it has done with the others.
    """

    __slots__ = ("_request_id", "awaited", "ended", "held", "insider", "latest_alone")

    def __init__(self, request_id: str = "", insider: bool = False, latest_alone: bool = False) -> None:
        self.held: dict[tuple[ModelTable, str], Loaded[Any]] = {}
        self._request_id = request_id
        self.awaited: list[tuple[ModelTable, Load]] = []  # the loads that its code waits for
        self.insider = insider
        self.latest_alone = latest_alone
        self.ended = False

    def __repr__(self) -> str:
        return f"<Holder of {[model for _, model in self.held]}{' ended' if self.ended else ''}>"

    @property
    def must_not_wait(self) -> bool:
        """Whether a load that waits until models are used no longer might wait for its own request."""
        return bool(self.held) or bool(self.awaited) or self._request_id in _holding

    def is_insider(self) -> bool:
        return self.insider or self._request_id in _holding

    def add(self, table: ModelTable, loaded: Loaded[Any]) -> bool:
        """It was given this model. False: it needs no further hold on it. Under LOCK."""
        key = (table, loaded.model)
        if self.ended or self.held.get(key) is loaded:
            return False
        if not self.held and self._request_id:
            _holding[self._request_id] = _holding.get(self._request_id, 0) + 1
        self.held[key] = loaded
        return True

    def let_go_of_others(self, table: ModelTable, model: str) -> None:
        """It is about to be given this model: it has done with the others of the table."""
        others = [key for key in self.held if key[0] is table and key[1] != model]
        for key in others:
            table.release(self.held.pop(key))

    def release(self) -> None:
        """What held them has ended."""
        with LOCK:
            self.ended = True
            held, self.held = self.held, {}
            if held and self._request_id:
                left = _holding.pop(self._request_id) - 1
                if left:
                    _holding[self._request_id] = left
        for (table, _), loaded in held.items():
            table.release(loaded)


ENDED = Holder()  # of calls that have ended and held nothing
ENDED.ended = True


class Loading:
    """The load that code runs for: what its loader asks for besides, and whom it keeps waiting."""

    __slots__ = ("grown_bytes", "holder", "load", "outer")

    def __init__(self, load: Load, outer: Loading | None) -> None:
        self.load = load
        self.outer = outer  # the load whose loader asked for it
        self.holder = Holder(insider=True)  # a model keeps the models that it was made of
        self.grown_bytes = 0  # what the loads took that its loader asked for


loading_variable: contextvars.ContextVar[Loading | None] = contextvars.ContextVar("headrace_loading", default=None)


def holder_here() -> Holder | None:
    """What holds the models that the calling code is given; None: nothing does, in a thread outside of any call."""
    request = request_variable.get()
    if request is not None and (call := request.call) is not None:
        holder: Holder | None = call.models
        if holder is None:
            with LOCK:
                if call.models is None:
                    call.models = Holder(request.request_id)
                holder = call.models
        if not holder.ended:
            return holder
    loading = loading_variable.get()
    if loading is not None and not loading.holder.ended:
        return loading.holder
    return _holder_of_task()


def _holder_of_task() -> Holder | None:
    """Outside of any call, a task holds the model that it was given last, until it has ended."""
    if asyncio._get_running_loop() is None or (task := asyncio.current_task()) is None:
        return None
    holder = _of_tasks.get(task)
    if holder is None:
        holder = _of_tasks[task] = Holder(insider=True, latest_alone=True)
        task.add_done_callback(_task_ended)
    return holder


def _task_ended(task: asyncio.Task[Any]) -> None:
    holder = _of_tasks.pop(task, None)
    if holder is not None:
        holder.release()


def let_go_in_tasks(table: ModelTable) -> None:
    """The table ends: tasks outside of any call do not hold its models any longer."""
    for holder in list(_of_tasks.values()):
        holder.let_go_of_others(table, "")
