"""What users report of requests: whether the answer was any good, as they find out, maybe hours later.

In: a value and whose request it is about, from user code anywhere. Out: the same to the controller, by the process's
own link, in its time: nothing here waits for it.
"""

from __future__ import annotations

import math
from typing import Any

from headrace import runtime as runtimes
from headrace.context import current_replica, current_request
from headrace.runtime import Runtime
from headrace.serve.driver import current_tie
from headrace.spec.counts import Signal
from headrace.spec.errors import OptionError, OptionTypeError

LONGEST_NAME = 100
LONGEST_ID = 1024  # as long as a key may be at the door
LATEST_S = 1e11  # in the year 5138: who gives more gives milliseconds
LARGEST = 1e70  # values are squared and summed up


def observe(
    name: str,
    value: Any,
    *,
    request_id: str | None = None,
    key: str | None = None,
    app_name: str | None = None,
    at: float | None = None,
) -> None:
    """Report a value of a request (its quality, what was sold by it), for `Metric(name)` to judge a revision by.

    Of which request: `request_id`, its id as the client got it (`x-request-id`), or `key`, what its application keeps
    requests to a revision by (`sticky=`), or else its session. A request that had a key is known by its key alone.
    Inside of a deployment's method, the request that it runs for, unless one is named. `at` is when it was made, in
    seconds since the epoch (None: as its id says where Headrace has made it, else now). `app_name` may be left out
    inside of a deployment, and where there is one application, or one called "default".

    Returns at once: the report leaves within a moment, or at the end of the process. Raises OptionError for what is no
    report, InstanceError when no instance runs.
    """
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise OptionError(f"observe: name={name!r} must be a text of 1 to {LONGEST_NAME} characters")
    number = _number("value", value)
    if abs(number) > LARGEST:
        raise OptionError(f"observe: value={value!r} must be within {LARGEST:g}, for it is squared")
    when = None if at is None else _number("at", at)
    if when is not None and not 0 < when < LATEST_S:
        raise OptionError(f"observe: at={at!r} must be in seconds since the epoch, as time.time() gives it")
    for what, given in (("request_id", request_id), ("key", key), ("app_name", app_name)):
        if given is not None and (not isinstance(given, str) or not 0 < len(given) <= LONGEST_ID):
            raise OptionError(f"observe: {what}={given!r} must be a text of 1 to {LONGEST_ID} characters")
    revision = 0
    request = current_request()
    if request_id is None and key is None:
        if request is None:
            raise OptionError(
                f"observe({name!r}): name the request by request_id=... or key=...; only a deployment's method knows "
                "its own"
            )
        request_id = request.request_id
    if request is not None and request_id == request.request_id and app_name in (None, request.app):
        app_name, revision = request.app, request.revision
    runtime = runtimes.of_replica() or current_tie().runtime()
    signal = Signal(
        app=app_name or _application(runtime),
        name=name,
        value=number,
        request_id=request_id or "",
        key=key or "",
        at=when,
        revision=revision,
    )
    if runtime.owns_this_thread():
        runtime.reports.signal(signal)
    else:
        runtime.post(runtime.reports.signal, signal)


def _number(what: str, given: Any) -> float:
    try:
        number = math.nan if isinstance(given, str | bytes) else float(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionTypeError(f"observe: {what}={given!r:.100} must be a finite number") from error
    if not math.isfinite(number):
        raise OptionError(f"observe: {what}={given!r:.100} must be a finite number")
    return number


def _application(runtime: Runtime) -> str:
    """The one that is meant where none is named. Raises OptionError."""
    replica = current_replica()
    if replica is not None:
        return replica.app_name
    known = sorted(runtime.router.snapshot.applications)
    if len(known) == 1:
        return known[0]
    if "default" in known:
        return "default"
    raise OptionError(f"observe: app_name=... must say which application is meant: {', '.join(known) or 'none runs'}")
