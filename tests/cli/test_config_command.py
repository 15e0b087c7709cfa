"""`headrace build`, `headrace config` and `headrace deploy FILE`: from code to a file, and from a file to what runs."""

import json
import urllib.request
from pathlib import Path

import pytest
from terminals import PATIENCE_S

from headrace.serve.config_file import parse_config
from headrace.serve.schema import ServeDeploySchema

APPS = (Path(__file__).parents[1] / "serve" / "declared_applications.py").read_text()
NAMES = ("one", "two")


@pytest.fixture(scope="module")
def shop(place):
    """An instance, and its address."""
    place.write("shop.py", APPS)
    place.url = place.start()
    return place


def get(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return json.load(response)


def app(name, **fields):
    return {"name": name, "route_prefix": f"/{name}", "import_path": "shop:app", **fields}


def deploy(shop, *apps, **top):
    (shop.path / "shop.json").write_text(json.dumps({"applications": apps, **top}, indent=1))
    done = shop.command("deploy", "shop.json", "--wait", "--json")
    return done, json.loads(done.stdout)["applications"]


def status(shop):
    return json.loads(shop.command("status", "--json").stdout)["applications"]


def test_what_build_writes_is_what_the_code_says(terminal):
    terminal.write("shop.py", APPS)
    done = terminal.command("build", "shop:graph", "shop.build", "-o", "shop.yaml")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    text = (terminal.path / "shop.yaml").read_text()
    assert "# max_ongoing_requests: 100 (chosen by the kind of its methods)" in text
    graph, built = parse_config(text).schema.applications
    assert (graph.name, graph.route_prefix, graph.import_path) == ("graph", "/graph", "shop:graph")
    assert (built.name, built.import_path) == ("build", "shop:build")
    assert graph.deployment_names == ["Model", "Model_1", "Door"]
    model, _, door = graph.deployments
    assert model.overrides()["max_ongoing_requests"] == 7
    assert model.overrides()["num_cpus"] == 0.5
    assert door.overrides()["request_router_config"]["request_router_class"].endswith(":ConsistentHashRouter")
    assert door.overrides()["backpressure_config"]["status_code"] == 429

    again = terminal.command("build", "shop:graph", "-o", "shop.yaml")
    assert again.returncode == 1
    assert "is there already: --force writes it anew" in again.stderr
    alone = terminal.command("build", "shop:graph")
    assert parse_config(alone.stdout).schema.applications[0].name == "default"
    checked = terminal.command("config", "--check", "shop.yaml")
    assert checked.stdout == "shop.yaml is well: applications graph, build\n"


def test_what_cannot_be_built_is_told(terminal):
    terminal.write("shop.py", APPS)
    near = terminal.command("build", "shop:grap")
    assert (near.returncode, near.stdout) == (1, "")
    assert "did you mean shop:graph?" in near.stderr
    broken = terminal.command("build", "shop:broken")
    assert "ZeroDivisionError: the builder is broken" in broken.stderr
    assert "is not a directory" in terminal.command("build", "shop:app", "--app-dir", "nowhere").stderr
    assert "is not MODULE:APP" in terminal.command("build", "shop").stderr


def test_the_schema_is_printed_without_an_instance(terminal):
    printed = json.loads(terminal.command("config", "--schema").stdout)
    assert set(printed["properties"]) == set(ServeDeploySchema.FIELDS)
    assert "no instance 'default' is running" in terminal.command("config").stderr


def test_a_file_that_is_not_valid_changes_nothing(terminal):
    terminal.write("serve.yaml", "applications:\n- import_path: shop:app\n  deployment: []\n")
    told = "serve.yaml:3: applications[0]: unknown key 'deployment'; did you mean 'deployments'?"
    for command in (("config", "--check", "serve.yaml"), ("deploy", "serve.yaml")):
        done = terminal.command(*command)
        assert done.returncode == (64 if command[0] == "deploy" else 1)
        assert told in done.stderr
    terminal.write("serve.yaml", "applications: []\n")
    done = terminal.command("deploy", "serve.yaml", "--name", "x")
    assert (done.returncode, "--name has no effect with a file" in done.stderr) == (64, True)
    done = terminal.command("deploy", "serve.yaml", "--expected-revision", "1")
    assert "does not declare exactly one" in done.stderr


def test_a_file_is_deployed_changed_in_place_and_followed(shop):
    code = shop.command("deploy", "shop:app", "--name", "coded", "--route-prefix", "/coded", "--wait")
    assert code.returncode == 0, code.stderr
    one = app("one", runtime_env={"env_vars": {"DECLARED": "yes"}})
    two = app("two", import_path="shop.build", args={"name": "file"}, labels={"commit": "1f00ba2"})
    done, results = deploy(shop, one, two, app("three", import_path="shop:broken"))
    assert done.returncode == 1
    assert {name: result["action"] for name, result in results.items()} == {
        "one": "deployed",
        "two": "deployed",
        "three": "failed",
    }
    assert "ZeroDivisionError: the builder is broken" in results["three"]["reason"]
    first = {name: get(f"{shop.url}/{name}") for name in NAMES}
    assert (first["one"]["says"], first["one"]["variable"]) == ("hello world", "yes")
    assert (first["two"]["says"], first["two"]["variable"]) == ("hello file", "")

    # Options alone change: no replica is another. The other application is left alone.
    option = {"name": "Greeter", "user_config": {"greeting": "servus"}, "max_queued_requests": 5}
    done, results = deploy(shop, {**one, "deployments": [option]}, two)
    assert done.returncode == 0, done.stderr
    revisions = {name: result["revision"] for name, result in results.items()}
    assert revisions == {"one": 1, "two": 1}
    second = {name: get(f"{shop.url}/{name}") for name in NAMES}
    assert second["one"] == {**first["one"], "says": "servus world"}
    assert second["two"] == first["two"]

    config = json.loads(shop.command("config", "--json").stdout)
    assert {each["name"] for each in config["applications"]} == {"one", "two"}
    assert parse_config(shop.command("config").stdout).schema.applications
    assert json.loads(shop.command("config", "one", "--json").stdout)["deployments"] == [option]
    assert "was deployed by code" in shop.command("config", "coded").stderr
    assert "no application is called 'none'" in shop.command("config", "none").stderr

    # What is declared no more is deleted, what code deployed is not. Arguments make another revision.
    done, results = deploy(shop, {**two, "route_prefix": "/one", "args": {"name": "new"}})
    assert done.returncode == 0, done.stderr
    assert (results["one"]["action"], results["two"]["revision"]) == ("deleted", 2)
    assert set(status(shop)) == {"two", "coded"}
    assert get(f"{shop.url}/one")["says"] == "hello new"
    assert get(f"{shop.url}/coded")["says"] == "hello world"


def test_what_is_wrong_with_one_application_is_told_of_it_alone(shop):
    shop.write("dies.py", "import os; os._exit(7)")
    done, results = deploy(
        shop,
        app("options", deployments=[{"name": "Greter", "num_replicas": 2}]),
        app("route", route_prefix="/coded"),
        app("place", runtime_env={"working_dir": "nowhere"}),
        app("dies", import_path="dies:app"),
        app("well"),
    )
    assert done.returncode == 1
    told = {name: result["reason"] for name, result in results.items()}
    assert told["options"].endswith("no deployment 'Greter' to have these options: did you mean 'Greeter'?")
    assert "is taken by application 'coded'" in told["route"]
    assert "working_dir: there is no directory" in told["place"]
    assert told["dies"] == "the process that imports dies:app ended with exit code 7"
    assert results["well"]["action"] == "deployed"

    # What serves is not taken away by a file of which a part cannot be built.
    assert ("two" in results, "two" in status(shop)) == (False, True)
    assert "application 'two' is not declared any more, but stays: 'options', 'place', 'dies' could" in done.stderr
    done, results = deploy(shop, app("well"))
    assert (done.returncode, results["two"]["action"], "two" in status(shop)) == (0, "deleted", False)
    conflict = shop.command("deploy", "shop.json", "--expected-revision", "9", "--wait")
    assert conflict.returncode == 1
    assert "9" in conflict.stderr


def test_what_takes_too_long_to_import_is_ended_and_leaves_the_others(shop):
    shop.write("hangs.py", "import threading; threading.Event().wait()")
    (shop.path / "late.json").write_text(json.dumps({"applications": [app("late", import_path="hangs:app")]}))
    done = shop.command("deploy", "late.json", "--wait", "--timeout", "2", "--json")
    assert done.returncode == 124
    late = json.loads(done.stdout)["applications"]["late"]
    assert late["reason"].startswith("hangs:app was not built in time")
    assert "not ended: application late: hangs:app" in done.stderr


def test_packages_directories_and_capacity(shop):
    inner = shop.path / "inner"
    inner.mkdir()
    (inner / "mine.py").write_text("from tools.words import app\n")
    tools = shop.path / "lib" / "tools"
    tools.mkdir(parents=True)
    (tools / "__init__.py").write_text("")
    (tools / "words.py").write_text(APPS)
    env = {"working_dir": "inner", "py_modules": [f"local://{tools}"]}
    options = [{"name": "Greeter", "num_replicas": 4}]
    done, _ = deploy(
        shop, app("five", import_path="mine:app", runtime_env=env, deployments=options), target_capacity=50
    )
    assert done.returncode == 0, done.stderr
    assert status(shop)["five"]["deployments"]["Greeter"]["replica_states"] == {"RUNNING": 2}
    assert get(f"{shop.url}/five")["says"] == "hello world"
