"""How often a canary's analysis is wrong, and how soon it is right: simulated rollouts by the thousand.

`python -m bench.rollouts` plays rollouts with the core's own analysis and rollout machine on made-up requests, beside
rules that compare figures with thresholds each second, and prints a table; with `--write-docs` it goes into the page
on canary analysis. Nothing is served: a rollout of three minutes takes some milliseconds.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.table import BEGIN, END, markdown
from headrace.core.analysis import FAIL, PASS, Arm, Evidence, Verdict, add, judge
from headrace.core.buckets import COUNT, lower_bound
from headrace.core.rollout import Seen, Stage, advance, begin, wanted_weights
from headrace.spec.counts import Moments
from headrace.spec.rollout import Canary, Check, ErrorRate, Latency, Metric
from headrace.spec.status import RolloutOutcome

PAGE = Path(__file__).parents[1] / "docs" / "canary-analysis.md"
RATE = 100.0  # requests a second, of both revisions together
STEPS = ((0.05, 60.0), (0.25, 60.0), (0.5, 60.0))
WITHIN = 5000  # canary requests
BASELINE, CANDIDATE = 1, 2
EDGES = np.array([lower_bound(bucket) for bucket in range(1, COUNT)])


def always(_at: float) -> float:
    return 1.0


@dataclass(frozen=True)
class Revision:
    """How requests fare: the share that fails, the latency (log-normal, median and sigma), the mean of a metric (of
    exponential values, which are skewed).
    """

    errors: float = 0.01
    median_s: float = 0.05
    sigma: float = 0.5
    metric: float = 1.0


@dataclass(frozen=True)
class Scenario:
    """`errors_at` and `times_at` multiply both revisions' error rate and latency, by the second of the rollout;
    `worse_from` is from when on the candidate is itself, and not like the baseline.
    """

    title: str
    baseline: Revision
    candidate: Revision
    analysis: tuple[Check, ...] = (ErrorRate(),)
    errors_at: Callable[[float], float] = always
    times_at: Callable[[float], float] = always
    worse_from: float = 0.0
    thresholds: bool = True  # whether the other rules are asked, too
    most: bool = False  # whether it is played as often as asked for, and not a fifth of that


class Sequential:
    """Headrace's analysis, with 5 % for the chance of a false rollback."""

    name = "Headrace"

    def __init__(self, analysis: Sequence[Check]) -> None:
        self.analysis = analysis
        self.evidence = Evidence()

    def look(self, baseline: Arm, candidate: Arm) -> Verdict:
        add(self.evidence, self.analysis, baseline, candidate)
        return judge(self.evidence, self.analysis, 0.05)


class Totals:
    """What a rule by thresholds goes by: all requests so far."""

    def __init__(self, analysis: Sequence[Check]) -> None:
        self.requests = [0, 0]
        self.errors = [0, 0]

    def look(self, baseline: Arm, candidate: Arm) -> Verdict:
        for i, arm in enumerate((baseline, candidate)):
            self.requests[i] += arm.requests
            self.errors[i] += arm.errors
        return Verdict(FAIL if min(self.requests) >= 100 and self.is_worse() else PASS)

    def is_worse(self) -> bool:
        raise NotImplementedError


class Threshold(Totals):
    """Back when the canary's error rate is above 1.5 times the baseline's, from its 100th request on."""

    name = "1.5 × the baseline's rate"

    def is_worse(self) -> bool:
        old, new = (errors / requests for errors, requests in zip(self.errors, self.requests, strict=True))
        return new > 1.5 * old


class Lenient(Totals):
    """Back when it is above 3 times the baseline's: fewer false alarms, and less that is seen."""

    name = "3 × the baseline's rate"

    def is_worse(self) -> bool:
        old, new = (errors / requests for errors, requests in zip(self.errors, self.requests, strict=True))
        return new > 3 * old


class Repeated(Totals):
    """Back when a one-sided test of two shares, made as if it were the only one, says p < 5 %."""

    name = "p < 5 % each second"

    def is_worse(self) -> bool:
        (n, m), (a, b) = self.requests, self.errors
        both = (a + b) / (n + m)
        deviation = math.sqrt(both * (1 - both) * (1 / n + 1 / m))
        return deviation > 0 and (b / m - a / n) / deviation > 1.645


RULES: dict[str, Any] = {rule.name: rule for rule in (Sequential, Threshold, Lenient, Repeated)}


@dataclass
class Result:
    """One rollout: whether it was rolled back, how many requests the canary had until it was decided, and how many of
    these failed beyond what the baseline's error rate would have failed, in expectation.
    """

    back: bool
    requests: int
    harmed: float


