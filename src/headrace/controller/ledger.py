"""What all processes have counted of requests, and what users have reported of them, by application and revision.

In: CountsReports and Signals of processes, and that they are gone. Out: sums, which only grow as long as the controller
lives; that there is news of an application. What a report says is not trusted: what nobody knows of is dropped, and so
are numbers that cannot be, with one line in the log for each process.

Reports are cumulative, so the last one of each process says all of it. A process that is gone may be back with the
same counts, when only its connection broke: so its report stays for a while, and is added to the rest for good later.
Of a process that is older than the controller, what it had counted before its first report is none of it: an earlier
controller may have gone by that already.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from headrace.controller.timelines import Timelines
from headrace.core.analysis import Arm
from headrace.core.buckets import COUNT
from headrace.core.request_ids import time_of
from headrace.spec.counts import Counted, Mirrored, Moments, Signal

logger = logging.getLogger(__name__)

MOST = 2**53  # of anything that is counted
MOST_GONE = 64  # processes without a connection whose reports are still told apart
MOST_FORGOTTEN = 10_000
MOST_EXAMPLES = 20
LONGEST_TEXT = 10_000
MOST_METRICS = 100  # names of one application
LONGEST_NAME = 100
LARGEST = 1e70  # of a reported value, whose square is summed up
MOST_COMPLAINTS = 1000

Key = tuple[str, int, str]  # application, revision, deployment


@dataclass(slots=True)
class _Entry:
    """Of one deployment of one revision: the last report of each process, and the sum of those gone for good, less what
    is not to be counted of the others.
    """

    folded: Counted
    reports: dict[str, Counted] = field(default_factory=dict)


class Ledger:
    """All that is known since `began` (seconds since the epoch). `known(app, revision, deployment)` says what there is
    (0, "": any), `on_news(app)` hears of changes.
    """

    def __init__(
        self,
        timelines: Timelines,
        began: float,
        known: Callable[[str, int, str], bool],
        on_news: Callable[[str], None] = lambda app: None,
    ) -> None:
        self._timelines = timelines
        self._began = began
        self._known = known
        self._on_news = on_news
        self._entries: dict[Key, _Entry] = {}
        self._metrics: dict[tuple[str, int], dict[str, Moments]] = {}
        self._fresh: dict[tuple[str, int], dict[str, Moments]] = {}  # the same since they were last taken
        self._heard: set[str] = set()  # processes that have reported, aside from those gone for good
        self._gone: dict[str, None] = {}  # the one that left first, first
        self._forgotten: dict[str, None] = {}  # gone for good, likewise
        self._complained: set[str] = set()
        self.unattributed: dict[str, int] = {}  # signals by application whose request's revision nobody can tell

    def __repr__(self) -> str:
        return f"<Ledger {len(self._entries)} entries, {len(self._gone)} processes gone>"

    # --- what comes -------------------------------------------------------------------------------------------------

    def counted(self, process: str, reports: Iterable[Counted], since: float) -> None:
        """The process has counted this since it began, at `since`. `process` names no other one, ever."""
        news: dict[str, None] = {}
        # The first report of a process has all that it knows.
        former = process not in self._heard and (since < self._began or process in self._forgotten)
        self._heard.add(process)
        for report in reports:
            if not self._known(report.app, report.revision, report.deployment):
                continue  # it is gone, or this comes from somebody who makes things up
            fault = _fault_of(report)
            if fault:
                self._complain(process, report, fault)
                continue
            key = (report.app, report.revision, report.deployment)
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry(_nothing(key))
            before = entry.reports.get(process)
            if before is not None and before.requests > report.requests:
                _add(entry.folded, before)  # it began anew
            entry.reports[process] = report
            if former:
                _add(entry.folded, report, -1)
                continue
            news[report.app] = None
        for app in news:
            self._on_news(app)

    def present(self, process: str) -> None:
        """The process has a connection, for the first time or again."""
        self._gone.pop(process, None)

    def gone(self, process: str) -> None:
        """The process has none any more."""
        self._gone[process] = None
        if len(self._gone) > MOST_GONE:
            eldest = next(iter(self._gone))
            del self._gone[eldest]
            self._heard.discard(eldest)
            self._forgotten[eldest] = None
            if len(self._forgotten) > MOST_FORGOTTEN:
                del self._forgotten[next(iter(self._forgotten))]
            for entry in self._entries.values():
                report = entry.reports.pop(eldest, None)
                if report is not None:
                    _add(entry.folded, report)

    def signals(self, process: str, signals: Iterable[Signal], now_s: float) -> None:
        """Users report these values. `now_s` is seconds since the epoch."""
        news: dict[str, None] = {}
        for signal in signals:
            fault = self._fault_of_signal(signal)
            if fault:
                self._complain(process, signal, fault)
                continue
            revision = signal.revision or self._revision_of(signal, now_s)
            if not revision or not self._known(signal.app, revision, ""):
                self._unattributable(signal)
                continue
            metrics = self._metrics.setdefault((signal.app, revision), {})
            moments = metrics.get(signal.name)
            if moments is None:
                if len(metrics) >= MOST_METRICS:
                    self._complain(process, signal, f"{signal.app} has {MOST_METRICS} metrics already")
                    continue
                moments = metrics[signal.name] = Moments()
            fresh = self._fresh.setdefault((signal.app, revision), {}).setdefault(signal.name, Moments())
            for each in (moments, fresh):
                each.count += 1
                each.total += signal.value
                each.squares += signal.value * signal.value
            news[signal.app] = None
        for app in news:
            self._on_news(app)

    def _fault_of_signal(self, signal: Signal) -> str:
        if not math.isfinite(signal.value) or abs(signal.value) > LARGEST:
            return "its value is no number of a size that can be summed up"
        if not 0 < len(signal.name) <= LONGEST_NAME:
            return f"its name has not 1 to {LONGEST_NAME} characters"
        if not self._known(signal.app, 0, ""):
            return "there is no such application"
        if len(signal.request_id) > LONGEST_TEXT or len(signal.key) > LONGEST_TEXT:
            return "its request id or key is too long"
        return ""

    def _revision_of(self, signal: Signal, now_s: float) -> int | None:
        at = signal.at
        if at is None:
            at = time_of(signal.request_id)
        timeline = self._timelines.of(signal.app)
        return timeline.revision_of(now_s if at is None else at, key=signal.key, request_id=signal.request_id)

    def _unattributable(self, signal: Signal) -> None:
        count = self.unattributed[signal.app] = self.unattributed.get(signal.app, 0) + 1
        if count == 1:
            logger.warning(
                "%s=%g of application %r belongs to no revision that is known and there: the weights changed about "
                "when request %r (key %r) was made, or it had a key that was not reported. More are only counted",
                signal.name,
                signal.value,
                signal.app,
                signal.request_id[:100],
                signal.key[:100],
            )

    def _complain(self, process: str, what: Counted | Signal, fault: str) -> None:
        if process not in self._complained and len(self._complained) < MOST_COMPLAINTS:
            self._complained.add(process)
            logger.error("dropped what %s reports of %.100r, and more of the kind: %s", process, what.app, fault)

    def forget(self) -> None:
        """Forget what there is no more."""
        for key in [key for key in self._entries if not self._known(*key)]:
            del self._entries[key]
        for app, revision in [each for each in self._metrics if not self._known(*each, "")]:
            del self._metrics[app, revision]
            self._fresh.pop((app, revision), None)
        for app in [app for app in self.unattributed if not self._known(app, 0, "")]:
            del self.unattributed[app]

    # --- what is asked ----------------------------------------------------------------------------------------------

    def totals(self, app: str, revision: int, deployment: str) -> Counted:
        """What was counted of the deployment of the revision, by all processes together."""
        key = (app, revision, deployment)
        total = _nothing(key)
        entry = self._entries.get(key)
        if entry is not None:
            _add(total, entry.folded)
            for report in entry.reports.values():
                _add(total, report)
        return total

    def arm(self, app: str, revision: int, ingress: str) -> Arm:
        """What an analysis goes by: all since the controller began, of the deployment at the door of the revision."""
        total = self.totals(app, revision, ingress)
        return Arm(total.requests, total.errors, total.latency, self.metrics(app, revision))

    def take_metrics(self, app: str, revision: int) -> dict[str, Moments]:
        """What users have reported of the revision's requests since this was last asked: not a difference of sums, in
        which one huge value would swallow all that come after it.
        """
        return self._fresh.pop((app, revision), {})

    def metrics(self, app: str, revision: int) -> dict[str, Moments]:
        """What users reported of the revision's requests, by name; copies."""
        metrics = self._metrics.get((app, revision), {})
        return {name: Moments(each.count, each.total, each.squares) for name, each in metrics.items()}

    def mirrored(self, app: str, revision: int) -> Mirrored:
        """What became of the requests that were mirrored to the revision."""
        found = Mirrored()
        for of_app, of_revision, deployment in self._entries:
            if (of_app, of_revision) == (app, revision):
                mirrored = self.totals(app, revision, deployment).mirrored
                if mirrored is not None:
                    _add_mirrored(found, mirrored)
        return found


