"""What a configuration says: of the instance, its applications, and their deployments, key by key.

In: data as `spec.declared` takes it. Out: the schemas that `serve.schema` gives to users, with the options that they
stand for. A key has Ray Serve's name wherever it has the thing. What an option itself says of a value is asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headrace.spec.application import DEFAULT_HISTORY, checked_history, checked_labels, checked_request_timeout
from headrace.spec.declared import UNSET, Of, Plain, Schema, check_with, find_together
from headrace.spec.errors import OptionError
from headrace.spec.kinds import Either, Field, Findings, Flag, Items, Keys, Kind, Number, Path, Table, Text
from headrace.spec.listening_schema import HTTPOptionsSchema, gRPCOptionsSchema
from headrace.spec.names import checked_name, checked_route_prefix, split_import_path
from headrace.spec.options import NO_EFFECT, NOT_YET, DeploymentOptions, deployment_options
from headrace.spec.placement import MOST_PER_NODE, STRATEGIES
from headrace.spec.sticky import sticky as checked_sticky
from headrace.spec.strategy_kinds import (
    ROLLOUT,
    STICKY,
    declared_rollout,
    environment_fields,
    replica_environment_fields,
)

LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET")
_LOGS = NO_EFFECT["logging_config"]
_BACKING_OFF = "a call that finds no room waits until a replica offers a slot"
_ASKING = "nothing is asked of replicas: their replies say how busy they are"


def _check_encoding(value: str) -> None:
    if value not in ("TEXT", "JSON"):
        raise OptionError(f"encoding={value!r} must be 'TEXT' or 'JSON'")


def _check_level(value: int | str) -> None:
    if isinstance(value, str) and value.upper() not in LEVELS:
        raise OptionError(f"log_level={value!r} must be one of {', '.join(LEVELS)}")


class LoggingConfig(Schema):
    """Ray Serve's options of logs, which have no effect here: who is given them warns. Raises ConfigError."""

    encoding: str = UNSET
    log_level: int | str = UNSET
    logs_dir: str | None = UNSET
    enable_access_log: bool = UNSET
    additional_log_standard_attrs: list[str] = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "encoding": Field(Text(), "How a line is written: TEXT or JSON.", "TEXT", check=_check_encoding),
        "log_level": Field(Either(Text(), Number(whole=True)), "Which lines are written.", "INFO", check=_check_level),
        "logs_dir": Field(Text(), "Where they are written.", None, nullable=True),
        "enable_access_log": Field(Flag(), "Whether each request has a line.", True),
        "additional_log_standard_attrs": Field(Items(Text()), "What else a line has.", []),
    }


class TracingConfig(Schema):
    """Ray Serve's options of traces, which have no effect here (`serve.start` warns). Raises ConfigError."""

    enabled: bool = UNSET
    exporter_import_path: str = UNSET
    sampling_ratio: float = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "enabled": Field(Flag(), "Whether requests are traced.", False),
        "exporter_import_path": Field(Text(), "What traces are exported by.", ""),
        "sampling_ratio": Field(Number(0, 1), "Share of the requests that are traced.", 0.01),
    }


_PLACED = {
    "memory": "Bytes of memory of a replica, on a Ray cluster.",
    "resources": "Other resources of a replica by name, on a Ray cluster.",
    "accelerator_type": "The kind of GPU that the node has, on a Ray cluster.",
    "label_selector": "What the labels of the node are, on a Ray cluster.",
    "fallback_strategy": "What else the labels may be, the best first.",
}
_FALLBACK = Keys({"label_selector": Field(Table(Text()), "What the labels of the node are.", required=True)})


