"""What a rollout is judged by: what came since it began, and no sum swallows another."""

from __future__ import annotations

import pytest
from workshop import application, deployment

from headrace.controller.judge import Judge
from headrace.controller.ledger import Ledger
from headrace.core import rollout as rollouts
from headrace.core.fleet import Application
from headrace.spec.counts import Counted, Mirrored, Signal
from headrace.spec.rollout import Canary, ErrorRate, Metric

LATER = 1e12  # than any controller began
CANARY = Canary(steps=((0.5, None),), analysis=(ErrorRate(), Metric(name="clicks", better="higher", min_samples=10)))


class _NoTimelines:
    def of(self, app: str) -> object:
        raise AssertionError("all signals name their revision")


class Desk:
    """A judge, the ledger that it goes by, and an application whose revision 2 is rolled out over 1."""

    def __init__(self) -> None:
        self.ledger = Ledger(_NoTimelines(), 0.0, lambda *key: True, lambda app: self.judge.heard(app))  # type: ignore[arg-type]
        self.judge = Judge(self.ledger)
        spec = application(deployment("D"))
        self.app = Application(name="app", revisions={1: spec, 2: spec}, target=2, current=1)
        self.begin()

    def begin(self) -> None:
        self.app.rollout = rollouts.begin(2, {1: 1.0}, CANARY, 0.0)

    def count(
        self, revision: int, requests: int, errors: int = 0, process: str = "ingress#0", differed: int = 0
    ) -> None:
        mirrored = Mirrored(compared=requests, differed=differed) if differed else None
        counted = Counted(
            app="app", revision=revision, deployment="D", requests=requests, errors=errors, mirrored=mirrored
        )
        self.ledger.counted(process, [counted], LATER)

    def report(self, revision: int, *values: float) -> None:
        self.ledger.signals("p", [Signal(app="app", name="clicks", value=v, revision=revision) for v in values], 0.0)


def test_what_was_counted_before_the_rollout_is_no_evidence() -> None:
    desk = Desk()
    desk.count(1, 1000, 500)
    desk.report(1, *[5.0] * 50)
    assert not desk.judge.look(desk.app)
    assert desk.app.verdict.says == "hold"
    desk.count(1, 1100, 501)
    desk.count(2, 20, 1)
    desk.report(1, 1.0, 1.0)
    desk.report(2, 0.5)
    assert desk.judge.look(desk.app)
    evidence = desk.app.evidence
    assert (evidence.baseline.requests, evidence.baseline.errors) == (100, 1)
    assert (evidence.candidate.requests, evidence.candidate.errors) == (20, 1)
    assert (evidence.baseline.metrics["clicks"].count, evidence.candidate.metrics["clicks"].total) == (2, 0.5)
    assert not desk.judge.look(desk.app)  # nothing new


def test_evidence_goes_on_with_another_controller_and_counts_nothing_twice() -> None:
    desk = Desk()
    desk.judge.look(desk.app)
    desk.count(2, 20, 1)
    desk.judge.look(desk.app)
    kept = desk.app.evidence
    other = Desk()
    other.app.evidence = kept
    other.count(2, 20, 1)  # what the process had counted before
    other.judge.look(other.app)
    other.count(2, 30, 1)
    other.judge.look(other.app)
    assert (other.app.evidence.candidate.requests, other.app.evidence.candidate.errors) == (30, 1)


def test_one_huge_value_swallows_none_that_come_after_it() -> None:
    desk = Desk()
    desk.judge.look(desk.app)
    desk.report(2, 1e60)
    desk.judge.look(desk.app)
    desk.report(2, *[1.0] * 10)
    desk.judge.look(desk.app)
    desk.report(1, 3.0)
    assert desk.ledger.take_metrics("app", 2) == {}
    assert desk.ledger.take_metrics("app", 1)["clicks"].total == pytest.approx(3.0)


def test_a_rollout_that_has_ended_is_forgotten_and_the_next_begins_anew() -> None:
    desk = Desk()
    desk.judge.look(desk.app)
    desk.count(2, 20, 20)
    rollout, desk.app.rollout = desk.app.rollout, None
    assert not desk.judge.look(desk.app)
    desk.app.rollout = rollout
    desk.judge.look(desk.app)
    assert desk.app.evidence.candidate.requests == 0


def test_what_is_mirrored_is_of_the_candidate_or_of_whatever_is_a_shadow() -> None:
    desk = Desk()
    assert desk.judge.mirrored(desk.app) is None
