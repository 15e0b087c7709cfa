"""Memory that waits for the next body: whole, nobody else's, and bounded."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.wire.warm import WarmMemory, _rounded

MEGABYTE = 1024 * 1024


def address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def test_memory_is_used_again_when_nothing_refers_to_it_any_more():
    warm = WarmMemory()
    view = warm.take(3 * MEGABYTE)
    first = address(view)
    view[:3] = b"abc"
    array = np.frombuffer(view[8:].toreadonly(), np.uint8)
    del view
    assert warm.waiting_bytes == 0
    again = warm.take(3 * MEGABYTE)
    assert address(again) != first
    del array
    assert warm.waiting_bytes == 3 * MEGABYTE
    third = warm.take(3 * MEGABYTE - 5000)  # of about that size
    assert (address(third), len(third), warm.waiting_bytes) == (first, 3 * MEGABYTE - 5000, 0)


def test_what_waits_is_bounded_and_the_newest_stay():
    warm = WarmMemory(kept_bytes=4 * MEGABYTE)
    views = [warm.take(MEGABYTE) for _ in range(6)]
    kept = {address(view) for view in views[2:]}
    views.reverse()
    while views:
        views.pop()
    assert warm.waiting_bytes == 4 * MEGABYTE
    taken = [warm.take(MEGABYTE) for _ in range(4)]
    assert {address(view) for view in taken} == kept
    taken.clear()
    large = warm.take(5 * MEGABYTE)
    assert len(large) == 5 * MEGABYTE
    del large  # is not kept
    assert warm.waiting_bytes == 4 * MEGABYTE


def test_a_view_may_be_dropped_in_any_thread_and_in_the_middle_of_anything():
    warm = WarmMemory()
    views = [warm.take(MEGABYTE) for _ in range(8)]

    def drop() -> None:
        cycle: list[object] = [views.pop()]
        cycle.append(cycle)
        del cycle
        gc.collect()

    threads = [threading.Thread(target=drop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert warm.waiting_bytes <= 8 * MEGABYTE
    with warm._lock:  # as while it is being changed: nobody waits, and nothing is kept
        waiting = warm.waiting_bytes
        assert len(warm.take(MEGABYTE)) == MEGABYTE
        assert warm.waiting_bytes == waiting


@settings(deadline=None)
@given(st.integers(1, 1 << 40))
def test_a_region_is_hardly_larger_than_its_body(size: int):
    region = _rounded(size)
    assert size <= region
    assert region % 4096 == 0
    assert region <= size + max(size // 8, 2 * MEGABYTE if size >= 4 * MEGABYTE else 4096)
    assert _rounded(region) == region


@pytest.mark.parametrize("size", [1 << 62, 1 << 70])
def test_memory_that_there_is_not(size: int):
    with pytest.raises((OSError, ValueError, OverflowError, MemoryError)):
        WarmMemory().take(size)
