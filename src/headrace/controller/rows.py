"""Tables in memory, kept in a store of keys and values that may be slow, or away for minutes, without waiting for it.

In: changes, in the controller's loop; what is read is read from memory. Out: the changes, in their order, from a thread
of its own. Who must know that they are kept waits for `settled`. The store is read once, at the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

from headrace.controller.journal import Change, Journal, JournalBroken, Row, Superseded, Tables, apply
from headrace.controller.kept import KeyValues
from headrace.spec.errors import InstanceError

logger = logging.getLogger(__name__)

STUCK_S = 2.0  # a change that waits for longer: the store is away
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0  # between tries
CLOSE_S = 10.0
MOST_WAITING = 10_000  # transactions; beyond it all is written anew, once it can be
ENTRY_BYTES = 1024 * 1024  # of what is written together, or one transaction


class Rows:
    """The tables of one instance under a prefix of the store.

    What cannot be read is left where it is, and a new journal begun beside it; of those left only the last is kept.
    """

    def __init__(
        self, values: KeyValues, prefix: str = "state/", *, stuck_s: float = STUCK_S, close_s: float = CLOSE_S
    ) -> None:
        self._values = values
        self._prefix = prefix
        self._stuck_s = stuck_s
        self._close_s = close_s
        self._journal: Journal | None = None
        self._superseded: Callable[[str], None] = lambda reason: None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        # All below is guarded by it; the tables are changed in the loop alone.
        self._tables: Tables = {}
        self._waiting: deque[tuple[int, float, tuple[Change, ...]]] = deque()
        self._said = 0  # transactions
        self._done = 0
        self._since = 0.0  # when the first was said of those that are not done
        self._anew = False
        self._failure = ""
        self._told = False
        self._closing = False
        self._give_up_at = 0.0  # once it is closing
        self._over = False  # superseded
        self._settling: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.set_aside: str | None = None

    def __repr__(self) -> str:
        behind = f" {self._said - self._done} transactions behind" if self._said > self._done else ""
        return f"<Rows {self._prefix}{'' if self._thread else ' closed'}{behind}>"

    # --- the beginning and the end ------------------------------------------------------------------------------------

    def open(self, check: Callable[[Tables], None], superseded: Callable[[str], None]) -> None:
        """Read the tables, and take them over. `check` raises JournalBroken where their rows cannot be read.

        Raises InstanceError when the store cannot be reached.
        """
        if self._thread is not None:
            return
        self._superseded = superseded
        try:
            self._tables = self._load(check)
        except OSError as error:
            raise InstanceError(f"the controller's state cannot be kept in {self._prefix}: {error}") from error
        self._thread = threading.Thread(target=self._run, name="headrace-rows", daemon=True)
        self._thread.start()

    def _load(self, check: Callable[[Tables], None]) -> Tables:
        at = f"{self._prefix}at"
        said = self._values.get(at) or b"1"
        if not said.isdigit():
            raise InstanceError(f"the controller's state cannot be found: {at} is {said!r}, and should be a number")
        number = int(said)
        journal = Journal(self._values, f"{self._prefix}{number}/")
        try:
            tables = journal.load()
            check(tables)
        except JournalBroken as error:
            self.set_aside = f"{self._prefix}{number}/"
            logger.error(
                "the controller's state cannot be read (%s): it begins anew without any application, and what is there "
                "is kept under %s",
                error,
                self.set_aside,
            )
            number += 1
            tables = {}
            journal = Journal(self._values, f"{self._prefix}{number}/")
            journal.begin(tables)
            self._values.put(at, str(number).encode())
            for key in self._values.keys(f"{self._prefix}"):
                if key != at and not key.startswith((f"{self._prefix}{number}/", self.set_aside)):
                    self._values.delete(key)
        else:
            journal.begin(tables)
        self._journal = journal
        return tables

    def close(self) -> None:
        """Write what is left, for some seconds. Harmless again."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._give_up_at = time.monotonic() + self._close_s
            self._changed.notify_all()
        self._thread.join(self._close_s)
        self._thread = None
        if self._said > self._done and not self._over:
            logger.error(
                "%d changes of the controller's state could not be written: %s", self._said - self._done, self._why()
            )

    # --- what the controller's loop calls -----------------------------------------------------------------------------

    def table(self, name: str) -> Mapping[Row, bytes]:
        """The rows of the table, by application and what they are of it."""
        if self._thread is None:
            raise self._not_open()
        return MappingProxyType(self._tables.get(name, {}))

    def _not_open(self) -> InstanceError:
        return InstanceError(f"the controller's state in {self._prefix} is not open")

    def write(self, *changes: Change) -> None:
        """Change the tables so: at once here, and later in the store, whole or not at all."""
        if self._thread is None:
            raise self._not_open()
        now = time.monotonic()
        with self._changed:
            apply(self._tables, changes)
            if self._said == self._done:
                self._since = now
            self._said += 1
            self._waiting.append((self._said, now, changes))
            if len(self._waiting) > MOST_WAITING:  # the tables say it all
                self._waiting.clear()
                self._anew = True
            self._changed.notify_all()
        if self._stuck():
            self._tell()

    def check(self) -> None:
        """Raise InstanceError when the store has taken nothing for seconds."""
        if self._failure or self._stuck():
            self._tell()
            raise InstanceError(f"the controller's state cannot be written to {self._prefix}: {self._why()}")

    @property
    def settling(self) -> bool:
        """Whether some change is on its way to the store still, which answers."""
        return self._said > self._done and not (self._failure or self._over or self._stuck())

    async def settled(self) -> None:
        """Wait until all changes so far are in the store: without end where another controller has taken over."""
        with self._changed:
            if self._done == self._said:
                return
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._settling.append((self._said, loop, future))
        await future

    def _stuck(self) -> bool:
        with self._changed:
            return self._said > self._done and time.monotonic() - self._since > self._stuck_s

    def _why(self) -> str:
        return self._failure or f"the store has answered nothing for {self._stuck_s:g} s"

    def _tell(self) -> None:
        with self._changed:
            told, self._told = self._told, True
        if not told:
            logger.error(
                "the controller's state cannot be written to %s (%s): what changes from now on is lost if the "
                "controller dies before the store is back",
                self._prefix,
                self._why(),
            )

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        journal = self._journal
        assert journal is not None
        wait_s = FIRST_WAIT_S
        while True:
            with self._changed:
                while not (self._said > self._done or self._closing):
                    self._changed.wait()
                if self._said == self._done:
                    return
            try:
                done = self._carry_out(journal)
            except Superseded as error:
                with self._changed:
                    self._over = True
                self._superseded(str(error))
                return
            except Exception as error:  # the top of the thread: whatever a store raises, the next try may succeed
                self._failure = str(error) or repr(error)
                self._tell()
                with self._changed:
                    if self._closing and time.monotonic() >= self._give_up_at:
                        return
                    if self._closing:
                        self._changed.wait(wait_s)
                    else:
                        self._changed.wait_for(lambda: self._closing, wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                wait_s = FIRST_WAIT_S
                self._wrote(done)

    def _carry_out(self, journal: Journal) -> int:
        """Write some of what is waiting. Returns the number of the last transaction that is written then."""
        with self._changed:
            if self._anew or journal.needs_base:
                tables = {name: dict(rows) for name, rows in self._tables.items()}
                done, changes = self._said, None
                self._anew = False
            else:
                done, changes = self._batch()
        if changes is not None:
            journal.append(changes)
            return done
        try:
            journal.begin(tables)
        except BaseException:
            self._anew = True
            raise
        return done

    def _batch(self) -> tuple[int, list[Change]]:
        size = 0
        done = self._done
        batch: list[Change] = []
        for number, _, changes in self._waiting:
            size += sum(len(change[3] or b"") for change in changes)
            if batch and size > ENTRY_BYTES:
                break
            batch += changes
            done = number
        return done, batch

    def _wrote(self, done: int) -> None:
        with self._changed:
            self._done = done
            while self._waiting and self._waiting[0][0] <= done:
                self._waiting.popleft()
            self._since = self._waiting[0][1] if self._waiting else time.monotonic()
            reached = [entry for entry in self._settling if entry[0] <= done]
            self._settling = [entry for entry in self._settling if entry[0] > done]
            self._failure = ""
            again = self._told and self._done == self._said
            if again:
                self._told = False
        for _, loop, future in reached:
            with contextlib.suppress(RuntimeError):  # its loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_reach, future)
        if again:
            logger.warning("the controller's state is written to %s again, and whole", self._prefix)


def _reach(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
