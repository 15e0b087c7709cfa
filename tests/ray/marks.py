"""Which processes belong to a node, though all nodes are on one machine: those with its HEADRACE_HOME.

In: /proc. Out: pids. A process that was begun by itself has it in its environment; one that was forked (`start_worker`)
holds a file of that name, which those that it begins do not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

HOLDS = 900  # the descriptor: one that nobody gets by asking for the next that is free


def home(pid: int) -> str:
    """The HEADRACE_HOME of the process, "" where it has none or is gone."""
    try:
        held = str(Path(f"/proc/{pid}/fd/{HOLDS}").readlink())
    except OSError:
        held = ""
    if held.startswith("/memfd:"):
        return held.removeprefix("/memfd:").removesuffix(" (deleted)")
    found = [each for each in environment(pid) if each.startswith(b"HEADRACE_HOME=")]
    return os.fsdecode(found[0].partition(b"=")[2]) if found else ""


def processes(raylet: int, where: Path) -> list[int]:
    """All that runs on the node at home there: the raylet, its workers, and whatever they started."""
    found = set(descendants(raylet))
    return sorted(found | {pid for pid in pids() if pid != os.getpid() and home(pid) == str(where)})


def descendants(pid: int) -> list[int]:
    """The process and all below it that are there now."""
    found = [pid]
    for one in found:
        try:
            threads = list(Path(f"/proc/{one}/task").iterdir())
        except OSError:
            continue
        for thread in threads:
            try:
                found += [int(child) for child in (thread / "children").read_text().split()]
            except OSError:
                continue
    return found


def pids() -> Iterable[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def environment(pid: int) -> list[bytes]:
    """What it was begun with."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
