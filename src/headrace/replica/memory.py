"""How much memory this process takes, as Linux tells it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def can_measure() -> bool:
    """Whether `resident_bytes` works here."""
    return _STATM.exists()


def resident_bytes() -> int:
    """The resident set of this process. Raises OSError where the system does not tell it."""
    return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES


def give_back() -> None:
    """Have the allocator return free memory to the system, so that what is taken next is seen to be taken."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], int]:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library than GNU's
        return lambda _: 0
    return trim
