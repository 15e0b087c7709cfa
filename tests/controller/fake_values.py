"""A store of keys and values in memory for tests, with failures on demand; it remembers what was done to it, so that a
test can see it as it was at any moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Literal

Write = tuple[str, bytes | None]
Fate = Literal["done", "refused", "done, and refused", "late"]


class FakeValues:
    """A KeyValues. `fates` is asked before each write what becomes of it; `away` has all fail.

    A write that is "late" fails, and is carried out by `arrive`.
    """

    def __init__(self, writes: Iterable[Write] = (), fate: Callable[[str], Fate] = lambda key: "done") -> None:
        self.rows: dict[str, bytes] = {}
        self.writes: list[Write] = []
        self.fate = fate
        self.away = False
        self.late: list[Write] = []
        self.open = threading.Event()  # while it is not set, nothing comes back
        self.open.set()
        for key, value in writes:
            self._write(key, value)

    def _write(self, key: str, value: bytes | None) -> None:
        self.writes.append((key, value))
        if value is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = value

    def _ask(self, key: str, value: bytes | None) -> None:
        self._wait()
        fate = self.fate(key)
        if fate in ("done", "done, and refused"):
            self._write(key, value)
        if fate == "late":
            self.late.append((key, value))
        if fate != "done":
            raise ConnectionError("the fake store is away")

    def _wait(self) -> None:
        self.open.wait()
        if self.away:
            raise ConnectionError("the fake store is away")

    def get(self, key: str) -> bytes | None:
        self._wait()
        return self.rows.get(key)

    def put(self, key: str, value: bytes) -> None:
        self._ask(key, value)

    def delete(self, key: str) -> None:
        self._ask(key, None)

    def keys(self, prefix: str) -> list[str]:
        self._wait()
        return [key for key in self.rows if key.startswith(prefix)]

    def arrive(self) -> None:
        """Carry out the first of the writes that are late."""
        self._write(*self.late.pop(0))
