"""The document and the page tell of every route, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conformity import DOCUMENT
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.testclient import TestClient

from headrace.api.app import all_routes
from headrace.api.openapi import errors_of
from headrace.api.route import Route

ROUTES = all_routes()
REFERENCE = Path(__file__).parents[2] / "docs/reference/rest.md"


def title(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_the_document_is_one_of_openapi_3_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_it_is_what_the_api_serves(client: TestClient) -> None:
    assert client.get("/openapi.json").json() == DOCUMENT


def test_it_has_every_route_and_no_other() -> None:
    documented = {f"{method.upper()} {path}" for path, each in DOCUMENT["paths"].items() for method in each}
    assert documented == {title(route) for route in ROUTES}


def test_names_of_operations_are_unique() -> None:
    names = [route.operation_id for route in ROUTES]
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(each) for each in value.values()))
        return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()

    for reference in references(DOCUMENT):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


@pytest.mark.parametrize("route", ROUTES, ids=title)
def test_a_route_says_what_may_go_wrong(route: Route) -> None:
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    assert operation["summary"]
    said = " ".join(response["description"] for response in operation["responses"].values())
    assert all(f"`{kind.__name__}`" in said for kind in errors_of(route))
    assert ("401" in operation["responses"]) == (not route.is_open)
    assert (operation.get("security") == []) == route.is_open


@pytest.mark.parametrize("route", ROUTES, ids=title)
def test_a_documented_route_is_there_for_its_method_and_no_other(client: TestClient, route: Route) -> None:
    path = route.path.replace("{name}", "some-app")
    allowed = {each.method for each in ROUTES if each.path == route.path}
    answer = client.request("TRACE", path)
    assert answer.status_code == 405
    assert allowed <= set(re.split(r",\s*", answer.headers["allow"])) <= allowed | {"HEAD"}
    if route.method != "GET":
        # It is there: what is refused is the body, or what it says.
        assert client.request(route.method, path, params={"nonsense": "1"}).status_code == 400


@pytest.mark.parametrize("route", ROUTES, ids=title)
def test_the_page_and_the_reference_list_it(client: TestClient, route: Route) -> None:
    page = client.get("/").text
    assert f"<code>{route.method}</code></td><td><code>{route.path}</code>" in page
    assert f"`{route.method} {route.path}`" in REFERENCE.read_text()


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"<(script|img|link|iframe)\b|url\(|@import", answer.text)
