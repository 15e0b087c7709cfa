"""The ledger adds up what processes report, each request once, and drops what cannot be."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.controller.ledger import MOST_GONE, MOST_METRICS, Ledger
from headrace.controller.store import Store
from headrace.controller.timelines import Timelines
from headrace.core.request_ids import new_id
from headrace.core.traffic import Split
from headrace.spec.counts import Counted, Example, Mirrored, Moments, Signal
from headrace.spec.snapshot import ApplicationEntry, RevisionEntry, Snapshot
from headrace.spec.sticky import Sticky

BEGAN = 1_700_000_000.0
LATER = BEGAN + 1000
WEIGHTS = {1: 0.5, 2: 0.5}


def known(app: str, revision: int, deployment: str) -> bool:
    return app == "app" and revision in (0, 1, 2) and deployment in ("", "Model")


class Desk:
    """A ledger, and what it said."""

    def __init__(self, path: Path | None = None) -> None:
        self.store = Store(path or Path(":memory:"), synced=False)
        self.store.open()
        self.timelines = Timelines(self.store)
        self.news: list[str] = []
        self.ledger = Ledger(self.timelines, BEGAN, known, self.news.append)

    def report(self, process: str, requests: int, errors: int = 0, since: float = LATER, **fields: Any) -> None:
        counted = Counted(**{"app": "app", "revision": 1, "deployment": "Model"} | fields)
        counted.requests, counted.errors = requests, errors
        self.ledger.counted(process, [counted], since)

    def signal(self, value: float = 1.0, name: str = "sold", **fields: Any) -> None:
        self.ledger.signals("driver", [Signal(**{"app": "app", "name": name, "value": value} | fields)], LATER)

    @property
    def sums(self) -> tuple[int, int]:
        total = self.ledger.totals("app", 1, "Model")
        return total.requests, total.errors


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_last_report_of_each_process_is_the_whole_of_it(desk: Desk) -> None:
    desk.report("a", 5, latency={3: 5})
    desk.report("b", 2, 1, latency={3: 1})
    desk.report("a", 9, 2, latency={3: 6, 4: 1})
    assert desk.sums == (11, 3)
    arm = desk.ledger.arm("app", 1, "Model")
    assert (arm.requests, arm.errors, arm.latency) == (11, 3, {3: 7, 4: 1})
    assert desk.news == ["app"] * 3
    assert desk.ledger.totals("app", 2, "Model").requests == 0


def test_processes_that_are_gone_stay_counted_and_may_come_back(desk: Desk) -> None:
    desk.report("a", 5)
    desk.ledger.gone("a")
    desk.ledger.present("a")
    desk.report("a", 6)
    assert desk.sums == (6, 0)
    for i in range(3 * MOST_GONE):
        desk.report(f"driver {i}", 1)
        desk.ledger.gone(f"driver {i}")
    assert desk.sums == (6 + 3 * MOST_GONE, 0)
    assert len(desk.ledger._entries["app", 1, "Model"].reports) == MOST_GONE + 1


def test_one_that_comes_back_after_it_was_added_up_is_not_counted_twice(desk: Desk) -> None:
    desk.report("a", 5, latency={1: 5})
    for process in ("a", *map(str, range(MOST_GONE + 1))):
        desk.ledger.gone(process)
    desk.ledger.present("a")
    desk.report("a", 7, latency={1: 7})
    assert desk.sums == (5, 0)
    desk.report("a", 8, latency={1: 8})
    assert desk.sums == (6, 0)
    assert desk.ledger.totals("app", 1, "Model").latency == {1: 6}


def test_what_was_counted_before_the_controller_began_is_none_of_its(desk: Desk) -> None:
    desk.report("old", 100, 50, since=BEGAN - 1, latency={2: 50})
    assert desk.sums == (0, 0)
    assert desk.ledger.totals("app", 1, "Model").latency == {}
    assert desk.news == []
    desk.report("old", 103, 51, since=BEGAN - 1, latency={2: 52})
    assert desk.sums == (3, 1)
    assert desk.ledger.totals("app", 1, "Model").latency == {2: 2}
    desk.ledger.gone("old")
    assert desk.sums == (3, 1)


def test_a_process_that_counts_from_nothing_again_loses_nothing(desk: Desk) -> None:
    desk.report("a", 5)
    desk.report("a", 2)
    assert desk.sums == (7, 0)


HOSTILE: list[dict[str, Any]] = [
    {"requests": -1},
    {"requests": 1, "errors": 2},
    {"requests": 1, "errors": -1},
    {"requests": 2**60},
    {"requests": 1, "latency": {-1: 1}},
    {"requests": 1, "latency": {10**9: 1}},
    {"requests": 1, "latency": {1: -1}},
    {"requests": 1, "latency": {1: 2}},
    {"requests": 1, "mirrored": Mirrored(sent=-1)},
    {"requests": 1, "mirrored": Mirrored(compared=1, differed=2)},
    {"requests": 1, "mirrored": Mirrored(examples=(Example(request_id="r", primary="x" * 10**5, shadow=""),))},
]


@pytest.mark.parametrize("fields", HOSTILE)
def test_numbers_that_cannot_be_are_dropped_with_one_line(
    desk: Desk, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk.report("good", 3, 1)
    for _ in range(3):
        desk.report("bad", **fields)
    assert desk.sums == (3, 1)
    assert desk.ledger.mirrored("app", 1) == Mirrored()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("fields", [{"app": "x" * 10_000}, {"revision": 9}, {"revision": -1}, {"deployment": "Other"}])
def test_what_nobody_knows_of_is_dropped(desk: Desk, fields: dict[str, Any]) -> None:
    desk.report("a", 3, **fields)
    assert not desk.ledger._entries
    assert desk.news == []


def test_what_is_gone_is_forgotten() -> None:
    there = {1, 2}
    store = Store(Path(":memory:"), synced=False)
    store.open()
    ledger = Ledger(Timelines(store), BEGAN, lambda app, revision, deployment: not revision or revision in there)
    for revision in (1, 2):
        ledger.counted("a", [Counted(app="app", revision=revision, deployment="Model", requests=1)], LATER)
        ledger.signals("a", [Signal(app="app", name="sold", value=1.0, revision=revision)], LATER)
    there.remove(1)
    ledger.forget()
    assert ledger.totals("app", 1, "Model").requests == 0
    assert ledger.metrics("app", 1) == {}
    assert ledger.totals("app", 2, "Model").requests == 1
    assert ledger.metrics("app", 2) == {"sold": Moments(1, 1.0, 1.0)}


def test_mirrored_requests_are_added_up(desk: Desk) -> None:
    example = Example(request_id="r", primary="1", shadow="2")
    desk.report("a", 1, mirrored=Mirrored(sent=3, compared=2, differed=1, examples=(example,)))
    desk.report("b", 1, mirrored=Mirrored(sent=1, skipped=4, failed=1))
    assert desk.ledger.mirrored("app", 1) == Mirrored(
        sent=4, skipped=4, failed=1, compared=2, differed=1, examples=(example,)
    )


# --- signals ----------------------------------------------------------------------------------------------------------


def test_signals_belong_to_the_revision_of_their_request(desk: Desk) -> None:
    desk.timelines.note("app", WEIGHTS, BEGAN)
    split = Split(WEIGHTS.items(), "app")
    ids = [new_id(BEGAN + 100, i.to_bytes(10)) for i in range(50)]
    for each in ids:
        desk.signal(float(split.of(each)), request_id=each)
    desk.signal(10.0, key="user", at=BEGAN + 50)
    for revision in (1, 2):
        mine = [each for each in ids if split.of(each) == revision]
        expected = Moments(len(mine), float(len(mine) * revision), float(len(mine) * revision * revision))
        if split.of("user") == revision:
            expected = Moments(expected.count + 1, expected.total + 10, expected.squares + 100)
        assert desk.ledger.metrics("app", revision) == {"sold": expected}
        assert desk.ledger.arm("app", revision, "Model").metrics == {"sold": expected}
    assert desk.news == ["app"] * 51


def test_one_that_knows_its_revision_is_believed_if_there_is_such(desk: Desk) -> None:
    desk.signal(2.0, revision=2, request_id="r")
    desk.signal(2.0, revision=7, request_id="r")
    assert desk.ledger.metrics("app", 2) == {"sold": Moments(1, 2.0, 4.0)}
    assert desk.ledger.unattributed == {"app": 1}


def test_those_of_unknown_requests_are_counted_and_told_of_once(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(5):
        desk.signal(request_id=f"r{i}")
    assert desk.ledger.unattributed == {"app": 5}
    assert len(caplog.records) == 1
    assert desk.news == []


@pytest.mark.parametrize(
    "fields",
    [
        {"value": math.nan},
        {"value": math.inf},
        {"value": 1e200},
        {"name": ""},
        {"name": "x" * 1000},
        {"app": "other"},
        {"request_id": "r" * 10**6},
    ],
)
def test_signals_that_cannot_be_are_dropped(
    desk: Desk, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk.timelines.note("app", {1: 1.0}, BEGAN)
    for _ in range(2):
        desk.signal(**{"request_id": "r"} | fields)
    assert desk.ledger.metrics("app", 1) == {}
    assert len(caplog.records) == 1


def test_metrics_are_not_without_number(desk: Desk) -> None:
    for i in range(2 * MOST_METRICS):
        desk.signal(name=f"m{i}", revision=1)
    assert len(desk.ledger.metrics("app", 1)) == MOST_METRICS


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans())))
def test_sums_never_fall_and_count_each_request_once(steps: list[tuple[str, int, bool]]) -> None:
    desk = Desk()
    counts: dict[str, int] = {}
    for process, more, leaves in steps:
        counts[process] = counts.get(process, 0) + more
        desk.ledger.present(process)
        desk.report(process, counts[process])
        if leaves:
            desk.ledger.gone(process)
        assert desk.sums == (sum(counts.values()), 0)


# --- timelines --------------------------------------------------------------------------------------------------------


def entry(weights: dict[int, float], sticky: Sticky | None = None, name: str = "app") -> ApplicationEntry:
    revisions = tuple(RevisionEntry(number=n, weight=weight, deployments={}) for n, weight in weights.items())
    return ApplicationEntry(name=name, route_prefix="/", ingress="Model", revisions=revisions, sticky=sticky)


def test_timelines_outlive_the_controller_and_not_their_application(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state")
    desk.timelines.published(Snapshot(applications={"app": entry({1: 1.0, 2: 0.0}), "b": entry({1: 1.0})}), BEGAN)
    desk.timelines.published(Snapshot(applications={"app": entry({1: 0.5, 2: 0.5}), "b": entry({1: 1.0})}), BEGAN + 9)
    desk.timelines.published(Snapshot(applications={"app": entry(WEIGHTS, Sticky(of="query", name="u"))}), BEGAN + 10)
    desk.store.close()
    again = Desk(tmp_path / "state")
    again.timelines.load()
    entries = again.timelines.of("app").entries
    assert [(each.at, each.weights, each.keyed) for each in entries] == [
        (BEGAN, {1: 1.0}, False),
        (BEGAN + 9, WEIGHTS, False),
        (BEGAN + 10, WEIGHTS, True),
    ]
    assert again.timelines.of("b").entries == ()
    again.timelines.published(Snapshot(), LATER)
    assert again.store.timelines() == {}


def test_of_timelines_only_so_much_is_kept_on_disk(desk: Desk) -> None:
    for i in range(1100):
        desk.timelines.note("app", {1 + i % 2: 1.0}, BEGAN + i)
    assert desk.store.timelines()["app"] == list(desk.timelines.of("app").entries)
