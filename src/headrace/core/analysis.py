"""Whether a new revision is as good as the one before, by what is seen of both: pass, hold or fail, and why.

In: what was counted of both since the last look, and the checks of the rollout. Out: a Verdict. The evidence is a plain
struct that is kept with the rollout, so that a new controller goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from headrace.spec.counts import Moments
from headrace.spec.rollout import Check
from headrace.spec.status import CheckStatus

PASS, HOLD, FAIL = "pass", "hold", "fail"


class Arm(msgspec.Struct):
    """What was seen of one revision at the door: requests that ended, those that failed, latencies by bucket
    (`core.buckets`), reported metrics by name.
    """

    requests: int = 0
    errors: int = 0
    latency: dict[int, int] = {}
    metrics: dict[str, Moments] = {}


class Evidence(msgspec.Struct):
    """All that a rollout has seen. `wealth` is the state of the sequential tests, by check (see `core.sequential`).

    `compared` and `differed` count mirrored requests.
    """

    baseline: Arm = msgspec.field(default_factory=Arm)
    candidate: Arm = msgspec.field(default_factory=Arm)
    compared: int = 0
    differed: int = 0
    wealth: dict[str, float] = {}


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
    """Take note of what was seen since the last time: the arms hold what is new. Changes `evidence`."""
    raise NotImplementedError


def judge(evidence: Evidence, analysis: Sequence[Check], false_rollback: float) -> Verdict:
    """What the evidence says by now. However often it is asked, the chance that a revision that is as good as the
    baseline (and within the absolute bounds) ever fails is at most `false_rollback`.
    """
    raise NotImplementedError


def difference(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    """The counts by bucket that came since `before`."""
    return {bucket: count - before.get(bucket, 0) for bucket, count in now.items() if count > before.get(bucket, 0)}
