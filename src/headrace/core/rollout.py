"""How a new revision takes over the traffic of its application: one machine for all strategies.

In: a rollout as it stands, what is seen of it (weights that routers know, shares of replicas that are ready, the
verdict of the analysis), commands of people, and `now`. Out: the rollout as it stands then; the weights it wants, and
how much of each revision's capacity it needs. A strategy only says which weights are wanted when; what is possible
`blend` says:

- Weights add up to 1. No revision's weight rises above the share of its replicas that are ready, and a candidate's
  falls with it; what it cannot take stays with, or goes back to, those that it came from.
- Where a rolling update has only the room of the last old replicas for new ones, all moves at once (`core/rolling.py`).
- Every end but promotion is the weights of before. Until the end the revisions of before keep the replicas that they
  need for that, but in a rolling update, which gives them their replicas back first.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from headrace.core.analysis import FAIL, HOLD, PASS, Verdict
from headrace.spec.errors import RolloutError
from headrace.spec.rollout import BlueGreen, Canary, Check, Command, RollingUpdate, Shadow, ShadowTraffic, Strategy
from headrace.spec.status import RolloutOutcome

NEAR = 1e-9  # what weights may differ by and be the same


class Stage(enum.StrEnum):
    """How far a rollout is."""

    MOVING = "moving"  # towards the weight of its step, for which replicas may still have to start
    WATCHING = "watching"  # at the weight of its step, or mirrored: time passes, and what is seen is judged
    FINISHING = "finishing"  # taking all of the traffic
    RETREATING = "retreating"  # giving back what it has
    ENDED = "ended"


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout. `base` are the weights it began with, none for the first revision of an application.

    `since` is when the stage began, on the controller's clock. `outcome` and `reason` are set when it is decided how it
    ends; `kind` names the class of the error where it failed.
    """

    revision: int
    base: dict[int, float]
    strategy: Strategy
    stage: Stage = Stage.MOVING
    step: int = 0
    since: float = 0.0
    paused: bool = False
    outcome: str = ""
    reason: str = ""
    kind: str = ""


class Seen(msgspec.Struct, kw_only=True):
    """What the controller sees of a rollout.

    `weights` are those that all routers know by now (None: not all know the present ones), `ready` the share of each
    revision's replicas that take calls and that all routers know. `failure`: why the candidate will not come up.
    """

    weights: Mapping[int, float] | None
    ready: Mapping[int, float]
    verdict: Verdict = Verdict(PASS)
    failure: str = ""
    kind: str = "DeployFailedError"


def begin(revision: int, base: Mapping[int, float], strategy: Strategy, now: float) -> Rollout:
    """The rollout of a revision over an application whose traffic is shared so. Without any, there is no strategy."""
    whole = not base or isinstance(strategy, RollingUpdate)
    stage = Stage.FINISHING if whole else Stage.MOVING
    return Rollout(revision=revision, base=dict(base), strategy=strategy, stage=stage, since=now)


def advance(rollout: Rollout, seen: Seen, now: float) -> Rollout:
    """The rollout after what is seen: as many stages further as that allows."""
    while True:
        following = _next(rollout, seen, now)
        if following is rollout:
            return rollout
        rollout = following


