"""All models of one replica, whichever of its functions loads them: what routers hear, and what they would like.

In: changes of single models, from the tables of the functions, in any thread; hints of routers, and the end, on the
replica's loop. Out: to the replica's board, what is ready, being loaded and gone by all tables together; to the tables,
hints and the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from headrace.context import ModelBoard, ReplicaContext
from headrace.replica.held import LOCK
from headrace.spec.multiplexing import loaders_of
from headrace.wire.payload import traceback_text

if TYPE_CHECKING:
    from headrace.replica.multiplexing import ModelTable

log = logging.getLogger("headrace.replica")

_shelves: WeakKeyDictionary[ModelBoard, Shelf] = WeakKeyDictionary()


class Shelf:
    """The tables of one replica. Without one (`replica` None) nobody hears of models."""

    def __init__(self, replica: ReplicaContext | None) -> None:
        self.tables: list[ModelTable] = []
        self._loop: asyncio.AbstractEventLoop | None = None if replica is None else replica.loop
        self._board: ModelBoard | None = None if replica is None else replica.models
        self._told: dict[str, bool] = {}  # model -> whether it is ready, or being loaded
        self._changed: deque[str] = deque()

    def __repr__(self) -> str:
        return f"<Shelf of {len(self.tables)} tables, told {self._told}>"

    @staticmethod
    def of(replica: ReplicaContext | None) -> Shelf:
        """That of the replica."""
        if replica is None or replica.models is None:
            return Shelf(None)
        with LOCK:
            shelf = _shelves.get(replica.models)
            if shelf is None:
                shelf = _shelves[replica.models] = Shelf(replica)
                replica.models.load = shelf.hint
            return shelf

    def add(self, table: ModelTable) -> None:
        self.tables.append(table)

    def hint(self, model: str) -> None:
        """A router would like the model to be loaded: by the only function that does so, or the one that did before."""
        tables = self.tables
        if len(tables) > 1:
            tables = [table for table in tables if table.models.size_of(model) is not None]
        if len(tables) == 1:
            tables[0].hint(model)

    def changed(self, model: str) -> None:
        """A table says that this model is ready, being loaded or gone now. From any thread."""
        if self._board is None or self._loop is None:
            return
        self._changed.append(model)
        if asyncio._get_running_loop() is self._loop:
            self._tell()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        ready: list[str] = []
        loading: list[str] = []
        gone: list[str] = []
        while self._changed:
            model = self._changed.popleft()
            with LOCK:
                standings = [table.models.standing_of(model) for table in self.tables]
            known = [standing for standing in standings if standing is not None]
            standing = any(known) if known else None
            if standing is self._told.get(model):
                continue
            if standing is None:
                gone.append(model)
                del self._told[model]
            else:
                (ready if standing else loading).append(model)
                self._told[model] = standing
        if self._board is not None and (ready or loading or gone):
            self._board.tell(ready=ready, loading=loading, gone=gone)

    async def stop(self) -> None:
        """The replica ends: close all models, and load no more."""
        async with asyncio.TaskGroup() as group:
            for table in self.tables:
                group.create_task(table.stop())


def prepare(replica: ReplicaContext, target: Callable[..., Any]) -> None:
    """Have a table for each function of the replica's code that loads models, for hints that come before requests."""
    try:
        for loader in loaders_of(target):
            own = loader.__get__(replica.servable_object, type(replica.servable_object))
            own.prepare(replica)
    except Exception as error:  # classes of users may do anything when their members are looked at
        log.warning("models of %s load at the first request only:\n%s", replica.replica_id, traceback_text(error))


async def stop(replica: ReplicaContext) -> None:
    """Close all models of the replica."""
    shelf = None if replica.models is None else _shelves.get(replica.models)
    if shelf is not None:
        await shelf.stop()
