"""How many replicas the old and the new deployments of a rolling update have, in turn, and when the old hand over.

In: the record of an application whose traffic moves bit by bit, forwards or back. Out: a number of replicas for a
deployment; whether all of the traffic is to move at once, and which revisions gave theirs away so.

New replicas take the room that `max_surge` gives and that old ones leave. The last replica of each old deployment stays
while its revision has traffic, of which the rest could serve nothing without it: no revision calls another's. Where
those last ones hold the only room that a new one could have, weight cannot follow what is ready any further. Then the
old revisions hand over: the new one gets all of the traffic, its requests wait where nothing serves them yet, and the
old replicas leave as those of any revision without traffic do, callers before those they call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.lifecycle import COUNTED
from headrace.core.rollout import Stage
from headrace.spec.rollout import RollingUpdate

if TYPE_CHECKING:
    from headrace.core.fleet import Application


class Sides(NamedTuple):
    """The revisions that traffic moves from and to, and how."""

    old: Set[int]
    new: Set[int]
    strategy: RollingUpdate


def sides(app: Application) -> Sides | None:
    """Of a rolling update; None where no traffic moves by one."""
    rollout = app.rollout
    if rollout is None or not isinstance(rollout.strategy, RollingUpdate) or rollout.revision in rollout.base:
        return None
    before, candidate = rollout.base.keys(), {rollout.revision}
    if before and rollout.stage is Stage.FINISHING:
        return Sides(before, candidate, rollout.strategy)
    # What had the traffic has all its replicas back at once, but where there may be no room for them beside the others.
    if before and rollout.stage is Stage.RETREATING and rollout.strategy.max_unavailable:
        return Sides(candidate, before, rollout.strategy)
    return None


def number_in_turn(app: Application, moving: Sides, key: str, number: int, wanted: int) -> int:
    """How many of its `number` of replicas a deployment should have now, whose traffic, at the end, needs `wanted`."""
    is_new, is_old = (any(app.deployment_of(each, key) for each in side) for side in (moving.new, moving.old))
    if is_new and is_old:
        return wanted
    if is_new:
        return min(max(1, wanted), max(_room(app, moving, key, number), len(app.staying(key))))
    return max(1, wanted - _missing(moving.strategy, number))


def hands_over(app: Application, known: Callable[[str], int]) -> bool:
    """Whether a new deployment could only have the room of the last old replica, and all others have begun to serve.

    `known` says how many replicas of a deployment take calls, and all routers know them.
    """
    moving = sides(app)
    if moving is None or not moving.strategy.max_unavailable:
        return False
    counted = Counter(replica.key for replica in app.replicas.values() if replica.phase in COUNTED)
    blocked = False
    for key in {key for revision in moving.new for key in app.keys_of(revision).values()}:
        number, wanted = app.by_share(key)
        others = _others(app, moving, key)
        serving = known(key)
        is_last = max((counted[other] for other in others), default=0) == 1
        if is_last and _room(app, moving, key, number) <= counted[key] == serving < max(1, wanted):
            blocked = True
        elif not serving:
            return False
    return blocked


def handed_over(app: Application) -> Set[int]:
    """The revisions that gave their traffic away although the new one was not wholly ready."""
    moving = sides(app)
    if moving is None or not moving.strategy.max_unavailable or not app.weights:
        return frozenset()
    return moving.old - app.weights.keys() - app.former.keys()


def _room(app: Application, moving: Sides, key: str, number: int) -> int:
    """How many replicas of a new deployment there may be, beside those that it replaces."""
    others = _others(app, moving, key)
    most = max(number, sum(others.values())) + _slots(moving.strategy.max_surge, number, math.ceil)
    return most - sum(len(app.counted(other)) for other in others)


def _others(app: Application, moving: Sides, key: str) -> dict[str, int]:
    """What a new deployment replaces: key -> number of replicas of those of its name in old revisions."""
    name = key.removeprefix(f"{app.name}/").rpartition("@")[0]
    found: dict[str, int] = {}
    for revision in moving.old:
        other = app.keys_of(revision).get(name, key)
        deployment = app.deployment_of(revision, other)
        if deployment is not None and other != key:
            found[other] = deployment.options.num_replicas
    return found


def _missing(strategy: RollingUpdate, number: int) -> int:
    """How many of so many replicas may be missing: one at least, where there may be none beyond the number."""
    return _slots(strategy.max_unavailable, number, math.floor) or int(not strategy.max_surge)


def _slots(given: float, number: int, rounded: Callable[[float], int]) -> int:
    """A number of replicas: as given, or a share of so many."""
    return given if isinstance(given, int) else rounded(given * number)
