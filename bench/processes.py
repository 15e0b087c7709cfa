"""What a server costs: the CPU time and memory of all the processes that descend from this one.

In: nothing but /proc. Out: numbers. This process makes itself the subreaper, so that servers that let go of their
children (daemons) are counted too; hence one server at a time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def become_subreaper() -> None:
    """From now on, whatever descends from this process stays below it when its own parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state (field 3) on, None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the command name may itself hold spaces and brackets


def descendants() -> list[int]:
    """The processes below this one that have not ended, in no order."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def cpu_s(pids: list[int]) -> dict[int, float]:
    """User and system time of each process so far, in seconds, its ended threads included."""
    times: dict[int, float] = {}
    for pid in pids:
        if fields := _stat(pid):
            times[pid] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return times


def pss_mb(pids: list[int]) -> float:
    """Memory of the processes together in megabytes; what several share is counted once (proportional set size)."""
    return _rollup_mb(pids, ("Pss:",))


def held_mb(pids: list[int]) -> float:
    """The same without pages of files: heaps, and shared memory.

    Of a library that others on the machine have mapped too, a process counts a part, which changes as they come and go.
    """
    return _rollup_mb(pids, ("Pss_Anon:", "Pss_Shmem:"))


def _rollup_mb(pids: list[int], fields: tuple[str, ...]) -> float:
    total_kb = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # ended meanwhile
        for line in rollup.splitlines():
            if line.startswith(fields):
                total_kb += int(line.split()[1])
    return total_kb * 1024 / 1e6


def stop_all(pid: int, grace_s: float) -> bool:
    """Ask `pid` to end (SIGTERM), then after `grace_s` kill whatever is left below us. True: it all went by itself."""
    _signal(pid, signal.SIGTERM)
    end = time.monotonic() + grace_s
    while (left := _reap()) and time.monotonic() < end:
        time.sleep(0.05)
    went = not left
    while left:  # again and again: some restart what they see dying
        for other in left:
            _signal(other, signal.SIGKILL)
        time.sleep(0.02)
        left = _reap()
    return went


def _reap() -> list[int]:
    """Collect the processes that have ended; the ones below us that have not."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    return descendants()


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
