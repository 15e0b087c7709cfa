"""Every answer that a test of the API gets is held against what the OpenAPI document says of its route."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from openapi_schema_validator import OAS31Validator

from headrace.api.app import all_routes
from headrace.api.openapi import document

DOCUMENT = document(all_routes())
_ANY = (
    "CallerError",
    "RouteNotFound",
    "MethodNotAllowed",
    "Unauthorized",
    "HostRefused",
    "OriginRefused",
    "HeadTooLarge",
    "Busy",
)


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(re.sub(r"{\w+}", "[^/]+", path.rstrip("/")) + "/?"), path) for path in DOCUMENT["paths"]]


@cache
def _validator(path: str, method: str, status: str) -> OAS31Validator | None:
    answer = DOCUMENT["paths"][path].get(method, {}).get("responses", {}).get(status)
    if answer is None:
        return None
    schema = answer["content"].get("application/json", {}).get("schema")
    return None if schema is None else OAS31Validator({**schema, "components": DOCUMENT["components"]})


def check_answer(method: str, path: str, status: int, body: Any) -> None:
    """Fails the test where the document does not say that this may be the answer."""
    method = "get" if method == "HEAD" else method.lower()
    known = next((each for pattern, each in _patterns() if pattern.fullmatch(path)), None)
    responses = DOCUMENT["paths"][known].get(method, {}).get("responses", {}) if known else {}
    if status >= 400:
        kind = body["error"]["type"]
        described = responses.get(str(status), {}).get("description", "")
        foreseen = kind in _ANY or f"`{kind}`" in described
        assert foreseen, f"{method} {path} answered {status} with {kind}, which the document does not say"
        return
    assert str(status) in responses, f"{method} {path} answered {status}, which the document does not say"
    validator = _validator(str(known), method, str(status))
    if validator is not None:
        assert [error.message for error in validator.iter_errors(body)] == []
