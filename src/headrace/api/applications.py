"""Routes about applications: what runs, what is declared to run, and its end.

In: calls. Out: jobs for the deployer, operations of the controller, and replies.
"""

from __future__ import annotations

import asyncio

from headrace.api.bodies import Declared, Deleted
from headrace.api.deployer import Taken
from headrace.api.desk import Standing
from headrace.api.route import BY, WAIT, Call, Reply, Route, condition_of
from headrace.serve.schema import ServeInstanceDetails
from headrace.spec.config_schema import ServeApplicationSchema, ServeDeploySchema
from headrace.spec.errors import (
    ApplicationNotFound,
    ConfigError,
    DeployFailedError,
    GraphError,
    ImportPathError,
    OptionError,
    RevisionConflictError,
    RolledBackError,
    RolloutError,
)
from headrace.spec.names import checked_name
from headrace.spec.status import ApplicationStatusOverview, ServeStatus


async def get_applications(call: Call) -> Reply:
    return Reply(ServeInstanceDetails.of(await call.desk.controller.status()))


async def put_applications(call: Call) -> Reply:
    taken = await call.desk.deployer.declare(call.body, call.by)
    standings = await _standings(call, taken)
    return Reply(Declared(applications=standings, deleted=taken.deleted))


async def delete_applications(call: Call) -> Reply:
    names = tuple((await call.desk.controller.status()).applications)
    outcomes = await asyncio.gather(*(call.desk.delete(name, call.wait) for name in names), return_exceptions=True)
    for outcome in outcomes:
        # One that somebody else deleted meanwhile is gone, as it should be.
        if isinstance(outcome, BaseException) and not isinstance(outcome, ApplicationNotFound):
            raise outcome
    return Reply(Deleted(deleted=names))


async def get_application(call: Call) -> Reply:
    app = await call.desk.application(call.name)
    return Reply(app, headers=_tag(app.newest or app.revision))


async def put_application(call: Call) -> Reply:
    checked_name(call.name)
    if "name" in call.body.model_fields_set and call.body.name != call.name:
        raise OptionError(f"the body has name={call.body.name!r}, and the path is of {call.name!r}: leave it out there")
    application = call.body.model_copy(update={"name": call.name})
    expected = await call.desk.revision_meant(call.name, condition_of(call.headers))
    taken = await call.desk.deployer.deploy(application, expected, call.by)
    standings = await _standings(call, taken)
    return Reply(standings[call.name], headers=_tag(standings[call.name].revision))


async def delete_application(call: Call) -> Reply:
    expected = await call.desk.revision_meant(call.name, condition_of(call.headers))
    await call.desk.delete(call.name, call.wait, expected)
    return Reply(Deleted(deleted=(call.name,)))


async def get_status(call: Call) -> Reply:
    return Reply(await call.desk.controller.status())


def _tag(revision: int) -> dict[str, str]:
    return {"etag": f'"{revision}"'}


async def _standings(call: Call, taken: Taken) -> dict[str, Standing]:
    """Where the applications are; with `wait`, once all of their rollouts have ended. Raises the first failure."""
    if not call.wait:
        return {name: Standing(revision=revision) for name, revision in taken.revisions.items()}
    ended = await asyncio.gather(
        *(call.desk.settled(name, revision, call.is_gone) for name, revision in taken.revisions.items()),
        return_exceptions=True,  # the others are waited for all the same
    )
    for outcome in ended:
        if isinstance(outcome, BaseException):
            raise outcome
    return {
        name: outcome for name, outcome in zip(taken.revisions, ended, strict=True) if isinstance(outcome, Standing)
    }


_ALL = "/api/serve/applications"
_APP = f"{_ALL}/{{name}}"
_BUILDING = (ConfigError, ImportPathError, GraphError, DeployFailedError, RolledBackError, RolloutError)

ROUTES = (
    Route(
        "GET",
        _ALL,
        get_applications,
        "What runs, by what it was declared, and how it is",
        "In the form of Ray Serve's REST API.",
        answer=ServeInstanceDetails,
    ),
    Route(
        "PUT",
        _ALL,
        put_applications,
        "Declare which applications there are",
        "The applications of the config are deployed; those that an earlier config declared and this one does not are "
        "deleted; those that code deployed are left alone. Answered once every application is built and taken up, "
        "which is before it is ready: `wait` waits for the end of its rollout. One that fails leaves the others.",
        body=ServeDeploySchema,
        answer=Declared,
        query=(BY, WAIT),
        errors=_BUILDING,
    ),
    Route(
        "DELETE",
        _ALL,
        delete_applications,
        "Delete all applications",
        answer=Deleted,
        query=(WAIT,),
    ),
    Route(
        "GET",
        _APP,
        get_application,
        "One application, and how it is",
        answer=ApplicationStatusOverview,
        errors=(ApplicationNotFound,),
        tagged=True,
    ),
    Route(
        "PUT",
        _APP,
        put_application,
        "Deploy one application, and leave all others as they are",
        "Answered once it is built and taken up: `wait` waits for the end of its rollout.",
        body=ServeApplicationSchema,
        answer=Standing,
        query=(BY, WAIT),
        errors=(*_BUILDING, RevisionConflictError),
        conditional="The newest revision must be this one. `If-None-Match: *`: the application must not be there yet.",
        tagged=True,
    ),
    Route(
        "DELETE",
        _APP,
        delete_application,
        "Delete one application",
        answer=Deleted,
        query=(WAIT,),
        errors=(ApplicationNotFound,),
        conditional="The newest revision must be this one.",
    ),
    Route(
        "GET",
        "/api/serve/status",
        get_status,
        "The state of the instance, as `serve.status()` and `headrace status` tell it",
        answer=ServeStatus,
    ),
)
