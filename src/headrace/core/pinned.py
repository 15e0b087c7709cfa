"""What requests may still call that were given to a revision before it lost its traffic.

In: an application's record, and `now`. Out: since when each revision gets no new requests; the deployments to be held
for those that it got before. Such a request is in work at a replica that leaves, until that is gone, or at one that a
live revision shares: nobody tells how long, so it has the time that its deployment gives to what is in work when it
leaves (`graceful_shutdown_timeout_s`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from headrace.core.fleet import Application, callees_first, entry_key
from headrace.core.lifecycle import Phase
from headrace.spec.application import DeploymentSpec

_BUSY = frozenset({Phase.RECOVERING, Phase.RUNNING, Phase.RETIRING, Phase.DRAINING})


def note_idle(app: Application, routed: int, now: float) -> None:
    """Note since when revisions get no new requests: those of which all routers know that they have no weight."""
    known = app.weights_at is not None and app.weights_at <= routed
    for number in app.revisions:
        if number in app.weights or number in app.former:
            app.idle[number] = math.inf
        elif known and app.idle.get(number) == math.inf:
            app.idle[number] = now
    for number in app.idle.keys() - app.revisions.keys():
        del app.idle[number]


def held(app: Application, wanted: Mapping[str, DeploymentSpec], now: float) -> tuple[set[str], float | None]:
    """The keys of the deployments of no live revision that may still be called, and when there may be fewer of them."""
    found: set[str] = set()
    until: float | None = None
    if app.deleting:
        return found, until
    busy = {replica.key for replica in app.replicas.values() if replica.phase in _BUSY}
    for number in app.idle:
        called: set[str] = set()
        for deployment in reversed(callees_first(app.revisions[number])):
            key = entry_key(app.name, deployment)
            if key in wanted:
                due = _due(app, number, deployment)
                calls = now < due
                if calls and deployment.uses and due != math.inf:
                    until = due if until is None else min(until, due)
            else:
                calls = key in busy or deployment.name in called
                if deployment.name in called:
                    found.add(key)
            if calls:
                called.update(deployment.uses)
    return found, until


def is_called(app: Application, number: int, wanted: Mapping[str, DeploymentSpec], now: float) -> bool:
    """Whether a request of the revision may be in work at a replica that a live revision shares, and call others."""
    return any(
        deployment.uses and entry_key(app.name, deployment) in wanted and now < _due(app, number, deployment)
        for deployment in app.revisions[number].deployments
    )


def _due(app: Application, number: int, caller: DeploymentSpec) -> float:
    """Until when the caller, which goes on, may have requests of the revision in work."""
    return app.idle.get(number, -math.inf) + caller.options.graceful_shutdown_timeout_s
