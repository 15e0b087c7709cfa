from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformity import check_answer
from scripted_controller import ScriptedController
from starlette.testclient import TestClient

from headrace.api.app import Api
from headrace.api.controller import Controller
from headrace.api.deployer import Taken
from headrace.api.desk import Desk
from headrace.api.guard import Guard
from headrace.engine.directory import InstanceDirectory, instance_directory
from headrace.spec.config_schema import ServeApplicationSchema, ServeDeploySchema
from headrace.spec.errors import HeadraceError

TOKEN = "t0ken-" + "x" * 40


class NotingDeployer:
    """Builds nothing: notes what it is given, and answers as it is told to."""

    def __init__(self) -> None:
        self.declared: list[tuple[dict[str, Any], str]] = []
        self.deployed: list[tuple[dict[str, Any], int | None, str]] = []
        self.taken: Taken | HeadraceError = Taken()

    async def declare(self, config: ServeDeploySchema, by: str) -> Taken:
        self.declared.append((config.model_dump(exclude_unset=True), by))
        return self._answer()

    async def deploy(self, application: ServeApplicationSchema, expected: int | None, by: str) -> Taken:
        self.deployed.append((application.model_dump(exclude_unset=True), expected, by))
        return self._answer()

    def _answer(self) -> Taken:
        if isinstance(self.taken, HeadraceError):
            raise self.taken
        return self.taken


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[InstanceDirectory]:
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as home:  # short: sockets lie in it
        monkeypatch.setenv("HEADRACE_HOME", home)
        yield instance_directory("api-test")


@pytest.fixture
def controller(directory: InstanceDirectory) -> Iterator[ScriptedController]:
    with ScriptedController(directory) as controller:
        yield controller


@pytest.fixture
def deployer() -> NotingDeployer:
    return NotingDeployer()


def client_of(directory: InstanceDirectory, deployer: NotingDeployer, token: str = TOKEN) -> TestClient:
    desk = Desk(Controller(directory, away_timeout_s=0.1), deployer)
    api = Api(Guard(TOKEN, ("api.example",)), desk, max_body_bytes=100_000)
    client = TestClient(api, "http://localhost", headers={"authorization": f"Bearer {token}"})
    client.event_hooks["response"].append(_check)
    return client


def _check(answer: Any) -> None:
    answer.read()
    request = answer.request
    if answer.headers["content-type"] == "application/json" and request.method != "HEAD":
        check_answer(request.method, request.url.path, answer.status_code, answer.json())


@pytest.fixture
def client(controller: ScriptedController, directory: InstanceDirectory, deployer: NotingDeployer) -> TestClient:
    return client_of(directory, deployer)


@pytest.fixture
def lonely_client(directory: InstanceDirectory, deployer: NotingDeployer) -> TestClient:
    """Its API has no instance to ask."""
    directory.create()
    return client_of(directory, deployer)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "api.token"
