"""Replicas that fail to start, each way to fail told once: the traceback in full the first time, then by its last line.

In: lines that replicas print, and reports of what failed, in any order: a replica prints its traceback to its log, and
the deploy brings the same. Out: which of the lines are to be shown.
"""

from __future__ import annotations

import re
from collections import deque

_HEAD = re.compile(r"ERROR replica \S+ failed:$")
_AGAIN = re.compile(r"ERROR replica \S+ failed as the one before it did: ")
_REPLICA = re.compile(r"\b\w+#\d+(@[\w-]+)?")
_DIED = "; it printed last:"  # ends the first line of what is told of a process that died; its output is seen already


class StartFailures:
    """What failed so far, and which lines of whom are held until it is known whether they tell anything new."""

    def __init__(self) -> None:
        self._held: dict[str, list[str]] = {}
        self._told: set[str] = set()
        # What a process will print, or the rest of it, although it was told: the report came first.
        self._echoes: dict[str, deque[str]] = {}

    def __repr__(self) -> str:
        return f"<StartFailures {len(self._told)} told, lines of {len(self._held)} processes held>"

    def line(self, process_id: str, line: str) -> bool:
        """Whether to show this line of the process now; one that is held comes back by `told` or `rest`."""
        echo = self._echoes.get(process_id)
        if _drop(echo, line) or (echo is not None and _AGAIN.match(line)):
            return False
        held = self._held.get(process_id)
        if held is None and not _HEAD.match(line) and not _AGAIN.match(line):
            return True
        self._held.setdefault(process_id, []).append(line)
        return False

    def told(self, process_id: str, error: str) -> tuple[list[str], bool]:
        """The process is reported to have failed with `error`: the lines held that say something else, and whether the
        error is to be told in full: it has several lines and is a new one.
        """
        held = self._held.pop(process_id, [])
        replica = process_id.partition("@")[0]
        echo = self._echoes[process_id] = deque((f"ERROR replica {replica} failed:", *error.splitlines()))
        besides = [line for line in held if not _drop(echo, line) and not _AGAIN.match(line)]
        new = not self.is_told(error)
        self._told.add(_whoever(error))
        return besides, new and "\n" in error and _DIED not in error.partition("\n")[0]

    def is_told(self, error: str) -> bool:
        """Whether this very error was told before, of whichever replica."""
        return _whoever(error) in self._told

    def rest(self) -> list[tuple[str, str]]:
        """All lines that are still held, with their processes: no report came."""
        lines = [(process_id, line) for process_id, held in self._held.items() for line in held]
        self._held.clear()
        return lines


def gist(error: str) -> str:
    """An error of several lines in one: of a traceback what was raised, of a process that died how."""
    first, _, rest = error.strip().partition("\n")
    if not rest:
        return first
    if first.endswith(_DIED):
        return first.removesuffix(_DIED)
    # An exception's own message may have several lines: the first of them stands at the left, below the frames.
    lines = rest.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    raised = lines[frames[-1] + 1 :] if frames else lines
    return raised[0] if raised else lines[-1]


def _whoever(error: str) -> str:
    """The error without the names of replicas, which tell apart what is the same."""
    return _REPLICA.sub("", error)


def _drop(echo: deque[str] | None, line: str) -> bool:
    """Take the line from the front of what is expected, where it is the next."""
    if not echo or echo[0] != line:
        return False
    echo.popleft()
    return True
