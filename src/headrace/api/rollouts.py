"""Routes about revisions: their rollouts, their shares of the traffic, what is mirrored to them and reported of them.

In: calls. Out: operations of the controller, and replies.
"""

from __future__ import annotations

import msgspec

from headrace.api.bodies import (
    Accepted,
    ReportedSignals,
    RollbackOrder,
    RolloutCommand,
    Shadows,
    Traffic,
)
from headrace.api.controller import unexpected
from headrace.api.desk import Standing
from headrace.api.errors import PreconditionFailed
from headrace.api.route import BY, WAIT, Call, Reply, Route, condition_of
from headrace.spec.counts import Signal
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    OptionError,
    RevisionNotFound,
    RolledBackError,
    RolloutError,
)
from headrace.spec.rollout import Command, Comparison, ShadowTraffic, rollout, weights
from headrace.spec.status import ApplicationStatusOverview, History, RolloutStatus
from headrace.spec.sticky import sticky
from headrace.wire.control import (
    ControlRollout,
    Deployed,
    Done,
    GetHistory,
    Operation,
    Past,
    Rollback,
    SetShadow,
    SetTraffic,
    Signals,
)


async def get_rollout(call: Call) -> Reply:
    return Reply(await call.desk.rollout(call.name))


async def control_rollout(call: Call) -> Reply:
    body: RolloutCommand = call.body
    revision = body.revision or (await call.desk.rollout(call.name)).revision
    operation = ControlRollout(
        app=call.name, command=body.command, revision=revision, reason=body.reason, by=call.by, wait=False
    )
    await call.desk.controller.ask(operation)
    if call.wait and body.command is Command.PROMOTE:
        await call.desk.settled(call.name, revision, call.is_gone)
    elif call.wait and body.command is Command.ABORT:
        return Reply(await call.desk.aborted(call.name, revision, call.is_gone))
    return Reply(await call.desk.rollout(call.name))


async def roll_back(call: Call) -> Reply:
    body: RollbackOrder = call.body
    operation = Rollback(
        app=call.name,
        revision=body.revision,
        rollout=rollout(body.rollout) if body.rollout else None,
        by=call.by,
        reason=body.reason,
        wait=False,
    )
    answer = await call.desk.controller.ask(operation)
    if isinstance(answer, Done):  # the rollout under way is aborted
        status = await call.desk.rollout(call.name)
        if call.wait:
            status = await call.desk.aborted(call.name, status.revision, call.is_gone)
        return Reply(Standing(revision=status.baseline, outcome=status.outcome, reason=status.reason))
    if not isinstance(answer, Deployed):
        raise unexpected(operation, answer)
    standing = Standing(revision=answer.revision, outcome=answer.outcome, reason=answer.reason)
    if call.wait and not standing.outcome:
        standing = await call.desk.settled(call.name, answer.revision, call.is_gone)
    return Reply(standing)


async def list_revisions(call: Call) -> Reply:
    operation = GetHistory(call.name)
    answer = await call.desk.controller.ask(operation)
    if not isinstance(answer, Past):
        raise unexpected(operation, answer)
    return Reply(answer.history)


async def set_traffic(call: Call) -> Reply:
    body: Traffic = call.body
    newest = await call.desk.revision_meant(call.name, condition_of(call.headers))
    if newest == 0:
        raise PreconditionFailed(f"application {call.name!r} does not exist")
    kept = body.sticky is msgspec.UNSET
    await _done(
        call,
        SetTraffic(
            app=call.name,
            weights=weights(body.weights),
            sticky=None if kept else sticky(body.sticky),
            keyless=body.sticky is None,
            expected=newest,
            by=call.by,
        ),
    )
    return Reply(await call.desk.application(call.name))


async def set_shadows(call: Call) -> Reply:
    body: Shadows = call.body
    shadows = {}
    for revision, share in body.shadows.items():
        compare = Comparison(kind=share.compare.kind, rtol=share.compare.rtol, atol=share.compare.atol)
        shadows[revision] = ShadowTraffic(fraction=share.fraction, compare=compare)
    await _done(call, SetShadow(app=call.name, shadows=shadows, by=call.by))
    return Reply(await call.desk.application(call.name))


async def report_signals(call: Call) -> Reply:
    body: ReportedSignals = call.body
    await call.desk.application(call.name)
    signals = []
    for index, each in enumerate(body.signals):
        if not each.request_id and not each.key and not each.revision:
            raise OptionError(f"signals[{index}] names no request: give request_id, key, or revision")
        signals.append(Signal(app=call.name, **{name: getattr(each, name) for name in each.__struct_fields__}))
    await call.desk.controller.tell(Signals(tuple(signals)))
    return Reply(Accepted(signals=len(signals)))


async def _done(call: Call, operation: Operation) -> None:
    answer = await call.desk.controller.ask(operation, READY_TIMEOUT_S)
    if not isinstance(answer, Done | Deployed):
        raise unexpected(operation, answer)


READY_TIMEOUT_S = 600.0  # replicas of a revision that has had no traffic start first

_APP = "/api/serve/applications/{name}"

ROUTES = (
    Route(
        "GET",
        f"{_APP}/rollout",
        get_rollout,
        "The rollout under way, or the last one",
        answer=RolloutStatus,
        errors=(ApplicationNotFound, RolloutError),
    ),
    Route(
        "POST",
        f"{_APP}/rollout",
        control_rollout,
        "Pause, resume, promote or abort the rollout",
        "`wait` waits for the end of a rollout that is promoted or aborted.",
        body=RolloutCommand,
        answer=RolloutStatus,
        query=(BY, WAIT),
        errors=(ApplicationNotFound, RolloutError, DeployFailedError, RolledBackError),
    ),
    Route(
        "POST",
        f"{_APP}/rollback",
        roll_back,
        "Go back to an earlier revision",
        "Aborts the rollout under way; else, or where `revision` is named, gives the traffic to that revision.",
        body=RollbackOrder,
        body_optional=True,
        answer=Standing,
        query=(BY, WAIT),
        errors=(ApplicationNotFound, RevisionNotFound, RolloutError, DeployFailedError, RolledBackError),
    ),
    Route(
        "GET",
        f"{_APP}/revisions",
        list_revisions,
        "The history: revisions, what changed, what became of them",
        "Kept beyond the end of the application.",
        answer=History,
        errors=(ApplicationNotFound,),
    ),
    Route(
        "PUT",
        f"{_APP}/traffic",
        set_traffic,
        "Share the traffic among revisions, until it is changed",
        body=Traffic,
        answer=ApplicationStatusOverview,
        query=(BY,),
        errors=(ApplicationNotFound, RevisionNotFound, RolloutError),
        conditional="The newest revision must be this one.",
    ),
    Route(
        "PUT",
        f"{_APP}/shadows",
        set_shadows,
        "Mirror shares of the requests to revisions",
        "Mirrored requests never change what clients are answered with. An empty `shadows` ends all mirroring.",
        body=Shadows,
        answer=ApplicationStatusOverview,
        query=(BY,),
        errors=(ApplicationNotFound, RevisionNotFound, RolloutError),
    ),
    Route(
        "POST",
        f"{_APP}/signals",
        report_signals,
        "Report values of requests, also hours later",
        "What `serve.observe` does: an analysis with a `metric` check goes by them.",
        body=ReportedSignals,
        answer=Accepted,
        status=202,
        errors=(ApplicationNotFound,),
    ),
)