def _next(rollout: Rollout, seen: Seen, now: float) -> Rollout:
    stage = rollout.stage
    if stage is Stage.ENDED:
        return rollout
    if stage is not Stage.RETREATING:
        if seen.failure:
            return _retreat(rollout, RolloutOutcome.FAILED, seen.failure, now, seen.kind)
        if seen.verdict.says == FAIL and rollout.base:
            return _retreat(rollout, RolloutOutcome.ROLLED_BACK, seen.verdict.reason, now, "RolledBackError")
    share = None if seen.weights is None else seen.weights.get(rollout.revision, 0.0)
    if stage is Stage.RETREATING:
        given_back = share is not None and share <= wanted_weight(rollout) + NEAR
        return _at(rollout, Stage.ENDED, now) if given_back or not rollout.base else rollout
    if rollout.paused or share is None or share < wanted_weight(rollout) - NEAR:
        return rollout
    ready = seen.ready.get(rollout.revision, 0.0)
    if stage is Stage.MOVING:
        return _at(rollout, Stage.WATCHING, now) if ready >= candidate_capacity(rollout) - NEAR else rollout
    if stage is Stage.FINISHING:
        if ready < 1.0 - NEAR:
            return rollout
        ended = _at(rollout, Stage.ENDED, now)
        return msgspec.structs.replace(ended, outcome=RolloutOutcome.PROMOTED.value)
    due = due_at(rollout)
    if due is None or now < due or seen.verdict.says == HOLD:
        return rollout
    strategy = rollout.strategy
    if isinstance(strategy, Shadow) and not strategy.promote:
        return rollout
    if isinstance(strategy, Canary) and rollout.step + 1 < len(strategy.steps):
        return msgspec.structs.replace(_at(rollout, Stage.MOVING, now), step=rollout.step + 1)
    return _at(rollout, Stage.FINISHING, now)


def _at(rollout: Rollout, stage: Stage, now: float) -> Rollout:
    return msgspec.structs.replace(rollout, stage=stage, since=now)


def _retreat(rollout: Rollout, outcome: RolloutOutcome, reason: str, now: float, kind: str) -> Rollout:
    retreating = _at(rollout, Stage.RETREATING, now)
    return msgspec.structs.replace(retreating, outcome=outcome.value, reason=reason, kind=kind, paused=False)


def command(rollout: Rollout, given: Command, now: float, reason: str = "") -> Rollout:
    """The rollout after a command. Raises RolloutError where it makes no sense."""
    what = f"the rollout of revision {rollout.revision}"
    if rollout.stage in (Stage.RETREATING, Stage.ENDED):
        raise RolloutError(f"{what} is being rolled back already ({rollout.reason}): {given.value} comes too late")
    match given:
        case Command.PAUSE:
            if rollout.paused:
                raise RolloutError(f"{what} is paused already: resume, promote or abort it")
            return msgspec.structs.replace(rollout, paused=True)
        case Command.RESUME if rollout.paused:
            return msgspec.structs.replace(rollout, paused=False)
        case Command.RESUME if waits_for_word(rollout):
            strategy = rollout.strategy
            if isinstance(strategy, Canary) and rollout.step + 1 < len(strategy.steps):
                return msgspec.structs.replace(_at(rollout, Stage.MOVING, now), step=rollout.step + 1)
            return _at(rollout, Stage.FINISHING, now)
        case Command.RESUME:
            raise RolloutError(f"{what} is not paused: there is nothing to resume")
        case Command.PROMOTE:
            return msgspec.structs.replace(_at(rollout, Stage.FINISHING, now), paused=False)
        case Command.ABORT:
            return _retreat(rollout, RolloutOutcome.ROLLED_BACK, reason or "aborted", now, "RolledBackError")


def waits_for_word(rollout: Rollout) -> bool:
    """Whether the rollout goes no further before somebody says so, without having been paused."""
    return rollout.stage is Stage.WATCHING and due_at(rollout) is None


def due_at(rollout: Rollout) -> float | None:
    """When the stage may be left at the earliest, on the controller's clock; None where time does not decide."""
    if rollout.stage is not Stage.WATCHING:
        return None
    pause_s: float | None
    match rollout.strategy:
        case Canary(steps=steps):
            pause_s = steps[rollout.step][1]
        case BlueGreen(hold_s=hold_s):
            pause_s = hold_s
        case Shadow(duration_s=duration_s, promote=promote):
            pause_s = duration_s if promote else None
        case _:
            pause_s = 0.0
    return None if pause_s is None else rollout.since + pause_s


