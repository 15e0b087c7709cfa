"""Shared memory for the large buffers of one connection: memfd arenas, and blocks in them.

In, at the sender: buffers to place; references that the receiver has done with. Out: references of 20 bytes (`u32
arena | u64 offset | u64 length`) for the frames, and each new arena's descriptor once, to be passed over the socket.
In, at the receiver: descriptors and references. Out: read-only memoryviews, and each reference again when the last view
of its block is gone.

An arena has no name; the kernel frees it when both ends have let go of it. It is sealed against any change of its size,
so that no access to it can fault, whatever the other end does. A buffer costs one copy at the sender and none at the
receiver. Where there is no room the buffer goes over the socket, which `ArenaSender.refused` counts.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import pickle
import struct
import weakref
from collections.abc import Callable
from typing import Any

from headrace.core.blocks import UNIT_BYTES, Blocks
from headrace.spec.errors import ProtocolError

log = logging.getLogger("headrace.wire")

REFERENCE = struct.Struct("<IQQ")  # arena number, offset, length
ARENA_BYTES = 64 * 1024 * 1024  # of an arena, unless one buffer needs more
LIMIT_BYTES = 1024 * 1024 * 1024  # of all arenas of one direction of a connection
MAX_ARENAS = 1024

_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 2) | getattr(fcntl, "F_SEAL_GROW", 4) | getattr(fcntl, "F_SEAL_SEAL", 1)
_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 2)
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_AVAILABLE = hasattr(os, "memfd_create")


class _Arena:
    """One arena of ours: its descriptor, our mapping of it, and who has which part."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.blocks = Blocks(size)
        self.announced = False
        self.warm = 0  # below this offset each page was written before
        self.fd = os.memfd_create("headrace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, _ADD_SEALS, _SEALS)
            self.map = mmap.mmap(self.fd, size)
        except OSError:
            os.close(self.fd)
            raise
        self.view = memoryview(self.map)

    def write(self, offset: int, data: memoryview) -> None:
        end = offset + data.nbytes
        if end <= self.warm:
            self.view[offset:end] = data
            return
        # Pages that were never touched: the kernel fills them in half the time that our page faults would take.
        at = offset
        while at < end:
            at += os.pwrite(self.fd, data[at - offset :], at)
        self.warm = max(self.warm, end)

    def close(self) -> None:
        self.view.release()
        self.map.close()
        os.close(self.fd)


class ArenaSender:
    """The arenas that one end of a connection writes to. Not thread-safe: it belongs to the connection's loop.

    `refused` counts the buffers for which there was no room, `placed` the others.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, arena_bytes: int = ARENA_BYTES) -> None:
        self._limit = limit_bytes
        self._arena_bytes = arena_bytes
        self._arenas: dict[int, _Arena] = {}
        self._recent: _Arena | None = None
        self._total = 0
        self._next_number = 0
        self.placed = 0
        self.refused = 0

    def __repr__(self) -> str:
        taken = sum(arena.blocks.taken_bytes for arena in self._arenas.values())
        return f"ArenaSender(arenas={len(self._arenas)}, taken={taken}/{self._total}, refused={self.refused})"

    def place(self, buffer: Any) -> tuple[bytes, int | None] | None:
        """Copy `buffer` into a block: its reference, and the descriptor to announce first when its arena is new.

        None when there is no room, or no memory: it is then to go over the socket. The descriptor stays ours.
        """
        data = _raw(buffer)
        length = data.nbytes
        if not length:
            return None
        found = self._take(length)
        if found is None:
            self._refuse(length)
            return None
        arena, offset = found
        try:
            arena.write(offset, data)
        except OSError as error:  # the machine's memory, or that of our control group, is full
            arena.blocks.release(offset, length)
            self._refuse(length, error)
            return None
        self.placed += 1
        self._recent = arena
        fd = None if arena.announced else arena.fd
        arena.announced = True
        return REFERENCE.pack(arena.number, offset, length), fd

    def release(self, reference: bytes) -> None:
        """The receiver has done with the block. Raises ProtocolError when there is no such block."""
        number, offset, length = _unpack(reference)
        arena = self._arenas.get(number)
        try:
            if arena is None:
                raise ValueError(f"there is no arena {number}")
            arena.blocks.release(offset, length)
        except ValueError as error:
            raise ProtocolError(f"a block was released that was not sent: {error}") from None

    def trim(self) -> int:
        """Give the memory of all that is free back to the machine, and say how many bytes that may have been.

        For the owner to call when the connection has been idle: the next buffers cost their page faults again.
        """
        trimmed = 0
        for arena in self._arenas.values():
            for extent in arena.blocks.free_extents():
                arena.map.madvise(mmap.MADV_REMOVE, extent.offset, extent.length)
                trimmed += max(0, min(arena.warm, extent.offset + extent.length) - extent.offset)
                if extent.offset + extent.length >= arena.warm:
                    arena.warm = min(arena.warm, extent.offset)
        return trimmed

    def close(self) -> None:
        """Let go of all arenas; the receiver's views stay valid."""
        for arena in self._arenas.values():
            arena.close()
        self._arenas.clear()
        self._recent = None
        self._total = 0

    def _take(self, length: int) -> tuple[_Arena, int] | None:
        recent = self._recent
        if recent is not None:
            offset = recent.blocks.take(length)
            if offset is not None:
                return recent, offset
        for arena in self._arenas.values():
            if arena is not recent:
                offset = arena.blocks.take(length)
                if offset is not None:
                    return arena, offset
        return self._take_in_new(length)

    def _take_in_new(self, length: int) -> tuple[_Arena, int] | None:
        room = (self._limit - self._total) // UNIT_BYTES * UNIT_BYTES
        needed = -(-length // UNIT_BYTES) * UNIT_BYTES
        if not _AVAILABLE or needed > room or len(self._arenas) >= MAX_ARENAS:
            return None
        size = min(max(self._arena_bytes, 1 << (needed - 1).bit_length()), room)
        try:
            arena = _Arena(self._next_number, size)
        except OSError as error:
            log.warning("no shared memory of %d bytes could be made: %s", size, error)
            return None
        self._arenas[arena.number] = arena
        self._next_number += 1
        self._total += size
        offset = arena.blocks.take(length)
        return None if offset is None else (arena, offset)

    def _refuse(self, length: int, error: OSError | None = None) -> None:
        self.refused += 1
        if self.refused == 1:
            log.warning(
                "a buffer of %d bytes goes over the socket, because shared memory has no room for it (%s; limit %d "
                "bytes): large arrays are slower while this lasts, and it is not logged again for this connection",
                length,
                error or repr(self),
                self._limit,
            )


class ArenaReceiver:
    """The other end's arenas. `on_unused(reference)` is called when the last view of a block is gone.

    It is called in whatever thread dropped the view, possibly in the middle of anything: it must only note.
    """

    def __init__(self, on_unused: Callable[[bytes], None]) -> None:
        self._on_unused: Callable[[bytes], None] | None = on_unused
        self._maps: dict[int, mmap.mmap] = {}
        self._in_use: set[bytes] = set()

    def __repr__(self) -> str:
        return f"ArenaReceiver(arenas={len(self._maps)}, blocks_in_use={len(self._in_use)})"

    def adopt(self, number: int, fd: int, size: int) -> None:
        """Map the arena of this number. Takes over `fd`, and closes it in any case.

        Raises ProtocolError when it is not `size` bytes that are sealed against shrinking, or the number is taken.
        """
        try:
            self._check(number, fd, size)
            # Private and writable, because ctypes exports nothing else; a write would go to a page of our own.
            protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NORESERVE
            self._maps[number] = mmap.mmap(fd, size, flags=flags, prot=protection)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"arena {number} of {size} bytes cannot be mapped: {error}") from error
        finally:
            os.close(fd)

    def _check(self, number: int, fd: int, size: int) -> None:
        if number in self._maps or len(self._maps) >= MAX_ARENAS:
            raise ProtocolError(f"arena {number} was announced twice, or is one of more than {MAX_ARENAS}")
        real = os.fstat(fd).st_size
        if size <= 0 or size > real:
            raise ProtocolError(f"arena {number} was announced with {size} bytes and has {real}")
        if not fcntl.fcntl(fd, _GET_SEALS) & _SHRINK:
            raise ProtocolError(f"arena {number} is not sealed against shrinking")

    def view(self, reference: bytes) -> memoryview:
        """The block, read-only, without a copy. Raises ProtocolError for a reference that is not valid, or in use."""
        number, offset, length = _unpack(reference)
        arena = self._maps.get(number)
        if arena is None:
            raise ProtocolError(f"a buffer in arena {number}, which was not announced")
        if not length or offset + length > len(arena):
            raise ProtocolError(f"a buffer of {length} bytes at {offset} is outside of arena {number} of {len(arena)}")
        reference = bytes(reference)
        if reference in self._in_use:
            raise ProtocolError(f"the buffer at {offset} of arena {number} was sent again before it was released")
        # Each view that is made of this object, by memoryview, numpy or another, keeps this very object alive; of a
        # memoryview that cannot be told, because its views share the exporter and not the memoryview.
        exporter = (ctypes.c_ubyte * length).from_buffer(arena, offset)
        self._in_use.add(reference)
        weakref.finalize(exporter, self._unused, reference).atexit = False
        return memoryview(exporter).cast("B").toreadonly()

    def _unused(self, reference: bytes) -> None:
        self._in_use.discard(reference)
        if self._on_unused is not None:
            self._on_unused(reference)

    def close(self) -> None:
        """The connection is gone: nothing is reported any more. Views, and what is behind them, stay valid."""
        self._on_unused = None
        self._maps.clear()


def _raw(buffer: Any) -> memoryview:
    """The bytes of a contiguous buffer of any shape and type, without a copy; of another, a copy."""
    view = memoryview(buffer)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    try:
        return pickle.PickleBuffer(view).raw()
    except BufferError:  # not contiguous
        return memoryview(view.tobytes())


def _unpack(reference: bytes) -> tuple[int, int, int]:
    if len(reference) != REFERENCE.size:
        raise ProtocolError(f"a reference to a buffer of {len(reference)} bytes instead of {REFERENCE.size}")
    number, offset, length = REFERENCE.unpack(reference)
    return number, offset, length
