"""The public face: `from headrace import serve`. What needs event loops and sockets is loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not lazily: importing a submodule binds its name here, and after that `serve.deployment` must be the decorator.
from headrace.serve.deployment import Application, Deployment, deployment
from headrace.serve.ingress import ingress
from headrace.serve.method import method

if TYPE_CHECKING:
    from headrace.serve.api import (
        RunTarget,
        delete,
        get_app_handle,
        get_deployment_handle,
        run,
        run_many,
        shutdown,
        shutdown_async,
        start,
        status,
    )
    from headrace.serve.batching import batch
    from headrace.serve.config import ControllerOptions, HTTPOptions, gRPCOptions
    from headrace.serve.context import (
        get_deployment_actor,
        get_deployment_actor_context,
        get_replica_context,
        get_request_context,
        get_trace_context,
    )
    from headrace.serve.multiplex import get_multiplexed_model_id, multiplexed
    from headrace.serve.older.functions import (
        BackendConfig,
        Client,
        CondaEnv,
        accept_batch,
        connect,
        create_backend,
        create_endpoint,
        delete_backend,
        delete_endpoint,
        get,
        get_backend_config,
        get_current_backend_tag,
        get_current_replica_tag,
        get_deployment,
        get_handle,
        init,
        list_backends,
        list_deployments,
        list_endpoints,
        stat,
        update_backend_config,
    )
    from headrace.serve.rollouts import (
        BlueGreen,
        Canary,
        Disagreement,
        ErrorRate,
        Latency,
        Metric,
        RollingUpdate,
        Shadow,
        ShadowTraffic,
        abort_rollout,
        exact,
        history,
        numeric,
        pause_rollout,
        promote,
        resume_rollout,
        rollback,
        rollout_status,
        set_traffic,
        shadow_traffic,
        wait_for_rollout,
    )
    from headrace.serve.schema import TracingConfig
    from headrace.serve.signals import observe

__all__ = [
    "Application",
    "BackendConfig",
    "BlueGreen",
    "Canary",
    "Client",
    "CondaEnv",
    "ControllerOptions",
    "Deployment",
    "Disagreement",
    "ErrorRate",
    "HTTPOptions",
    "Latency",
    "Metric",
    "RollingUpdate",
    "RunTarget",
    "Shadow",
    "ShadowTraffic",
    "TracingConfig",
    "abort_rollout",
    "accept_batch",
    "batch",
    "connect",
    "create_backend",
    "create_endpoint",
    "delete",
    "delete_backend",
    "delete_endpoint",
    "deployment",
    "exact",
    "gRPCOptions",
    "get",
    "get_app_handle",
    "get_backend_config",
    "get_current_backend_tag",
    "get_current_replica_tag",
    "get_deployment",
    "get_deployment_actor",
    "get_deployment_actor_context",
    "get_deployment_handle",
    "get_handle",
    "get_multiplexed_model_id",
    "get_replica_context",
    "get_request_context",
    "get_trace_context",
    "history",
    "ingress",
    "init",
    "list_backends",
    "list_deployments",
    "list_endpoints",
    "method",
    "multiplexed",
    "numeric",
    "observe",
    "pause_rollout",
    "promote",
    "resume_rollout",
    "rollback",
    "rollout_status",
    "run",
    "run_many",
    "set_traffic",
    "shadow_traffic",
    "shutdown",
    "shutdown_async",
    "start",
    "stat",
    "status",
    "update_backend_config",
    "wait_for_rollout",
]

_HOMES = {
    "api": (
        "RunTarget",
        "delete",
        "get_app_handle",
        "get_deployment_handle",
        "run",
        "run_many",
        "shutdown",
        "shutdown_async",
        "start",
        "status",
    ),
    "batching": ("batch",),
    "config": ("ControllerOptions", "HTTPOptions", "gRPCOptions"),
    "context": (
        "get_deployment_actor",
        "get_deployment_actor_context",
        "get_replica_context",
        "get_request_context",
        "get_trace_context",
    ),
    "multiplex": ("get_multiplexed_model_id", "multiplexed"),
    "older.functions": (
        "BackendConfig",
        "Client",
        "CondaEnv",
        "accept_batch",
        "connect",
        "create_backend",
        "create_endpoint",
        "delete_backend",
        "delete_endpoint",
        "get",
        "get_backend_config",
        "get_current_backend_tag",
        "get_current_replica_tag",
        "get_deployment",
        "get_handle",
        "init",
        "list_backends",
        "list_deployments",
        "list_endpoints",
        "stat",
        "update_backend_config",
    ),
    "rollouts": (
        "BlueGreen",
        "Canary",
        "Disagreement",
        "ErrorRate",
        "Latency",
        "Metric",
        "RollingUpdate",
        "Shadow",
        "ShadowTraffic",
        "abort_rollout",
        "exact",
        "history",
        "numeric",
        "pause_rollout",
        "promote",
        "resume_rollout",
        "rollback",
        "rollout_status",
        "set_traffic",
        "shadow_traffic",
        "wait_for_rollout",
    ),
    "schema": ("TracingConfig",),
    "signals": ("observe",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = frozenset(
    (
        "autoscaling_policy",
        "batching",
        "config",
        "context",
        "exceptions",
        "experimental",
        "gang",
        "gradio_integrations",
        "grpc_util",
        "handle",
        "llm",
        "metrics",
        "multiplex",
        "request_router",
        "schema",
        "task_consumer",
        "task_processor",
        "taskiq_task_processor",
        "testing",
    )
)


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is not None:
        module = importlib.import_module(f"headrace.serve.{home}")
        for each in _HOMES[home]:
            globals()[each] = getattr(module, each)
        return globals()[name]
    if name in _SUBMODULES:
        return importlib.import_module(f"headrace.serve.{name}")
    raise AttributeError(f"module 'headrace.serve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