def analysis_of(rollout: Rollout) -> tuple[tuple[Check, ...], float]:
    """The checks that the rollout goes by, and the chance of a false rollback that it takes."""
    return rollout.strategy.analysis, getattr(rollout.strategy, "false_rollback", 0.05)


def wanted_weight(rollout: Rollout) -> float:
    """The weight that the candidate should have at this stage."""
    match rollout.stage:
        case Stage.FINISHING:
            return 1.0
        case Stage.RETREATING:
            return rollout.base.get(rollout.revision, 0.0)
        case Stage.ENDED:
            return 1.0 if rollout.outcome == RolloutOutcome.PROMOTED else rollout.base.get(rollout.revision, 0.0)
    match rollout.strategy:
        case Canary(steps=steps):
            return steps[rollout.step][0]
        case BlueGreen():
            return 1.0
        case _:
            return 0.0


def wanted_weights(rollout: Rollout, present: Mapping[int, float]) -> dict[int, float]:
    """The weights that all revisions should have at this stage; `present` are those that they have."""
    if rollout.paused and rollout.stage in (Stage.MOVING, Stage.FINISHING):
        return dict(present)
    base = rollout.base
    if rollout.stage is Stage.RETREATING:
        return dict(base)
    weight = wanted_weight(rollout)
    others = {number: share for number, share in base.items() if number != rollout.revision}
    total = sum(others.values())
    if total <= 0 or weight >= 1.0:
        return {rollout.revision: 1.0}
    shares = {number: share / total * (1.0 - weight) for number, share in others.items()}
    return shares if weight <= 0 else {**shares, rollout.revision: weight}


def is_gradual(rollout: Rollout) -> bool:
    """Whether weight moves along with the replicas that get ready, or only when all that it needs are."""
    return rollout.stage in (Stage.FINISHING, Stage.RETREATING)


def candidate_capacity(rollout: Rollout) -> float:
    """The share of its replicas that the candidate needs at this stage."""
    match rollout.stage, rollout.strategy:
        case ((Stage.RETREATING | Stage.ENDED), _):
            return wanted_weight(rollout)
        case ((Stage.MOVING | Stage.WATCHING), Canary(steps=steps)):
            return steps[rollout.step][0]
        case ((Stage.MOVING | Stage.WATCHING), Shadow(fraction=fraction)):
            return fraction
    return 1.0


def capacity(rollout: Rollout, held: Mapping[int, float]) -> dict[int, float]:
    """The share of its replicas that each revision needs; `held` is the weight that routers may still give it."""
    needed = dict(held)
    keeps = rollout.stage is Stage.RETREATING or not isinstance(rollout.strategy, RollingUpdate)
    for number, share in rollout.base.items():
        needed[number] = max(needed.get(number, 0.0), share if keeps else 0.0)
    own = candidate_capacity(rollout)
    needed[rollout.revision] = max(needed.get(rollout.revision, 0.0), own)
    if rollout.stage is Stage.RETREATING and not needed[rollout.revision]:
        del needed[rollout.revision]
    return needed


def shadow_of(rollout: Rollout) -> ShadowTraffic | None:
    """What is mirrored to the candidate at this stage."""
    strategy = rollout.strategy
    if isinstance(strategy, Shadow) and rollout.stage is Stage.WATCHING and not rollout.paused:
        return ShadowTraffic(fraction=strategy.fraction, compare=strategy.compare)
    return None


