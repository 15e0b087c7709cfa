"""Every public name of Ray Serve's can be imported here, and works or says that it does not."""

import ast
import functools
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

from headrace import serve
from headrace.serve.unsupported import Unsupported, unsupported_class, unsupported_function
from headrace.spec.errors import HeadraceError, OptionError

# By module of Ray Serve 2.60; "" is `serve` itself.
RAY_SERVE = {
    "": "Application ControllerOptions Deployment HTTPOptions RunTarget TracingConfig batch delete deployment "
    "get_app_handle get_deployment_actor get_deployment_actor_context get_deployment_handle get_multiplexed_model_id "
    "get_replica_context get_trace_context ingress multiplexed run run_many shutdown shutdown_async start status",
    "autoscaling_policy": "PrometheusQueryMixin PrometheusSample PrometheusScalar PrometheusVector "
    "default_autoscaling_policy replica_queue_length_autoscaling_policy",
    "batching": "batch",
    "config": "AggregationFunction AutoscalingConfig AutoscalingContext AutoscalingPolicy BackpressureConfig "
    "ControllerOptions DeploymentActorConfig GangPlacementStrategy GangRuntimeFailurePolicy GangSchedulingConfig "
    "HTTPOptions ProxyLocation RequestRouterConfig gRPCOptions",
    "context": "DeploymentActorContext ReplicaContext",
    "deployment": "Application Deployment",
    "exceptions": "BackPressureError DeploymentUnavailableError RayServeException ReplicaUnavailableError "
    "RequestCancelledError gRPCStatusError",
    "experimental.capacity_queue_router": "CapacityQueueRouter",
    "experimental.consistent_hash_router": "ConsistentHashRouter",
    "experimental.round_robin_router": "RoundRobinRouter",
    "gang": "GangContext",
    "gradio_integrations": "GradioIngress GradioServer",
    "grpc_util": "RayServegRPCContext gRPCInputStream",
    "handle": "DeploymentBroadcastResponse DeploymentHandle DeploymentResponse DeploymentResponseGenerator",
    "llm": "CloudMirrorConfig LLMConfig LLMServer LLMServingArgs LoraConfig ModelLoadingConfig build_dp_deployment "
    "build_dp_openai_app build_llm_deployment build_openai_app build_pd_openai_app",
    "llm.request_router": "KVAwareRouter PrefixCacheAffinityRouter",
    "metrics": "Counter Gauge Histogram",
    "request_router": "FIFOMixin LocalityMixin MultiplexMixin PendingRequest ReplicaID RequestRouter RunningReplica",
    "schema": "APIType ApplicationDetails ApplicationStatus ApplicationStatusOverview AutoscalingMetricsHealth "
    "AutoscalingStatus CeleryAdapterConfig ControllerHealthMetrics DeploymentAutoscalingDetail DeploymentDetails "
    "DeploymentNode DeploymentSchema DeploymentStatusOverview DeploymentTopology DurationStats EncodingType "
    "HTTPOptionsSchema LoggingConfig ProxyDetails ProxyStatus RayActorOptionsSchema ReplicaDetails ReplicaRank "
    "ScaleDeploymentRequest ScalingDecision ServeActorDetails ServeApplicationSchema ServeDeploySchema "
    "ServeInstanceDetails ServeStatus Target TargetGroup TaskProcessorAdapter TaskProcessorConfig TaskResult "
    "TracingConfig gRPCOptionsSchema",
    "task_consumer": "instantiate_adapter_from_config task_consumer task_handler",
    "task_processor": "CeleryTaskProcessorAdapter",
    "taskiq_task_processor": "TaskiqAdapterConfig TaskiqTaskProcessorAdapter",
}
NAMES = [(module, name) for module, names in RAY_SERVE.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_of_ray_serve_is_there(module, name):
    home = importlib.import_module("headrace.serve" + (f".{module}" if module else ""))
    found = getattr(home, name)
    if not isinstance(found, Unsupported):
        assert found.__doc__
        return
    with pytest.raises(OptionError, match=rf"serve\.{module}\.{name} is not supported yet"):
        found(1, x=2)


@pytest.mark.parametrize("module", [module for module in RAY_SERVE if module])
def test_a_submodule_is_an_attribute_of_serve_too(module):
    if module not in ("deployment", "batching"):  # `serve.deployment` is the decorator
        imported = importlib.import_module(f"headrace.serve.{module}")
        assert functools.reduce(getattr, module.split("."), serve) is imported


@pytest.mark.parametrize(
    "use",
    [
        lambda: serve.get_deployment_actor("x"),
        lambda: serve.get_trace_context(),
        lambda: serve.task_consumer.task_handler(name="x"),
        lambda: serve.metrics.Counter("requests"),
        lambda: serve.config.AutoscalingConfig(min_replicas=1, max_replicas=3),
        lambda: serve.config.AggregationFunction.MEAN,
        lambda: type("Mine", (serve.llm.LLMServer,), {}),
        lambda: type("Mine", (object, serve.metrics.Gauge), {}),
    ],
)
def test_what_does_not_work_yet_says_so_when_it_is_used(use):
    with pytest.raises(OptionError, match=r"^serve\.\w+.* is not supported yet"):
        use()


def test_it_says_what_to_do_instead():
    with pytest.raises(OptionError, match=r"AutoscalingConfig is not supported yet: set num_replicas to the number"):
        serve.config.AutoscalingConfig()
    with pytest.raises(OptionError, match=r"^serve\.f is not supported yet: sing$"):
        unsupported_function("", "f", "sing")()


def test_what_does_not_work_yet_can_stand_in_annotations_and_checks():
    made = unsupported_class("config", "Thing")
    assert inspect.isclass(made)
    assert not isinstance(3, made)
    assert not hasattr(made, "__fields__")
    assert repr(made) == "<Thing, not supported yet>"
    assert (made | None) is not None


def test_all_names_of_a_module_are_in_it():
    for path in pathlib.Path(serve.__file__).parent.glob("*.py"):
        module = importlib.import_module("headrace.serve" + ("" if path.stem == "__init__" else f".{path.stem}"))
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name) is not None


