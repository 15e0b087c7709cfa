"""Routes about applications, before a controller that says what it is told to."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from api_clients import NotingDeployer
from scripted_controller import ScriptedController
from starlette.testclient import TestClient

from headrace.api.deployer import Taken
from headrace.spec.errors import (
    DeployFailedError,
    HeadraceError,
    ImportPathError,
    InstanceError,
    RequestTimeoutError,
    RevisionConflictError,
)
from headrace.spec.status import ApplicationStatus, ApplicationStatusOverview, RolloutStatus, ServeStatus
from headrace.wire.control import Delete, Done, GetRollout, GetStatus, Rollout, Status

ALL = "/api/serve/applications"
CONFIG = {"applications": [{"name": "shop", "import_path": "shop:app", "route_prefix": "/shop"}]}


def has(controller: ScriptedController, **newest: int) -> None:
    """Have these applications run, at these revisions."""
    apps = {
        name: ApplicationStatusOverview(status=ApplicationStatus.RUNNING, revision=number, newest=number)
        for name, number in newest.items()
    }
    controller.answers[GetStatus] = Status(ServeStatus(instance="api-test", applications=apps))


def rollouts(controller: ScriptedController, **outcomes: RolloutStatus) -> None:
    controller.answers[GetRollout] = lambda operation: Rollout(outcomes[operation.app])


def error_of(answer: Any) -> str:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message"}
    return str(body["error"]["type"])


# --- what runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ALL, f"{ALL}/"])
def test_what_runs(client: TestClient, controller: ScriptedController, path: str) -> None:
    has(controller, shop=3)
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json()["applications"]["shop"]["status"] == "RUNNING"
    assert answer.headers["cache-control"] == "no-store"


def test_one_application_with_its_newest_revision(client: TestClient, controller: ScriptedController) -> None:
    has(controller, shop=3)
    answer = client.get(f"{ALL}/shop")
    assert answer.json()["newest"] == 3
    assert answer.headers["etag"] == '"3"'


def test_head_is_as_get_without_the_body(client: TestClient, controller: ScriptedController) -> None:
    has(controller, shop=3)
    assert client.head(f"{ALL}/shop").headers["etag"] == '"3"'


def test_one_that_is_not_there(client: TestClient, controller: ScriptedController) -> None:
    has(controller, shop=3)
    answer = client.get(f"{ALL}/shpo")
    assert answer.status_code == 404
    assert error_of(answer) == "ApplicationNotFound"
    assert "there are: shop" in answer.json()["error"]["message"]


def test_the_status_is_that_of_the_instance(client: TestClient) -> None:
    assert client.get("/api/serve/status").json()["instance"] == "api-test"


# --- all that is declared -------------------------------------------------------------------------------------------


def test_a_config_is_taken_at_once(client: TestClient, deployer: NotingDeployer) -> None:
    deployer.taken = Taken(revisions={"shop": 4}, deleted=("old",))
    answer = client.put(f"{ALL}/", json=CONFIG, params={"by": "ci"})
    assert answer.status_code == 200
    assert answer.json() == {
        "applications": {"shop": {"revision": 4, "outcome": "", "reason": ""}},
        "deleted": ["old"],
    }
    assert deployer.declared == [(CONFIG, "ci")]


def test_a_config_may_be_waited_for(
    client: TestClient, controller: ScriptedController, deployer: NotingDeployer
) -> None:
    has(controller, shop=4)
    polls = iter([RolloutStatus(app="shop", revision=4), RolloutStatus(app="shop", revision=4, outcome="PROMOTED")])
    controller.answers[GetRollout] = lambda operation: Rollout(next(polls))
    deployer.taken = Taken(revisions={"shop": 4})
    answer = client.put(ALL, json=CONFIG, params={"wait": "true"})
    assert answer.json()["applications"] == {"shop": {"revision": 4, "outcome": "PROMOTED", "reason": ""}}


@pytest.mark.parametrize(
    ("outcome", "status", "kind"),
    [
        ("FAILED", 500, "DeployFailedError"),
        ("ROLLED_BACK", 500, "RolledBackError"),
        ("SUPERSEDED", 409, "RolloutError"),
    ],
)
def test_one_that_does_not_come_through_is_told_of(
    client: TestClient,
    controller: ScriptedController,
    deployer: NotingDeployer,
    outcome: str,
    status: int,
    kind: str,
) -> None:
    has(controller, shop=4)
    rollouts(controller, shop=RolloutStatus(app="shop", revision=4, outcome=outcome, reason="it was bad"))
    deployer.taken = Taken(revisions={"shop": 4})
    answer = client.put(ALL, json=CONFIG, params={"wait": "true"})
    assert answer.status_code == status
    assert error_of(answer) == kind
    assert "it was bad" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "applications"),
        ({"applications": [{"name": "shop"}]}, "import_path"),
        ({"applications": [{"import_path": "a:b", "nmae": "shop"}]}, "did you mean 'name'"),
        ({"applications": [{"import_path": "a:b"}, {"import_path": "c:d"}]}, "name='default' already"),
        ([], "Expected `object`"),
        ({"applications": [{"import_path": "a:b", "args": {"n": 10**30}}]}, "more than 64 bits"),
    ],
)
def test_a_config_that_is_not_right_says_where(
    client: TestClient, deployer: NotingDeployer, config: Any, message: str
) -> None:
    answer = client.put(ALL, json=config)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert deployer.declared == deployer.deployed == []


@pytest.mark.parametrize("error", [ImportPathError("no module 'shop'"), DeployFailedError("it did not come up")])
def test_what_the_build_says_is_the_answer(client: TestClient, deployer: NotingDeployer, error: HeadraceError) -> None:
    deployer.taken = error
    answer = client.put(ALL, json=CONFIG)
    assert answer.status_code == error.status
    assert error_of(answer) == type(error).__name__
    assert answer.json()["error"]["message"] == str(error)


# --- one application ------------------------------------------------------------------------------------------------


def test_one_application_is_deployed_by_itself(client: TestClient, deployer: NotingDeployer) -> None:
    deployer.taken = Taken(revisions={"shop": 1})
    answer = client.put(f"{ALL}/shop", json={"import_path": "shop:app"})
    assert answer.json()["revision"] == 1
    assert answer.headers["etag"] == '"1"'
    assert deployer.deployed == [({"import_path": "shop:app", "name": "shop"}, None, "api")]
    assert deployer.declared == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"if-match": '"3"'}, 3),
        ({"if-match": '"2", "3"'}, 3),
        ({"if-match": "*"}, 3),
        ({"if-none-match": "*"}, None),
        ({"if-match": '"2"'}, None),
    ],
)
def test_it_is_deployed_if_the_condition_holds(
    client: TestClient,
    controller: ScriptedController,
    deployer: NotingDeployer,
    headers: dict[str, str],
    expected: int | None,
) -> None:
    has(controller, shop=3)
    deployer.taken = Taken(revisions={"shop": 4})
    answer = client.put(f"{ALL}/shop", json={"import_path": "shop:app"}, headers=headers)
    if expected is None:
        assert answer.status_code == 412
        assert error_of(answer) == "PreconditionFailed"
        assert deployer.declared == deployer.deployed == []
    else:
        assert answer.status_code == 200
        assert deployer.deployed[0][1] == expected  # the controller holds on to it


def test_if_none_match_deploys_what_is_not_there(client: TestClient, deployer: NotingDeployer) -> None:
    deployer.taken = Taken(revisions={"shop": 1})
    answer = client.put(f"{ALL}/shop", json={"import_path": "shop:app"}, headers={"if-none-match": "*"})
    assert answer.status_code == 200
    assert deployer.deployed[0][1] == 0


def test_who_comes_second_is_told_so(
    client: TestClient, controller: ScriptedController, deployer: NotingDeployer
) -> None:
    """The condition held when it was looked at, and no longer when the controller took it up."""
    has(controller, shop=3)
    deployer.taken = RevisionConflictError("revision 4 is newer")
    answer = client.put(f"{ALL}/shop", json={"import_path": "shop:app"}, headers={"if-match": '"3"'})
    assert answer.status_code == 409
    assert error_of(answer) == "RevisionConflictError"


@pytest.mark.parametrize("tag", ["3", 'W/"3"', '"x"', '""', '"0"', '"-1"', '"3" "4"', '"3', "", '"' + "9" * 30 + '"'])
def test_a_condition_that_is_none_is_refused(client: TestClient, deployer: NotingDeployer, tag: str) -> None:
    answer = client.put(f"{ALL}/shop", json={"import_path": "shop:app"}, headers={"if-match": tag})
    assert answer.status_code == 400
    assert deployer.declared == deployer.deployed == []


def test_a_condition_that_a_route_does_not_go_by_is_refused(client: TestClient) -> None:
    answer = client.put(ALL, json=CONFIG, headers={"if-match": '"3"'})
    assert answer.status_code == 400
    assert "does not go by it" in answer.json()["error"]["message"]


def test_the_name_in_the_body_is_that_of_the_path(client: TestClient, deployer: NotingDeployer) -> None:
    deployer.taken = Taken(revisions={"shop": 1})
    body = {"import_path": "shop:app", "name": "other"}
    assert client.put(f"{ALL}/shop", json=body).status_code == 400
    assert client.put(f"{ALL}/shop", json={**body, "name": "shop"}).status_code == 200


# --- deleting -------------------------------------------------------------------------------------------------------


def test_one_is_deleted(client: TestClient, controller: ScriptedController) -> None:
    has(controller, shop=3)
    controller.answers[Delete] = Done()
    answer = client.delete(f"{ALL}/shop", params={"wait": "1"})
    assert answer.json() == {"deleted": ["shop"]}
    assert controller.asked_for(Delete) == [Delete("shop")]


def test_one_that_goes_is_not_waited_for(client: TestClient, controller: ScriptedController) -> None:
    has(controller, shop=3)
    answered = threading.Event()

    def begin(operation: Any) -> Done:
        going = ApplicationStatusOverview(status=ApplicationStatus.DELETING)
        controller.answers[GetStatus] = Status(ServeStatus(applications={"shop": going}))
        answered.wait()
        return Done()

    controller.answers[Delete] = begin
    assert client.delete(f"{ALL}/shop").json() == {"deleted": ["shop"]}
    answered.set()
    assert controller.asked_for(Delete) == [Delete("shop")]


def test_one_is_deleted_only_if_the_condition_holds(client: TestClient, controller: ScriptedController) -> None:
    has(controller, shop=3)
    assert client.delete(f"{ALL}/shop", headers={"if-match": '"2"'}).status_code == 412
    assert controller.asked_for(Delete) == []
    controller.answers[Delete] = RevisionConflictError("revision 4 is newer")  # it came in between
    assert client.delete(f"{ALL}/shop", headers={"if-match": '"3"'}).status_code == 409
    assert controller.asked_for(Delete) == [Delete("shop", 3)]


def test_all_are_deleted(client: TestClient, controller: ScriptedController) -> None:
    has(controller, shop=3, bank=1)
    controller.answers[Delete] = Done()
    answer = client.delete(f"{ALL}/", params={"wait": "true"})
    assert answer.json() == {"deleted": ["shop", "bank"]}
    assert set(controller.asked_for(Delete)) == {Delete("shop"), Delete("bank")}


def test_one_that_is_not_there_cannot_be_deleted(client: TestClient) -> None:
    assert client.delete(f"{ALL}/shop").status_code == 404


# --- a controller that is not well ----------------------------------------------------------------------------------


def test_no_instance_is_a_reason_to_come_again(lonely_client: TestClient) -> None:
    answer = lonely_client.get(ALL)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert error_of(answer) == "ControllerAway"


def test_a_controller_that_goes_in_the_middle_too(client: TestClient, controller: ScriptedController) -> None:
    del controller.answers[GetStatus]
    answer = client.get(ALL)
    assert answer.status_code == 503
    assert error_of(answer) == "ControllerAway"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InstanceError("it is shutting down"), 503),
        (RequestTimeoutError("too slow"), 504),
        (HeadraceError("?"), 500),
    ],
)
def test_what_the_controller_says_is_the_answer(
    client: TestClient, controller: ScriptedController, error: HeadraceError, status: int
) -> None:
    controller.answers[GetStatus] = error
    answer = client.get(ALL)
    assert answer.status_code == status
    assert error_of(answer) in (type(error).__name__, "ControllerAway")