def blend(
    wanted: Mapping[int, float],
    present: Mapping[int, float],
    ready: Mapping[int, float],
    *,
    trusted: int,
    gradual: bool = False,
) -> dict[int, float]:
    """The weights that can be had on the way from `present` to `wanted`, with this share of each revision ready.

    `trusted` is the revision that gets what no other can take, whatever of it is ready. Weights of 0 are left out.
    Without any present weights, all is given as soon as all that want some are wholly ready, and nothing before.
    """
    if not present:
        whole = all(ready.get(number, 0.0) >= 1.0 - NEAR for number in wanted)
        return _tidy(wanted) if whole else {}
    given: dict[int, float] = {}
    for number, want in wanted.items():
        have, able = present.get(number, 0.0), ready.get(number, 0.0)
        if want > have + NEAR and able < want - NEAR:
            want = max(have, able) if gradual else have
        given[number] = want if number == trusted else min(want, able)
    # The candidate may be ready for more than is wanted of it; what is left over is not for it, but for those from whom
    # it would have come.
    left = 1.0 - sum(given.values())
    if left > NEAR:
        surplus = {
            number: max(0.0, min(have, 1.0 if number == trusted else ready.get(number, 0.0)) - given.get(number, 0.0))
            for number, have in present.items()
        }
        total = sum(surplus.values())
        if total > 0:
            share = min(1.0, left / total)
            for number, spare in surplus.items():
                given[number] = given.get(number, 0.0) + spare * share
            left = 1.0 - sum(given.values())
    if left > NEAR:
        given[trusted] = given.get(trusted, 0.0) + left
    return _tidy(given)


def _tidy(weights: Mapping[int, float]) -> dict[int, float]:
    """The weights without those of nothing, adding up to exactly 1."""
    kept = {number: weight for number, weight in sorted(weights.items()) if weight > NEAR}
    total = sum(kept.values())
    return {number: weight / total for number, weight in kept.items()} if abs(total - 1.0) > NEAR else kept


def heaviest(weights: Mapping[int, float]) -> int:
    """The revision with the most weight, the newest of several; 0 where there is none."""
    return max(weights, key=lambda number: (weights[number], number), default=0)


def describe(rollout: Rollout) -> str:
    """What the rollout does at this stage, for a line of a log."""
    match rollout.stage, rollout.strategy:
        case Stage.RETREATING, _:
            return f"gives back its traffic: {rollout.reason}"
        case Stage.FINISHING, _:
            return "takes all of the traffic"
        case Stage.ENDED, _:
            return f"{rollout.outcome}{': ' if rollout.reason else ''}{rollout.reason}"
        case Stage.MOVING, Canary(steps=steps):
            return f"step {rollout.step + 1} of {len(steps)}: moves to {steps[rollout.step][0]:.1%} of the traffic"
        case Stage.WATCHING, Canary(steps=steps):
            pause_s = steps[rollout.step][1]
            until = "until somebody says go on" if pause_s is None else f"for {pause_s:g} s"
            return f"step {rollout.step + 1} of {len(steps)}: {steps[rollout.step][0]:.1%} of the traffic {until}"
        case Stage.WATCHING, Shadow(fraction=fraction, duration_s=duration_s):
            return f"gets a copy of {fraction:.1%} of the requests for {duration_s:g} s"
        case Stage.WATCHING, BlueGreen(hold_s=hold_s):
            return f"has the traffic; the revision before is kept for {hold_s:g} s"
    return "starts its replicas"


def why(rollout: Rollout, seen: Seen, now: float) -> str:
    """Why the rollout is where it is, for a person."""
    if rollout.reason:
        return rollout.reason
    if rollout.paused:
        return "paused"
    ready = seen.ready.get(rollout.revision, 0.0)
    if rollout.stage in (Stage.MOVING, Stage.FINISHING):
        if ready < candidate_capacity(rollout) - NEAR:
            return f"waits for replicas: {ready:.0%} of them are ready"
        return "waits until every router knows"
    if rollout.stage is Stage.WATCHING:
        due = due_at(rollout)
        if due is None:
            return "waits for somebody to promote or resume it"
        if now < due:
            return f"goes on in {due - now:.0f} s, if all is well"
        if seen.verdict.says == HOLD:
            return seen.verdict.reason
        return "waits for replicas" if ready < candidate_capacity(rollout) - NEAR else "goes on"
    return ""
