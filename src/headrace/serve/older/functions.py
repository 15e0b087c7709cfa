"""The functions of `serve` in the oldest code, which knew no client: each is the client's method of its name.

In: calls of scripts and of backends. Out: the same of a Client.
"""

from __future__ import annotations

from typing import Any

from headrace.serve import api
from headrace.serve.older.client import Client, connect, get_current_backend_tag, get_current_replica_tag
from headrace.serve.older.config import BackendConfig, CondaEnv, accept_batch
from headrace.serve.older.deployments import get_deployment, list_deployments
from headrace.serve.older.handle import get

__all__ = [
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
]

_client = Client()

create_backend = _client.create_backend
create_endpoint = _client.create_endpoint
delete_backend = _client.delete_backend
delete_endpoint = _client.delete_endpoint
get_backend_config = _client.get_backend_config
get_handle = _client.get_handle
list_backends = _client.list_backends
list_endpoints = _client.list_endpoints
stat = _client.stat
update_backend_config = _client.update_backend_config


def init(
    name: str | None = None,
    http_host: str | None = None,
    http_port: int | None = None,
    metric_exporter: Any = None,
    **others: Any,
) -> Client:
    """Start the instance, and HTTP on it, where they do not run yet; returns a client.

    The instance is that of `HEADRACE_INSTANCE`: `name` cannot choose it. It ends with this process. `metric_exporter`
    has no effect. Raises OptionError, OptionTypeError, PortBusyError, InstanceError.
    """
    return api.start(http_host=http_host, http_port=http_port, **others)
