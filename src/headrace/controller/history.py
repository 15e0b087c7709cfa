"""What became of the revisions of each application: who deployed them, when, what changed, how their rollouts ended.

In: begins and ends of rollouts, and what else happens to the traffic, from operations and the reconciler. Out: the
history for people to read, and specifications of former revisions to go back to. On disk as soon as it is said. It
outlives the controller, the application and the life of the instance, and so does the numbering: a number is given to
one revision of a name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, field

import msgspec

from headrace.controller.kept import KeptHistory
from headrace.core.changes import changes
from headrace.spec.application import ApplicationSpec
from headrace.spec.rollout import STRATEGIES, Strategy
from headrace.spec.status import History, HistoryEvent, RevisionRecord, RolloutOutcome

MOST_RECORDS = 200  # of an application, and so with the events
MOST_EVENTS = 1000
MOST_GONE = 100  # applications that are not there any more
LONGEST_TEXT = 4000  # of a reason: a traceback may be long

_ENDS: dict[str, str] = {
    RolloutOutcome.PROMOTED: "promoted",
    RolloutOutcome.FAILED: "failed",
    RolloutOutcome.ROLLED_BACK: "rolled back",
    RolloutOutcome.SUPERSEDED: "superseded",
}
_NAMES = {strategy: name for name, strategy in STRATEGIES.items()}


@dataclass(slots=True)
class _Past:
    """Of one application. `packs`: the source packs of the revisions whose specifications are kept, by number."""

    records: dict[int, RevisionRecord] = field(default_factory=dict)
    events: deque[HistoryEvent] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    packs: dict[int, str] = field(default_factory=dict)

    @property
    def touched_at(self) -> float:
        deployed_at = max((record.at for record in self.records.values()), default=0.0)
        return max(deployed_at, self.events[-1].at if self.events else 0.0)


class Chronicle:
    """The history of all applications of the instance. `load` comes first. Times are seconds since the epoch.

    `living` gives the names of the applications that there are: of others the last hundred are remembered.
    """

    def __init__(self, store: KeptHistory, living: Callable[[], Collection[str]] = tuple) -> None:
        self._store = store
        self._living = living
        self._apps: dict[str, _Past] = {}

    def __repr__(self) -> str:
        return f"<Chronicle of {len(self._apps)} applications>"

    def load(self) -> None:
        """Read what earlier controllers kept."""
        self._apps = {}
        for app, record in self._store.records():
            self._of(app).records[record.number] = record
        for app, number, pack in self._store.kept_specs():
            self._of(app).packs[number] = pack
        for app, event in self._store.events():
            self._of(app).events.append(event)

    def _of(self, app: str) -> _Past:
        return self._apps.setdefault(app, _Past())

    # --- what happens -----------------------------------------------------------------------------------------------

    def begin(
        self,
        app: str,
        number: int,
        spec: ApplicationSpec,
        strategy: Strategy | None,
        by: str,
        at: float,
        previous_spec: ApplicationSpec | None = None,
    ) -> None:
        """A rollout of the revision begins, or (`strategy` None) it is parked.

        What changed is told against `previous_spec`, else against the newest revision that is kept. A revision whose
        number is known is rolled out again: it stays as it was deployed, and only its rollout is another.
        """
        if app not in self._apps:
            self._forget_gone()
        past = self._of(app)
        name = _NAMES[type(strategy)] if strategy is not None else ""
        known = past.records.get(number)
        if known is not None:
            record = msgspec.structs.replace(known, strategy=name, outcome="", reason="", ended_at=0.0, kept=True)
        else:
            if previous_spec is None:
                previous_spec = self.spec_of(app, max((kept for kept in past.packs if kept < number), default=0))
            record = RevisionRecord(
                number=number,
                at=at,
                by=cut(by),
                source=cut(spec.source),
                changes=changes(previous_spec, spec),
                strategy=name,
                labels=spec.labels,
            )
        past.records[number] = record
        past.packs[number] = spec.environment.pack
        self._store.keep_spec(app, number, spec)
        self._store.keep_record(app, record)
        what = "deployed again" if known is not None else "deployed" if strategy is not None else "parked"
        self.event(app, number, what, name, by, at=at)
        while len(past.records) > MOST_RECORDS:
            self._forget(app, past, min(past.records))

    def changed(
        self, app: str, number: int, spec: ApplicationSpec, by: str, at: float, previous_spec: ApplicationSpec
    ) -> None:
        """Options of the revision were changed in place: from now on it is kept as `spec` says."""
        past = self._of(app)
        if number in past.packs:
            past.packs[number] = spec.environment.pack
            self._store.keep_spec(app, number, spec)
        lines = changes(previous_spec, spec)
        if lines:
            self.event(app, number, "changed in place", "; ".join(lines), by, at=at)

    def end(self, app: str, number: int, outcome: str, reason: str, at: float, by: str = "") -> None:
        """The rollout of the revision has ended so (a RolloutOutcome). One that was promoted may be rolled back later.

        Raises ValueError for another outcome.
        """
        outcome = RolloutOutcome(outcome)
        past = self._of(app)
        record = past.records.get(number)
        if record is not None:
            record = msgspec.structs.replace(record, outcome=outcome, reason=cut(reason), ended_at=at)
            past.records[number] = record
            self._store.keep_record(app, record)
        self.event(app, number, _ENDS[outcome], reason, by, at=at)

    def event(self, app: str, revision: int, what: str, reason: str = "", by: str = "", *, at: float) -> None:
        """Something happened to the traffic. `begin`, `changed` and `end` have their events by themselves."""
        event = HistoryEvent(at=at, revision=revision, what=what, reason=cut(reason), by=cut(by))
        self._of(app).events.append(event)
        self._store.keep_event(app, event, MOST_EVENTS)

    # --- what is let go ---------------------------------------------------------------------------------------------

    def prune(self, app: str, depth: int, in_use: Set[int]) -> None:
        """Let go of specifications of revisions that are not in use, but for the `depth` newest that were promoted and
        the `depth` newest others. Those that failed never ran, and are not kept.
        """
        past = self._apps.get(app)
        if past is None:
            return
        depth = max(depth, 0)
        former = sorted(past.packs.keys() - in_use, reverse=True)
        promoted = [number for number in former if _outcome(past, number) == RolloutOutcome.PROMOTED]
        others = [
            number
            for number in former
            if _outcome(past, number) not in (RolloutOutcome.PROMOTED, RolloutOutcome.FAILED)
        ]
        keep = {*promoted[:depth], *others[:depth]}
        for number in former:
            if number not in keep:
                self._let_go(app, past, number)

    def _let_go(self, app: str, past: _Past, number: int) -> None:
        del past.packs[number]
        self._store.forget_spec(app, number)
        record = past.records.get(number)
        if record is not None:
            past.records[number] = record = msgspec.structs.replace(record, kept=False)
            self._store.keep_record(app, record)

    def _forget(self, app: str, past: _Past, number: int) -> None:
        """Forget the record; not the specification, which may be in use."""
        del past.records[number]
        self._store.forget_record(app, number)

    def _forget_gone(self) -> None:
        """Of the applications that are not there any more, forget all but the last hundred."""
        living = self._living()
        gone = sorted((app for app in self._apps if app not in living), key=lambda app: self._apps[app].touched_at)
        for app in gone[:-MOST_GONE]:
            del self._apps[app]
            self._store.forget_history(app)

    # --- what is asked ----------------------------------------------------------------------------------------------

    def __contains__(self, app: object) -> bool:
        return app in self._apps

    def newest(self, app: str) -> int:
        """The highest number that a revision of the name was ever given, in this life of the instance or another, and
        whether it runs or failed; 0: none ever. The next is one more.
        """
        past = self._apps.get(app)
        return max((*past.records, *past.packs), default=0) if past is not None else 0

    def spec_of(self, app: str, number: int) -> ApplicationSpec | None:
        """The revision as it is kept; None when it never was, or is not any more."""
        past = self._apps.get(app)
        return self._store.kept_spec(app, number) if past is not None and number in past.packs else None

    def kept(self, app: str) -> list[int]:
        """The revisions that can have traffic again, oldest first."""
        past = self._apps.get(app)
        return sorted(past.packs) if past is not None else []

    def packs(self) -> set[str]:
        """The source packs that kept revisions name: all others may go."""
        return {pack for past in self._apps.values() for pack in past.packs.values() if pack}

    def last_promoted(self, app: str, before: int) -> int:
        """The newest kept revision below `before` that was promoted, and not rolled back since; 0: none."""
        past = self._apps.get(app)
        if past is None:
            return 0
        good = (number for number in past.packs if _outcome(past, number) == RolloutOutcome.PROMOTED)
        return max((number for number in good if number < before), default=0)

    def record(self, app: str, number: int) -> RevisionRecord | None:
        """What is known of the revision."""
        past = self._apps.get(app)
        return past.records.get(number) if past is not None else None

    def history(self, app: str) -> History:
        """All of it, the newest last; empty for a name that never was."""
        past = self._apps.get(app) or _Past()
        records = tuple(past.records[number] for number in sorted(past.records))
        return History(app=app, revisions=records, events=tuple(past.events))


def _outcome(past: _Past, number: int) -> str:
    record = past.records.get(number)
    return record.outcome if record is not None else ""


def cut(text: str) -> str:
    """The text with its end, where it is too long: of a traceback the end says most."""
    return text if len(text) <= LONGEST_TEXT else f"…{text[-LONGEST_TEXT + 1 :]}"