class RayActorOptionsSchema(Schema):
    """The resources and the environment of a replica."""

    runtime_env: Plain = UNSET
    num_cpus: float | None = UNSET
    num_gpus: float | None = UNSET
    memory: float | None = UNSET
    resources: Plain = UNSET
    accelerator_type: str | None = UNSET
    label_selector: dict[str, str] | None = UNSET
    fallback_strategy: list[Plain] | None = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "runtime_env": Field(Keys(replica_environment_fields()), "The environment of the replicas.", {}, nullable=True),
        "num_cpus": Field(Number(0), "CPUs of a replica.", None, nullable=True),
        "num_gpus": Field(Number(0), "GPUs of a replica: a share of one, or a whole number.", None, nullable=True),
        "memory": Field(Number(0), _PLACED["memory"], None, nullable=True),
        "resources": Field(Table(Number(0)), _PLACED["resources"], {}),
        "accelerator_type": Field(Text(), _PLACED["accelerator_type"], None, nullable=True),
        "label_selector": Field(Table(Text()), _PLACED["label_selector"], None, nullable=True),
        "fallback_strategy": Field(Items(_FALLBACK), _PLACED["fallback_strategy"], None, nullable=True),
    }


_BACKPRESSURE = Keys(
    {
        "status_code": Field(Number(whole=True), "Status of a refusal: 503 or 429.", 503),
        "retry_after_s": Field(Number(), "What Retry-After says, in seconds.", None, nullable=True),
    }
)
_RETRIES = Keys(
    {
        "ratio": Field(Number(0, 1), "Share of the calls that may be repeated.", 0.1),
        "per_second": Field(Number(0), "Calls a second that may be repeated besides.", 10.0),
    }
)
_HEDGE = Keys(
    {
        "quantile": Field(Number(), "Which quantile of the latest latencies is waited for.", 0.95),
        "budget": Field(Number(0, 1), "Share of the calls that may have a copy.", 0.05),
        "least_delay_s": Field(Number(0), "The least time that is waited for, in seconds.", 0.001),
    }
)
_ROUTER = Keys(
    {
        "request_router_class": Field(Text(), "Name of a router of Headrace's, or `module:Class` of your own."),
        "request_router_kwargs": Field(Table(Kind()), "What it is made with.", {}),
        **{
            name: Field(Number(0), f"Ray Serve's {name}.", no_effect=_BACKING_OFF if "backoff" in name else _ASKING)
            for name in (
                "request_routing_stats_period_s",
                "request_routing_stats_timeout_s",
                "initial_backoff_s",
                "backoff_multiplier",
                "max_backoff_s",
            )
        },
    }
)


def _option(kind: Kind, text: str, name: str) -> Field:
    """An option of deployments: null is for it to say whether it may be."""
    return Field(kind, text, nullable=True, check=check_with(_options_of, name))


def _options_of(**given: Any) -> DeploymentOptions:
    return deployment_options(given)


def _ignored(kind: Kind, text: str, name: str) -> Field:
    return Field(kind, text, nullable=True, no_effect=NO_EFFECT[name])


