from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_clients import NotingDeployer, client_of
from scripted_controller import ScriptedController
from starlette.testclient import TestClient

from headrace.engine.directory import InstanceDirectory, instance_directory


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
