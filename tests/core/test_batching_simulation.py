"""Batchers before a model that costs 2 ms and 0.05 ms a row, under load at random, on a clock of their own.

Beside those with an objective run those without one, and one with a fixed configuration as one would set it by hand:
batches of 32, a window of 10 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from simulated_batching import World, poisson

from headrace.core.batch_cost import LEARNED_AFTER
from headrace.spec.batching import BatchOptions

FIXED = {"max_batch_size": 32, "batch_wait_timeout_s": 0.01}
PLAIN = {"max_batch_size": 256}
TARGET_S = 0.02
TARGET = {"max_batch_size": 256, "target_latency_s": TARGET_S}

SETTLED = 10  # batches after a step, of load or of cost, from which on misses are again what they were


def model_s(rows: int) -> float:
    return 0.002 + 0.00005 * rows


def capacity_per_s(rows: int, times: float = 1.0) -> float:
    return rows / (model_s(rows) * times)


def simulate(
    options: dict[str, Any],
    per_s: Callable[[float], float],
    until: float,
    *,
    times: Callable[[float], float] = lambda now: 1.0,
    noise: float = 0.0,
    deadline_s: float | None = None,
    seed: int = 1,
) -> World:
    """`times` is what the model's cost is multiplied by, and `noise` how much it varies beside (lognormal)."""
    random = Random(seed)

    def cost(rows: int, now: float) -> float:
        return model_s(rows) * times(now) * random.lognormvariate(0, noise)

    world = World(BatchOptions(**options), cost)
    world.run(poisson(per_s, until, Random(seed + 100), deadline_s))
    answered = sum(request.answered_at < float("inf") for request in world.requests)
    assert answered + len(world.refused) == len(world.requests)
    return world


def misses_after(world: World, step: float, batches: int, target_s: float = TARGET_S) -> float:
    """The share of misses in the batches from the so many-th after a step on."""
    first = next(number for number, batch in enumerate(world.batches) if batch.started_at >= step)
    counted = [request for request in world.requests if request.batch >= first + batches]
    assert len(counted) > 100
    return sum(request.latency_s > target_s for request in counted) / len(counted)


