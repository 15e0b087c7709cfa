"""How an application's traffic goes to its revisions, told from Python: rollouts, splits, shadows, the way back.

In: names of applications, weights, commands. Out: requests to the controller; where rollouts stand, and what was. On
the instance that `serve.status` means, those in local testing mode and of `serve.testing` too.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from headrace import runtime as runtimes
from headrace.serve.comparators import comparison, exact, numeric, with_comparator
from headrace.serve.driver import current_tie
from headrace.serve.run_target import checked_revision
from headrace.spec.errors import HeadraceError, OptionError, OptionTypeError, RequestTimeoutError
from headrace.spec.rollout import (
    BlueGreen,
    Canary,
    Command,
    Disagreement,
    ErrorRate,
    Latency,
    Metric,
    RollingUpdate,
    Shadow,
    ShadowTraffic,
)
from headrace.spec.rollout import rollout as parse_rollout
from headrace.spec.rollout import weights as parse_weights
from headrace.spec.status import History, RolloutOutcome, RolloutStatus
from headrace.spec.sticky import Sticky
from headrace.spec.sticky import sticky as parse_sticky
from headrace.wire.control import (
    Answer,
    ControlRollout,
    GetHistory,
    GetRollout,
    Operation,
    Past,
    Rollback,
    Rollout,
    SetShadow,
    SetTraffic,
)
from headrace.wire.who import who

if TYPE_CHECKING:
    from headrace.serve.older.client import Client

__all__ = [
    "BlueGreen",
    "Canary",
    "Disagreement",
    "ErrorRate",
    "Latency",
    "Metric",
    "RollingUpdate",
    "Shadow",
    "ShadowTraffic",
    "abort_rollout",
    "exact",
    "history",
    "numeric",
    "pause_rollout",
    "promote",
    "resume_rollout",
    "rollback",
    "rollout_status",
    "set_traffic",
    "shadow_traffic",
    "wait_for_rollout",
]

POLL_S = 0.2

A = TypeVar("A", bound=Answer)


class Unset(enum.Enum):
    """What an argument is that was not given, where None is something else."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


def set_traffic(
    app_name: str,
    weights: Mapping[int, float] | Mapping[str, float],
    *,
    sticky: Sticky | str | Mapping[str, str] | Unset | None = UNSET,
    expected: int | None = None,
) -> None:
    """Share the application's traffic so among its revisions, `{1: 0.9, 2: 0.1}`, until it is changed again.

    Revisions that have stopped are started first; returns when all routers know. `sticky` names by what requests keep
    to one revision (`"header:x-user"`, `"cookie:uid"`, `"query:user"`; None: by nothing), and is left as it is where it
    is not given. `expected` is the newest revision that you know of.

    Raises OptionError, OptionTypeError, ApplicationNotFound, RevisionNotFound, RolloutError while a rollout is under
    way, RevisionConflictError when there is a newer revision than `expected`.

    Code of 2020 shares an endpoint's among backends: `{"v1": 0.9, "v2": 0.1}`.
    """
    if isinstance(weights, Mapping) and weights and all(isinstance(each, str) for each in weights):
        client = _client_of_endpoint(app_name)
        if client is not None:
            client.set_traffic(app_name, {str(tag): weight for tag, weight in weights.items()})
            return
    shares = parse_weights(weights)
    key = None if sticky is UNSET else parse_sticky(sticky)
    _ask(
        SetTraffic(
            app=_checked(app_name),
            weights=shares,
            sticky=key,
            keyless=sticky is None,
            expected=checked_revision("expected", expected),
            by=who(),
        )
    )


def shadow_traffic(
    app_name: str, shadows: Mapping[int, float | ShadowTraffic], proportion: Any = None, *, compare: Any = None
) -> None:
    """Mirror these shares of the application's requests to these revisions, `{3: 0.1}`, and to no other; {}: to none.

    Nobody gets their answers: they are compared with those that callers got, by `compare`: `serve.exact()` (the
    default), `serve.numeric(rtol, atol)`, or a function `(primary, shadow) -> bool`. What came of it is
    `rollout_status(...).mirrored`.

    Raises OptionError, OptionTypeError, PayloadError, ApplicationNotFound, RevisionNotFound, RolloutError.

    Code of 2020 names an endpoint, a backend and a `proportion`.
    """
    if isinstance(shadows, str) and proportion is not None:
        client = _client_of_endpoint(app_name)
        if client is not None:
            client.shadow_traffic(app_name, shadows, proportion)
            return
    if not isinstance(shadows, Mapping):
        raise OptionTypeError(f"shadows={shadows!r} must be a dict of revision and share, such as {{3: 0.1}}")
    compared = comparison(compare)
    wanted: dict[int, ShadowTraffic] = {}
    for revision, given in shadows.items():
        number = checked_revision("shadows", revision, 1)
        if number is None:
            raise OptionTypeError(f"shadows: {revision!r} must be the number of a revision")
        shadow = given if isinstance(given, ShadowTraffic) else ShadowTraffic(fraction=given, compare=compared)
        fraction = shadow.fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            raise OptionTypeError(f"shadows: {number}: {fraction!r} must be a share of the requests, from 0 to 1")
        if not 0.0 <= fraction <= 1.0:
            raise OptionError(f"shadows: {number}: {fraction!r} must be a share of the requests, from 0 to 1")
        if fraction:
            wanted[number] = ShadowTraffic(fraction=float(fraction), compare=comparison(shadow.compare))
    _ask(SetShadow(app=_checked(app_name), shadows=wanted, by=who()))


