"""What the analysis says of revisions that are as good, worse, silent, or counted by something broken."""

from __future__ import annotations

from math import inf, isfinite, nan
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_rollouts import failing, hits, latencies, play, taking

from headrace.core import buckets
from headrace.core.analysis import FAIL, HOLD, PASS, Arm, Evidence, Verdict, add, judge
from headrace.core.buckets import bucket_of
from headrace.spec.counts import Moments
from headrace.spec.rollout import Check, Disagreement, ErrorRate, Latency, Metric

ERRORS = (ErrorRate(),)


def told(analysis: tuple[Check, ...], *reports: tuple[Arm, Arm]) -> Evidence:
    evidence = Evidence()
    for baseline, candidate in reports:
        add(evidence, analysis, baseline, candidate)
    return evidence


def says(analysis: tuple[Check, ...], *reports: tuple[Arm, Arm]) -> str:
    return judge(told(analysis, *reports), analysis, 0.05).says


def values(random: Random, count: int, mean: float) -> Arm:
    found = [random.gauss(mean, 1.0) for _ in range(count)]
    return Arm(metrics={"score": Moments(count, sum(found), sum(each * each for each in found))})


# What it says, and when


def test_nothing_to_check_passes() -> None:
    assert judge(Evidence(), (), 0.05) == Verdict(PASS)


def test_it_holds_until_enough_was_seen_of_the_candidate() -> None:
    evidence = told(ERRORS, (Arm(requests=900, errors=9), Arm(requests=83, errors=1)))
    verdict = judge(evidence, ERRORS, 0.05)
    assert verdict.says == HOLD
    assert verdict.reason.startswith(
        "error rate 1.2 % (1 of 83) against 1 % (9 of 900) of the baseline; evidence 0.72:1"
    )
    assert verdict.reason.endswith("; 17 more to see")
    add(evidence, ERRORS, Arm(requests=200, errors=2), Arm(requests=17))
    assert judge(evidence, ERRORS, 0.05).says == PASS


def test_a_worse_candidate_fails_with_the_figures_in_the_reason() -> None:
    reports = [(Arm(requests=900, errors=9), Arm(requests=100, errors=4))] * 20
    verdict = judge(told(ERRORS, *reports), ERRORS, 0.05)
    assert verdict.says == FAIL
    assert verdict.reason == (
        "error rate 4 % (80 of 2,000) against 1 % (180 of 18,000) of the baseline; "
        "evidence over a million:1, too much from 20:1"
    )
    assert [(check.check, check.says, check.text) for check in verdict.checks] == [("error_rate", FAIL, verdict.reason)]


def test_a_candidate_that_only_fails_is_not_given_its_min_samples() -> None:
    assert says(ERRORS, (Arm(requests=95, errors=1), Arm(requests=8, errors=8))) == FAIL


def test_a_better_candidate_passes() -> None:
    assert says(ERRORS, *[(Arm(requests=900, errors=90), Arm(requests=100))] * 20) == PASS


def test_a_bad_hour_of_both_does_not_speak_against_the_candidate_that_has_more_of_it() -> None:
    good = [(Arm(requests=950, errors=10), Arm(requests=50, errors=0))] * 20
    bad = [(Arm(requests=500, errors=100), Arm(requests=500, errors=100))] * 20
    assert says(ERRORS, *good, *bad) == PASS


def test_requests_that_come_one_by_one_are_compared_too() -> None:
    random, evidence = Random(1), Evidence()
    for _ in range(4000):
        new, failed = random.random() < 0.5, random.random()
        old = Arm() if new else Arm(requests=1, errors=int(failed < 0.05))
        add(evidence, ERRORS, old, Arm(requests=1, errors=int(failed < 0.3)) if new else Arm())
    assert judge(evidence, ERRORS, 0.05).says == FAIL


def test_when_the_baseline_gets_nothing_the_candidate_passes_by_its_own_samples() -> None:
    verdict = judge(told(ERRORS, (Arm(), Arm(requests=100, errors=3))), ERRORS, 0.05)
    assert verdict.says == PASS
    assert verdict.reason.startswith("error rate 3 % (3 of 100) and no baseline")
    analysis = (Latency(), Metric(name="score", better="higher"))
    alone = Arm(latency={400: 100}, metrics={"score": Moments(100, 50.0, 60.0)})
    assert says(analysis, (Arm(), alone)) == PASS


