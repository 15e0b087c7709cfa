"""The OpenAPI document of the API, made from its routes and the structs that they take and give.

In: the table of routes. Out: a document of OpenAPI 3.1, whose schemas are JSON Schema 2020-12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from headrace import __version__
from headrace.api.errors import (
    BodyTimeout,
    BodyTooLarge,
    Busy,
    ControllerAway,
    ErrorBody,
    HeadTooLarge,
    HostRefused,
    NotJson,
    OriginRefused,
    PreconditionFailed,
    Unauthorized,
    status_of,
)
from headrace.api.route import Parameter, Route
from headrace.spec.declared import Schema
from headrace.spec.errors import (
    HeadraceError,
    InstanceError,
    OptionError,
    OptionTypeError,
    RequestTimeoutError,
    RevisionConflictError,
)

API_VERSION = "1"
_REF = "#/components/schemas/{name}"
_JSON = "application/json"


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document, as JSON would have it."""
    routes = tuple(routes)
    kinds, declared = _kinds(routes)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = {id(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    for kind in declared:
        components.update(_declared_components(kind))
        schema_of[id(kind)] = {"$ref": _REF.format(name=kind.__name__)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace control API",
            "version": API_VERSION,
            "description": f"Deploys, rollouts and traffic of one instance, by headrace {__version__}.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }
    # Defaults of the structs are tuples and the like: as JSON they are what the document says.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made))
    return plain


def _kinds(routes: Iterable[Route]) -> tuple[list[Any], list[type[Schema]]]:
    """Types that msgspec describes, and those that describe themselves."""
    every = {id(kind): kind for route in routes for kind in (route.body, route.answer) if kind is not None}.values()
    declared = [kind for kind in every if isinstance(kind, type) and issubclass(kind, Schema)]
    return [*(kind for kind in every if kind not in declared), ErrorBody], declared


def _declared_components(kind: type[Schema]) -> dict[str, Any]:
    """The schema of a configuration and those that it refers to, as components of the document."""
    top = kind.model_json_schema()
    inner = top.pop("$defs", {})
    text = msgspec.json.encode({**inner, kind.__name__: top}).replace(b'"#/$defs/', b'"#/components/schemas/')
    components: dict[str, Any] = msgspec.json.decode(text)
    return components


def _operation(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.operation_id, "summary": route.summary}
    if route.description:
        operation["description"] = route.description
    if route.is_open:
        operation["security"] = []
    parameters = [_in_path(name) for name in re.findall(r"{(\w+)}", route.path)]
    parameters += [_in_query(parameter) for parameter in route.query]
    if route.conditional:
        parameters += _conditions(route)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {_JSON: {"schema": schema_of[id(route.body)]}}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    operation["responses"] = _responses(route, schema_of)
    return operation


def _in_path(name: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 100}
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": "The application's name."}


def _in_query(parameter: Parameter) -> dict[str, Any]:
    schema = {"type": "boolean"} if parameter.kind == "flag" else {"type": "string", "minLength": 1}
    return {"name": parameter.name, "in": "query", "schema": schema, "description": parameter.text}


def _conditions(route: Route) -> list[dict[str, Any]]:
    text = f'A revision as ETag gives it, such as `"3"`, or `*` for any. {route.conditional}'
    found = [{"name": "If-Match", "in": "header", "schema": {"type": "string"}, "description": text}]
    if "If-None-Match" in route.conditional:
        schema = {"type": "string", "enum": ["*"]}
        found.append({"name": "If-None-Match", "in": "header", "schema": schema, "description": "Only `*`."})
    return found


def _responses(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    schema = schema_of.get(id(route.answer), {"type": "string"})
    done: dict[str, Any] = {"description": "Done.", "content": {route.media_type: {"schema": schema}}}
    if route.tagged:
        text = "The application's newest revision, for `If-Match`."
        done["headers"] = {"ETag": {"schema": {"type": "string"}, "description": text}}
    responses = {str(route.status): done}
    by_status: dict[int, list[type[HeadraceError]]] = {}
    for kind in errors_of(route):
        by_status.setdefault(status_of(kind("")), []).append(kind)
    for status, kinds in sorted(by_status.items()):
        text = " ".join(f"`{kind.__name__}`: {_sentence(kind)}" for kind in kinds)
        content = {_JSON: {"schema": {"$ref": _REF.format(name="ErrorBody")}}}
        responses[str(status)] = {"description": text, "content": content}
    return responses


def errors_of(route: Route) -> list[type[HeadraceError]]:
    """All errors that the route may answer with."""
    kinds: list[type[HeadraceError]] = [OptionError, HostRefused, OriginRefused, HeadTooLarge]
    if not route.is_open:
        kinds += [Unauthorized, ControllerAway, Busy, InstanceError, RequestTimeoutError, HeadraceError]
    if route.body is not None:
        kinds += [OptionTypeError, BodyTimeout, BodyTooLarge, NotJson]
    if route.conditional:
        kinds += [PreconditionFailed, RevisionConflictError]
    return list(dict.fromkeys((*kinds, *route.errors)))


def _sentence(kind: type[HeadraceError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
