"""headrace.spec.options: right values go through, others are errors that name them; Ray Serve's names are handled."""

from __future__ import annotations

import re
import warnings
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.backpressure import BackpressureConfig
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.options import (
    GONE,
    NO_EFFECT,
    NOT_YET,
    DeploymentOptions,
    deployment_options,
)
from headrace.spec.placement import Placement, local_objections
from headrace.spec.retries import RetryBudgetConfig

RAY_SERVE_OPTIONS = [
    "name",
    "num_replicas",
    "ray_actor_options",
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
    "max_replicas_per_node",
    "user_config",
    "max_ongoing_requests",
    "max_queued_requests",
    "backpressure_config",
    "autoscaling_config",
    "graceful_shutdown_wait_loop_s",
    "graceful_shutdown_timeout_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "logging_config",
    "request_router_config",
    "max_constructor_retry_count",
    "gang_scheduling_config",
    "deployment_actors",
    "rolling_update_percentage",
    "max_surge_percent",
    "version",
]


ACTOR_OPTIONS = [
    "num_cpus",
    "num_gpus",
    "memory",
    "resources",
    "accelerator_type",
    "label_selector",
    "fallback_strategy",
    "runtime_env",
]


def test_every_option_of_ray_serve_is_handled_somewhere() -> None:
    known = {"name", "ray_actor_options", *DeploymentOptions.__struct_fields__, *NO_EFFECT, *NOT_YET, *GONE}

    assert set(RAY_SERVE_OPTIONS) <= known


def test_no_option_is_handled_twice() -> None:
    names = [*DeploymentOptions.__struct_fields__, *NO_EFFECT, *NOT_YET, *GONE]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_replicas", 0, OptionError),
        ("num_replicas", -3, OptionError),
        ("num_replicas", True, OptionTypeError),
        ("num_replicas", 2.0, OptionTypeError),
        ("num_replicas", "2", OptionTypeError),
        ("max_ongoing_requests", 0, OptionError),
        ("max_ongoing_requests", "many", OptionTypeError),
        ("max_queued_requests", 0, OptionError),
        ("max_queued_requests", -2, OptionError),
        ("max_queued_requests", None, OptionTypeError),
        ("num_cpus", -1, OptionError),
        ("num_cpus", float("nan"), OptionError),
        ("num_cpus", float("inf"), OptionError),
        ("num_cpus", "1", OptionTypeError),
        ("num_cpus", 10**400, OptionError),
        ("num_replicas", 2**31, OptionError),
        ("num_gpus", 1.5, OptionError),
        ("num_gpus", None, OptionTypeError),
        ("environment", [("A", "1")], OptionTypeError),
        ("environment", {"A": 1}, OptionTypeError),
        ("environment", {"A=B": "1"}, OptionError),
        ("environment", {"": "1"}, OptionError),
        ("environment", {"A": "\0"}, OptionError),
        ("user_config", object(), OptionTypeError),
        ("user_config", {"a": [lambda: 0]}, OptionTypeError),
        ("user_config", 2**70, OptionTypeError),
        ("repeatable", 1, OptionTypeError),
        ("graceful_shutdown_timeout_s", -0.1, OptionError),
        ("graceful_shutdown_timeout_s", "20", OptionTypeError),
        ("max_constructor_retry_count", 0, OptionError),
        ("start_timeout_s", 0, OptionError),
        ("backpressure_config", 503, OptionTypeError),
        ("backpressure_config", {"status": 503}, OptionTypeError),
        ("backpressure_config", {"status_code": 500}, OptionError),
        ("backpressure_config", {"status_code": "503"}, OptionTypeError),
        ("backpressure_config", {"status_code": True}, OptionTypeError),
        ("backpressure_config", {"retry_after_s": 0}, OptionError),
        ("backpressure_config", {"retry_after_s": -1}, OptionError),
        ("backpressure_config", {"retry_after_s": 10**400}, OptionError),
        ("backpressure_config", {"retry_after_s": float("nan")}, OptionError),
        ("backpressure_config", {"retry_after_s": float("inf")}, OptionError),
        ("backpressure_config", {"retry_after_s": "1"}, OptionTypeError),
        ("backpressure_config", {3: 4}, OptionTypeError),
        ("retry_budget", -0.1, OptionError),
        ("retry_budget", 1.1, OptionError),
        ("retry_budget", float("nan"), OptionError),
        ("retry_budget", True, OptionTypeError),
        ("retry_budget", "0.1", OptionTypeError),
        ("retry_budget", [0.1, 10], OptionTypeError),
        ("retry_budget", {"ratios": 0.1}, OptionTypeError),
        ("retry_budget", {"ratio": 2}, OptionError),
        ("retry_budget", {"ratio": None}, OptionTypeError),
        ("retry_budget", {"per_second": -1}, OptionError),
        ("retry_budget", {"per_second": float("inf")}, OptionError),
        ("retry_budget", {"per_second": 10**400}, OptionError),
        ("retry_budget", 10**400, OptionError),
    ],
)
def test_a_wrong_value_is_named_with_its_option(name: str, value: Any, error: type[Exception]) -> None:
    for make in (lambda: DeploymentOptions(**{name: value}), lambda: deployment_options({name: value})):
        with pytest.raises(error, match=name):
            make()