def test_after_a_switch_the_last_requests_of_the_baseline_are_compared_with_as_many_of_the_candidate() -> None:
    before = [(Arm(requests=1000, errors=10), Arm())] * 2
    assert says(ERRORS, *before, *[(Arm(), Arm(requests=400, errors=20))] * 4) == PASS  # not yet as many
    assert says(ERRORS, *before, *[(Arm(), Arm(requests=400, errors=20))] * 5) == FAIL
    assert says(ERRORS, *before, *[(Arm(), Arm(requests=400, errors=4))] * 5) == PASS


def test_an_absolute_bound_holds_without_a_baseline() -> None:
    analysis = (ErrorRate(max=0.02, against_baseline=False),)
    assert says(analysis, *[(Arm(), Arm(requests=100, errors=2))] * 10) == PASS
    verdict = judge(told(analysis, *[(Arm(), Arm(requests=100, errors=6))] * 10), analysis, 0.05)
    assert verdict.says == FAIL
    assert verdict.reason.startswith("error rate 6 % (60 of 1,000), 2 % at most; evidence over a million:1")


def test_where_no_error_is_allowed_the_first_is_too_many() -> None:
    analysis = (ErrorRate(max=0.0, against_baseline=False),)
    assert says(analysis, (Arm(), Arm(requests=1000))) == PASS
    assert says(analysis, (Arm(), Arm(requests=1000)), (Arm(), Arm(requests=1, errors=1))) == FAIL
    assert says((ErrorRate(max=1.0, against_baseline=False),), (Arm(), Arm(requests=1000, errors=1000))) == PASS


def test_an_answer_that_breaks_off_later_is_an_error_that_waits_for_a_request() -> None:
    analysis = (ErrorRate(max=0.01, against_baseline=False),)
    assert says(analysis, (Arm(), Arm(requests=1000)), (Arm(), Arm(errors=1000))) == PASS
    assert says(analysis, (Arm(), Arm(requests=1000)), (Arm(), Arm(errors=1000)), (Arm(), Arm(requests=10))) == FAIL
    assert says(ERRORS, *[(Arm(requests=100, errors=1), Arm(requests=100)), (Arm(), Arm(errors=30))] * 5) == FAIL


def test_several_tests_share_the_chance_of_a_false_rollback() -> None:
    some = [(Arm(requests=900, errors=9), Arm(requests=100, errors=4))] * 3
    assert says(ERRORS, *some) == FAIL
    many = (*ERRORS, *(Metric(name=f"score{i}", min=0.0, max=1.0) for i in range(20)))
    verdict = judge(told(many, *some), many, 0.05)
    assert verdict.says == HOLD
    assert "too much from 820:1" in verdict.checks[0].text


def test_the_same_check_twice_is_fed_once() -> None:
    reports = [(Arm(requests=90, errors=1), Arm(requests=10, errors=1))] * 5
    twice = (ErrorRate(), ErrorRate(min_samples=5))
    assert told(twice, *reports).wealth == told(ERRORS, *reports).wealth


# Latency


def test_latency_at_the_quantile_against_the_baseline() -> None:
    random = Random(1)

    def reports(times: float) -> list[tuple[Arm, Arm]]:
        return [
            (Arm(latency=latencies(random, 180, 0.1)), Arm(latency=latencies(random, 20, 0.1 * times)))
            for _ in range(50)
        ]

    analysis = (Latency(quantile=0.95, max_ratio=1.5),)
    assert says(analysis, *reports(1.0)) == PASS
    assert says(analysis, *reports(1.4)) == PASS
    verdict = judge(told(analysis, *reports(2.0)), analysis, 0.05)
    assert verdict.says == FAIL
    assert verdict.reason.startswith("p95 latency 4")
    assert "ms of the baseline, 1.5 times at most; evidence over a million:1" in verdict.reason


def test_equal_latencies_are_not_slower_than_each_other() -> None:
    same = [(Arm(latency={400: 90}), Arm(latency={400: 10}))] * 50
    assert says((Latency(max_ratio=1.0),), *same) == PASS
    assert says((Latency(max_ratio=1.0),), *[(Arm(latency={400: 90}), Arm(latency={401: 10}))] * 50) == FAIL


def test_latency_against_an_absolute_bound() -> None:
    analysis = (Latency(quantile=0.9, max_ratio=None, max_s=0.5),)
    within, slow = bucket_of(0.4), bucket_of(0.6)
    assert says(analysis, *[(Arm(), Arm(latency={within: 90, slow: 10}))] * 20) == PASS
    verdict = judge(told(analysis, *[(Arm(), Arm(latency={within: 80, slow: 20}))] * 20), analysis, 0.05)
    assert verdict.says == FAIL
    assert verdict.reason.startswith("p90 latency 609 ms, 500 ms at most")


