"""What processes print: kept in capped log files, as the last lines of each, and as lines for whoever watches.

In: chunks of bytes from pipes, on the keeper's loop. Out: files; tails; whole lines on a thread of their own. Nothing
here ever blocks the loop: whoever watches too slowly misses lines, and is told how many.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable

from headrace.engine.directory import InstanceDirectory

OnLine = Callable[[str, str], None]

TAIL_LINES = 100
_TAIL_BYTES = 32 * 1024
_LONGEST_LINE_BYTES = 64 * 1024
_LOG_BYTES = 16 * 1024 * 1024  # then it moves aside as `.1`, and what was `.1` goes
_ENDED_LOGS = 200  # how many logs of processes that are gone stay to be read


class LineFeed:
    """Hands lines to `on_line(process_id, line)`, in order, on a thread of its own. `put` never blocks, it drops."""

    def __init__(self, on_line: OnLine, limit_bytes: int = 4 * 1024 * 1024) -> None:
        self._on_line = on_line
        self._limit_bytes = limit_bytes
        self._waiting: collections.deque[tuple[str, bytes]] = collections.deque()
        self._waiting_bytes = 0
        self._dropped: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="headrace-output", daemon=True)
        self._thread.start()

    def put(self, process_id: str, data: bytes) -> None:
        """Whole lines of one process."""
        with self._changed:
            if self._waiting_bytes + len(data) > self._limit_bytes:
                self._dropped[process_id] = self._dropped.get(process_id, 0) + max(1, data.count(b"\n"))
                return
            self._waiting.append((process_id, data))
            self._waiting_bytes += len(data)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Hand over what waits, for at most `timeout_s`: a terminal that takes nothing does not keep anyone."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._dropped or self._closed):
                    self._changed.wait()
                if not self._waiting and not self._dropped:
                    return
                process_id, data = self._waiting.popleft() if self._waiting else ("", b"")
                self._waiting_bytes -= len(data)
                # Told when what came before the gap has been handed over.
                dropped, self._dropped = (self._dropped, {}) if not self._waiting else ({}, self._dropped)
            try:
                for line in _lines(data):
                    self._on_line(process_id, line)
                for name, count in dropped.items():
                    self._on_line(name, f"[{count} lines not shown: they came too fast to be; its log has them]")
            except Exception:  # the top of the thread: who watches is gone (a closed pipe); the logs go on without
                self._on_line = _discard


def _discard(process_id: str, line: str) -> None:
    """In the place of a watcher that is gone."""


class ProcessOutput:
    """The output of one process: `feed` what it printed, `finish` when it is gone, `tail` for the report of its end."""

    def __init__(self, process_id: str, log: LogFile, lines: LineFeed | None) -> None:
        self._process_id = process_id
        self._log = log
        self._lines = lines
        self._partial = bytearray()
        self._tail = bytearray()

    def feed(self, data: bytes) -> None:
        """More of what the process printed: any bytes, ending anywhere."""
        self._log.write(data)
        self._tail += data
        if len(self._tail) > 2 * _TAIL_BYTES:
            del self._tail[:-_TAIL_BYTES]
        if self._lines is None:
            return
        end = data.rfind(b"\n") + 1
        if end:
            self._partial += data[:end]
            self._put_partial()
        self._partial += data[end:]
        if len(self._partial) > _LONGEST_LINE_BYTES:
            self._put_partial()

    def finish(self) -> None:
        """The process is gone: an unfinished last line is a line."""
        self._put_partial()
        self._log.close()

    def tail(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return tuple(_lines(bytes(self._tail[-_TAIL_BYTES:]))[-TAIL_LINES:])

    def _put_partial(self) -> None:
        if self._partial and self._lines is not None:
            self._lines.put(self._process_id, bytes(self._partial))
        self._partial.clear()


class LogFile:
    """A file that is appended to and moves aside as `.1` when it is full. A full disk loses lines and nothing else."""

    def __init__(self, path: str, limit_bytes: int = _LOG_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._descriptor = -1
        self._size = 0
        self.lost_bytes = 0

    def write(self, data: bytes) -> None:
        try:
            if self._descriptor < 0:
                self._open()
            if self._size and self._size + len(data) > self._limit_bytes:
                self.close()
                os.replace(self._path, self._path + ".1")  # noqa: PTH105 - no Path for each write
                self._open()
            written = os.write(self._descriptor, data)
            self._size += written
            self.lost_bytes += len(data) - written
        except OSError:
            self.lost_bytes += len(data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size


class Logs:
    """The log files of an instance. Those of processes that are gone stay until there are too many."""

    def __init__(self, directory: InstanceDirectory, keep: int = _ENDED_LOGS) -> None:
        self._directory = directory
        self._keep = keep
        self._ended: dict[str, None] = {}

    def open(self, process_id: str) -> LogFile:
        """The log of a process that starts; one that starts again goes on with the same."""
        path = str(self._directory.log(process_id))
        self._ended.pop(path, None)
        return LogFile(path)

    def retire(self, process_id: str) -> None:
        """The process is gone. The logs that ended longest ago are removed when there are too many."""
        self._ended[str(self._directory.log(process_id))] = None
        while len(self._ended) > self._keep:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            for path in (oldest, oldest + ".1"):
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108 - it may be gone


def _lines(data: bytes) -> list[str]:
    """Lines as a terminal would show them in the end: of a line that returns to its start, what came last."""
    if not data:
        return []
    lines = data.decode(errors="replace").removesuffix("\n").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines]
