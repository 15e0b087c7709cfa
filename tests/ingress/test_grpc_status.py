"""What a gRPC client is told of an error: the code that fits, and nothing of the server's inside."""

from __future__ import annotations

import pytest

from headrace.ingress.grpc_status import status_of
from headrace.spec.errors import (
    ApplicationNotFound,
    BackPressureError,
    DeploymentNotFound,
    DeploymentUnavailableError,
    HeadraceError,
    InstanceError,
    PoisonousRequestError,
    ProtocolError,
    ReplicaDiedError,
    RequestCancelledError,
    RequestTimeoutError,
)
from headrace.wire.frames import ErrorInfo

CODES = {
    "CANCELLED": 1,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "RESOURCE_EXHAUSTED": 8,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
}


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ApplicationNotFound("the message"), "NOT_FOUND", True),
        (DeploymentNotFound("the message"), "NOT_FOUND", True),
        (BackPressureError("the message"), "RESOURCE_EXHAUSTED", True),
        (BackPressureError("the message", 1.0, 429), "RESOURCE_EXHAUSTED", True),
        (RequestTimeoutError("the message"), "DEADLINE_EXCEEDED", True),
        (RequestCancelledError("the message"), "CANCELLED", True),
        (DeploymentUnavailableError("the message"), "UNAVAILABLE", False),
        (ReplicaDiedError("the message"), "UNAVAILABLE", False),
        (InstanceError("the message"), "UNAVAILABLE", False),
        (PoisonousRequestError("the message"), "INTERNAL", False),
        (ProtocolError("the message"), "INTERNAL", False),
    ],
)
def test_what_the_router_says(error: HeadraceError, code: str, told: bool) -> None:
    status = status_of(error, "mine")
    assert status.code == CODES[code]
    assert ("the message" in status.details) == told
    assert ("mine" in status.details) == (not told)


@pytest.mark.parametrize(
    ("name", "http_status", "code"),
    [
        ("builtins.ValueError", 500, "INTERNAL"),
        ("fastapi.HTTPException", 404, "INTERNAL"),
        ("headrace.spec.errors.ApplicationNotFound", 404, "INTERNAL"),
        ("headrace.spec.errors.BackPressureError", 503, "RESOURCE_EXHAUSTED"),
        ("headrace.spec.errors.BackPressureError", 429, "RESOURCE_EXHAUSTED"),
        ("headrace.spec.errors.DeploymentUnavailableError", 503, "UNAVAILABLE"),
        ("headrace.spec.errors.ReplicaDiedError", 502, "UNAVAILABLE"),
        ("headrace.spec.errors.RequestTimeoutError", 408, "DEADLINE_EXCEEDED"),
    ],
)
def test_what_user_code_raised_or_passed_on(name: str, http_status: int, code: str) -> None:
    status = status_of(ErrorInfo(name, "a secret", "Traceback: a secret", http_status), "mine")
    assert status.code == CODES[code]
    assert "secret" not in status.details
    assert "mine" in status.details
