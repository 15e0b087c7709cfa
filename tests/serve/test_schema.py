"""Configurations as objects: what they take and refuse, and what they answer of pydantic's methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.serve.config import BackpressureConfig, ProxyLocation
from headrace.serve.config_text import json_schema
from headrace.serve.schema import (
    APIType,
    ApplicationDetails,
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
    ServeInstanceDetails,
    gRPCOptionsSchema,
)
from headrace.spec.config_schema import (
    LoggingConfig,
    TracingConfig,
)
from headrace.spec.errors import ConfigError, OptionError
from headrace.spec.options import NO_EFFECT, NOT_YET, DeploymentOptions
from headrace.spec.rollout import CHECKS, STRATEGIES, Canary, Latency, RollingUpdate, Shadow
from headrace.spec.status import ApplicationStatus, ApplicationStatusOverview, ProxyDetails, ProxyStatus, ServeStatus
from headrace.spec.strategy_kinds import declared_rollout

DOCS = Path(__file__).parents[2] / "docs" / "reference"
SCHEMAS = (
    ServeDeploySchema,
    ServeApplicationSchema,
    DeploymentSchema,
    RayActorOptionsSchema,
    HTTPOptionsSchema,
    gRPCOptionsSchema,
    LoggingConfig,
    TracingConfig,
)
APP = {"import_path": "m:app"}


def app(**fields):
    return {"applications": [{**APP, **fields}]}


def test_every_option_of_a_deployment_can_be_declared():
    fields = set(DeploymentSchema.FIELDS) - {"name", "ray_actor_options"}
    assert fields == set(DeploymentOptions.__struct_fields__) | set(NO_EFFECT) | set(NOT_YET)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_fields_and_keys_are_the_same(schema):
    assert set(schema.FIELDS) == set(schema.__struct_fields__)
    assert all(field.text.endswith(".") for field in schema.FIELDS.values())


def test_defaults_are_those_of_ray_serve():
    schema = ServeApplicationSchema(import_path="m:app")
    assert (schema.name, schema.route_prefix, schema.args, schema.runtime_env) == ("default", "/", {}, {})
    assert schema.deployments == []
    assert schema.external_scaler_enabled is False
    assert (schema.host, schema.port) == ("0.0.0.0", 8000)
    whole = ServeDeploySchema(applications=[])
    assert whole.proxy_location == ProxyLocation.EveryNode
    assert whole.http_options.port == 8000
    assert whole.http_options.host == "127.0.0.1"  # not Ray Serve's: nothing is opened to all without a word
    assert whole.grpc_options.port == 9000
    assert whole.target_capacity is None


def test_objects_and_plain_data_make_the_same():
    made = ServeDeploySchema(
        applications=[
            ServeApplicationSchema(
                import_path="m:app",
                deployments=[
                    DeploymentSchema(
                        name="D",
                        backpressure_config=BackpressureConfig(status_code=429),
                        ray_actor_options=RayActorOptionsSchema(num_cpus=2),
                    )
                ],
            )
        ]
    )
    plain = app(
        deployments=[
            {
                "name": "D",
                "backpressure_config": {"status_code": 429, "retry_after_s": None},
                "ray_actor_options": {"num_cpus": 2},
            }
        ]
    )
    assert made.model_dump(exclude_unset=True) == plain
    assert ServeDeploySchema.parse_obj(plain).dict(exclude_unset=True) == plain
    assert ServeDeploySchema.model_validate_json(made.model_dump_json(exclude_unset=True)).json() == made.json()
    assert ServeDeploySchema.model_validate(made) is made


def test_what_is_given_is_told_apart_from_defaults():
    schema = ServeApplicationSchema.model_validate({**APP, "route_prefix": "/"})
    assert schema.model_fields_set == {"import_path", "route_prefix"}
    assert schema.model_dump(exclude_unset=True) == {**APP, "route_prefix": "/"}
    assert schema.model_dump(exclude_defaults=True) == APP
    assert "sticky" in schema.model_dump()
    assert "sticky" not in schema.model_dump(exclude_none=True)
    assert schema.model_dump(include={"name"}) == {"name": "default"}
    schema.route_prefix = "/other"
    schema.labels["commit"] = "1f00ba2"
    assert schema.model_dump(exclude_unset=True) == {
        **APP,
        "route_prefix": "/other",
        "labels": {"commit": "1f00ba2"},
    }
    assert ServeApplicationSchema(import_path="m:app").labels == {}
    assert schema.model_copy(update={"name": "x"}).name == "x"


def test_only_what_is_given_overrides_code():
    schema = DeploymentSchema.model_validate(
        {"name": "D", "num_replicas": 3, "health_check_period_s": 5, "ray_actor_options": {"num_cpus": 1, "memory": 9}}
    )
    assert schema.overrides() == {"num_replicas": 3, "ray_actor_options": {"num_cpus": 1, "memory": 9}}
    schema = DeploymentSchema(name="D", placement_group_strategy="SPREAD")  # of the bundles that the code says
    assert schema.overrides() == {"placement_group_strategy": "SPREAD"}
    assert DeploymentSchema(name="D").overrides() == {}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "'applications' is missing"),
        (3, "the configuration must be a mapping"),
        ({"applications": {}}, "applications={} must be a list"),
        ({"applications": ["m:app"]}, "applications: item 0 ('m:app') must be a mapping"),
        ({"aplications": []}, "unknown key 'aplications'; did you mean 'applications'?"),
        ({"applications": [{}]}, "applications[0]: 'import_path' is missing"),
        (app(import_path="nowhere"), "'nowhere' is not MODULE:APP"),
        (app(import_path="a/b.py:app"), "names a file"),
        (app(name=""), "name='' must be 1 to 100 letters"),
        (app(route_prefix="x"), "route_prefix='x' must start with '/'"),
        (app(route_prefix="/{x}"), "must be a plain path"),
        (app(host="0.0.0.0"), "'host' is of the whole instance: put it under http_options"),
        (app(runtime_env={"pip": ["x"]}), "applications[0].runtime_env: 'pip' does not work yet: install"),
        (app(runtime_env={"working_dir": "s3://b/x.zip"}), "only local directories do, and 's3' is none"),
        (app(runtime_env={"env_vars": {"A": 1}}), "applications[0].runtime_env.env_vars: A=1 must be a text"),
        (app(rollout="canarie"), "rollout='canarie' must be one of"),
        (app(rollout={"strategy": "shadow", "compare": "shop:f"}), "compare='shop:f' must be one of exact, numeric"),
        (app(rollout={"strategy": "canary", "step": []}), "rollout: unknown key 'step'; did you mean 'steps'?"),
        (app(rollout={"strategy": "canary", "steps": [[2, 1]]}), "Canary: weight=2 must be a number from 0 to 1"),
        (app(rollout={"strategy": "canary", "analysis": ["latenzy"]}), "did you mean 'latency'?"),
        (app(rollout={"strategy": "shadow", "compare": {"kind": "user"}}), "'function' is missing"),
        (app(sticky="x-user"), "must name where the key is"),
        (app(sticky={"of": "body", "name": "x"}), "of='body' must be one of header, cookie, query"),
        (app(request_timeout_s=0), "request_timeout_s=0 must be a number of seconds above 0"),
        (app(revision_history_limit=-1), "revision_history_limit=-1 must be"),
        (app(labels={"a": 1}), "labels: a=1 must be a text"),
        (app(autoscaling_policy={"x": 1}), "'autoscaling_policy' does not work yet: set num_replicas"),
        (app(deployments=[{"name": "D", "num_replica": 1}]), "deployments[0]: unknown key 'num_replica'; did you mean"),
        (app(deployments=[{"name": "D", "num_replicas": "auto"}]), "num_replicas='auto' does not work yet"),
        (app(deployments=[{"name": "D", "num_replicas": 0}]), "num_replicas=0 must be at least 1"),
        (app(deployments=[{"name": "D", "autoscaling_config": {"min_replicas": 1}}]), "'autoscaling_config' does not"),
        (app(deployments=[{"name": "D", "hedge": True, "repeatable": False}]), "contradict"),
        (app(deployments=[{"name": "D", "ray_actor_options": {"resources": {"CPU": 1}}}]), "num_cpus=1"),
        (
            app(deployments=[{"name": "D", "ray_actor_options": {"resources": {"TPU": "1"}}}]),
            "TPU='1' must be a number",
        ),
        (app(deployments=[{"name": "D", "ray_actor_options": {"runtime_env": {"pips": []}}}]), "did you mean 'pip'"),
        (app(deployments=[{"name": "D", "label_selector": {"a": "b c"}}]), "label_selector: 'a': 'b c' must be"),
        (app(deployments=[{"name": "D", "max_replicas_per_node": 101}]), "must be an integer from 1 to 100"),
        (app(deployments=[{"name": "D", "placement_group_strategy": "LOOSE"}]), "must be one of PACK"),
        (app(deployments=[{"name": "D", "placement_group_bundles": [{"CPU": 0}]}]), "must hold something"),
        (
            app(deployments=[{"name": "D", "num_cpus": 2, "placement_group_bundles": [{"CPU": 1}]}]),
            "num_cpus=2 is more than the first of placement_group_bundles has",
        ),
        (
            app(deployments=[{"name": "D", "max_replicas_per_node": 2, "placement_group_bundles": [{"CPU": 1}]}]),
            "do not go together",
        ),
        (app(deployments=[{"name": "D"}, {"name": "D"}]), "there are two deployments with name='D'"),
        ({"applications": [APP, {**APP, "route_prefix": "/b"}]}, "applications[0] has name='default' already"),
        ({"applications": [APP, {**APP, "name": "b"}]}, "applications[0] has route_prefix='/' already"),
        (
            {"applications": [{**APP, "route_prefix": "/a"}, {**APP, "name": "b", "route_prefix": "/a/"}]},
            "'/a' already",
        ),
        ({"applications": [], "http_options": {"port": 99999}}, "port=99999 must be from 0 to 65535"),
        ({"applications": [], "http_options": {"ssl_keyfile": "k"}}, "ssl_keyfile has no effect without ssl_certfile"),
        ({"applications": [], "proxy_location": "Everywhere"}, "did you mean 'EveryNode'?"),
        ({"applications": [], "target_capacity": 101}, "target_capacity=101 must be a number from 0 to 100"),
        ({"applications": [], "target_capacity": float("nan")}, "must be a number from 0 to 100"),
    ],
)
def test_what_is_wrong_is_told(config, told):
    with pytest.raises(ConfigError) as raised:
        ServeDeploySchema.model_validate(config)
    assert told in str(raised.value)
    assert len(raised.value.problems) == 1
    assert isinstance(raised.value, OptionError)


def test_all_that_is_wrong_is_told_at_once_up_to_20():
    apps = [{"import_path": "m:app", "name": f"a{n}", "route_prefix": "wrong", "colour": n} for n in range(15)]
    with pytest.raises(ConfigError) as raised:
        ServeDeploySchema.model_validate({"applications": apps})
    assert len(raised.value.problems) == 20
    assert str(raised.value).endswith("and 10 more like these")


def test_no_application_and_no_route_are_no_duplicates():
    ServeDeploySchema.model_validate({"applications": []})
    two = [{**APP, "route_prefix": None}, {**APP, "name": "b", "route_prefix": None}]
    assert len(ServeDeploySchema(applications=two).applications) == 2
    assert ServeDeploySchema.get_empty_schema_dict() == {"applications": []}
    assert ServeApplicationSchema.get_empty_schema_dict()["deployments"] == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_can_be_declared_by_its_name_and_its_fields(name):
    assert isinstance(declared_rollout(name), STRATEGIES[name])
    known = ServeApplicationSchema.model_json_schema()["$defs"]["Strategy"]["oneOf"]
    (fields,) = [each["properties"] for each in known if each["properties"]["strategy"]["const"] == name]
    assert set(fields) == {"strategy", *STRATEGIES[name].__struct_fields__}
    schema = ServeApplicationSchema(import_path="m:app", rollout={"strategy": name, "analysis": list(CHECKS)[:3]})
    assert len(declared_rollout(schema.rollout).analysis) == 3


def test_strategies_are_what_they_are_in_python():
    given = {"strategy": "canary", "steps": [[0.1, 60], [0.5, None]], "analysis": [{"check": "latency", "max_s": 1}]}
    schema = ServeApplicationSchema(import_path="m:app", rollout=given)
    assert declared_rollout(schema.rollout) == Canary(steps=((0.1, 60), (0.5, None)), analysis=(Latency(max_s=1),))
    shadow = declared_rollout({"strategy": "shadow", "compare": {"kind": "user", "function": "mine:same"}})
    assert isinstance(shadow, Shadow)
    assert shadow.compare.function.module == "mine"
    assert declared_rollout({"strategy": "shadow", "compare": "numeric"}).compare.rtol == 1e-6
    assert declared_rollout("rolling_update") == RollingUpdate()
    assert declared_rollout(None) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_data_is_a_configuration_or_an_error_that_says_why(data):
    for schema in (ServeDeploySchema, ServeApplicationSchema, DeploymentSchema):
        with pytest.raises(ConfigError):
            schema.model_validate(data)


_WRONG = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([{}])


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
@given(data=st.data())
def test_a_value_of_any_type_for_any_key_is_taken_or_refused_with_its_name(schema, data):
    name = data.draw(st.sampled_from(list(schema.FIELDS)))
    needed = {DeploymentSchema: {"name": "D"}, ServeApplicationSchema: APP, ServeDeploySchema: {"applications": []}}
    given = {**needed.get(schema, {}), name: data.draw(_WRONG)}
    told = ""
    try:
        schema.model_validate(given)
    except ConfigError as error:
        told = str(error)
    assert not told or name in told


def test_the_published_json_schema_is_what_the_code_says():
    published = (DOCS / "config.schema.json").read_text()
    assert published == json_schema(), "headrace config --schema > docs/reference/config.schema.json"
    schema = json.loads(published)
    assert schema["required"] == ["applications"]
    assert schema["$defs"]["DeploymentSchema"]["additionalProperties"] is False
    assert "autoscaling_config" not in schema["$defs"]["DeploymentSchema"]["properties"]


def test_the_page_has_a_row_for_every_key():
    page = (DOCS / "config.md").read_text()
    for schema in SCHEMAS[:6]:
        for name, field in schema.FIELDS.items():
            assert f"`{name}`" in page, f"{schema.__name__}.{name} has no row"
            assert field.text


def test_details_are_made_of_the_status():
    config = {**APP, "deployments": []}
    status = ServeStatus(
        proxies={"ingress#1": ProxyDetails(status=ProxyStatus.HEALTHY, host="127.0.0.1", port=8000)},
        applications={
            "a": ApplicationStatusOverview(status=ApplicationStatus.RUNNING, deployed_app_config=config),
            "b": ApplicationStatusOverview(status=ApplicationStatus.RUNNING, route_prefix="/b"),
        },
    )
    details = ServeInstanceDetails.of(status)
    assert details.applications["a"].source == APIType.DECLARATIVE
    assert details.applications["a"].deployed_app_config == config
    assert details.applications["b"].source == "imperative"
    assert isinstance(details.applications["b"], ApplicationDetails)
    assert json.loads(details.model_dump_json())["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert details.model_dump()["applications"]["b"]["route_prefix"] == "/b"