class TestWorkConserving:
    def test_under_hardly_any_load_nobody_waits(self) -> None:
        world = simulate({"max_batch_size": 32}, lambda now: 20, 20.0)
        latencies = sorted(request.latency_s for request in world.requests)
        assert latencies[len(latencies) // 2] == pytest.approx(model_s(1))

    def test_at_saturation_it_does_as_much_as_the_best_fixed_size(self) -> None:
        world = simulate({"max_batch_size": 32}, lambda now: 12_000, 0.5)
        assert world.answered_per_s(0.1, 0.5) >= 0.95 * capacity_per_s(32)

    def test_with_an_objective_too(self) -> None:
        world = simulate(TARGET | {"max_batch_size": 32}, lambda now: 12_000, 0.5)
        assert world.answered_per_s(0.1, 0.5) >= 0.95 * capacity_per_s(32)

    def test_several_batches_at_once(self) -> None:
        world = simulate(TARGET | {"max_concurrent_batches": 2}, lambda now: 20_000, 0.4)
        assert world.in_time(TARGET_S) >= 0.99


class TestStepInLoad:
    def test_hardly_a_request_misses(self) -> None:
        world = simulate(TARGET, lambda now: 2000 if now < 0.4 else 12_000, 1.0)
        assert world.in_time(TARGET_S, until=0.4) == 1.0
        assert misses_after(world, 0.4, 0) <= 0.01
        assert misses_after(world, 0.4, SETTLED) == 0.0

    def test_a_fixed_configuration_misses_for_ever(self) -> None:
        world = simulate(FIXED, lambda now: 2000 if now < 0.4 else 12_000, 1.0)
        assert world.in_time(TARGET_S, until=0.4) >= 0.99
        assert misses_after(world, 0.4, SETTLED) >= 0.8

    def test_a_burst_is_over_soon_after_it_has_passed(self) -> None:
        def per_s(now: float) -> float:
            return 40_000 if 0.4 <= now < 0.45 else 5000

        with_objective, plain = (simulate(options, per_s, 1.0) for options in (TARGET, PLAIN))
        assert with_objective.in_time(TARGET_S, 0.6) == 1.0
        in_burst = with_objective.in_time(TARGET_S, 0.4, 0.6)
        assert in_burst >= plain.in_time(TARGET_S, 0.4, 0.6) - 0.01


class TestStepInCost:
    @staticmethod
    def times(now: float) -> float:
        return 3.0 if 0.4 <= now < 0.9 else 1.0

    @pytest.mark.parametrize("seed", [1, 2])
    def test_three_times_slower_and_back(self, seed: int) -> None:
        world = simulate(TARGET, lambda now: 2000, 1.3, times=self.times, noise=0.05, seed=seed)
        assert SETTLED > 2 * LEARNED_AFTER
        assert world.in_time(TARGET_S, until=0.4) == 1.0
        slow = [batch for batch in world.batches if 0.4 <= batch.started_at < 0.9]
        assert len(slow) > 3 * SETTLED
        assert misses_after(world, 0.4, SETTLED) <= 0.01
        assert misses_after(world, 0.9, SETTLED) == 0.0

    def test_what_was_learned_is_the_cost(self) -> None:
        world = simulate(TARGET, lambda now: 2000, 0.9, times=self.times)
        for rows in (1, 16, 64):
            assert world.batcher.cost.curve(None).of(rows) == pytest.approx(3 * model_s(rows), rel=0.1)

    def test_when_the_objective_cannot_hold_nothing_collapses(self) -> None:
        """4,000 a second need batches of 70 now, each of which takes 16 ms."""
        world = simulate(TARGET, lambda now: 4000, 1.3, times=self.times)
        plain = simulate(PLAIN, lambda now: 4000, 1.3, times=self.times)
        assert world.answered_per_s(0.5, 0.9) >= 0.95 * 4000
        assert world.in_time(TARGET_S, 0.4, 0.9) >= plain.in_time(TARGET_S, 0.4, 0.9) - 0.02
        assert misses_after(world, 0.9, SETTLED) == 0.0


class TestTooMuch:
    """More arrives than the model can carry."""

    def test_with_an_objective_most_of_what_it_carries_is_in_time(self) -> None:
        world = simulate(TARGET | {"max_batch_size": 32}, lambda now: 12_000, 0.6)
        in_time = sum(request.latency_s <= TARGET_S for request in world.requests if request.arrived_at < 0.5)
        assert in_time >= 0.7 * capacity_per_s(32) * 0.5
        fixed = simulate(FIXED, lambda now: 12_000, 0.6)
        assert fixed.in_time(TARGET_S, 0.2, 0.5) == 0.0

    def test_those_that_are_late_are_answered_too(self) -> None:
        world = simulate(TARGET | {"max_batch_size": 32}, lambda now: 12_000, 0.6)
        late = [request for request in world.requests if request.latency_s > TARGET_S + 0.1]
        assert any(request.answered_at < 0.6 for request in late), "before the load ends"

    @pytest.mark.parametrize("window_s", [0.0, 0.005])
    @pytest.mark.parametrize("deadline_s", [0.008, 0.02, 0.1])
    def test_with_deadlines_nine_in_ten_of_what_it_can_carry_are_in_time(
        self, deadline_s: float, window_s: float
    ) -> None:
        options = {"max_batch_size": 32, "batch_wait_timeout_s": window_s}
        world = simulate(options, lambda now: 18_000, 0.6, deadline_s=deadline_s)
        in_time = sum(0.1 <= request.arrived_at < 0.5 for request in world.requests if request.latency_s <= deadline_s)
        assert in_time >= 0.9 * capacity_per_s(32) * 0.4
        answered = [request for request in world.requests if request.batch >= 0]
        late = sum(request.latency_s > deadline_s for request in answered)
        assert late <= 0.05 * len(answered), "hardly a batch is spent on what comes too late"

    def test_with_deadlines_and_a_cost_that_varies(self) -> None:
        world = simulate({"max_batch_size": 32}, lambda now: 18_000, 0.6, deadline_s=0.02, noise=0.15)
        in_time = sum(0.1 <= request.arrived_at < 0.5 for request in world.requests if request.latency_s <= 0.02)
        assert in_time >= 0.8 * capacity_per_s(32) * 0.4

    def test_with_deadlines_it_recovers_from_a_model_that_was_slower_than_any_of_them(self) -> None:
        world = simulate(
            {"max_batch_size": 32},
            lambda now: 3000,
            1.2,
            times=lambda now: 20.0 if 0.3 <= now < 0.6 else 1.0,
            deadline_s=0.02,
        )
        assert world.in_time(0.02, until=0.25) == 1.0
        assert world.in_time(0.02, 0.35, 0.55) <= 0.1
        assert world.in_time(0.02, 0.7) == 1.0


class TestTightObjectives:
    @pytest.mark.parametrize("target_s", [0.0005, 0.0021, 0.004, 0.006])
    def test_they_take_nothing_from_what_it_carries(self, target_s: float) -> None:
        """What a batch of one takes is more than the first, nearly all of the second, and so on."""
        world = simulate({"max_batch_size": 256, "target_latency_s": target_s}, lambda now: 8000, 0.5)
        plain = simulate(PLAIN, lambda now: 8000, 0.5)
        assert world.answered_per_s(0.1, 0.5) >= 0.97 * plain.answered_per_s(0.1, 0.5)
        assert world.in_time(target_s, 0.1) >= plain.in_time(target_s, 0.1) - 0.03

    def test_pauses_of_the_model_make_no_batch_small_for_long(self) -> None:
        pauses = Random(7)
        world = simulate(TARGET, lambda now: 6000, 1.0, times=lambda now: 10.0 if pauses.random() < 0.02 else 1.0)
        pauses = Random(7)
        plain = simulate(PLAIN, lambda now: 6000, 1.0, times=lambda now: 10.0 if pauses.random() < 0.02 else 1.0)
        assert world.in_time(TARGET_S) >= plain.in_time(TARGET_S) - 0.03


def test_two_keys_of_different_cost_meet_the_objective() -> None:
    random = Random(3)
    world = World(BatchOptions(max_batch_size=64, target_latency_s=0.03), lambda rows, now: 0.0)
    arrivals = poisson(lambda now: 2000, 1.0, random)
    for request in arrivals:
        request.key = "dear" if random.random() < 0.3 else "cheap"
    world.cost = lambda rows, now: model_s(rows) * (4 if world.starting == "dear" else 1)
    world.run(arrivals)
    assert world.in_time(0.03, 0.1) >= 0.99
    for key, times in (("cheap", 1), ("dear", 4)):
        assert world.batcher.cost.curve(key).of(8) == pytest.approx(times * model_s(8), rel=0.25)