@dataclass
class Outcomes:
    scenario: str
    rule: str
    results: list[Result] = field(default_factory=list)

    def share(self, within: float = math.inf) -> float:
        return sum(each.back and each.requests <= within for each in self.results) / len(self.results)

    @property
    def harmed(self) -> float:
        return float(np.mean([each.harmed for each in self.results]))

    @property
    def median(self) -> float:
        found = [each.requests for each in self.results if each.back]
        return float(np.median(found)) if found else math.nan


class Traffic:
    """What comes of both revisions, second by second; drawn a minute at a time, which is what makes it quick."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self.scenario = scenario
        self.rng = rng
        self.kinds = {type(check) for check in scenario.analysis}

    def seconds(self, weight: float, now: int) -> Iterator[tuple[Arm, Arm]]:
        """Each second's arms, from `now` on, while the candidate has this weight."""
        scenario = self.scenario
        for start in range(now, now + 3600, 60):
            at = np.arange(start, start + 60)
            old = self._drawn(scenario.baseline, scenario.baseline, 1 - weight, at)
            new = self._drawn(scenario.candidate, scenario.baseline, weight, at)
            yield from zip(old, new, strict=True)

    def _drawn(self, revision: Revision, before: Revision, weight: float, at: np.ndarray) -> list[Arm]:
        scenario, rng = self.scenario, self.rng
        rates = [(revision if second >= scenario.worse_from else before).errors for second in at]
        rates = np.minimum(1.0, np.array(rates) * [scenario.errors_at(float(second)) for second in at])
        requests = rng.poisson(RATE * weight, len(at))
        errors = rng.binomial(requests, rates)
        arms = [Arm(requests=int(n), errors=int(k)) for n, k in zip(requests, errors, strict=True)]
        for arm, second in zip(arms, at, strict=True):
            one = revision if second >= scenario.worse_from else before
            if Latency in self.kinds:
                times = rng.lognormal(math.log(one.median_s), one.sigma, arm.requests - arm.errors)
                where = np.searchsorted(EDGES, times * scenario.times_at(float(second)), side="right")
                found, counts = np.unique(where, return_counts=True)
                arm.latency = dict(zip(found.tolist(), counts.tolist(), strict=True))
            if Metric in self.kinds:
                values = rng.exponential(one.metric, arm.requests)
                arm.metrics = {"score": Moments(len(values), float(values.sum()), float((values**2).sum()))}
        return arms


def play(scenario: Scenario, rule: str, seed: int) -> Result:
    """One rollout from its first step to its end, decided by the core's machine, looked at each second."""
    strategy = Canary(steps=STEPS, analysis=scenario.analysis)
    rollout = begin(CANDIDATE, {BASELINE: 1.0}, strategy, 0.0)
    judge_by = RULES[rule](scenario.analysis)
    traffic = Traffic(scenario, np.random.default_rng([seed, 7]))
    requests, harmed, weight, seconds = 0, 0.0, -1.0, iter(())
    weights = {BASELINE: 1.0}
    ready = {BASELINE: 1.0, CANDIDATE: 1.0}
    verdict = Verdict(PASS)
    for now in range(3600):
        rollout = advance(rollout, Seen(weights=weights, ready=ready, verdict=verdict), float(now))
        weights = wanted_weights(rollout, weights)
        if rollout.stage in (Stage.FINISHING, Stage.RETREATING, Stage.ENDED):
            return Result(rollout.outcome == RolloutOutcome.ROLLED_BACK, requests, harmed)
        if weights.get(CANDIDATE, 0.0) != weight:
            weight = weights.get(CANDIDATE, 0.0)
            seconds = traffic.seconds(weight, now)
            rollout = advance(rollout, Seen(weights=weights, ready=ready, verdict=verdict), float(now))
        old, new = next(seconds)
        verdict = judge_by.look(old, new)
        requests += new.requests
        if now >= scenario.worse_from:
            excess = (scenario.candidate.errors - scenario.baseline.errors) * scenario.errors_at(float(now))
            harmed += excess * new.requests
    raise AssertionError("a rollout of three minutes does not end within an hour")


def incident(at: float) -> float:
    """A bad two minutes for both: errors ten times as many, when the canary has just got more of the traffic."""
    return 10.0 if at >= 60 else 1.0


def rush(at: float) -> float:
    """An hour when all is slow begins with the second step."""
    return 3.0 if at >= 60 else 1.0


