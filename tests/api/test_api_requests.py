"""What is no request of ours is refused, each in its way, and always as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_clients import TOKEN, NotingDeployer, client_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_controller import ScriptedController
from starlette.testclient import TestClient
from test_api_applications import ALL, error_of

from headrace.api.app import all_routes
from headrace.engine.directory import InstanceDirectory

JSON = {"content-type": "application/json"}
EVERY = [(route.method, route.path.replace("{name}", "shop")) for route in all_routes()]


@pytest.mark.parametrize(("method", "path"), EVERY)
@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"host": "evil.example"}, "HostRefused"),
        ({"origin": "http://evil.example"}, "OriginRefused"),
        ({"sec-fetch-site": "cross-site"}, "OriginRefused"),
    ],
)
def test_no_route_is_for_other_hosts_and_origins(
    client: TestClient, controller: ScriptedController, method: str, path: str, headers: dict[str, str], kind: str
) -> None:
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == 403
    assert error_of(answer) == kind
    assert controller.asked == []


@pytest.mark.parametrize(("method", "path"), [*EVERY, ("GET", "/nowhere"), ("OPTIONS", ALL), ("PATCH", ALL)])
def test_none_that_tells_of_the_instance_is_for_who_has_no_token(
    controller: ScriptedController, directory: InstanceDirectory, deployer: NotingDeployer, method: str, path: str
) -> None:
    for token in ("", "x" * len(TOKEN)):
        answer = client_of(directory, deployer, token).request(method, path, headers=JSON, content=b"{}")
        if (method, path) in (("GET", "/"), ("GET", "/openapi.json"), ("GET", "/healthz")):
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401
            assert error_of(answer) == "Unauthorized"
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert controller.asked == []
    assert deployer.declared == deployer.deployed == []


def test_names_that_were_allowed(client: TestClient) -> None:
    assert client.get("/api/version", headers={"host": "api.example:8265"}).status_code == 200
    same = {"host": "localhost:8265", "origin": "http://localhost:8265"}
    assert client.get("/api/version", headers=same).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [each for each in EVERY if each[0] in ("PUT", "POST")])
def test_forms_are_not_taken(
    client: TestClient, deployer: NotingDeployer, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = client.request(method, path, headers=headers, content=b'{"applications": []}')
    assert answer.status_code == 415
    assert error_of(answer) == "NotJson"
    assert deployer.declared == deployer.deployed == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b"applications=[]",
        b'{"applications": []} x',
        b"\xff\xfe{\x00}\x00",
        b'{"applications": [' + b"[" * 50_000,
        b"[" * 50_000 + b"]" * 50_000,
        b'{"applications": NaN}',
        b'{"applications": 1' + b"0" * 5000 + b"}",
        b"null",
        b'"x"',
    ],
)
def test_what_is_no_json_document_of_ours(client: TestClient, deployer: NotingDeployer, body: bytes) -> None:
    answer = client.put(ALL, content=body, headers=JSON)
    assert answer.status_code == 400
    assert error_of(answer) in ("OptionError", "OptionTypeError", "ConfigError")
    assert deployer.declared == deployer.deployed == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda of: st.lists(of) | st.dictionaries(st.text(), of)
    )
)
def test_any_json_is_answered(client: TestClient, body: Any) -> None:
    for method, path in (("PUT", "traffic"), ("PUT", "shadows"), ("POST", "rollout")):
        answer = client.request(method, f"{ALL}/shop/{path}", content=json.dumps(body), headers=JSON)
        assert answer.status_code == 400


def test_a_body_that_says_it_is_too_large(client: TestClient) -> None:
    answer = client.put(ALL, content=b"{}", headers={**JSON, "content-length": "1000000000000000000000"})
    assert answer.status_code == 413
    assert error_of(answer) == "BodyTooLarge"
    assert answer.headers["connection"] == "close"


def test_a_body_that_is_too_large_and_does_not_say_so(client: TestClient) -> None:
    answer = client.put(ALL, content=(b" " * 1000 for _ in range(1000)), headers=JSON)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("wiat=true", "did you mean 'wait'?"),
        ("wait=maybe", "must be true or false"),
        ("wait=true&wait=false", "twice"),
        ("by=", "must be 1 to 200"),
        ("by=" + "x" * 201, "must be 1 to 200"),
        ("by=a%0Ab", "must be 1 to 200"),
        ("by=%FF", "cannot be read"),
        ("&".join(f"a{n}=1" for n in range(30)), "cannot be read"),
    ],
)
def test_a_query_that_is_not_right(client: TestClient, deployer: NotingDeployer, query: str, message: str) -> None:
    answer = client.put(f"{ALL}?{query}", json={"applications": []})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert deployer.declared == deployer.deployed == []


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api", "/api/serve/applications/a/b", "//", "/api//version", "/%2e%2e/x"]
)
def test_nothing_is_there(client: TestClient, path: str) -> None:
    answer = client.get(f"http://localhost{path}")
    assert answer.status_code == 404
    assert error_of(answer) == "RouteNotFound"


def test_no_origin_is_told_that_it_may(client: TestClient) -> None:
    asked = {"origin": "http://localhost", "access-control-request-method": "PUT"}
    answer = client.options(ALL, headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_what_we_did_not_foresee_tells_nothing(
    client: TestClient, controller: ScriptedController, deployer: NotingDeployer, caplog: pytest.LogCaptureFixture
) -> None:
    deployer.taken = None  # type: ignore[assignment]
    answer = client.put(ALL, json={"applications": []})
    assert answer.status_code == 500
    assert answer.json() == {"error": {"type": "HeadraceError", "message": "the API failed; its log says how"}}
    assert "AttributeError" in caplog.text


def test_too_much_at_once_is_put_off(client: TestClient) -> None:
    client.app._under_way = 200  # type: ignore[attr-defined]
    answer = client.get("/api/version")
    assert answer.status_code == 503
    assert error_of(answer) == "Busy"
    assert answer.headers["retry-after"] == "1"