def test_the_last_bucket_has_no_end_and_compares_as_equal() -> None:
    last = buckets.COUNT - 1
    assert says((Latency(max_ratio=1.0),), *[(Arm(latency={last: 90}), Arm(latency={last: 10}))] * 30) == PASS


# Answers that differ, and metrics


def test_answers_that_differ() -> None:
    analysis = (Disagreement(max=0.01),)
    evidence = Evidence()
    add(evidence, analysis, Arm(), Arm(), compared=99, differed=1)
    assert judge(evidence, analysis, 0.05).says == HOLD
    add(evidence, analysis, Arm(), Arm(), compared=401, differed=4)
    assert judge(evidence, analysis, 0.05).says == PASS
    add(evidence, analysis, Arm(), Arm(), compared=500, differed=25)
    verdict = judge(evidence, analysis, 0.05)
    assert verdict.says == FAIL
    assert verdict.reason.startswith("answers differ in 3 % (30 of 1,000), 1 % at most")


@pytest.mark.parametrize(
    ("check", "mean", "expected"),
    [
        (Metric(name="score", better="higher"), 10.0, PASS),
        (Metric(name="score", better="higher"), 9.5, FAIL),
        (Metric(name="score", better="higher"), 10.5, PASS),
        (Metric(name="score", better="lower"), 10.5, FAIL),
        (Metric(name="score", better="lower"), 9.5, PASS),
        (Metric(name="score", better="higher", tolerance=0.5), 9.6, PASS),
        (Metric(name="score", better="higher", tolerance=0.2), 9.5, FAIL),
        (Metric(name="score", max=10.2), 10.0, PASS),
        (Metric(name="score", max=9.8), 10.0, FAIL),
        (Metric(name="score", min=10.2), 10.0, FAIL),
        (Metric(name="score", min=9.8, max=10.2), 10.0, PASS),
    ],
)
def test_the_mean_of_a_metric(check: Metric, mean: float, expected: str) -> None:
    random = Random(1)
    reports = [(values(random, 90, 10.0), values(random, 10, mean)) for _ in range(100)]
    assert says((check,), *reports) == expected


def test_a_metric_that_never_varies_is_judged_by_what_it_is() -> None:
    def constant(count: int, value: float) -> Arm:
        return Arm(metrics={"score": Moments(count, count * value, count * value * value)})

    check = (Metric(name="score", better="higher"),)
    assert says(check, *[(constant(90, 0.9), constant(10, 0.9))] * 20) == PASS
    assert says(check, *[(constant(90, 0.9), constant(10, 0.8))] * 20) == FAIL


def test_rounding_of_huge_means_is_no_evidence() -> None:
    random = Random(1)
    reports = [(values(random, 90, 1.7e9), values(random, 10, 1.7e9)) for _ in range(50)]
    assert says((Metric(name="score", better="higher", tolerance=0.0),), *reports) == PASS


def test_a_mean_is_not_judged_by_a_few_values() -> None:
    check = (Metric(name="score", min=10.0, min_samples=2),)
    assert says(check, (Arm(), Arm(metrics={"score": Moments(3, 3.0, 3.0)}))) == PASS


def test_rare_values_that_have_not_come_to_the_candidate_yet_are_no_evidence() -> None:
    check = (Metric(name="score", min=0.005),)
    with_some = Arm(metrics={"score": Moments(2000, 10.0, 10.0)})
    assert says(check, (with_some, Arm(metrics={"score": Moments(200, 0.0, 0.0)}))) == PASS
    assert says(check, (with_some, Arm(metrics={"score": Moments(20000, 0.0, 0.0)}))) == FAIL


# Broken and hostile reports

numbers = st.integers(-(10**30), 10**30) | st.integers(-10, 1000)
floats = st.floats() | st.sampled_from([nan, inf, -inf, 1e308, -1e308])
arms = st.builds(
    Arm,
    requests=numbers,
    errors=numbers,
    latency=st.dictionaries(st.integers(-5, 2000) | numbers, numbers, max_size=4),
    metrics=st.dictionaries(st.sampled_from(["score", "other", ""]), st.builds(Moments, numbers, floats, floats)),
)
EVERYTHING: tuple[Check, ...] = (
    ErrorRate(max=0.02),
    Latency(max_s=0.5),
    Disagreement(),
    Metric(name="score", better="higher", tolerance=1e300, min=-1e300, max=1e300),
    Metric(name="other", better="lower"),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(arms, arms, numbers, numbers), max_size=6))