ONE = Revision()
ALL = (ErrorRate(max=0.05), Latency(), Metric(name="score", better="higher"))
GOOD = (
    Scenario("as good, errors 0.1 %", Revision(0.001), Revision(0.001), most=True),
    Scenario("as good, errors 1 %", ONE, ONE, most=True),
    Scenario("as good, errors 5 %", Revision(0.05), Revision(0.05), most=True),
    Scenario("as good, 1 %, then 10 % of both from the second step on", ONE, ONE, errors_at=incident),
    Scenario("as good, three checks (four tests)", ONE, ONE, ALL, thresholds=False),
    Scenario(
        "as good, both three times as slow from the second step on", ONE, ONE, ALL, times_at=rush, thresholds=False
    ),
)
BAD = (
    Scenario("errors 1 % → 1.5 %", ONE, Revision(0.015)),
    Scenario("errors 1 % → 2 %", ONE, Revision(0.02), most=True),
    Scenario("errors 1 % → 5 %", ONE, Revision(0.05)),
    Scenario("errors 1 % → 20 %", ONE, Revision(0.2)),
    Scenario("errors 0.1 % → 1 %", Revision(0.001), Revision(0.01)),
    Scenario("errors 1 % → 5 % from the second step on", ONE, Revision(0.05), worse_from=60.0),
    Scenario("p95 twice as long, three checks", ONE, Revision(median_s=0.1), ALL, thresholds=False),
    Scenario("metric 10 % lower, three checks", ONE, Revision(metric=0.9), ALL, thresholds=False),
)


def _play_many(job: tuple[int, str, int, int]) -> list[Result]:
    number, rule, first, count = job
    scenario = (*GOOD, *BAD)[number]
    return [play(scenario, rule, seed) for seed in range(first, first + count)]


def count_of(scenario: Scenario, rule: str, rollouts: int) -> int:
    """How often a scenario is played: the other rules, and the lesser scenarios, less often; least of all those with
    latencies and metrics, whose requests are drawn one by one.
    """
    if not scenario.thresholds:
        return max(1, rollouts // 20)
    return rollouts if scenario.most and rule == Sequential.name else max(1, rollouts // 5)


def played(rollouts: int, processes: int) -> list[Outcomes]:
    """All scenarios by all rules."""
    jobs, outcomes = [], {}
    for number, scenario in enumerate((*GOOD, *BAD)):
        for rule in RULES if scenario.thresholds else (Sequential.name,):
            outcomes[number, rule] = Outcomes(scenario.title, rule)
            count = count_of(scenario, rule, rollouts)
            for first in range(0, count, 100):
                jobs.append((number, rule, first, min(100, count - first)))
    with multiprocessing.get_context("forkserver").Pool(processes) as pool:
        for job, results in zip(jobs, pool.imap(_play_many, jobs), strict=True):
            seen = outcomes[job[0], job[1]]
            seen.results.extend(results)
            if len(seen.results) == count_of((*GOOD, *BAD)[job[0]], job[1], rollouts):
                back = (
                    f"{_percent(seen.share())} rolled back, {_percent(seen.share(WITHIN))} within {WITHIN:,} requests"
                )
                print(f"{seen.scenario}, {seen.rule}: {len(seen.results):,} rollouts, {back}", file=sys.stderr)
    return list(outcomes.values())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def tables(outcomes: Sequence[Outcomes]) -> str:
    """Both tables as markdown: good revisions rolled back, and bad ones."""
    found: dict[str, dict[str, Outcomes]] = {}
    for each in outcomes:
        found.setdefault(each.scenario, {})[each.rule] = each
    good = []
    for scenario in GOOD:
        by_rule = found[scenario.title]
        cells = [_percent(by_rule[rule].share()) if rule in by_rule else "–" for rule in RULES]
        good.append([scenario.title, f"{len(by_rule[Sequential.name].results):,}", *cells])
    shown = (Sequential.name, Threshold.name, Lenient.name)
    bad = [[scenario.title, *(_cell(scenario, found[scenario.title].get(rule)) for rule in shown)] for scenario in BAD]
    head = ["a revision that is", "rollouts", *(f"rolled back: {rule}" for rule in RULES)]
    return f"{markdown(head, good)}\n\n{markdown(['a revision with', *shown], bad)}"


def _cell(scenario: Scenario, seen: Outcomes | None) -> str:
    if seen is None:
        return "–"
    after = "–" if math.isnan(seen.median) else f"{seen.median:,.0f}"
    harmful = scenario.candidate.errors > scenario.baseline.errors
    return f"{_percent(seen.share(WITHIN))}, {after}" + (f", {seen.harmed:.1f}" if harmful else "")


def write_page(text: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rollouts", description=__doc__)
    parser.add_argument(
        "--rollouts", type=int, default=10_000, help="of the main scenarios; others have fewer (default: 10,000)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.name}")
    given = parser.parse_args()
    began = time.monotonic()
    text = tables(played(given.rollouts, given.processes))
    print(text)
    print(f"\n{time.monotonic() - began:.0f} s")
    if given.write_docs:
        write_page(text)


if __name__ == "__main__":
    main()
