"""Deployments of 2021: versions, what is refused, and that the options of then are refused where today's names go."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace import serve
from headrace.serve.testing import LocalTesting
from headrace.spec.errors import ApplicationNotFound, DeployFailedError, HeadraceError, OptionError, OptionTypeError


@serve.deployment
class Present:
    def __call__(self) -> str:
        return "present"


@serve.deployment(version="1", max_concurrent_queries=5)
class Model:
    def __init__(self, name: str = "model") -> None:
        self.name = name
        self.config: Any = None

    def __call__(self, *args: Any) -> Any:
        return self.name, self.config, id(self)

    def reconfigure(self, config: Any) -> None:
        self.config = config


@serve.deployment(version="1")
class Broken:
    def __init__(self) -> None:
        raise KeyError("the model is not there")

    def __call__(self) -> None:
        pass


@pytest.fixture
def local(headrace_local: LocalTesting) -> Iterator[LocalTesting]:
    headrace_local.run(Present.bind(), name="present", route_prefix="/present")
    yield headrace_local
    for name in serve.status().applications:
        serve.delete(name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"version": "1"}, "'version' is no option of a deployment: a changed deployment is recognised"),
        ({"max_concurrent_queries": 5}, "its name is max_ongoing_requests"),
        ({"route_prefix": "/x"}, r"give it to serve.run\(..., route_prefix=...\)"),
        ({"init_args": (1,)}, r"give the arguments to .bind\(...\)"),
        ({"init_kwargs": {}}, r"give the arguments to .bind\(...\)"),
        ({"prev_version": "1"}, "'prev_version' is no option of a deployment"),
    ],
)
def test_options_of_then_are_refused_where_todays_names_go(options: dict[str, Any], told: str) -> None:
    for made in (serve.deployment(**options)(Present.func_or_class), Present.options(**options)):
        with pytest.raises((OptionError, OptionTypeError), match=told):
            made.bind()


@pytest.mark.parametrize(
    ("use", "error", "told"),
    [
        (lambda: Model.options(version=1).deploy(), OptionTypeError, "version=1 of a deployment must be a string"),
        (lambda: Model.options(version="").deploy(), OptionTypeError, "version='' of a deployment must be a string"),
        (lambda: Model.options(prev_version="0").deploy(), OptionError, "but there is no deployment 'Model'"),
        (lambda: Model.options(route_prefix="x").deploy(), OptionError, "did you mean '/x'"),
        (lambda: Model.options(route_prefix="/present").deploy(), OptionError, "is taken by application 'present'"),
        (lambda: Model.options(init_args=5).deploy(), OptionTypeError, "init_args=5 must be a tuple"),
        (lambda: Model.options(init_kwargs=5).deploy(), OptionTypeError, "init_kwargs=5 must be a dict"),
        (lambda: Model.deploy(1, 2), OptionTypeError, "does not fit its constructor"),
        (lambda: Model.options(name="present").deploy(), OptionError, "that was not made by .deploy"),
        (lambda: Model.options(max_concurrent_queries=0).deploy(), OptionError, "max_ongoing_requests=0"),
        (lambda: Model.options(_autoscaling_config={"min_replicas": 1}).deploy(), OptionError, "does not work yet"),
        (lambda: Model.get_handle(), ApplicationNotFound, "no application is called 'Model'"),
        (lambda: serve.get_deployment("Model"), ApplicationNotFound, "no deployment is called 'Model'"),
        (lambda: serve.get_deployment("present"), OptionError, "that was not made by .deploy"),
        (lambda: Broken.deploy(), DeployFailedError, "KeyError: 'the model is not there'"),
    ],
)
def test_what_makes_no_sense_is_told(
    local: LocalTesting, use: Callable[[], Any], error: type[HeadraceError], told: str
) -> None:
    with pytest.raises(error, match=told):
        use()
    assert "Model" not in serve.status().applications


def test_versions(local: LocalTesting) -> None:
    Model.deploy("one")
    handle = Model.get_handle()
    name, config, first = handle.remote().result()
    assert (name, config) == ("one", None)
    Model.options(user_config=5, num_replicas=1).deploy("the same version, other arguments")
    assert handle.remote().result() == ("one", 5, first)
    assert serve.status().applications["Model"].newest == 1
    Model.options(version="2", user_config=6).deploy("two")
    name, config, second = handle.remote().result()
    assert (name, config) == ("two", 6)
    Model.options(version="3").deploy("two")
    assert handle.remote().result()[2] != second  # another version is other replicas, whatever the code
    assert [record.labels["version"] for record in serve.history("Model").revisions] == ["1", "2", "3"]
    with pytest.raises(OptionError, match=r"prev_version='2' does not match the version of deployment 'Model'.*'3'"):
        Model.options(version="4", prev_version="2").deploy()
    Model.options(version="4", prev_version="3").deploy("four", _blocking=False)
    serve.wait_for_rollout("Model", 30)
    assert handle.remote().result()[0] == "four"
    unversioned = Model.options(version=None, init_kwargs={"name": "five"})
    assert (unversioned.version, unversioned.init_kwargs, unversioned.init_args) == (None, {"name": "five"}, ())
    for _ in range(2):
        before = handle.remote().result()[2]
        unversioned.deploy()
        assert handle.remote().result()[0] == "five"
        assert handle.remote().result()[2] != before
    with pytest.raises(OptionError, match=r"prev_version='4' does not match the version of deployment 'Model'.*None"):
        Model.options(version="5", prev_version="4").deploy()
    Model.delete()
    Model.delete()
    assert "Model" not in serve.status().applications


def test_a_deployment_that_is_found_runs_the_code_that_it_runs(local: LocalTesting) -> None:
    Model.options(route_prefix="/model").deploy("found")
    found = serve.get_deployment("Model")
    assert (found.name, found.version, found.route_prefix, found.init_args) == ("Model", "1", "/model", ("found",))
    assert found.func_or_class is Model.func_or_class
    assert found.url is None or "/model" in found.url
    handle = found.get_handle()
    before = handle.remote().result()
    found.options(user_config="new").deploy()
    assert handle.remote().result() == (before[0], "new", before[2])
    found.options(version="2").deploy()
    assert handle.remote().result()[0] == "found"
    found.options(version="3").deploy(name="other")
    assert handle.remote().result()[0] == "other"
    found.options(name="copy", version="1", route_prefix="/copy").deploy()
    assert local.http.get("/copy").json()[0] == "found"
    assert sorted(serve.list_deployments()) == ["Model", "copy"]
    assert serve.list_deployments()["Model"].version == "3"


def test_a_handle_whose_calls_are_awaited_twice(local: LocalTesting) -> None:
    Model.deploy("awaited")
    handle = Model.get_handle(sync=False)
    again = pickle.loads(pickle.dumps(handle))
    assert (again, type(again)) == (handle, type(handle))

    async def call() -> Any:
        response = await handle.remote()
        again = await handle.options(method_name="__call__").remote(1)
        return (await response)[0], (await again)[0]

    assert asyncio.run(call()) == ("awaited", "awaited")


def test_a_script_with_a_deployment_that_gets_a_route_later(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from headrace import serve\n"
        "serve.start(http_port=0)\n"
        "@serve.deployment(route_prefix=None)\n"
        "def f(x): return x + 1\n"
        "assert f.url is None\n"
        "f.deploy()\n"
        "assert f.get_handle().remote(1).result() == 2\n"
        "assert f.url is None\n"
        "f.options(route_prefix='/f').deploy()\n"
        "assert f.url.endswith('/f'), f.url\n"
        "f.delete()\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    env |= {"HEADRACE_HOME": str(tmp_path / "h")}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