class DeploymentSchema(Schema):
    """Options of one deployment that take the place of those in its code. What is not given is `msgspec.UNSET`."""

    name: str = UNSET
    num_replicas: int | str | None = UNSET
    max_ongoing_requests: int | None = UNSET
    max_queued_requests: int = UNSET
    backpressure_config: Any = UNSET
    user_config: Any = UNSET
    ray_actor_options: RayActorOptionsSchema | None = UNSET
    num_cpus: float | None = UNSET
    num_gpus: float = UNSET
    environment: dict[str, str] = UNSET
    memory: float = UNSET
    resources: dict[str, float] = UNSET
    accelerator_type: str = UNSET
    label_selector: dict[str, str] = UNSET
    fallback_strategy: list[Plain] = UNSET
    runtime_env: Plain = UNSET
    placement_group_bundles: list[dict[str, float]] | None = UNSET
    placement_group_strategy: str | None = UNSET
    placement_group_bundle_label_selector: list[dict[str, str]] | None = UNSET
    max_replicas_per_node: int | None = UNSET
    repeatable: bool = UNSET
    retry_budget: Any = UNSET
    hedge: Any = UNSET
    request_router_config: Any = UNSET
    graceful_shutdown_timeout_s: float = UNSET
    max_constructor_retry_count: int = UNSET
    start_timeout_s: float = UNSET
    graceful_shutdown_wait_loop_s: float = UNSET
    health_check_period_s: float = UNSET
    health_check_timeout_s: float = UNSET
    logging_config: LoggingConfig | None = UNSET
    max_surge_percent: int = UNSET
    rolling_update_percentage: float = UNSET
    autoscaling_config: Any = UNSET
    gang_scheduling_config: Any = UNSET
    deployment_actors: Any = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "name": Field(Text(), "Name of the deployment, as it is in the application.", required=True),
        "num_replicas": _option(
            Either(Number(whole=True), Text()), "How many replicas it has. Changes in place.", "num_replicas"
        ),
        "max_ongoing_requests": _option(
            Number(whole=True), "Calls that a replica works on at once. Changes in place.", "max_ongoing_requests"
        ),
        "max_queued_requests": _option(
            Number(whole=True), "Calls that may wait; -1: no limit. Changes in place.", "max_queued_requests"
        ),
        "backpressure_config": _option(
            _BACKPRESSURE, "What a caller is told that is refused. Changes in place.", "backpressure_config"
        ),
        "user_config": _option(
            Kind(), "What the deployment's `reconfigure` is called with. Changes in place.", "user_config"
        ),
        "ray_actor_options": Field(
            Of(RayActorOptionsSchema),
            "The resources and the environment of a replica.",
            nullable=True,
            check=check_with(_options_of, "ray_actor_options"),
        ),
        "num_cpus": _option(Number(), "CPUs of a replica, without `ray_actor_options`.", "num_cpus"),
        "num_gpus": _option(Number(), "GPUs of a replica, without `ray_actor_options`.", "num_gpus"),
        "environment": _option(Table(Text()), "Environment variables of the replicas.", "environment"),
        "memory": _option(Number(0), _PLACED["memory"], "memory"),
        "resources": _option(Table(Number(0)), _PLACED["resources"], "resources"),
        "accelerator_type": _option(Text(), _PLACED["accelerator_type"], "accelerator_type"),
        "label_selector": _option(Table(Text()), _PLACED["label_selector"], "label_selector"),
        "fallback_strategy": _option(Items(_FALLBACK), _PLACED["fallback_strategy"], "fallback_strategy"),
        "runtime_env": _option(
            Keys(replica_environment_fields()), "The environment of the replicas, on a Ray cluster.", "runtime_env"
        ),
        "placement_group_bundles": _option(
            Items(Table(Number(0))),
            "Resources that are set aside for a replica together, on a Ray cluster.",
            "placement_group_bundles",
        ),
        # What these are to the bundles is looked at with those of the code.
        "placement_group_strategy": Field(
            Text(*STRATEGIES), "How the bundles lie on the nodes: PACK by default.", nullable=True
        ),
        "placement_group_bundle_label_selector": Field(
            Items(Table(Text())), "What the labels of each bundle's node are, or those of all.", nullable=True
        ),
        "max_replicas_per_node": _option(
            Number(1, MOST_PER_NODE, whole=True),
            "How many replicas a node has at most, on a Ray cluster.",
            "max_replicas_per_node",
        ),
        "repeatable": _option(Flag(), "Whether calls may run twice, when a replica dies.", "repeatable"),
        "retry_budget": _option(
            Either(Number(), _RETRIES), "How many calls may be repeated: a share, or more of it.", "retry_budget"
        ),
        "hedge": _option(Either(Flag(), _HEDGE), "Whether and how slow calls get a copy elsewhere.", "hedge"),
        "request_router_config": _option(
            Either(_ROUTER, Text()), "Which replica a call goes to.", "request_router_config"
        ),
        "graceful_shutdown_timeout_s": _option(
            Number(), "Seconds that a stopping replica has for the calls in work.", "graceful_shutdown_timeout_s"
        ),
        "max_constructor_retry_count": _option(
            Number(whole=True), "How often a replica is tried that fails to start.", "max_constructor_retry_count"
        ),
        "start_timeout_s": _option(Number(), "Seconds that a replica has to start.", "start_timeout_s"),
        "graceful_shutdown_wait_loop_s": _ignored(Number(0), "Ray Serve's.", "graceful_shutdown_wait_loop_s"),
        "health_check_period_s": _ignored(Number(0), "Ray Serve's.", "health_check_period_s"),
        "health_check_timeout_s": _ignored(Number(0), "Ray Serve's.", "health_check_timeout_s"),
        "logging_config": _ignored(Of(LoggingConfig), "Ray Serve's.", "logging_config"),
        "max_surge_percent": _ignored(Number(0, 100, whole=True), "Ray Serve's.", "max_surge_percent"),
        "rolling_update_percentage": _ignored(Number(0, 1), "Ray Serve's.", "rolling_update_percentage"),
        **{name: Field(Kind(), "Ray Serve's.", refused=instead) for name, instead in NOT_YET.items()},
    }

    @classmethod
    def _find_together(cls, given: Mapping[str, Any], path: Path, findings: Findings) -> None:
        overrides = _overrides(given)
        if not overrides.get("placement_group_bundles"):  # then those of the code may be meant
            for name in ("placement_group_strategy", "placement_group_bundle_label_selector"):
                overrides.pop(name, None)
        find_together(lambda: deployment_options(overrides), path, findings)

    def overrides(self) -> Plain:
        """The options that are given and have an effect, for `deployment_options`."""
        return _overrides(self.model_dump(exclude_unset=True))


