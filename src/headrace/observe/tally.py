"""What one process counts of requests, by application, revision and deployment: plain additions of integers.

In: the end of each request, from the router. Out: what has changed since the last report, for the controller.

A request is counted once, when its answer comes: hedged, repeated or moved, it is one request. It is an error when the
server failed, that is by a status of 500 and above, or by the end of its time; what its client cancelled is not
counted. Latencies are those of requests that were answered and did not fail, from the door to the first part of the
answer: an error that comes at once does not make a revision quick.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from headrace.core.buckets import COUNT
from headrace.spec.counts import Counted, Mirrored

TIMED_OUT = 408


class Tally:
    """What was counted of one deployment of one revision, by the calls themselves (router/call.py). `latency` counts by
    bucket, `mirrored` is set by who mirrors requests to it.
    """

    __slots__ = ("app", "deployment", "errors", "latency", "mirrored", "requests", "revision", "told")

    def __init__(self, app: str, revision: int, deployment: str) -> None:
        self.app = app
        self.revision = revision
        self.deployment = deployment
        self.requests = 0
        self.errors = 0
        self.latency = [0] * COUNT
        self.mirrored: Mirrored | None = None
        self.told = self._marks()

    def __repr__(self) -> str:
        return f"<Tally {self.app}/{self.deployment} {self.revision} {self.requests} requests, {self.errors} errors>"

    def failed(self, status: int) -> None:
        """A request ended with an error of this status and no answer."""
        self.requests += 1
        if status >= 500 or status == TIMED_OUT:
            self.errors += 1

    def broke(self, status: int) -> None:
        """The answer of a request that was counted as answered has broken off since."""
        if status >= 500 or status == TIMED_OUT:
            self.errors += 1

    @property
    def changed(self) -> bool:
        """Whether there is more than was told."""
        return self.told != self._marks()

    def _marks(self) -> tuple[int, ...]:
        mirrored = self.mirrored
        if mirrored is None:
            return (self.requests, self.errors)
        return (self.requests, self.errors, mirrored.sent, mirrored.skipped, mirrored.failed, mirrored.compared)

    def tell(self) -> Counted:
        """All that was counted so far, which is told from now on."""
        self.told = self._marks()
        mirrored = self.mirrored
        return Counted(
            app=self.app,
            revision=self.revision,
            deployment=self.deployment,
            requests=self.requests,
            errors=self.errors,
            latency={bucket: count for bucket, count in enumerate(self.latency) if count},
            mirrored=None
            if mirrored is None
            else Mirrored(
                sent=mirrored.sent,
                skipped=mirrored.skipped,
                failed=mirrored.failed,
                compared=mirrored.compared,
                differed=mirrored.differed,
                examples=mirrored.examples,
            ),
        )


class Tallies:
    """All of one process, which has counted since `began` (seconds since the epoch)."""

    def __init__(self) -> None:
        self.began = time.time()
        self._tallies: dict[tuple[str, int, str], Tally] = {}
        self._leaving: list[Tally] = []  # of revisions that are gone, with something left to tell

    def __repr__(self) -> str:
        return f"<Tallies {list(self._tallies.values())}>"

    def of(self, app: str, revision: int, deployment: str) -> Tally:
        """That of the deployment of the revision, from now on or as it was."""
        key = (app, revision, deployment)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(app, revision, deployment)
        return tally

    def keep(self, living: Iterable[tuple[str, int, str]], apps: Iterable[str]) -> None:
        """Forget all others: those of applications that are gone at once, those of revisions once they are told."""
        kept, known = set(living), set(apps)
        for key in self._tallies.keys() - kept:
            self._leaving.append(self._tallies.pop(key))
        self._leaving = [tally for tally in self._leaving if tally.app in known]

    def changed(self) -> list[Counted]:
        """What is new. It counts as told: `untold` takes that back."""
        news = [tally.tell() for tally in self._tallies.values() if tally.changed]
        if self._leaving:
            news += [tally.tell() for tally in self._leaving if tally.changed]
            self._leaving.clear()
        return news

    def untold(self) -> None:
        """Whoever was told has forgotten it, or has not heard it: all of it is new."""
        for tally in self._tallies.values():
            tally.told = ()
            if not tally.requests and tally.mirrored is None:
                tally.told = tally._marks()