def test_a_wrong_value_is_told_with_what_would_be_right() -> None:
    with pytest.raises(OptionError, match=r"^num_replicas=0 must be at least 1$"):
        deployment_options({"num_replicas": 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_replicas", 100),
        ("max_ongoing_requests", None),
        ("max_queued_requests", -1),
        ("num_cpus", 0),
        ("num_cpus", 0.25),
        ("num_gpus", 0.5),
        ("num_gpus", 2),
        ("graceful_shutdown_timeout_s", 0),
        ("user_config", {}),
        ("user_config", {"a": [1, 2.0, None, "x", {"b": True}]}),
        ("repeatable", False),
    ],
)
def test_a_right_value_is_taken_as_it_is(name: str, value: Any) -> None:
    assert getattr(deployment_options({name: value}), name) == value


def test_an_unknown_option_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(OptionTypeError, match=r"'num_replica'.*did you mean 'num_replicas'"):
        deployment_options({"num_replica": 2})


@pytest.mark.parametrize("name", GONE)
def test_what_is_no_option_any_more_says_what_took_its_place(name: str) -> None:
    with pytest.raises(OptionError, match=name):
        deployment_options({name: "x"})


@pytest.mark.parametrize("name", NOT_YET)
def test_what_would_change_an_answer_and_does_not_work_yet_is_an_error(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}=.*does not work yet"):
        deployment_options({name: {"x": 1}})
    assert deployment_options({name: None}) == DeploymentOptions()


def test_auto_replicas_are_an_error() -> None:
    with pytest.raises(OptionError, match="num_replicas='auto' does not work yet"):
        deployment_options({"num_replicas": "auto"})


def test_no_number_of_replicas_is_one() -> None:
    assert deployment_options({"num_replicas": None}).num_replicas == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, BackpressureConfig()),
        ({}, BackpressureConfig(status_code=503, retry_after_s=None)),
        ({"status_code": 429}, BackpressureConfig(status_code=429)),
        ({"retry_after_s": 0.5}, BackpressureConfig(retry_after_s=0.5)),
        (BackpressureConfig(status_code=429, retry_after_s=3), BackpressureConfig(status_code=429, retry_after_s=3)),
    ],
)
def test_what_a_refused_caller_is_told(given: Any, expected: BackpressureConfig) -> None:
    assert deployment_options({"backpressure_config": given}).backpressure_config == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, RetryBudgetConfig(ratio=0.1, per_second=10)),
        (0, RetryBudgetConfig(ratio=0, per_second=10)),
        (1, RetryBudgetConfig(ratio=1)),
        (0.25, RetryBudgetConfig(ratio=0.25, per_second=10)),
        ({"per_second": 3}, RetryBudgetConfig(per_second=3)),
        ({"ratio": 0, "per_second": 0}, RetryBudgetConfig(ratio=0, per_second=0)),
        (RetryBudgetConfig(ratio=0.5), RetryBudgetConfig(ratio=0.5)),
    ],
)
def test_what_may_be_repeated(given: Any, expected: RetryBudgetConfig) -> None:
    assert deployment_options({"retry_budget": given}).retry_budget == expected


def test_an_unknown_field_of_an_option_is_named_with_the_nearest() -> None:
    with pytest.raises(OptionTypeError, match=r"backpressure_config has no 'status': did you mean 'status_code'"):
        deployment_options({"backpressure_config": {"status": 429}})
    with pytest.raises(OptionTypeError, match=r"retry_budget has no 'ratios': did you mean 'ratio'"):
        deployment_options({"retry_budget": {"ratios": 0.1}})


