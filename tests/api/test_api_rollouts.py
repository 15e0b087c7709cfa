"""Routes about revisions, before a controller that says what it is told to."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_controller import ScriptedController
from starlette.testclient import TestClient
from test_api_applications import error_of, has

from headrace.spec.counts import Signal
from headrace.spec.errors import RevisionConflictError, RevisionNotFound, RolloutError
from headrace.spec.rollout import Canary, Command, Comparison, ShadowTraffic
from headrace.spec.status import History, RevisionRecord, RolloutStatus
from headrace.spec.sticky import Sticky
from headrace.wire.control import (
    ControlRollout,
    Deployed,
    Done,
    GetHistory,
    GetRollout,
    Past,
    Rollback,
    Rollout,
    SetShadow,
    SetTraffic,
)

APP = "/api/serve/applications/shop"


@pytest.fixture(autouse=True)
def shop(controller: ScriptedController) -> None:
    has(controller, shop=2)
    controller.answers[GetRollout] = Rollout(RolloutStatus(app="shop", revision=2, baseline=1, stage="CANARY"))
    controller.answers[ControlRollout] = Done()
    controller.answers[SetTraffic] = Done()
    controller.answers[SetShadow] = Done()


def test_where_the_rollout_is(client: TestClient) -> None:
    assert client.get(f"{APP}/rollout").json()["stage"] == "CANARY"


def test_a_rollout_that_there_is_not(client: TestClient, controller: ScriptedController) -> None:
    controller.answers[GetRollout] = RolloutError("application 'shop' has no rollout")
    answer = client.get(f"{APP}/rollout/")
    assert answer.status_code == 409
    assert error_of(answer) == "RolloutError"


@pytest.mark.parametrize("command", list(Command))
def test_a_rollout_is_told(client: TestClient, controller: ScriptedController, command: Command) -> None:
    body = {"command": command.value, "reason": "looks odd"}
    answer = client.post(f"{APP}/rollout", json=body, params={"by": "ann"})
    assert answer.status_code == 200
    (asked,) = controller.asked_for(ControlRollout)
    # Of the rollout that was seen, and of no other that began since.
    assert asked == ControlRollout(app="shop", command=command, revision=2, reason="looks odd", by="ann", wait=False)


def test_an_abort_that_is_waited_for_ends_well(client: TestClient, controller: ScriptedController) -> None:
    def abort(operation: Any) -> Done:
        ended = RolloutStatus(app="shop", revision=2, outcome="ROLLED_BACK", reason="aborted by ann")
        controller.answers[GetRollout] = Rollout(ended)
        return Done()

    controller.answers[ControlRollout] = abort
    answer = client.post(f"{APP}/rollout", json={"command": "abort"}, params={"wait": "true"})
    assert answer.status_code == 200
    assert answer.json()["outcome"] == "ROLLED_BACK"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": "stop"},
        {"command": "pause", "why": "x"},
        {"command": "pause", "revision": -1},
        {"command": "pause", "revision": 10**30},
        [],
        "pause",
        7,
    ],
)
def test_a_command_that_is_none(client: TestClient, controller: ScriptedController, body: Any) -> None:
    assert client.post(f"{APP}/rollout", json=body).status_code == 400
    assert controller.asked_for(ControlRollout) == []


def test_an_unknown_field_names_the_nearest(client: TestClient) -> None:
    answer = client.post(f"{APP}/rollout", json={"command": "pause", "raeson": "x"})
    assert "did you mean 'reason'?" in answer.json()["error"]["message"]


def test_an_unknown_command_names_those_that_there_are(client: TestClient) -> None:
    answer = client.post(f"{APP}/rollout", json={"command": "promot"})
    assert "did you mean 'promote'?" in answer.json()["error"]["message"]


def test_the_way_back(client: TestClient, controller: ScriptedController) -> None:
    controller.answers[Rollback] = Deployed("shop", 1, 9)
    headers = {"content-type": "application/json"}
    assert client.post(f"{APP}/rollback", headers=headers).json()["revision"] == 1
    body = {"revision": 1, "rollout": {"strategy": "canary", "steps": [[0.1, 60]]}}
    assert client.post(f"{APP}/rollback", json=body).status_code == 200
    assert client.post(f"{APP}/rollback", json={"rollout": "canary"}).status_code == 200
    first, second, third = controller.asked_for(Rollback)
    assert first == Rollback(app="shop", by="api", wait=False)
    assert second == Rollback(app="shop", revision=1, rollout=Canary(steps=((0.1, 60.0),)), by="api", wait=False)
    assert third == Rollback(app="shop", rollout=Canary(), by="api", wait=False)
    assert client.post(f"{APP}/rollback", json={"rollout": "canray"}).status_code == 400


def test_a_way_back_that_is_waited_for(client: TestClient, controller: ScriptedController) -> None:
    controller.answers[Rollback] = Deployed("shop", 1, 9)
    controller.answers[GetRollout] = Rollout(RolloutStatus(app="shop", revision=1, outcome="PROMOTED"))
    answer = client.post(f"{APP}/rollback", json={}, params={"wait": "true"})
    assert answer.json()["outcome"] == "PROMOTED"


def test_a_revision_that_is_kept_no_more(client: TestClient, controller: ScriptedController) -> None:
    controller.answers[Rollback] = RevisionNotFound("revision 1 is kept no more")
    answer = client.post(f"{APP}/rollback", json={"revision": 1})
    assert answer.status_code == 404
    assert answer.json() == {"error": {"type": "RevisionNotFound", "message": "revision 1 is kept no more"}}


def test_the_history(client: TestClient, controller: ScriptedController) -> None:
    past = History(app="shop", revisions=(RevisionRecord(number=1, at=1.0, changes=("the first",)),))
    controller.answers[GetHistory] = Past(past)
    assert client.get(f"{APP}/revisions").json()["revisions"][0]["changes"] == ["the first"]


@pytest.mark.parametrize(
    ("more", "sticky", "keyless"),
    [
        ({}, None, False),
        ({"sticky": None}, None, True),
        ({"sticky": "header:X-User"}, Sticky(of="header", name="x-user"), False),
    ],
)
def test_a_split(
    client: TestClient, controller: ScriptedController, more: dict[str, Any], sticky: Sticky | None, keyless: bool
) -> None:
    answer = client.put(f"{APP}/traffic", json={"weights": {"1": 0.9, "2": 0.1}, **more})
    assert answer.status_code == 200
    (asked,) = controller.asked_for(SetTraffic)
    assert asked == SetTraffic(app="shop", weights={1: 0.9, 2: 0.1}, sticky=sticky, keyless=keyless, by="api")


def test_a_split_of_what_was_seen(client: TestClient, controller: ScriptedController) -> None:
    body = {"weights": {"2": 1}}
    assert client.put(f"{APP}/traffic", json=body, headers={"if-match": '"1"'}).status_code == 412
    assert client.put(f"{APP}/traffic", json=body, headers={"if-match": '"2"'}).status_code == 200
    (asked,) = controller.asked_for(SetTraffic)
    assert asked.expected == 2
    controller.answers[SetTraffic] = RevisionConflictError("revision 3 is newer")
    assert client.put(f"{APP}/traffic", json=body, headers={"if-match": '"2"'}).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"weights": {}},
        {"weights": {"1": 0.5}},
        {"weights": {"1": 0.5, "2": 0.6}},
        {"weights": {"1": -1, "2": 2}},
        {"weights": {"0": 1}},
        {"weights": {"99999999999999999999999": 1}},
        {"weights": {"1": 99999999999999999999999}},
        {"weights": {"one": 1}},
        {"weights": {"1": "1"}},
        {"weights": {"1": True}},
        {"weights": {"1": None}},
        {"weights": [1]},
        {"weights": {"1": 1}, "sticky": "x-user"},
        {"weights": {"1": 1}, "sticky": "header:"},
        {"weights": {"1": 1}, "sticky": ["header:x"]},
    ],
)
def test_a_split_that_is_none(client: TestClient, controller: ScriptedController, body: Any) -> None:
    answer = client.put(f"{APP}/traffic", json=body)
    assert answer.status_code == 400, answer.text
    assert controller.asked_for(SetTraffic) == []


def test_shadows(client: TestClient, controller: ScriptedController) -> None:
    body = {"shadows": {"2": {"fraction": 0.5, "compare": {"kind": "numeric", "rtol": 1e-6}}}}
    assert client.put(f"{APP}/shadows", json=body).status_code == 200
    assert client.put(f"{APP}/shadows", json={"shadows": {}}).status_code == 200
    first, second = controller.asked_for(SetShadow)
    assert first.shadows == {2: ShadowTraffic(fraction=0.5, compare=Comparison(kind="numeric", rtol=1e-6))}
    assert second.shadows == {}


@pytest.mark.parametrize(
    "shadows",
    [
        {"0": {"fraction": 1}},
        {"2": {"fraction": 1.5}},
        {"2": {}},
        {"2": 1},
        {"2": {"fraction": 1, "compare": {"kind": "user"}}},
        {"2": {"fraction": 1, "compare": {"function": {"type": "pickle", "data": ""}}}},
        {"2": {"fraction": 1, "compare": {"rtol": -1}}},
    ],
)
def test_shadows_that_are_none(client: TestClient, controller: ScriptedController, shadows: Any) -> None:
    assert client.put(f"{APP}/shadows", json={"shadows": shadows}).status_code == 400
    assert controller.asked_for(SetShadow) == []


def test_signals(client: TestClient, controller: ScriptedController) -> None:
    body = {
        "signals": [
            {"name": "bought", "value": 1, "request_id": "r-1"},
            {"name": "bought", "value": 0.5, "key": "ann", "at": 12.5},
        ]
    }
    answer = client.post(f"{APP}/signals", json=body)
    assert answer.status_code == 202
    assert answer.json() == {"signals": 2}
    (told,) = controller.signals
    assert told.signals == (
        Signal(app="shop", name="bought", value=1.0, request_id="r-1"),
        Signal(app="shop", name="bought", value=0.5, key="ann", at=12.5),
    )


@pytest.mark.parametrize(
    "signals",
    [
        [],
        [{"name": "x", "value": 1}],
        [{"name": "", "value": 1, "key": "a"}],
        [{"name": "x", "value": "1", "key": "a"}],
        [{"name": "x", "key": "a"}],
        [{"name": "x", "value": 1, "key": "a", "app": "other"}],
        [{"name": "x", "value": 1, "key": "a" * 2000}],
        {"name": "x", "value": 1, "key": "a"},
    ],
)
def test_signals_that_are_none(client: TestClient, controller: ScriptedController, signals: Any) -> None:
    assert client.post(f"{APP}/signals", json={"signals": signals}).status_code == 400
    assert controller.signals == []


def test_signals_of_nobody(client: TestClient, controller: ScriptedController) -> None:
    body = {"signals": [{"name": "x", "value": 1, "key": "a"}]}
    assert client.post("/api/serve/applications/bank/signals", json=body).status_code == 404
    assert controller.signals == []
