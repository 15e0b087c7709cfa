"""Clients of the control API in this process, and a deployer that builds nothing."""

from __future__ import annotations

from typing import Any

from conformity import check_answer
from starlette.testclient import TestClient

from headrace.api.app import Api
from headrace.api.controller import Controller
from headrace.api.deployer import Taken
from headrace.api.desk import Desk
from headrace.api.guard import Guard
from headrace.engine.directory import InstanceDirectory
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