def _overrides(given: Mapping[str, Any]) -> Plain:
    effective: Plain = Keys(DeploymentSchema.FIELDS).effective(given)
    return {n: v for n, v in effective.items() if n != "name" and not DeploymentSchema.FIELDS[n].refused}


class ServeApplicationSchema(Schema):
    """One application: what is imported, what it is given, how it is served and rolled out."""

    name: str = UNSET
    route_prefix: str | None = UNSET
    import_path: str = UNSET
    args: Plain = UNSET
    runtime_env: Plain = UNSET
    host: str = UNSET
    port: int = UNSET
    deployments: list[DeploymentSchema] = UNSET
    rollout: Any = UNSET
    sticky: Any = UNSET
    request_timeout_s: float | None = UNSET
    revision_history_limit: int = UNSET
    labels: dict[str, str] = UNSET
    autoscaling_policy: Any = UNSET
    logging_config: LoggingConfig | None = UNSET
    external_scaler_enabled: bool = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "name": Field(Text(), "Name of the application, unique in the instance.", "default", check=checked_name),
        "route_prefix": Field(
            Text(), "Path under which it answers; null: not over HTTP.", "/", nullable=True, check=checked_route_prefix
        ),
        "import_path": Field(
            Text(),
            "`module:attribute` of an application, or of a function that builds one.",
            required=True,
            check=lambda path: split_import_path(with_colon(path)),
        ),
        "args": Field(Table(Kind()), "Arguments of the function that builds it.", {}),
        "runtime_env": Field(
            Keys(environment_fields()),
            "The environment in which it is imported, and that of its replicas.",
            {},
        ),
        "host": Field(Text(), "Address of HTTP, in a file of one application alone.", "0.0.0.0"),
        "port": Field(Number(0, 65535, whole=True), "Port of HTTP, in a file of one application alone.", 8000),
        "deployments": Field(
            Items(Of(DeploymentSchema)), "Options of deployments, in the places of those in the code.", []
        ),
        "rollout": Field(
            ROLLOUT,
            "How a new revision takes over the traffic; null: by a rolling update.",
            None,
            nullable=True,
            check=declared_rollout,
        ),
        "sticky": Field(
            STICKY,
            "By what requests keep to a revision: header:NAME, cookie:NAME or query:NAME.",
            None,
            nullable=True,
            check=checked_sticky,
        ),
        "request_timeout_s": Field(
            Number(),
            "Seconds that requests have, unless they say less; null: no limit.",
            None,
            nullable=True,
            check=checked_request_timeout,
        ),
        "revision_history_limit": Field(
            Number(whole=True), "How many former revisions are kept.", DEFAULT_HISTORY, check=checked_history
        ),
        "labels": Field(Table(Text()), "Labels of the revision, of your own.", {}, check=checked_labels),
        "autoscaling_policy": Field(Kind(), "Ray Serve's.", None, refused=NOT_YET["autoscaling_config"]),
        "logging_config": Field(Of(LoggingConfig), "Ray Serve's.", None, nullable=True, no_effect=_LOGS),
        "external_scaler_enabled": Field(
            Flag(), "Ray Serve's.", False, no_effect="num_replicas can be changed by every deploy"
        ),
    }

    @classmethod
    def _find_together(cls, given: Mapping[str, Any], path: Path, findings: Findings) -> None:
        seen: set[str] = set()
        for index, each in enumerate(given.get("deployments") or []):
            name = each["name"] if isinstance(each, Mapping) else each.name
            if name in seen:
                findings.problem(
                    (*path, "deployments", index, "name"), f"there are two deployments with name={name!r}: make it one"
                )
            seen.add(name)

    @property
    def deployment_names(self) -> list[str]:
        """The deployments that have options here."""
        return [each.name for each in self.deployments]

    @staticmethod
    def get_empty_schema_dict() -> Plain:
        """What Ray Serve takes for no application."""
        return {"import_path": "", "runtime_env": {}, "deployments": []}


