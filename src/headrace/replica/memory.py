"""How much memory this process takes, as Linux and the C library tell it.

In: the moments before and after something was loaded. Out: what it takes.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Taken(NamedTuple):
    """What the process takes at a moment: its resident set, and of that and of what is to come, what is allocated."""

    resident_bytes: int
    allocated_bytes: int

    def grown_since(self, before: Taken) -> int:
        """What has been taken since. Memory that was free in the process is allocated without being seen to grow, and
        what does not come from the allocator is resident alone: so the larger of both.
        """
        return max(0, self.resident_bytes - before.resident_bytes, self.allocated_bytes - before.allocated_bytes)


def can_measure() -> bool:
    """Whether it is known here what a process takes."""
    return _STATM.exists()


def taken(clean: bool = False) -> Taken:
    """What the process takes now, without what is free in it. `clean`: nor what waits for the collector of garbage.

    It takes milliseconds, and more in large processes. Raises OSError where the system does not tell.
    """
    if clean:
        gc.collect()
    library = _library()
    library.give_back()
    return Taken(int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES, library.allocated())


class _Counts(ctypes.Structure):
    """`struct mallinfo2` of GNU's C library."""

    _fields_ = [(f"_{n}", ctypes.c_size_t) for n in range(4)] + [
        ("hblkhd", ctypes.c_size_t),  # in mappings of their own
        *((f"_{n}", ctypes.c_size_t) for n in (5, 6)),
        ("uordblks", ctypes.c_size_t),  # elsewhere
        *((f"_{n}", ctypes.c_size_t) for n in (8, 9)),
    ]


class _Library(NamedTuple):
    """What the C library's allocator can do; nothing where it is not GNU's."""

    give_back: Callable[[], object] = lambda: None  # free memory to the system
    allocated: Callable[[], int] = lambda: 0


@cache
def _library() -> _Library:
    try:
        library = ctypes.CDLL(None)
        trim, count = library.malloc_trim, library.mallinfo2
    except (OSError, AttributeError):
        return _Library()
    count.restype = _Counts

    def allocated() -> int:
        counts = count()
        return int(counts.uordblks + counts.hblkhd)

    return _Library(lambda: trim(0), allocated)
