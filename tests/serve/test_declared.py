"""What a declared application becomes before it is deployed: variables, places to import from, shares of replicas."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.serve.build_declared import DeclaredJob, build_application, enter, replicas_at, with_variables
from headrace.serve.declared import Declared, build_declared, deploy_config
from headrace.serve.schema import ServeApplicationSchema, ServeDeploySchema
from headrace.spec.errors import ConfigError, DeployFailedError, InstanceError, OptionError

HERE = str(Path(__file__).parent)
MODULE = "declared_applications"


@pytest.fixture(autouse=True)
def own_place(monkeypatch, tmp_path):
    """Builders go elsewhere and change the path: a test leaves both as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def built(**application):
    return build_application(DeclaredJob(app_dir=HERE, application=application)).spec


def test_options_of_a_file_take_the_place_of_those_in_the_code():
    options = [{"name": "Model_1", "num_replicas": 3, "hedge": False}, {"name": "Door", "environment": {"A": "1"}}]
    spec = built(import_path=f"{MODULE}:graph", deployments=options)
    found = {each.name: each.options for each in spec.deployments}
    assert [found[name].num_replicas for name in ("Model", "Model_1", "Door")] == [1, 3, 1]
    assert found["Model"].hedge is not None
    assert found["Model_1"].hedge is None
    assert found["Model_1"].num_cpus == 0.5
    assert found["Door"].environment == {"A": "1"}
    assert spec.config == {"import_path": f"{MODULE}:graph", "deployments": options}


def test_other_options_alone_make_no_other_digest_but_variables_do():
    plain, options, variables = (
        {each.name: each.digest for each in built(import_path=f"{MODULE}:app", **more).deployments}
        for more in (
            {},
            {"deployments": [{"name": "Greeter", "num_replicas": 4, "user_config": {"greeting": "x"}}]},
            {"runtime_env": {"env_vars": {"A": "1"}}},
        )
    )
    assert plain == options
    assert plain != variables


def test_what_belongs_to_the_application_is_in_its_specification():
    spec = built(
        import_path=f"{MODULE}.build",
        name="shop",
        route_prefix=None,
        request_timeout_s=5,
        sticky="header:X-User",
        revision_history_limit=3,
        labels={"commit": "1f00ba2"},
    )
    assert (spec.name, spec.route_prefix, spec.request_timeout_s, spec.history) == ("shop", None, 5, 3)
    assert spec.sticky.name == "x-user"
    assert spec.labels == {"commit": "1f00ba2"}
    assert spec.source == f"{MODULE}:build"


def test_options_of_a_deployment_that_is_not_there_are_an_error():
    with pytest.raises(OptionError, match="no deployment 'Greter' to have these options: did you mean 'Greeter'"):
        built(import_path=f"{MODULE}:app", deployments=[{"name": "Greter"}])
    with pytest.raises(OptionError, match="deployment 'Model': hedge and repeatable=False contradict"):
        built(import_path=f"{MODULE}:graph", deployments=[{"name": "Model", "repeatable": False}])


def test_variables_of_the_application_lie_under_those_of_a_deployment():
    assert with_variables({}, {"CODE": "1"}, {"A": "1"}) == {"environment": {"A": "1", "CODE": "1"}}
    assert with_variables({"environment": {"A": "2"}}, {"CODE": "1"}, {"A": "1", "B": "1"}) == {
        "environment": {"A": "2", "B": "1"}
    }
    actor = {"num_cpus": 1, "runtime_env": {"env_vars": {"A": "2"}}}
    assert with_variables({"ray_actor_options": actor}, {"CODE": "1"}, {"A": "1", "B": "1"}) == {
        "ray_actor_options": {"num_cpus": 1, "runtime_env": {"env_vars": {"A": "2", "B": "1"}}}
    }


@given(st.integers(1, 10_000), st.floats(0, 100))
def test_a_share_of_the_replicas_is_at_least_one_and_at_most_all(count, capacity):
    assert 1 <= replicas_at(count, capacity) <= count
    assert abs(replicas_at(count, capacity) - count * capacity / 100) <= 1


def test_directories_that_are_not_there_are_errors(tmp_path):
    with pytest.raises(OptionError, match="py_modules: there is no directory"):
        enter({"py_modules": ["none"]}, str(tmp_path))
    with pytest.raises(OptionError, match="working_dir: there is no directory"):
        enter({"working_dir": "none"}, str(tmp_path))
    (tmp_path / "work").mkdir()
    assert enter({"working_dir": "work"}, str(tmp_path)) == str(tmp_path / "work")
    assert Path.cwd() == tmp_path / "work"


def test_an_application_is_built_in_a_process_of_its_own():
    said = []
    application = ServeApplicationSchema(import_path=f"{MODULE}:graph")
    spec = build_declared(application, app_dir=HERE, tell=lambda app, line: said.append((app, line)))
    assert [each.name for each in spec.deployments] == ["Model", "Model_1", "Door"]
    assert said == [("default", f"importing {MODULE}:graph")]
    shadow = {"strategy": "shadow", "compare": {"kind": "user", "function": f"{MODULE}:none_such"}}
    with pytest.raises(DeployFailedError, match="has no 'none_such'"):
        build_declared(ServeApplicationSchema(import_path=f"{MODULE}:graph", rollout=shadow), app_dir=HERE)
    with pytest.raises(DeployFailedError, match="ZeroDivisionError"):
        build_declared(ServeApplicationSchema(import_path=f"{MODULE}:broken"), app_dir=HERE)


def test_a_configuration_needs_an_instance_and_is_checked_again(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    schema = ServeDeploySchema(applications=[{"import_path": "m:app"}])
    with pytest.raises(InstanceError, match="no instance 'none' is running: start one with `headrace start"):
        deploy_config(schema, instance="none")
    result = Declared(app="a", action="failed", error="DeployFailedError", reason="x")
    assert not result.well
    assert json.loads(msgspec.json.encode(result))["error"] == "DeployFailedError"
    schema.applications[0].route_prefix = "wrong"
    with pytest.raises(ConfigError, match="must start with '/'"):
        ServeDeploySchema.model_validate(schema.model_dump(exclude_unset=True))