def with_colon(path: str) -> str:
    """`module:attribute` of Ray Serve's `module.attribute` too."""
    return path if ":" in path or "." not in path else ":".join(path.rsplit(".", 1))


class ServeDeploySchema(Schema):
    """A whole configuration: the applications that an instance is to have, and how it serves them."""

    proxy_location: str = UNSET
    http_options: HTTPOptionsSchema = UNSET
    grpc_options: gRPCOptionsSchema = UNSET
    controller_options: Plain | None = UNSET
    logging_config: LoggingConfig | None = UNSET
    tracing_config: TracingConfig | None = UNSET
    applications: list[ServeApplicationSchema] = UNSET
    target_capacity: float | None = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "proxy_location": Field(
            Text("EveryNode", "HeadOnly", "Disabled", "NoServer"), "Where requests are accepted.", "EveryNode"
        ),
        "http_options": Field(Of(HTTPOptionsSchema), "How HTTP is served.", {}),
        "grpc_options": Field(Of(gRPCOptionsSchema), "How gRPC is served.", {}),
        "controller_options": Field(
            Keys({"runtime_env": Field(Table(Kind()), "Ray Serve's.", None, nullable=True)}),
            "Ray Serve's.",
            None,
            nullable=True,
            no_effect="the controller runs in the environment of the instance",
        ),
        "logging_config": Field(Of(LoggingConfig), "Ray Serve's.", None, nullable=True, no_effect=_LOGS),
        "tracing_config": Field(
            Of(TracingConfig), "Ray Serve's.", None, nullable=True, no_effect="requests are not traced yet"
        ),
        "applications": Field(Items(Of(ServeApplicationSchema)), "The applications.", required=True),
        "target_capacity": Field(
            Number(0, 100), "Percentage of all replicas that is wanted; at least one is left.", None, nullable=True
        ),
    }

    @classmethod
    def _find_together(cls, given: Mapping[str, Any], path: Path, findings: Findings) -> None:
        places: dict[tuple[str, str], int] = {}
        for index, each in enumerate(given["applications"]):
            app = each if isinstance(each, Mapping) else each.model_dump(exclude_unset=True)
            here = (*path, "applications", index)
            for name in ("host", "port"):
                if name in app:
                    text = f"{name!r} is of the whole instance: put it under http_options"
                    findings.problem((*here, name), text, of_key=True)
            prefix = checked_route_prefix(app.get("route_prefix", "/"))
            for key, value in (("name", app.get("name", "default")), ("route_prefix", prefix)):
                other = places.setdefault((key, value), index) if value is not None else index
                if other != index:
                    left = "" if key in app else f" (as it is where no {key} is given)"
                    text = f"applications[{other}] has {key}={value!r} already{left}: give each its own"
                    findings.problem((*here, key), text)

    @staticmethod
    def get_empty_schema_dict() -> Plain:
        """A configuration without applications."""
        return {"applications": []}
