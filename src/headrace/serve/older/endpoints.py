"""Endpoints: applications whose revisions run backends, told apart by their labels.

In: names of endpoints and tags of backends. Out: which revision runs what; revisions made for those that have none.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from headrace.serve.driver import current_tie
from headrace.serve.older.backends import BACKEND, MADE, METHODS, Registered, application, ask, code_of
from headrace.spec.errors import ApplicationNotFound, DeployFailedError, OptionError, OptionTypeError, RevisionNotFound
from headrace.spec.snapshot import ApplicationEntry
from headrace.wire.control import Deploy, Deployed, GetHistory, GetRevision, GetStatus, Past, Revision, Status
from headrace.wire.who import who

PATIENCE_S = 600.0  # as a deployment's start_timeout_s
POLL_S = 0.05
TRIES = 2  # failed starts in a row before it is given up


class Endpoint(msgspec.Struct, kw_only=True):
    """An endpoint as it is now. `traffic` and `shadows` are shares by tag; `numbers` of revisions by tag, those that
    have any; `labels` are those of the revisions that can have some, by number.
    """

    name: str
    route: str | None
    methods: list[str]
    traffic: dict[str, float]
    shadows: dict[str, float]
    numbers: dict[str, int]
    labels: dict[int, dict[str, str]]

    def described(self) -> dict[str, Any]:
        """As `list_endpoints` tells of it."""
        return {"route": self.route, "methods": self.methods, "traffic": self.traffic, "shadows": self.shadows}


def endpoints() -> dict[str, Endpoint]:
    """All endpoints by name."""
    entries = current_tie().snapshot().applications
    found = (_endpoint(name, entry) for name, entry in entries.items())
    return {each.name: each for each in found if each is not None}


def find(name: object) -> Endpoint:
    """The endpoint. Raises OptionError (a ValueError), OptionTypeError."""
    if not isinstance(name, str):
        raise OptionTypeError(f"endpoint_name={name!r} must be the name of an endpoint, a string")
    entry = current_tie().snapshot().applications.get(name)
    found = None if entry is None else _endpoint(name, entry)
    if found is None:
        known = ", ".join(sorted(endpoints())) or "none"
        raise OptionError(f"endpoint {name!r} does not exist, create_endpoint makes one; there are: {known}")
    return found


def _endpoint(name: str, entry: ApplicationEntry) -> Endpoint | None:
    """The application as an endpoint; None for one that is none, or goes."""
    try:
        history = ask(Past, GetHistory(name)).history
    except ApplicationNotFound:
        return None
    labels = {record.number: record.labels for record in history.revisions if record.kept}
    for revision in entry.revisions:
        if revision.number not in labels:  # the history has forgotten when it was made, so long ago is that
            labels[revision.number] = _labels(name, revision.number)
    labels = {number: each for number, each in labels.items() if BACKEND in each}
    present = [revision for revision in entry.revisions if revision.number in labels]
    if not present or entry.failed:
        return None
    traffic: dict[str, float] = {}
    shadows: dict[str, float] = {}
    numbers: dict[str, int] = {}
    for revision in present:
        tag = labels[revision.number][BACKEND]
        if revision.weight > 0:
            traffic[tag] = traffic.get(tag, 0.0) + revision.weight
            numbers[tag] = revision.number
        if revision.shadow is not None:
            shadows[tag] = shadows.get(tag, 0.0) + revision.shadow.fraction
            numbers.setdefault(tag, revision.number)
    methods = labels[present[-1].number].get(METHODS, "")
    return Endpoint(
        name=name,
        route=entry.route_prefix,
        methods=methods.split(",") if methods else [],
        traffic=traffic,
        shadows=shadows,
        numbers=numbers,
        labels=labels,
    )


def _labels(name: str, number: int) -> dict[str, str]:
    try:
        return ask(Revision, GetRevision(name, number)).spec.labels
    except (ApplicationNotFound, RevisionNotFound):  # it has gone meanwhile
        return {}


def revision_of(endpoint: Endpoint, backend: Registered) -> int:
    """The revision of the endpoint that runs the backend as it is configured now, made where there is none."""
    code = code_of(backend.tag)
    spec = application(backend, code, endpoint.name, endpoint.route, endpoint.methods)
    made = [number for number, labels in endpoint.labels.items() if labels.get(MADE) == spec.labels[MADE]]
    if made:
        return max(made)
    answer = ask(Deployed, Deploy(spec, parked=True, by=who(), packs=code.packs))
    return answer.revision


def await_ready(endpoint: str, number: int, tag: str) -> None:
    """Wait until a replica of the revision takes calls. Raises DeployFailedError with what keeps it from that."""
    deadline = time.monotonic() + PATIENCE_S
    error = ""
    while True:
        snapshot = current_tie().snapshot()
        entry = snapshot.applications.get(endpoint)
        revisions = entry.revisions if entry is not None else ()
        keys = [key for each in revisions if each.number == number for key in each.deployments.values()]
        if keys and all(snapshot.deployments[key].replicas for key in keys):
            return
        application = ask(Status, GetStatus()).status.applications.get(endpoint)
        found = application.deployments.values() if application is not None else ()
        replicas = [each for overview in found for each in overview.replicas if each.revision == number]
        error = next((each.error for each in replicas if each.error), error)
        given_up = any(each.restarts >= TRIES for each in replicas)
        if given_up or application is None or time.monotonic() >= deadline:
            why = error or ("its replicas fail to start" if given_up else "no replica takes calls")
            raise DeployFailedError(f"backend {tag!r} does not start for endpoint {endpoint!r}: {why}")
        time.sleep(POLL_S)
