"""Which part of an arena a block gets: offsets in, offsets out, no memory touched. Pure.

In: lengths of buffers to place, and blocks that are free again, from the arena's sender. Out: offsets.

Invariant: blocks never overlap; free space that adjoins is one extent; taken and free space together are the whole.

Free extents are kept by size class (powers of two), the last freed one first: its pages are still in the cache and
mapped, which for large buffers is most of the cost. A block is cut from the low end of its extent, so that the pages
that were ever touched stay few. Both are constant time, but for a class that is crowded with extents just too small.
"""

from __future__ import annotations

import msgspec

UNIT_BYTES = 4096  # blocks start and end on pages
_TRIES = 8  # extents of the block's own size class that are looked at before a larger one is cut


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """A part of the arena, in bytes."""

    offset: int
    length: int


class Blocks:
    """The blocks of one arena of `size` bytes, a multiple of UNIT_BYTES."""

    def __init__(self, size: int) -> None:
        if size <= 0 or size % UNIT_BYTES:
            raise ValueError(f"an arena of {size} bytes is not a multiple of {UNIT_BYTES}")
        self.size = size
        self._taken: dict[int, int] = {}  # offset -> length as asked for
        self._free: dict[int, int] = {}  # offset -> units
        self._free_by_end: dict[int, int] = {}  # end -> offset
        self._classes: list[dict[int, None]] = [{} for _ in range((size // UNIT_BYTES).bit_length())]
        self._nonempty = 0  # bit k: class k has an extent
        self._taken_bytes = 0
        self._add(0, size // UNIT_BYTES)

    def __repr__(self) -> str:
        return (
            f"Blocks(taken={len(self._taken)}, bytes={self._taken_bytes}/{self.size}, free_extents={len(self._free)})"
        )

    @property
    def taken_bytes(self) -> int:
        """What the blocks take, whole units counted."""
        return self._taken_bytes

    def take(self, length: int) -> int | None:
        """The offset of a new block of `length` > 0 bytes; None when there is no room in one piece."""
        if length <= 0:
            raise ValueError(f"a block of {length} bytes")
        units = -(-length // UNIT_BYTES)
        offset = self._find(units)
        if offset is None:
            return None
        rest = self._remove(offset) - units
        if rest:
            self._add(offset + units * UNIT_BYTES, rest)
        self._taken[offset] = length
        self._taken_bytes += units * UNIT_BYTES
        return offset

    def release(self, offset: int, length: int) -> None:
        """The block is free again. Raises ValueError when no such block is taken."""
        if self._taken.get(offset) != length:
            raise ValueError(f"no block of {length} bytes is taken at {offset}")
        del self._taken[offset]
        units = -(-length // UNIT_BYTES)
        self._taken_bytes -= units * UNIT_BYTES
        following = offset + units * UNIT_BYTES
        if following in self._free:
            units += self._remove(following)
        preceding = self._free_by_end.get(offset)
        if preceding is not None:
            units += self._remove(preceding)
            offset = preceding
        self._add(offset, units)

    def free_extents(self) -> list[Extent]:
        """All that is free, by offset."""
        return [Extent(offset, self._free[offset] * UNIT_BYTES) for offset in sorted(self._free)]

    def _find(self, units: int) -> int | None:
        own = units.bit_length() - 1
        if own >= len(self._classes):
            return None
        for tries, offset in enumerate(reversed(self._classes[own])):
            if self._free[offset] >= units:
                return offset
            if tries == _TRIES:
                break
        larger = self._nonempty >> (own + 1)
        if larger:
            lowest = (larger & -larger).bit_length() - 1
            return next(reversed(self._classes[own + 1 + lowest]))
        return next((offset for offset in self._classes[own] if self._free[offset] >= units), None)

    def _add(self, offset: int, units: int) -> None:
        self._free[offset] = units
        self._free_by_end[offset + units * UNIT_BYTES] = offset
        own = units.bit_length() - 1
        self._classes[own][offset] = None
        self._nonempty |= 1 << own

    def _remove(self, offset: int) -> int:
        units = self._free.pop(offset)
        del self._free_by_end[offset + units * UNIT_BYTES]
        own = units.bit_length() - 1
        of_class = self._classes[own]
        del of_class[offset]
        if not of_class:
            self._nonempty &= ~(1 << own)
        return units
