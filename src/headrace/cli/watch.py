"""Source files watched for changes: those that an application was read from, and all others where its modules lie.

In: a directory, files, what `stat` says of them. Out: the paths that changed, appeared or went, once they are quiet. By
polling: it needs nothing installed, sees changes on every file system, and rests in proportion to what a look costs.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

POLL_S = 0.1
SETTLE_S = 0.04  # editors and version control write files in several steps
REST = 20  # times as long as a look took: a large tree costs a twentieth of a core at most
MOST_DIRECTORIES = 2000
_NOT_SOURCES = frozenset(("__pycache__", "node_modules", "site-packages", "dist-packages"))

Stamp = tuple[int, int, int]  # time of change in nanoseconds, size, inode
CHANGED: Stamp = (-1, -1, -1)  # of no file


class Watcher:
    """Looks at the files of a directory, and at others that are added. `on_change` is called on its own thread."""

    def __init__(self, directory: str, on_change: Callable[[list[str]], None]) -> None:
        self._directory = str(Path(directory).resolve())
        self._on_change = on_change
        self._others: set[str] = set()
        self._added: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._seen: dict[str, Stamp] = {}

    def __repr__(self) -> str:
        return f"<Watcher of {self._directory}, {len(self._seen)} files>"

    def start(self) -> None:
        """Take what is there now for unchanged, and look from then on."""
        self._seen = self._look()
        threading.Thread(target=self._run, name="watcher", daemon=True).start()

    def add(self, files: Iterable[str], read_at: float) -> None:
        """Watch these too, which were read after `read_at` (seconds since the epoch): a later change counts."""
        with self._lock:
            self._added |= dict.fromkeys(files, read_at)

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _run(self) -> None:
        rest_s = POLL_S
        while not self._stopped.wait(rest_s):
            began = time.perf_counter()
            found = self._look()
            rest_s = max(POLL_S, REST * (time.perf_counter() - began))
            if found == self._seen:
                continue
            while not self._stopped.wait(SETTLE_S):
                before, found = found, self._look()
                if found == before:
                    break
            changed = different(self._seen, found)
            self._seen = found
            if changed and not self._stopped.is_set():
                self._on_change(changed)

    def _look(self) -> dict[str, Stamp]:
        found = dict(sources_in(self._directory))
        with self._lock:
            added, self._added = self._added, {}
        new = added.keys() - found.keys() - self._seen.keys() - self._others
        self._others |= new
        for file in self._others:
            stamp = stamp_of(file)
            if stamp is not None:
                found[file] = stamp
        for file in new:  # as it was when it was read, as far as can be told
            stamp = found.get(file)
            self._seen[file] = stamp if stamp is not None and stamp[0] <= added[file] * 1e9 else CHANGED
        return found


def different(before: dict[str, Stamp], after: dict[str, Stamp]) -> list[str]:
    """The paths that are not the same in both."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def sources_in(directory: str) -> Iterator[tuple[str, Stamp]]:
    """Python sources in the directory and below it, the nearest first, without hidden and installed ones."""
    waiting = deque([directory])
    entered = 0
    while waiting and entered < MOST_DIRECTORIES:
        entered += 1
        try:
            with os.scandir(waiting.popleft()) as entries:
                inner = list(entries)
        except OSError:
            continue  # it went, or is not for us to read
        if entered > 1 and any(entry.name == "pyvenv.cfg" for entry in inner):
            continue
        for entry in inner:
            try:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith(".") and entry.name not in _NOT_SOURCES:
                        waiting.append(entry.path)
                elif entry.name.endswith(".py"):
                    info = entry.stat()
                    yield entry.path, (info.st_mtime_ns, info.st_size, info.st_ino)
            except OSError:
                continue  # it went meanwhile


def stamp_of(file: str) -> Stamp | None:
    """What tells one state of the file from another; None when it is not there."""
    try:
        info = Path(file).stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino
