"""What the choice of a revision and counting cost for each request: `python bench/counting_cost.py`.

Each row is one request through the router's own code, with a pool that answers at once, by how many revisions share
the traffic: to choose its revision by its id, and to count its answer. The figure is the least of interleaved rounds,
in microseconds of processor time, less that of a router that knows one revision and does not count: what else runs on
the machine only ever adds to it. To stay under 2 µs is the budget.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from time import process_time

from headrace.ingress.door import RequestIds
from headrace.router import Call, Router
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, RevisionEntry, Snapshot

REVISIONS = (1, 2, 5)
ROUNDS = 150
REQUESTS = 2_000


class Answered(Call):
    """A call whose answer is of no interest."""

    def __init__(self, request_id: str) -> None:
        self.app = "app"
        self.deployment = "Model"
        self.request_id = request_id

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """It came."""


class Instant:
    """Stands for the pool and its link: the reply comes at once. `counting`: it is counted, as the link does."""

    def __init__(self, counting: bool) -> None:
        self._counting = counting

    def submit(self, call: Call) -> None:
        call.answered = True
        if self._counting:
            call.count(0)
        call.on_reply(0, b"", b"")


def router(revisions: int) -> Router:
    """One that routes by so many revisions that share the traffic."""
    made = Router(asyncio.new_event_loop(), "bench")
    keys = {number: f"app/Model@{number}" for number in range(1, revisions + 1)}
    made.update(
        Snapshot(
            version=1,
            applications={
                "app": ApplicationEntry(
                    name="app",
                    route_prefix="/",
                    ingress="Model",
                    revisions=tuple(
                        RevisionEntry(number=number, weight=1 / revisions, deployments={"Model": key})
                        for number, key in keys.items()
                    ),
                )
            },
            deployments={
                key: DeploymentEntry(key=key, app="app", name="Model", max_ongoing_requests=10, max_queued_requests=10)
                for key in keys.values()
            },
        )
    )
    return made


def with_both(revisions: int) -> Callable[[], None]:
    """A revision is chosen, and the answer counted."""
    made = router(revisions)
    pool = Instant(True)
    for deployments in made._routes["app"].revisions.values():
        deployments["Model"] = (pool, deployments["Model"][1])  # type: ignore[assignment]
    ids = RequestIds(bytes(16)).next
    submit = made.submit

    def run() -> None:
        for _ in range(REQUESTS):
            submit(Answered(ids()))

    return run


def with_neither() -> Callable[[], None]:
    """As the router would be if each application had one revision, of which nobody wanted to know how it does."""
    pool = Instant(False)
    routes = {"app": (1, {1: {"Model": pool}})}
    ids = RequestIds(bytes(16)).next

    def submit(call: Call) -> None:
        route = routes.get(call.app)
        if route is None:
            return
        revision = call.revision
        if not revision:
            revision = call.revision = route[0]
            call.drawn = True
        deployments = route[1].get(revision)
        found = deployments.get(call.deployment) if deployments is not None else None
        if found is not None:
            found.submit(call)

    def run() -> None:
        for _ in range(REQUESTS):
            submit(Answered(ids()))

    return run


def measure() -> dict[int, float]:
    """Microseconds for each request, by the number of revisions; 0: with neither."""
    runs: dict[int, Callable[[], None]] = {0: with_neither()}
    runs |= {revisions: with_both(revisions) for revisions in REVISIONS}
    times: dict[int, list[float]] = {revisions: [] for revisions in runs}
    for _ in range(ROUNDS):
        for revisions, run in runs.items():
            start = process_time()
            run()
            times[revisions].append((process_time() - start) / REQUESTS * 1e6)
    return {revisions: min(found) for revisions, found in times.items()}


def main() -> int:
    found = measure()
    print(f"{'a request with neither':45}{found[0]:6.2f} µs")
    for revisions in REVISIONS:
        print(f"{f'choice of {revisions} and counting add':45}{found[revisions] - found[0]:6.2f} µs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
