"""Deploys over HTTP on a real instance: several deployers, code that hangs, a controller that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess, until

from headrace.spec.errors import RevisionConflictError
from headrace.wire.client import ControlClient
from headrace.wire.control import Delete

ALL = "/api/serve/applications"
CODE = """
import os
from headrace import serve

@serve.deployment
class Model:
    def __init__(self, *args):
        {init}

    def __call__(self, request):
        return {{"says": {says!r}, "pid": os.getpid()}}

app = Model.bind()
"""


class Stage:
    """An instance with the API beside it, and a folder with modules for both."""

    def __init__(self, folder: Path) -> None:
        self.home, self.app_dir = folder / "h", folder / "a"
        self.app_dir.mkdir()
        self.env = {**os.environ, "HEADRACE_HOME": str(self.home)}
        self.cli("start", "--port", "0")
        self.api = ApiProcess(self.home, instance="d", app_dir=self.app_dir).__enter__()
        self.port = self.api.ask("GET", "/api/serve/status")[1]["proxies"]["ingress#0"]["port"]

    def cli(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "headrace.cli", *arguments, "--instance", "d"]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        self.api.__exit__()
        self.cli("shutdown")

    def write(self, module: str, says: str, init: str = "pass") -> None:
        (self.app_dir / f"{module}.py").write_text(CODE.format(says=says, init=init))

    def put(self, app: str, headers: dict[str, str] | None = None, **options: Any) -> tuple[int, Any]:
        body = {"import_path": f"{app}:app", "route_prefix": f"/{app}", **options}
        return self.api.ask("PUT", f"{ALL}/{app}?wait=true", body, headers)

    def get(self, app: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{app}", timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder:  # short: sockets lie in it
        stage = Stage(Path(folder))
        yield stage
        stage.close()


def test_a_config_is_what_is_declared(stage: Stage) -> None:
    stage.write("cats", "miaow")
    stage.write("dogs", "woof")
    apps = [{"name": name, "import_path": f"{name}:app", "route_prefix": f"/{name}"} for name in ("cats", "dogs")]
    status, answer = stage.api.ask("PUT", f"{ALL}/?wait=true", {"applications": apps})
    assert status == 200, answer
    assert {name: each["outcome"] for name, each in answer["applications"].items()} == {
        "cats": "PROMOTED",
        "dogs": "PROMOTED",
    }
    assert stage.get("cats")["says"] == "miaow"
    details = stage.api.ask("GET", f"{ALL}/")[1]["applications"]["dogs"]
    assert (details["status"], details["source"]) == ("RUNNING", "declarative")
    assert details["deployed_app_config"]["import_path"] == "dogs:app"

    status, answer = stage.api.ask("PUT", f"{ALL}/", {"applications": apps[:1]})
    assert (status, answer["deleted"]) == (200, ["dogs"])
    until(lambda: set(stage.api.ask("GET", ALL)[1]["applications"]) == {"cats"}, "dogs are gone")
    assert stage.api.ask("GET", f"{ALL}/dogs")[0] == 404


def test_one_application_is_deployed_without_touching_another(stage: Stage) -> None:
    stage.write("left", "one")
    stage.write("right", "one")
    assert stage.put("left")[0] == 200
    assert stage.put("right")[0] == 200
    untouched = stage.get("left")
    stage.write("left", "two")  # edited, but not deployed
    stage.write("right", "two")
    assert stage.put("right", {"if-match": '"1"'})[1] == {"revision": 2, "outcome": "PROMOTED", "reason": ""}
    assert stage.get("right")["says"] == "two"
    assert stage.get("left") == untouched
    assert stage.api.ask("GET", f"{ALL}/left")[1]["newest"] == 1


def test_of_many_deployers_who_saw_the_same_one_gets_through(stage: Stage) -> None:
    stage.write("race", "start")
    assert stage.put("race", {"if-none-match": "*"})[0] == 200
    assert stage.put("race", {"if-none-match": "*"})[0] == 412

    def deploy(number: int) -> int:
        body = {"import_path": "race:app", "route_prefix": "/race", "args": {}, "labels": {"by": str(number)}}
        return stage.api.ask("PUT", f"{ALL}/race", body, {"if-match": '"1"'})[0]

    stage.write("race", "changed")
    with ThreadPoolExecutor(4) as pool:
        answers = sorted(pool.map(deploy, range(4)))
    assert answers[0] == 200
    assert set(answers[1:]) <= {409, 412}
    assert stage.api.ask("GET", f"{ALL}/race")[1]["newest"] == 2

    # Nor is it deleted by who has missed that.
    assert stage.api.ask("DELETE", f"{ALL}/race", headers={"if-match": '"1"'})[0] == 412
    client = ControlClient(str(stage.home / "d" / "control.sock"))
    with pytest.raises(RevisionConflictError, match="revision 1 was expected"):
        client.request(Delete("race", 1), 30)
    client.close()
    assert stage.api.ask("DELETE", f"{ALL}/race?wait=true", headers={"if-match": '"2"'})[0] == 200


def test_code_that_hangs_holds_up_nobody(stage: Stage) -> None:
    gate = stage.app_dir / "gate"
    stage.write("quick", "here")
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    (stage.app_dir / "hangs.py").write_text(wait + CODE.format(says="at last", init="pass"))
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(stage.put, "hangs")
        until(lambda: any("importing hangs:app" in line for line in stage.api.lines), "it is being imported")
        assert stage.put("quick")[0] == 200
        assert stage.api.ask("GET", "/api/serve/status")[0] == 200
        assert not hanging.done()
        gate.touch()
        assert hanging.result()[0] == 200
    assert stage.get("hangs")["says"] == "at last"


def test_what_does_not_come_up_is_told_with_its_own_traceback_and_the_good_one_stays(stage: Stage) -> None:
    stage.write("fails", "good")
    assert stage.put("fails")[0] == 200
    stage.write("fails", "bad", init="raise ZeroDivisionError('the model is broken')")
    status, answer = stage.put("fails")
    assert (status, answer["error"]["type"]) == (500, "DeployFailedError")
    assert "ZeroDivisionError: the model is broken" in answer["error"]["message"]
    assert stage.get("fails")["says"] == "good"

    (stage.app_dir / "fails.py").write_text("import no_such_module_at_all")
    status, answer = stage.put("fails")
    assert (status, answer["error"]["type"]) == (500, "DeployFailedError")
    assert "no_such_module_at_all" in answer["error"]["message"]
    assert stage.get("fails")["says"] == "good"


def test_a_rollout_is_steered_and_undone(stage: Stage) -> None:
    path = f"{ALL}/steered"
    stage.write("steered", "one")
    assert stage.put("steered")[0] == 200
    stage.write("steered", "two")
    body = {
        "import_path": "steered:app",
        "route_prefix": "/steered",
        "rollout": {"strategy": "canary", "steps": [[0.5, None]], "analysis": []},
    }
    assert stage.api.ask("PUT", f"{path}?by=ann", body)[1]["revision"] == 2
    until(lambda: stage.api.ask("GET", f"{path}/rollout")[1]["weights"] == {"1": 0.5, "2": 0.5}, "half of it")
    assert stage.api.ask("PUT", f"{path}/traffic", {"weights": {"1": 1}})[0] == 409  # the rollout is in the way
    status, answer = stage.api.ask("POST", f"{path}/rollback?wait=true&by=bob", {"reason": "no better"})
    assert (status, answer["revision"], answer["outcome"]) == (200, 1, "ROLLED_BACK")
    assert stage.get("steered")["says"] == "one"
    assert stage.api.ask("PUT", f"{path}/traffic", {"weights": {"2": 1}}, {"if-match": '"2"'})[0] == 200
    assert stage.get("steered")["says"] == "two"
    past = stage.api.ask("GET", f"{path}/revisions")[1]
    assert [each["by"] for each in past["revisions"]] == ["api", "ann"]
    assert past["revisions"][1]["outcome"] == "ROLLED_BACK"
    assert stage.api.ask("POST", f"{path}/rollout", {"command": "pause"})[0] == 409
    assert stage.api.ask("POST", f"{path}/rollback", {"revision": 77})[0] == 404


def test_a_controller_that_dies_is_waited_for(stage: Stage) -> None:
    keeper = int((stage.home / "d" / "keeper.lock").read_text())
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    controllers = [pid for pid in children if b"headrace.controller" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert controllers
    os.kill(int(controllers[0]), signal.SIGKILL)
    until(lambda: stage.api.ask("GET", "/api/serve/status")[0] == 200, "it is back")
    stage.write("after", "still here")
    assert stage.put("after")[0] == 200
    assert stage.get("after")["says"] == "still here"


def test_all_are_deleted_in_the_end(stage: Stage) -> None:
    status, answer = stage.api.ask("DELETE", f"{ALL}/?wait=true")
    assert status == 200
    assert answer["deleted"]
    assert stage.api.ask("GET", ALL)[1]["applications"] == {}
    assert "Traceback" not in "".join(stage.api.lines)