def test_the_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse(pathlib.Path(serve.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {(node.module.removeprefix("headrace.serve."), alias.name) for node in guarded.body for alias in node.names}
    assert seen == {(module, name) for module, names in serve._HOMES.items() for name in names}
    assert {name for _, name in seen} <= set(serve.__all__)


def test_errors_have_the_attributes_that_code_for_ray_serve_reads():
    busy = serve.exceptions.BackPressureError("full", retry_after_s=2.0, status=429)
    assert (busy.message, busy.status_code, busy.retry_after_s) == ("full", 429, 2.0)
    assert serve.exceptions.DeploymentUnavailableError("gone").message == "gone"
    assert serve.exceptions.RayServeException is HeadraceError


def test_options_of_logs_and_traces_are_checked_where_they_are_made():
    assert serve.schema.LoggingConfig(encoding="JSON", log_level="debug").enable_access_log
    assert serve.TracingConfig(sampling_ratio=0.5).enabled is False
    with pytest.raises(OptionError, match="encoding='XML' must be 'TEXT' or 'JSON'"):
        serve.schema.LoggingConfig(encoding="XML")
    with pytest.raises(OptionError, match="log_level='LOUD' must be one of"):
        serve.schema.LoggingConfig(log_level="LOUD")
    with pytest.raises(OptionError, match="sampling_ratio=2"):
        serve.TracingConfig(sampling_ratio=2)
    with pytest.raises(TypeError, match="colour"):
        serve.schema.LoggingConfig(colour=True)


def test_outside_of_a_request_there_is_no_model_id():
    assert serve.get_multiplexed_model_id() == ""


@pytest.mark.parametrize("first", ["method", "deployment", "ingress", "batching", "context"])
def test_the_decorators_stay_what_they_are_whatever_is_imported_first(first):
    decorators = "serve.method, serve.deployment, serve.ingress, serve.batch"
    code = f"import headrace.serve.{first}; from headrace import serve; print(*map(callable, ({decorators})))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True True True True\n"
