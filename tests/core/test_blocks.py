"""headrace.core.blocks: blocks never overlap, nothing is lost, and what was freed last is used first."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from headrace.core.blocks import UNIT_BYTES, Blocks, Extent

UNITS = 64
SIZE = UNITS * UNIT_BYTES


class Arena(RuleBasedStateMachine):
    """Beside the allocator, a plain list of what is taken, which is always right."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks(SIZE)
        self.model: dict[int, int] = {}

    @rule(target=taken, length=st.integers(1, SIZE + UNIT_BYTES))
    def take(self, length: int) -> tuple[int, int] | None:
        offset = self.blocks.take(length)
        if offset is None:
            assert length > max((extent.length for extent in self.gaps()), default=0)
            return None
        assert offset not in self.model
        self.model[offset] = length
        return offset, length

    @rule(block=consumes(taken))
    def release(self, block: tuple[int, int] | None) -> None:
        if block is None:
            return
        offset, length = block
        for wrong in ((offset, length + 1), (offset + UNIT_BYTES, length), (-UNIT_BYTES, length)):
            if self.model.get(wrong[0]) != wrong[1]:
                with pytest.raises(ValueError, match="no block"):
                    self.blocks.release(*wrong)
        self.blocks.release(offset, length)
        del self.model[offset]
        with pytest.raises(ValueError, match="no block"):
            self.blocks.release(offset, length)

    def gaps(self) -> list[Extent]:
        gaps, at = [], 0
        for offset in [*sorted(self.model), SIZE]:
            if offset > at:
                gaps.append(Extent(at, offset - at))
            at = offset + -(-self.model.get(offset, 0) // UNIT_BYTES) * UNIT_BYTES
        return gaps

    @invariant()
    def blocks_lie_apart_and_inside(self) -> None:
        end = 0
        for offset in sorted(self.model):
            assert offset >= end
            end = offset + self.model[offset]
        assert end <= SIZE

    @invariant()
    def free_is_what_is_not_taken_in_as_few_pieces_as_can_be(self) -> None:
        assert self.blocks.free_extents() == self.gaps()
        assert self.blocks.taken_bytes == SIZE - sum(extent.length for extent in self.gaps())


TestArena = Arena.TestCase


def test_the_block_that_was_freed_last_is_taken_first() -> None:
    blocks = Blocks(SIZE)
    first, second, third = (blocks.take(3 * UNIT_BYTES) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    blocks.take(UNIT_BYTES)
    blocks.release(third, 3 * UNIT_BYTES)
    blocks.release(first, 3 * UNIT_BYTES)

    assert blocks.take(3 * UNIT_BYTES) == first
    assert blocks.take(3 * UNIT_BYTES) == third


def test_taking_and_releasing_one_block_uses_the_same_place_for_ever() -> None:
    blocks = Blocks(SIZE)
    offsets = set()
    for _ in range(10):
        offset = blocks.take(5 * UNIT_BYTES)
        assert offset is not None
        offsets.add(offset)
        blocks.release(offset, 5 * UNIT_BYTES)

    assert offsets == {0}


def test_a_block_in_a_crowded_class_is_found() -> None:
    """Twenty gaps of four units and one of seven lie in one size class; the only one that fits is found."""
    blocks = Blocks(1024 * UNIT_BYTES)
    gaps, large = [], blocks.take(7 * UNIT_BYTES)
    blocks.take(1)
    for _ in range(20):
        gaps.append(blocks.take(4 * UNIT_BYTES))
        blocks.take(1)
    rest = blocks.free_extents()[-1].length
    blocks.take(rest)
    assert large is not None
    blocks.release(large, 7 * UNIT_BYTES)
    for gap in gaps:
        assert gap is not None
        blocks.release(gap, 4 * UNIT_BYTES)

    assert blocks.take(6 * UNIT_BYTES) == large


@pytest.mark.parametrize("size", [0, -UNIT_BYTES, UNIT_BYTES + 1])
def test_a_size_that_is_no_whole_number_of_units_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        Blocks(size)


@pytest.mark.parametrize("length", [0, -1])
def test_an_empty_block_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        Blocks(SIZE).take(length)