def test_a_wrong_field_is_told_with_what_would_be_right() -> None:
    with pytest.raises(OptionError, match=r"^backpressure_config: status_code=500 must be 503 or 429$"):
        deployment_options({"backpressure_config": {"status_code": 500}})
    with pytest.raises(OptionError, match=r"^retry_budget: ratio=2 must be a share of the calls, from 0 to 1$"):
        deployment_options({"retry_budget": 2})


@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_cannot_change_an_answer_is_accepted_with_one_warning(name: str) -> None:
    with pytest.warns(UserWarning, match=f"no effect in Headrace: {name}") as caught:
        assert deployment_options({name: 3}) == DeploymentOptions()
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_several_options_without_effect_give_one_warning_together() -> None:
    with pytest.warns(UserWarning, match="options have no effect") as caught:
        deployment_options(dict.fromkeys(NO_EFFECT, 1))
    assert len(caught) == 1
    for name in NO_EFFECT:
        assert name in str(caught[0].message)


def test_none_of_what_has_no_effect_is_no_cause_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deployment_options(dict.fromkeys(NO_EFFECT) | {"ray_actor_options": dict.fromkeys(ACTOR_OPTIONS)})


def test_actor_options_become_ours() -> None:
    options = deployment_options(
        {
            "ray_actor_options": {
                "num_cpus": 2,
                "num_gpus": 0.5,
                "runtime_env": {"env_vars": {"A": "1"}},
                "resources": {},
            }
        }
    )

    assert (options.num_cpus, options.num_gpus, options.environment) == (2, 0.5, {"A": "1"})


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("num_cpus", OptionTypeError, "must be a dict"),
        ({"num_cpu": 1}, OptionError, "did you mean 'num_cpus'"),
        ({"max_restarts": 1}, OptionError, "max_restarts"),
        ({"runtime_env": {"pips": ["torch"]}}, OptionError, "runtime_env has no 'pips': did you mean 'pip'"),
        ({"runtime_env": {"py_modules": [object()]}}, OptionTypeError, "runtime_env of type dict must be JSON-like"),
        ({"runtime_env": "env"}, OptionTypeError, "runtime_env='env'"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, OptionTypeError, "env_vars"),
        ({"num_cpus": -1}, OptionError, "num_cpus=-1"),
    ],
)
def test_wrong_actor_options_are_named(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        deployment_options({"ray_actor_options": given})


def test_where_replicas_run_is_said_by_rays_names() -> None:
    options = deployment_options(
        {
            "ray_actor_options": {
                "memory": 1e9,
                "resources": {"TPU": 2, "none": 0},
                "accelerator_type": "A100",
                "label_selector": {"ray.io/market-type": "!in(spot, other)"},
                "fallback_strategy": [{"label_selector": {"zone": "eu"}}, {"label_selector": {}}],
                "runtime_env": {"env_vars": {"A": "1"}, "pip": ["torch"], "config": None},
            },
            "max_replicas_per_node": 2,
        }
    )

    assert options.placement_of("app/d@1") == Placement(
        memory=10**9,
        resources={"TPU": 2.0},
        accelerator_type="A100",
        label_selector={"ray.io/market-type": "!in(spot, other)"},
        fallback_label_selectors=({"zone": "eu"}, {}),
        runtime_env={"pip": ["torch"]},
        max_per_node=2,
        group="app/d@1",
    )
    assert options.environment == {"A": "1"}
    assert DeploymentOptions().placement_of("g") == Placement(group="g")


def test_a_runtime_env_by_itself_adds_to_the_environment() -> None:
    base = deployment_options({"environment": {"A": "1"}})

    assert deployment_options({"runtime_env": {"uv": ["x"]}}, base).environment == {"A": "1"}
    assert deployment_options({"runtime_env": {"uv": ["x"], "env_vars": {"B": "2"}}}, base).environment == {"B": "2"}
    with pytest.raises(OptionError, match=r"environment=.* say different things"):
        deployment_options({"runtime_env": {"env_vars": {"B": "2"}}, "environment": {"A": "1"}})
    with pytest.raises(OptionError, match="they are the option environment"):
        DeploymentOptions(runtime_env={"env_vars": {"A": "1"}})


def test_bundles_hold_the_replica_in_the_first() -> None:
    bundles = [{"CPU": 2, "TPU": 1}, {"GPU": 1}]
    options = deployment_options(
        {
            "placement_group_bundles": bundles,
            "placement_group_strategy": "STRICT_SPREAD",
            "placement_group_bundle_label_selector": [{"zone": "eu"}],
            "ray_actor_options": {"num_cpus": 2, "resources": {"TPU": 1}},
        }
    )
    placement = options.placement_of("g")
    assert placement.bundles == ({"CPU": 2.0, "TPU": 1.0}, {"GPU": 1.0})
    assert (placement.strategy, placement.bundle_label_selector) == ("STRICT_SPREAD", ({"zone": "eu"}, {"zone": "eu"}))

    for more, words in (
        ({"num_cpus": 3}, r"num_cpus=3 is more than the first of placement_group_bundles has, 2 CPU"),
        ({"num_gpus": 1}, r"num_gpus=1 is more than the first"),
        ({"resources": {"TPU": 2}}, r"resources\['TPU'\]=2 is more than the first"),
        ({"memory": 1}, r"memory=1 is more than the first"),
        ({"max_replicas_per_node": 1}, "do not go together"),
    ):
        with pytest.raises(OptionError, match=words):
            deployment_options(more, options)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("memory", -1, OptionError),
        ("memory", "1GB", OptionTypeError),
        ("memory", 2**61, OptionError),
        ("memory", float("nan"), OptionError),
        ("resources", [1], OptionTypeError),
        ("resources", {"TPU": -1}, OptionError),
        ("resources", {"TPU": True}, OptionTypeError),
        ("resources", {1: 1}, OptionTypeError),
        ("resources", {"CPU": 1}, OptionError),
        ("resources", {"GPU": 1}, OptionError),
        ("accelerator_type", 3, OptionTypeError),
        ("label_selector", "zone=eu", OptionTypeError),
        ("label_selector", {"zone": 1}, OptionTypeError),
        ("label_selector", {"zone": "!!eu"}, OptionError),
        ("label_selector", {"zone": "in()"}, OptionError),
        ("label_selector", {"zone": "in(a,"}, OptionError),
        ("label_selector", {"zone": "not(a)"}, OptionError),
        ("label_selector", {"zone": "a" * 64}, OptionError),
        ("label_selector", {"": "a"}, OptionError),
        ("label_selector", {"my@label": "a"}, OptionError),
        ("fallback_strategy", {"label_selector": {}}, OptionTypeError),
        ("fallback_strategy", [{}], OptionError),
        ("fallback_strategy", [{"memory": 1}], OptionError),
        ("fallback_strategy", [{"label_selector": {"a": "b c"}}], OptionError),
        ("runtime_env", ["pip"], OptionTypeError),
        ("runtime_env", {"pipp": []}, OptionError),
        ("placement_group_bundles", {"CPU": 1}, OptionTypeError),
        ("placement_group_bundles", [[1]], OptionTypeError),
        ("placement_group_bundles", [{}], OptionError),
        ("placement_group_bundles", [{"CPU": 0}], OptionError),
        ("placement_group_bundles", [{"CPU": -1}], OptionError),
        ("placement_group_bundles", [{"CPU": "1"}], OptionTypeError),
        ("placement_group_bundles", [{1: 1}], OptionTypeError),
        ("placement_group_strategy", "PACK", OptionError),
        ("placement_group_strategy", "LOOSE", OptionError),
        ("placement_group_strategy", 1, OptionTypeError),
        ("placement_group_bundle_label_selector", [{}], OptionError),
        ("placement_group_bundle_label_selector", {"a": "b"}, OptionTypeError),
        ("max_replicas_per_node", 0, OptionError),
        ("max_replicas_per_node", 101, OptionError),
        ("max_replicas_per_node", 1.5, OptionTypeError),
    ],
)
def test_a_wrong_value_of_where_replicas_run_is_named(name: str, value: Any, error: type[Exception]) -> None:
    for make in (lambda: DeploymentOptions(**{name: value}), lambda: deployment_options({name: value})):
        with pytest.raises(error, match=name):
            make()


