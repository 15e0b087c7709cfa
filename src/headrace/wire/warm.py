"""Memory for large bodies that is used again: pages that the kernel has to give and clear cost more than to fill them.

In: sizes. Out: writable views of that much memory, with whatever was in it. A region comes back when the last view of
it is gone, in whatever thread dropped it, and waits for the next; what waits is bounded, and the kernel may take large
regions' pages back when it needs them.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref

KEPT_BYTES = 64 * 1024 * 1024  # of what waits
KEPT_REGIONS = 64
HUGE_BYTES = 4 * 1024 * 1024  # memory of this size is worth huge pages, where there are any
HUGE_PAGE_BYTES = 2 * 1024 * 1024
STEPS = 8  # sizes between one power of two and the next: a region fits all bodies that are rounded up to it
_SMALLEST_STEP = mmap.PAGESIZE


class WarmMemory:
    """The regions that wait for bodies."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._limit = kept_bytes
        self._waiting: list[mmap.mmap] = []  # the oldest first
        # Never waited for: a view may be dropped in the middle of anything, of `take` too.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<WarmMemory {len(self._waiting)} regions wait, {self.waiting_bytes} bytes>"

    @property
    def waiting_bytes(self) -> int:
        return sum(map(len, self._waiting))

    def take(self, size: int) -> memoryview:
        """`size` bytes, at least one. Raises OSError, ValueError or OverflowError where there is no such memory."""
        rounded = _rounded(size)
        region = self._find(rounded) or _map(rounded)
        # As in wire.arena: all views keep this object alive, and nothing else does.
        exporter = (ctypes.c_ubyte * size).from_buffer(region)
        weakref.finalize(exporter, self._put_back, region).atexit = False
        return memoryview(exporter).cast("B")

    def _find(self, size: int) -> mmap.mmap | None:
        if not self._lock.acquire(blocking=False):
            return None
        try:
            for i in reversed(range(len(self._waiting))):
                if len(self._waiting[i]) == size:
                    return self._waiting.pop(i)
            return None
        finally:
            self._lock.release()

    def _put_back(self, region: mmap.mmap) -> None:
        if len(region) > self._limit or not self._lock.acquire(blocking=False):
            return  # and so it goes
        try:
            if len(region) >= HUGE_BYTES and hasattr(mmap, "MADV_FREE"):
                region.madvise(mmap.MADV_FREE)
            waiting = self._waiting
            waiting.append(region)
            while len(waiting) > KEPT_REGIONS or self.waiting_bytes > self._limit:
                del waiting[0]
        finally:
            self._lock.release()


def _rounded(size: int) -> int:
    """The size of the region for a body: not more than an eighth beyond it, or a page."""
    step = max(_SMALLEST_STEP, (1 << (size - 1).bit_length()) // 2 // STEPS) if size > 1 else _SMALLEST_STEP
    if size >= HUGE_BYTES:
        step = max(step, HUGE_PAGE_BYTES)  # whole huge pages: of a part of one none is made
    return -(-size // step) * step


def _map(size: int) -> mmap.mmap:
    """Pages that come when they are written to: nothing is cleared first, as it would be for a bytearray."""
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    return region


WARM = WarmMemory()  # of this process: its loops and threads share it
