"""Whether a new revision is as good as the one before, by what is seen of both: pass, hold or fail, and why.

In: what was counted of both since the last look, and the checks of the rollout. Out: a Verdict. The evidence is a plain
struct that is kept with the rollout, so that a new controller goes on from it.

A check is one test or more (`ErrorRate(max=0.02)` is two: against the baseline, and against 2 %), and all tests of an
analysis share the chance of a false rollback evenly.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.core.evidence import MOST, Arm, Evidence, difference, merge, moments_of, sound, sound_count
from headrace.core.hypotheses import tests_of
from headrace.spec.rollout import Check, Disagreement, ErrorRate, Latency, Metric
from headrace.spec.status import CheckStatus

__all__ = ["FAIL", "HOLD", "PASS", "Arm", "Evidence", "Verdict", "add", "difference", "judge"]

PASS, HOLD, FAIL = "pass", "hold", "fail"


class Verdict(msgspec.Struct, frozen=True):
    """What the analysis says (PASS, HOLD or FAIL), why, and what each check says."""

    says: str
    reason: str = ""
    checks: tuple[CheckStatus, ...] = ()


def add(
    evidence: Evidence,
    analysis: Sequence[Check],
    baseline: Arm,
    candidate: Arm,
    compared: int = 0,
    differed: int = 0,
) -> None:
    """Take note of what was seen since the last time: the arms hold what is new. Changes `evidence`.

    Counts below 0 and sums that are not finite are left out: they are a broken report, of whatever process.
    """
    baseline, candidate = sound(baseline), sound(candidate)
    compared, differed = sound_count(compared), sound_count(differed)
    tests = {test.key: test for check in analysis for test in tests_of(check)}  # the same test twice is fed once
    for test in tests.values():
        test.take(evidence, baseline, candidate, compared, differed)
    # After the tests: what they choose their bets by must not be what they bet on.
    merge(evidence.baseline, baseline)
    merge(evidence.candidate, candidate)
    evidence.compared = min(evidence.compared + compared, MOST)
    evidence.differed = min(evidence.differed + differed, MOST)


def judge(evidence: Evidence, analysis: Sequence[Check], false_rollback: float) -> Verdict:
    """What the evidence says by now. However often it is asked, the chance that a revision that is as good as the
    baseline (and within the absolute bounds) ever fails is at most `false_rollback`.

    A check fails as soon as the evidence is enough, and passes when it has not failed by its `min_samples`. A baseline
    that gets no requests meanwhile holds nothing up: then there is nothing to compare with.
    """
    alpha = false_rollback / max(1, sum(len(tests_of(check)) for check in analysis))
    checks, reasons = [], {FAIL: "", HOLD: "", PASS: ""}
    for check in analysis:
        said = _judge_check(evidence, check, alpha)
        checks.append(said)
        reasons[said.says] += f"; {said.text}" if reasons[said.says] else said.text
    says = FAIL if reasons[FAIL] else HOLD if reasons[HOLD] else PASS
    return Verdict(says, reasons[says], tuple(checks))


def _judge_check(evidence: Evidence, check: Check, alpha: float) -> CheckStatus:
    tests = tests_of(check)
    failed = [test.text(evidence, alpha) for test in tests if test.fails(evidence, alpha)]
    name = f"metric {check.name}" if isinstance(check, Metric) else str(check.__struct_config__.tag)
    if failed:
        return CheckStatus(check=name, says=FAIL, text="; ".join(failed))
    seen = _samples(evidence, check)
    text = "; ".join(test.text(evidence, alpha) for test in tests)
    if seen < check.min_samples:
        text = f"{text}; {check.min_samples - seen:,} more to see"
        return CheckStatus(check=name, says=HOLD, text=text)
    return CheckStatus(check=name, says=PASS, text=text)


def _samples(evidence: Evidence, check: Check) -> int:
    match check:
        case ErrorRate():
            return evidence.candidate.requests
        case Latency():
            return sum(evidence.candidate.latency.values())
        case Disagreement():
            return evidence.compared
        case Metric():
            return moments_of(evidence.candidate, check.name).count