def test_a_selector_for_each_bundle_or_one_for_all() -> None:
    given = {"placement_group_bundles": [{"CPU": 1}] * 3, "placement_group_bundle_label_selector": [{}, {}]}
    with pytest.raises(OptionError, match="has 2 selectors for 3 bundles"):
        deployment_options(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, []),
        ({"memory": 9, "accelerator_type": "A100"}, ["accelerator_type", "memory"]),
        ({"label_selector": {"a": "b"}, "fallback_strategy": [{"label_selector": {}}]}, ["fallback_strategy", "label"]),
        ({"max_replicas_per_node": 1}, ["max_replicas_per_node"]),
        ({"runtime_env": {"config": {"eager_install": True}, "excludes": ["*.bin"]}}, ["'config'", "'excludes'"]),
    ],
)
def test_what_cannot_change_an_answer_on_one_machine_has_no_effect_there(given: Any, named: list[str]) -> None:
    ignored, refused = local_objections(deployment_options(given).placement_of("g"))

    assert refused is None
    assert len(ignored) == len(named)
    assert all(name in " ".join(ignored) for name in named)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"resources": {"TPU": 1}}, "resources={'TPU': 1.0} does not work on the local engine"),
        ({"placement_group_bundles": [{"CPU": 1}]}, "placement_group_bundles=.* does not work on the local engine"),
        ({"runtime_env": {"pip": ["torch"]}}, "runtime_env: 'pip' does not work on the local engine, only 'env_vars'"),
    ],
)
def test_what_would_change_an_answer_on_one_machine_is_refused_there(given: Any, words: str) -> None:
    _, refused = local_objections(deployment_options(given).placement_of("g"))

    assert refused is not None
    assert re.search(words, refused)


