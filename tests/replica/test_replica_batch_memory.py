"""Batches that have ended leave nothing behind that a collector does not find, and mostly nothing at all."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest
from batched_replica import Gate, call, ended, replica_of
from fake_incoming import run

from headrace.replica.batch_items import Item
from headrace.replica.batch_run import BatchRun


def alive() -> Sequence[object]:
    return [one for one in gc.get_objects() if isinstance(one, BatchRun | Item)]


def left_by(method: str, *, collected: bool) -> int:
    """How many runs and items are left of twenty calls, one after the other."""

    async def check() -> int:
        gate = Gate()
        gate.let_go()
        invoker = replica_of(gate)
        for number in range(20):
            one = call(method, number)
            invoker.start(one)
            await ended(one)
            assert one.result == number
        if collected:
            gc.collect()
        return len(alive()) - before

    gc.collect()
    before = len(alive())
    gc.disable()
    try:
        return run(check())
    finally:
        gc.enable()


LAST = 2  # those of the last call, which its thread or task may still hold


@pytest.mark.parametrize("method", ["on_loop", "in_thread", "awaits", "blocks"])
def test_the_collector_finds_whatever_is_left(method: str) -> None:
    assert left_by(method, collected=True) <= LAST


@pytest.mark.parametrize("method", ["awaits", "blocks"])
def test_without_it_nothing_is_left_of_calls_that_code_has_made(method: str) -> None:
    assert left_by(method, collected=False) <= LAST
