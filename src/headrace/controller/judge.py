"""What rollouts are judged by: the evidence of each, brought up to what has been counted since the last look.

In: sums of the ledger. Out: in the records, the evidence of each rollout under way and the verdict of its analysis.
What was counted before a rollout began, or while there was no controller, is no evidence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from headrace.controller.ledger import Ledger
from headrace.core import analysis
from headrace.core import rollout as rollouts
from headrace.core.analysis import Arm
from headrace.core.fleet import Application
from headrace.core.rollout import Rollout
from headrace.spec.counts import Mirrored, Moments


@dataclass(slots=True)
class _Looked:
    """What the sums were at the last look at this rollout: of the revisions of before together, of the candidate."""

    revision: int
    baseline: Arm
    candidate: Arm
    mirrored: Mirrored


class Judge:
    """Looks at the rollouts of all applications."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._looked: dict[str, _Looked] = {}
        self._news: set[str] = set()

    def __repr__(self) -> str:
        return f"<Judge of {len(self._looked)} rollouts>"

    def heard(self, app: str) -> None:
        """Something new was counted of the application."""
        self._news.add(app)

    def look(self, app: Application) -> bool:
        """Take note of what came, and judge. True: the evidence has grown, and wants to be kept."""
        rollout = app.rollout
        if rollout is None:
            self._looked.pop(app.name, None)
            return False
        checks, false_rollback = rollouts.analysis_of(rollout)
        before = self._looked.get(app.name)
        if before is None or before.revision != rollout.revision:
            self._looked[app.name] = self._sums(app, rollout)
            self._take_metrics(app, rollout)  # what was reported before is no evidence
            app.verdict = analysis.judge(app.evidence, checks, false_rollback)
            return False
        if app.name not in self._news:
            return False
        self._news.discard(app.name)
        if not checks:
            return False
        now = self._looked[app.name] = self._sums(app, rollout)
        baseline, candidate = _since(now.baseline, before.baseline), _since(now.candidate, before.candidate)
        baseline.metrics, candidate.metrics = self._take_metrics(app, rollout)
        analysis.add(
            app.evidence,
            checks,
            baseline,
            candidate,
            max(0, now.mirrored.compared - before.mirrored.compared),
            max(0, now.mirrored.differed - before.mirrored.differed),
        )
        app.verdict = analysis.judge(app.evidence, checks, false_rollback)
        return True

    def mirrored(self, app: Application) -> Mirrored | None:
        """What became of the requests that were mirrored to the candidate, or to whatever revision is a shadow."""
        number = max(app.shadows, default=0)
        rollout = app.rollout or app.ended
        if rollout is not None and not number:
            number = rollout.revision
        found = self._ledger.mirrored(app.name, number) if number else Mirrored()
        return found if found.sent or found.skipped or found.failed else None

    def _sums(self, app: Application, rollout: Rollout) -> _Looked:
        baseline = Arm()
        for number in rollout.base:
            if number != rollout.revision:
                _merge(baseline, self._arm(app, number))
        mirrored = self._ledger.mirrored(app.name, rollout.revision)
        return _Looked(rollout.revision, baseline, self._arm(app, rollout.revision), mirrored)

    def _take_metrics(self, app: Application, rollout: Rollout) -> tuple[dict[str, Moments], dict[str, Moments]]:
        """What was reported since the last look, of the revisions of before together and of the candidate."""
        baseline: dict[str, Moments] = {}
        for number in rollout.base.keys() - {rollout.revision}:
            for name, moments in self._ledger.take_metrics(app.name, number).items():
                mine = baseline.setdefault(name, Moments())
                mine.count += moments.count
                mine.total += moments.total
                mine.squares += moments.squares
        return baseline, self._ledger.take_metrics(app.name, rollout.revision)

    def _arm(self, app: Application, number: int) -> Arm:
        spec = app.revisions.get(number)
        return self._ledger.arm(app.name, number, spec.ingress) if spec is not None else Arm()


def _merge(into: Arm, other: Arm) -> None:
    into.requests += other.requests
    into.errors += other.errors
    latency = Counter(into.latency)
    latency.update(other.latency)
    into.latency = dict(latency)


def _since(now: Arm, before: Arm) -> Arm:
    """What came between two looks; nothing where sums have fallen, for a process and its counts may be forgotten."""
    return Arm(
        requests=max(0, now.requests - before.requests),
        errors=max(0, now.errors - before.errors),
        latency=analysis.difference(now.latency, before.latency),
    )