def test_no_report_breaks_the_evidence(reports: list[tuple[Arm, Arm, int, int]]) -> None:
    evidence = Evidence()
    for baseline, candidate, compared, differed in reports:
        add(evidence, EVERYTHING, baseline, candidate, compared, differed)
        assert judge(evidence, EVERYTHING, 0.05).says in (PASS, HOLD, FAIL)
    assert all(isfinite(wealth) for wealth in evidence.wealth.values())
    assert msgspec.json.decode(msgspec.json.encode(evidence), type=Evidence) == evidence


def test_what_cannot_be_is_left_out_and_what_can_counts_on() -> None:
    broken = Arm(requests=-5, errors=-1, latency={-1: 5, 9999: 5, 400: -3}, metrics={"score": Moments(5, nan, inf)})
    evidence = told(EVERYTHING, (broken, broken), (Arm(requests=10, latency={400: 10}), Arm(requests=10)))
    assert (evidence.baseline.requests, evidence.baseline.latency) == (10, {400: 10})
    assert evidence.candidate.requests == 10
    assert evidence.candidate.metrics == {}


def test_more_errors_than_there_ever_were_requests_do_not_fail_all_that_come_later() -> None:
    analysis = (ErrorRate(max=0.5),)
    reports = [(Arm(requests=100), Arm(requests=10)), (Arm(), Arm(errors=2**60))]
    assert says(analysis, *reports, *[(Arm(requests=100, errors=10), Arm(requests=100, errors=10))] * 500) == PASS


def test_evidence_that_was_stored_goes_on_as_if_it_had_not_been() -> None:
    random = Random(1)
    kept, stored = Evidence(), Evidence()
    for _ in range(30):
        old = Arm(requests=95, errors=hits(random, 95, 0.02), latency=latencies(random, 95, 0.1))
        new = Arm(requests=5, errors=hits(random, 5, 0.02), latency=latencies(random, 5, 0.1))
        add(kept, EVERYTHING, old, new)
        add(stored, EVERYTHING, old, new)
        stored = msgspec.json.decode(msgspec.json.encode(stored), type=Evidence)
    assert stored == kept


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=30), st.randoms(use_true_random=False))
def test_when_bets_are_made_does_not_depend_on_outcomes(sizes: list[tuple[int, int]], random: Random) -> None:
    good, bad = Evidence(), Evidence()
    for n, m in sizes:
        add(good, ERRORS, Arm(requests=n), Arm(requests=m))
        add(bad, ERRORS, Arm(requests=n, errors=random.randint(0, n)), Arm(requests=m, errors=random.randint(0, m)))
        assert good.wealth.get("error_rate:seen") == bad.wealth.get("error_rate:seen")


# Whole rollouts: small versions of `bench/rollouts.py`


@pytest.mark.parametrize("rate", [0.001, 0.05])
def test_good_revisions_are_seldom_rolled_back(rate: float) -> None:
    random = Random(1)
    back = sum(play(random, ERRORS, failing(rate), failing(rate)).rolled_back for _ in range(60))
    assert back <= 5  # of 3 that are allowed on average


def test_twice_the_errors_are_caught_within_5000_canary_requests() -> None:
    random = Random(1)
    played = [play(random, ERRORS, failing(0.01), failing(0.02)) for _ in range(60)]
    caught = [each for each in played if each.rolled_back and each.requests <= 5000]
    assert len(caught) >= 52
    assert all("of the baseline" in each.reason for each in caught)


def test_good_revisions_pass_all_checks_while_both_get_slower() -> None:
    random = Random(1)
    analysis = (ErrorRate(max=0.05), Latency(), Latency(quantile=0.5))

    def slower(random: Random, count: int, now: int) -> Arm:
        return taking(0.1 if now < 60 else 0.3)(random, count, now)

    back = sum(play(random, analysis, slower, slower, rate=20).rolled_back for _ in range(20))
    assert back <= 2


def test_twice_the_latency_is_caught_soon() -> None:
    random = Random(1)
    played = [play(random, (ErrorRate(), Latency()), taking(0.1), taking(0.2), rate=20) for _ in range(20)]
    assert all(each.rolled_back for each in played)
    assert sum(each.requests for each in played) / len(played) < 400