def _nothing(key: Key) -> Counted:
    app, revision, deployment = key
    return Counted(app=app, revision=revision, deployment=deployment)


def _add(total: Counted, part: Counted, times: int = 1) -> None:
    """Add the part, or with `times` -1 have it not counted when it is added later."""
    total.requests += times * part.requests
    total.errors += times * part.errors
    latency = dict(total.latency)
    for bucket, count in part.latency.items():
        latency[bucket] = latency.get(bucket, 0) + times * count
    total.latency = {bucket: count for bucket, count in latency.items() if count}
    if part.mirrored is not None:
        if total.mirrored is None:
            total.mirrored = Mirrored()
        _add_mirrored(total.mirrored, part.mirrored, times)


def _add_mirrored(total: Mirrored, part: Mirrored, times: int = 1) -> None:
    total.sent += times * part.sent
    total.skipped += times * part.skipped
    total.failed += times * part.failed
    total.compared += times * part.compared
    total.differed += times * part.differed
    if times > 0:
        total.examples = (*total.examples, *part.examples)[:MOST_EXAMPLES]


def _fault_of(report: Counted) -> str:
    """What cannot be of a report; "" for nothing."""
    if not 0 <= report.errors <= report.requests <= MOST:
        return f"{report.errors} errors of {report.requests} requests"
    if not all(0 <= bucket < COUNT and count >= 0 for bucket, count in report.latency.items()):
        return "its latencies are in no buckets"
    if sum(report.latency.values()) > report.requests:
        return "it has more latencies than requests"
    mirrored = report.mirrored
    if mirrored is None:
        return ""
    numbers = (mirrored.sent, mirrored.skipped, mirrored.failed, mirrored.compared, mirrored.differed)
    if not all(0 <= number <= MOST for number in numbers) or mirrored.differed > mirrored.compared:
        return "its counts of mirrored requests cannot be"
    texts = [text for each in mirrored.examples for text in (each.request_id, each.primary, each.shadow, each.reason)]
    if len(mirrored.examples) > MOST_EXAMPLES or any(len(text) > LONGEST_TEXT for text in texts):
        return "its examples are too many or too long"
    return ""
