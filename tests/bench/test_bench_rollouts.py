"""Simulated rollouts: they end as they must, and their tables read well."""

from __future__ import annotations

from bench.rollouts import (
    BAD,
    GOOD,
    RULES,
    Outcomes,
    Repeated,
    Result,
    Revision,
    Scenario,
    Sequential,
    Threshold,
    play,
    tables,
)


def test_a_hopeless_revision_is_rolled_back_by_every_rule() -> None:
    scenario = Scenario("hopeless", Revision(errors=0.01), Revision(errors=0.9))
    for rule in RULES:
        result = play(scenario, rule, seed=1)
        assert result.back
        assert 5 <= result.requests <= 200
        assert abs(result.harmed - 0.89 * result.requests) < 1e-6


def test_a_revision_without_errors_is_promoted_after_all_steps() -> None:
    scenario = Scenario("perfect", Revision(errors=0.0), Revision(errors=0.0))
    for rule in RULES:
        result = play(scenario, rule, seed=1)
        assert not result.back
        assert 4500 < result.requests < 5100


def test_a_scenario_with_all_checks_is_played() -> None:
    slow = next(scenario for scenario in BAD if "p95" in scenario.title)
    assert play(slow, Sequential.name, seed=1).back


def test_the_tables_show_every_scenario() -> None:
    outcomes = [
        Outcomes(scenario.title, rule, [Result(True, 100, 2.0), Result(False, 4800, 4.0)])
        for scenario in (*GOOD, *BAD)
        for rule in (RULES if scenario.thresholds else (Sequential.name,))
    ]
    text = tables(outcomes)
    assert all(f"| {scenario.title} |" in text for scenario in (*GOOD, *BAD))
    assert f"rolled back: {Threshold.name}" in text
    assert f"rolled back: {Repeated.name}" in text
    assert "| errors 1 % → 2 % | 50.0 %, 100, 3.0 | 50.0 %, 100, 3.0 |" in text
