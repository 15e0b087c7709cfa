"""What a person is told of a rollout, from what the controller knows.

In: an application's record, and the time on both clocks. Out: a RolloutStatus, of the rollout under way or of the last.
"""

from __future__ import annotations

from headrace.core import rollout as rollouts
from headrace.core.evidence import Arm
from headrace.core.fleet import Application
from headrace.core.plan import shares_ready
from headrace.core.rollout import Rollout, Seen, Stage
from headrace.spec.counts import Mirrored
from headrace.spec.rollout import STRATEGIES, Canary, Shadow
from headrace.spec.status import RolloutStatus

_NAMES = {strategy: name for name, strategy in STRATEGIES.items()}


def rollout_status(
    app: Application, routed: int, now: float, now_s: float, mirrored: Mirrored | None = None
) -> RolloutStatus | None:
    """The rollout under way, or the last; None where there was none. `now_s` is seconds since the epoch, `now` the same
    moment on the controller's clock; `routed` is the oldest snapshot that some router may go by.
    """
    rollout = app.rollout or app.ended
    if rollout is None:
        return None
    ready = shares_ready(app, routed)
    known = app.weights_at is not None and app.weights_at <= routed
    seen = Seen(weights=app.weights if known else None, ready=ready, verdict=app.verdict)
    due = rollouts.due_at(rollout)
    # What somebody asked for besides is told here too: `mirrored` counts it.
    shadow = app.shadows[max(app.shadows)] if app.shadows else rollouts.shadow_of(rollout)
    ended = rollout.stage is Stage.ENDED
    arms = _arms(app, rollout)
    return RolloutStatus(
        app=app.name,
        revision=rollout.revision,
        baseline=rollouts.heaviest(rollout.base),
        strategy=_NAMES[type(rollout.strategy)],
        stage=rollout.stage.value,
        step=rollout.step,
        steps=_steps(rollout),
        paused=rollout.paused,
        weights=dict(app.weights),
        shadow=shadow.fraction if shadow is not None else 0.0,
        ready=ready.get(rollout.revision, 0.0),
        since=now_s - (now - rollout.since),
        next_at=now_s + (due - now) if due is not None else 0.0,
        outcome=rollout.outcome if ended else "",
        reason=rollouts.why(rollout, seen, now),
        checks=app.verdict.checks,
        mirrored=mirrored,
        requests={number: arm.requests for number, arm in arms.items()},
        errors={number: arm.errors for number, arm in arms.items()},
    )


def _arms(app: Application, rollout: Rollout) -> dict[int, Arm]:
    """What its analysis has seen of the candidate, and of the baseline where that is one revision; {} without any."""
    seen = app.evidence
    if not seen.candidate.requests and not seen.baseline.requests:
        return {}
    others = [number for number in rollout.base if number != rollout.revision]
    return {rollout.revision: seen.candidate} | ({others[0]: seen.baseline} if len(others) == 1 else {})


def _steps(rollout: Rollout) -> int:
    match rollout.strategy:
        case Canary(steps=steps):
            return len(steps)
        case Shadow():
            return 1
        case _:
            return 0
