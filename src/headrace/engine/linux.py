"""What only Linux has, each with a portable fallback: the one module that reads /proc and calls prctl.

In: pids, sockets, ports. Out: facts about them, or None where this system cannot tell.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
import time
from pathlib import Path

IS_LINUX = sys.platform.startswith("linux")
_PR_SET_CHILD_SUBREAPER = 36
_PEERCRED = struct.Struct("iII")
_LISTEN = "0A"  # state TCP_LISTEN in /proc/net/tcp


def become_subreaper() -> bool:
    """Have orphans among this process's descendants become its children. False: not here, orphans go to init."""
    if not IS_LINUX:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0


def peer_uid(connection: socket.socket) -> int | None:
    """The user of the process that connected, or None where the system does not say (the directory's mode guards)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    _, uid, _ = _PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return int(uid)


def peer_pid(connection: socket.socket) -> int | None:
    """The process at the other end (for a connected client: who listens), or None."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, _, _ = _PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return int(pid) or None


def started_at(pid: int) -> float | None:
    """Seconds since boot when the process started, or None when there is no such process.

    Elsewhere than on Linux: now, which tells two processes of one pid apart as long as somebody remembers the answer.
    """
    if not IS_LINUX:
        return time.monotonic()
    fields = _stat_fields(pid)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else None


def children(pid: int) -> list[int]:
    """The direct children of a process, zombies included; [] where this system cannot tell."""
    if not IS_LINUX:
        return []
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.extend(int(child) for child in (task / "children").read_text().split())
    except OSError:  # the kernel was built without this file, or a thread ended meanwhile
        return _children_by_scan(pid)
    return found


def environment_value(pid: int, name: str) -> str | None:
    """A variable of the environment that the process was started with, or None when it has none or cannot be read."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = os.fsencode(name) + b"="
    for entry in data.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return None


def process_name(pid: int) -> str:
    """The start of the command line of a process, for a person to read; "" when it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(os.fsdecode(word) for word in words if word)[:80]


def port_holder(port: int) -> int | None:
    """The pid of a process that listens on the TCP port, or None when none does or it belongs to another user."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in _processes():
        descriptors: list[Path] = []
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look at
            descriptors = list(Path(f"/proc/{process}/fd").iterdir())
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(descriptor.readlink()) in wanted:
                    return process
    return None


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, or None where there is none to be had."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on: the name before it may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _children_by_scan(pid: int) -> list[int]:
    parents = ((process, _stat_fields(process)) for process in _processes())
    return [process for process, fields in parents if fields is not None and fields[1] == str(pid)]


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes
