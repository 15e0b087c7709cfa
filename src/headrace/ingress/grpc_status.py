"""What a gRPC client is told of an error: a status code, and details that quote no traceback.

In: errors of the router, and those that a replica sent. Out: a GrpcStatus.
"""

from __future__ import annotations

from headrace.spec.errors import HeadraceError
from headrace.wire.frames import ErrorInfo, GrpcStatus

# Numbers of grpc.StatusCode.
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 1, 3, 4, 5
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14

# Errors that keep a call from running, by the router's word.
_OF_ROUTER = {
    "ApplicationNotFound": NOT_FOUND,
    "BackPressureError": RESOURCE_EXHAUSTED,
    "DeploymentNotFound": NOT_FOUND,
    "DeploymentUnavailableError": UNAVAILABLE,
    "InstanceError": UNAVAILABLE,
    "ReplicaDiedError": UNAVAILABLE,
    "RequestCancelledError": CANCELLED,
    "RequestTimeoutError": DEADLINE_EXCEEDED,
}
# Of what user code raised or passed on, by its HTTP status: what says something about load or time, not about the code.
_OF_CODE = {
    408: DEADLINE_EXCEEDED,
    429: RESOURCE_EXHAUSTED,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}
_TEXTS = {
    DEADLINE_EXCEEDED: "the time is over",
    RESOURCE_EXHAUSTED: "too many requests are waiting",
    UNAVAILABLE: "not available now",
    INTERNAL: "internal error",
}


def status_of(error: HeadraceError | ErrorInfo, request_id: str) -> GrpcStatus:
    """The status for the error, with the request's id where the log says more than the client learns."""
    if isinstance(error, ErrorInfo):
        code = _OF_CODE.get(error.status, INTERNAL)
        if error.type_name.endswith(".BackPressureError"):
            code = RESOURCE_EXHAUSTED
    else:
        names = (kind.__name__ for kind in type(error).__mro__)
        code = next((_OF_ROUTER[name] for name in names if name in _OF_ROUTER), INTERNAL)
        if code not in (INTERNAL, UNAVAILABLE):  # the messages of these may quote a traceback
            return GrpcStatus(code, str(error))
    return GrpcStatus(code, f"{_TEXTS[code]} (request {request_id})")