def test_two_names_for_one_thing_must_agree() -> None:
    assert deployment_options({"num_cpus": 2, "ray_actor_options": {"num_cpus": 2}}).num_cpus == 2
    with pytest.raises(OptionError, match="num_cpus=1 and ray_actor_options"):
        deployment_options({"num_cpus": 1, "ray_actor_options": {"num_cpus": 2}})


def test_changes_keep_what_they_do_not_name() -> None:
    base = deployment_options({"num_replicas": 3, "num_cpus": 2, "user_config": {"a": 1}})
    changed = deployment_options({"num_replicas": 4}, base)

    assert (changed.num_replicas, changed.num_cpus, changed.user_config) == (4, 2, {"a": 1})
    assert base.num_replicas == 3
    with pytest.raises(OptionError, match="num_replicas"):
        deployment_options({"num_replicas": 0}, base)


def test_actor_options_replace_all_resources() -> None:
    base = deployment_options(
        {"num_cpus": 2, "num_gpus": 1, "environment": {"A": "1"}, "memory": 9, "resources": {"TPU": 1}}
    )
    changed = deployment_options({"ray_actor_options": {"num_cpus": 1}}, base)

    assert (changed.num_cpus, changed.num_gpus, changed.environment) == (1, 0, {})
    assert changed == DeploymentOptions(num_cpus=1)


def test_what_is_wrong_is_refused_when_it_is_decoded_too() -> None:
    with pytest.raises(msgspec.ValidationError, match="num_replicas=0"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"num_replicas": 0}), type=DeploymentOptions)


@given(
    st.builds(
        DeploymentOptions,
        num_replicas=st.integers(1, 1000),
        max_ongoing_requests=st.none() | st.integers(1, 1000),
        max_queued_requests=st.just(-1) | st.integers(1, 1000),
        num_cpus=st.none() | st.floats(0, 64),
        num_gpus=st.floats(0, 1) | st.integers(0, 8),
        environment=st.dictionaries(st.text("ABC_", min_size=1), st.text("xyz")),
        backpressure_config=st.builds(
            BackpressureConfig,
            status_code=st.sampled_from([503, 429]),
            retry_after_s=st.none() | st.floats(0.001, 3600) | st.integers(1, 60),
        ),
        retry_budget=st.builds(
            RetryBudgetConfig, ratio=st.floats(0, 1), per_second=st.floats(0, 1e6) | st.integers(0, 10**6)
        ),
        memory=st.integers(0, 2**50),
        resources=st.dictionaries(st.sampled_from(["TPU", "disk"]), st.floats(0.1, 100)),
        label_selector=st.dictionaries(st.sampled_from(["zone", "a/b"]), st.sampled_from(["eu", "!in(a, b)", ""])),
        fallback_strategy=st.sampled_from([(), [{"label_selector": {"zone": "us"}}]]),
        runtime_env=st.sampled_from([{}, {"pip": ["torch==2.1"], "config": {"eager_install": False}}]),
        placement_group_bundles=st.just([{"CPU": 64, "GPU": 8, "memory": 2.0**50, "TPU": 100, "disk": 100.0}])
        | st.just(()),
        user_config=st.none() | st.dictionaries(st.text(), st.integers(-(2**63), 2**63) | st.text()),
    )
)
def test_options_survive_the_wire(options: DeploymentOptions) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=DeploymentOptions) == options
