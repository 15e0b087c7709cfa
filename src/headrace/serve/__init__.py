"""The public face: `from headrace import serve`. What needs event loops and sockets is loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not lazily: importing a submodule binds its name here, and after that `serve.deployment` must be the decorator.
from headrace.serve.deployment import Application, Deployment, deployment
from headrace.serve.method import method

if TYPE_CHECKING:
    from headrace.context import get_replica_context, get_request_context
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
    from headrace.spec.config import HTTPOptions

__all__ = [
    "Application",
    "Deployment",
    "HTTPOptions",
    "RunTarget",
    "delete",
    "deployment",
    "get_app_handle",
    "get_deployment_handle",
    "get_replica_context",
    "get_request_context",
    "method",
    "run",
    "run_many",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
]

_HOMES = {
    "headrace.context": ("get_replica_context", "get_request_context"),
    "headrace.serve.api": (
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
    "headrace.spec.config": ("HTTPOptions",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = frozenset(("config", "context", "exceptions", "handle", "schema"))
_NOT_YET = frozenset(
    (
        "ControllerOptions",
        "TracingConfig",
        "batch",
        "get_deployment_actor",
        "get_deployment_actor_context",
        "get_multiplexed_model_id",
        "get_trace_context",
        "gRPCOptions",
        "grpc_util",
        "ingress",
        "llm",
        "metrics",
        "multiplexed",
    )
)


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is not None:
        module = importlib.import_module(home)
        for each in _HOMES[home]:
            globals()[each] = getattr(module, each)
        return globals()[name]
    if name in _SUBMODULES:
        return importlib.import_module(f"headrace.serve.{name}")
    if name in _NOT_YET:
        raise AttributeError(f"serve.{name} is not supported yet")
    raise AttributeError(f"module 'headrace.serve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
