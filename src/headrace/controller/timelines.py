"""The weights that the traffic of each application had, and since when: in memory and on disk together.

In: what the reconciler publishes. Out: for signals that come later, the revision that their request went to.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.controller.kept import KeptTimelines
from headrace.core.attribution import Timeline
from headrace.spec.snapshot import ApplicationEntry, Snapshot


class Timelines:
    """The timelines of all applications that there are."""

    def __init__(self, store: KeptTimelines) -> None:
        self._store = store
        self._timelines: dict[str, Timeline] = {}

    def __repr__(self) -> str:
        return f"<Timelines of {', '.join(sorted(self._timelines)) or 'no application'}>"

    def load(self) -> None:
        """Read what an earlier controller kept."""
        self._timelines = {app: Timeline(app, entries) for app, entries in self._store.timelines().items()}

    def of(self, app: str) -> Timeline:
        """That of the application; an empty one where nothing is known of it."""
        return self._timelines.get(app) or Timeline(app)

    def note(self, app: str, weights: Mapping[int, float], at: float, keyed: bool = False) -> None:
        """From `at` on (seconds since the epoch) the application's traffic is shared so. `keyed`: by keys of its own,
        for those requests that have one.
        """
        timeline = self._timelines.get(app)
        if timeline is None:
            timeline = self._timelines[app] = Timeline(app)
        entry = timeline.note(weights, at, keyed)
        if entry is not None:
            self._store.keep_weights(app, entry, timeline.begins or 0.0)

    def published(self, snapshot: Snapshot, at: float) -> None:
        """Routers go by this snapshot from now on. Applications that are gone from it are forgotten."""
        for name, entry in snapshot.applications.items():
            self.note(name, weights_of(entry), at, entry.sticky is not None)
        for name in self._timelines.keys() - snapshot.applications.keys():
            del self._timelines[name]
            self._store.forget_weights(name)


def weights_of(entry: ApplicationEntry) -> dict[int, float]:
    """The weights of the revisions that have any."""
    return {revision.number: revision.weight for revision in entry.revisions if revision.weight > 0}