def promote(app_name: str, revision: int = 0) -> RolloutStatus:
    """Give all of the traffic to the revision that is being rolled out, whatever its steps and its analysis say.

    Returns when it has it. `revision` is the one that you mean, where another may be under way by now. Raises
    RolloutError when none is, or another; RolledBackError, DeployFailedError.
    """
    return _control(app_name, Command.PROMOTE, revision)


def pause_rollout(app_name: str, revision: int = 0) -> RolloutStatus:
    """Keep the rollout at its present weight until it is resumed. A failing analysis still takes it back."""
    return _control(app_name, Command.PAUSE, revision)


def resume_rollout(app_name: str, revision: int = 0) -> RolloutStatus:
    """Have the rollout go on that was paused, or that waits for a word at a step without a time."""
    return _control(app_name, Command.RESUME, revision)


def abort_rollout(app_name: str, reason: str = "", revision: int = 0) -> RolloutStatus:
    """Take the rollout back: the traffic goes as it did before. Returns when it does."""
    return _control(app_name, Command.ABORT, revision, reason)


def rollback(app_name: str, revision: int | None = None, rollout: Any = None, *, reason: str = "") -> RolloutStatus:
    """Go back to an earlier revision, which runs its own code whatever lies on disk by now.

    Takes back the rollout under way; where there is none, or `revision` is named, gives the traffic to that revision
    (None: the last promoted one before the present) as the strategy `rollout` says. Returns when it has it; with
    another strategy than a rolling update, at once. Raises RevisionNotFound where it is not kept.
    """
    strategy = None if rollout is None else with_comparator(parse_rollout(rollout))
    number = checked_revision("revision", revision, 1) or 0
    _ask(
        Rollback(
            app=_checked(app_name),
            revision=number,
            rollout=strategy,
            by=who(),
            reason=_text(reason),
            wait=strategy is None or isinstance(strategy, RollingUpdate),
        )
    )
    return rollout_status(app_name)


def rollout_status(app_name: str) -> RolloutStatus:
    """Where the rollout of the application stands, or how the last one ended. Raises ApplicationNotFound."""
    return _answer(Rollout, GetRollout(_checked(app_name))).status


def wait_for_rollout(
    app_name: str, timeout_s: float | None = None, on_change: Callable[[RolloutStatus], None] | None = None
) -> RolloutStatus:
    """Wait until the rollout of the application that is under way now has ended, and return how.

    `on_change` is called with the status now and each time that the rollout has moved: its stage, step, weights, what
    its checks say. One that waits for a word (`promote`, `resume_rollout`) is waited for. Raises RequestTimeoutError
    after `timeout_s` seconds, ApplicationNotFound.
    """
    if timeout_s is not None and (isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float)):
        raise OptionTypeError(f"timeout_s={timeout_s!r} must be a number of seconds, or None")
    runtimes.check_not_on_loop("wait_for_rollout")
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    first = last = rollout_status(app_name)
    if on_change is not None:
        on_change(last)
    while not last.outcome:
        if deadline is not None and time.monotonic() >= deadline:
            raise RequestTimeoutError(
                f"the rollout of revision {last.revision} of application {app_name!r} has not ended within "
                f"{timeout_s:g} s: it is {'paused' if last.paused else last.stage}"
            )
        time.sleep(POLL_S if deadline is None else max(0.0, min(POLL_S, deadline - time.monotonic())))
        status = rollout_status(app_name)
        if status.revision != first.revision:
            status = _as_it_ended(app_name, first)
        if on_change is not None and _position(status) != _position(last):
            on_change(status)
        last = status
    return last


def _position(status: RolloutStatus) -> tuple[Any, ...]:
    """Where a rollout stands, without what changes with every request."""
    says = tuple(check.says for check in status.checks)
    return (status.revision, status.stage, status.step, status.paused, status.weights, says, status.outcome)


def _as_it_ended(app_name: str, status: RolloutStatus) -> RolloutStatus:
    """A rollout that another has taken the place of."""
    records = [record for record in history(app_name).revisions if record.number == status.revision]
    outcome = (records[0].outcome if records else "") or RolloutOutcome.SUPERSEDED
    reason = records[0].reason if records else ""
    return RolloutStatus(
        app=app_name, revision=status.revision, strategy=status.strategy, outcome=outcome, reason=reason
    )


def history(app_name: str) -> History:
    """What became of the application's revisions, the newest last: when, by whom, what changed, how it ended and why.

    Also of an application that was deleted. Raises ApplicationNotFound for a name that never was.
    """
    return _answer(Past, GetHistory(_checked(app_name))).history


def _control(app_name: str, command: Command, revision: int, reason: str = "") -> RolloutStatus:
    number = checked_revision("revision", revision) or 0
    _ask(ControlRollout(app=_checked(app_name), command=command, revision=number, reason=_text(reason), by=who()))
    return rollout_status(app_name)


def _client_of_endpoint(name: object) -> Client | None:
    """What the names of 2020 go to, where this is an endpoint."""
    from headrace.serve.older.client import Client  # for the few who use them

    client = Client()
    return client if client.has_endpoint(name) else None


def _checked(app_name: object) -> str:
    if not isinstance(app_name, str):
        raise OptionTypeError(f"app_name={app_name!r} must be the name of an application")
    return app_name


def _text(reason: object) -> str:
    if not isinstance(reason, str):
        raise OptionTypeError(f"reason={reason!r} must be a text")
    return reason


def _ask(operation: Operation) -> Answer:
    return current_tie().ask(operation)


def _answer(kind: type[A], operation: Operation) -> A:
    answer = _ask(operation)
    if not isinstance(answer, kind):
        raise HeadraceError(f"the controller answered {type(operation).__name__} with {type(answer).__name__}")
    return answer
