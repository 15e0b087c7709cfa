"""What the API refuses a request for, before it is about any application; and how any error is told as JSON.

In: errors, our own and those that the controller answers with. Out: status, headers, and
`{"error": {"type", "message"}}`, which never holds a traceback of ours.
"""

from __future__ import annotations

import msgspec

from headrace.spec.errors import CallerError, HeadraceError, InstanceError, RequestTimeoutError, ServingError


class Unauthorized(CallerError):
    """The request does not carry the API's token."""

    status = 401


class HostRefused(CallerError):
    """The request is for a host by whose name the API is not to be called."""

    status = 403


class OriginRefused(CallerError):
    """The request was made by a page of another origin."""

    status = 403


class RouteNotFound(CallerError):
    """The API has nothing at this path."""

    status = 404


class MethodNotAllowed(CallerError):
    """The path is there, but not for this method. `allowed` names those it is there for."""

    status = 405

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, allowed)
        self.allowed = allowed

    def __str__(self) -> str:
        return str(self.args[0])


class BodyTimeout(CallerError):
    """The body of the request did not arrive in the time it had."""

    status = 408


class PreconditionFailed(CallerError):
    """What If-Match or If-None-Match asks for is not so."""

    status = 412


class BodyTooLarge(CallerError):
    """The body of the request is larger than the API takes."""

    status = 413


class NotJson(CallerError):
    """The body of the request is not said to be JSON."""

    status = 415


class HeadTooLarge(CallerError):
    """The headers of the request are larger than the API takes."""

    status = 431


class ControllerAway(ServingError):
    """The controller does not answer: the instance does not run, or its controller is being restarted."""


class Busy(ServingError):
    """More is asked of the API at once than it takes up."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """`type` names a class of errors, `message` is for a person."""

    type: str
    message: str


class ErrorBody(msgspec.Struct, frozen=True):
    """What every answer that is an error holds."""

    error: ErrorDetail


RETRY_AFTER_S = 1


def status_of(error: HeadraceError) -> int:
    """The status that tells of this error."""
    if isinstance(error, InstanceError):
        return 503
    if isinstance(error, RequestTimeoutError):
        return 504  # its class's 408 would say that the client was slow
    return error.status


def headers_of(error: HeadraceError) -> dict[str, str]:
    """What the answer says of the error in its headers."""
    headers: dict[str, str] = {}
    if status_of(error) == 503:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = 'Bearer realm="headrace"'
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    return headers


def body_of(error: HeadraceError) -> bytes:
    """The error as the body of an answer."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(type(error).__name__, str(error))))
