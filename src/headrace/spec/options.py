"""Options of a deployment: one frozen struct, validated once; `.options()`, CLI and config files derive from it.

In: what users write, under our names and Ray Serve's. Out: a DeploymentOptions that is valid, or an error that names
the option, the value, and what would be right. Of the options of Ray Serve that Headrace has no counterpart for, those
that cannot change an answer here give one warning; those that would change one are an error. Which engine will run it
is not known here: what an engine of one machine makes of an option, `spec.placement.local_objections` says.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.spec import placement
from headrace.spec.backpressure import BackpressureConfig, backpressure_config
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.hedging import HedgingConfig, hedging
from headrace.spec.placement import Placement
from headrace.spec.request_router import RequestRouterConfig, request_router_config
from headrace.spec.retries import RetryBudgetConfig, retry_budget
from headrace.spec.values import check_environment, check_integer, check_number, check_plain

NO_EFFECT: dict[str, str] = {
    "graceful_shutdown_wait_loop_s": "a draining replica ends when its last call does, without looking at intervals",
    "health_check_period_s": "a replica is well while its process and its connection live, and is never probed",
    "health_check_timeout_s": "a replica is well while its process and its connection live, and is never probed",
    "logging_config": "what replicas print goes to the output of the instance and to its log files as it is",
    "max_surge_percent": "new replicas always start before old ones stop",
    "rolling_update_percentage": "new replicas always start before old ones stop",
}
"""Options of Ray Serve that cannot change an answer here, and why: accepted with one warning."""

NOT_YET: dict[str, str] = {
    "autoscaling_config": "set num_replicas to the number that the peak needs",
    "deployment_actors": "make what replicas share a deployment of its own, and bind it",
    "gang_scheduling_config": "replicas start one by one",
}
"""Options of Ray Serve that would change an answer, but do not work yet, and what to do instead: an error."""

GONE: dict[str, str] = {
    "version": "a changed deployment is recognised by its code and arguments",
    "max_concurrent_queries": "its name is max_ongoing_requests",
    "route_prefix": "give it to serve.run(..., route_prefix=...)",
    "init_args": "give the arguments to .bind(...)",
    "init_kwargs": "give the arguments to .bind(...)",
}
"""Names that are an option nowhere any more, and what took their place: an error."""

_ACTOR_OPTIONS = (
    "num_cpus",
    "num_gpus",
    "memory",
    "resources",
    "accelerator_type",
    "label_selector",
    "fallback_strategy",
    "runtime_env",
)
OF_THE_PROCESS = (
    "num_cpus",
    "num_gpus",
    "environment",
    "memory",
    "resources",
    "accelerator_type",
    "label_selector",
    "fallback_strategy",
    "runtime_env",
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
    "max_replicas_per_node",
)
"""Options that a replica's process is started with: where one changes, replicas are replaced."""

_PACKAGE = str(Path(__file__).parents[1])


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one deployment, described in docs/reference/options.md. Times in seconds.

    `max_ongoing_requests` None: chosen by the kind of the methods. `max_queued_requests` -1: no limit. `num_cpus` None:
    none is reserved. `environment` is set in the process of each replica. `user_config` is JSON-like data. `repeatable`
    False: a call that a replica had started is not tried on another when the replica dies. `memory` is in bytes.
    `backpressure_config`, `retry_budget`, `hedge` and `request_router_config` are also taken as what a user writes for
    them, and so are those of where replicas run, from `memory` to `max_replicas_per_node` (None: as by default). Raises
    OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    num_replicas: int = 1
    max_ongoing_requests: int | None = None
    max_queued_requests: int = 1000
    backpressure_config: BackpressureConfig = BackpressureConfig()
    num_cpus: float | None = None
    num_gpus: float = 0.0
    environment: dict[str, str] = {}
    memory: int = 0
    resources: dict[str, float] = {}
    accelerator_type: str = ""
    label_selector: dict[str, str] = {}
    fallback_strategy: tuple[dict[str, dict[str, str]], ...] = ()
    runtime_env: dict[str, Any] = {}
    placement_group_bundles: tuple[dict[str, float], ...] = ()
    placement_group_strategy: str | None = None
    placement_group_bundle_label_selector: tuple[dict[str, str], ...] = ()
    max_replicas_per_node: int | None = None
    user_config: Any = None
    repeatable: bool = True
    retry_budget: RetryBudgetConfig = RetryBudgetConfig()
    hedge: HedgingConfig | None = None
    request_router_config: RequestRouterConfig | None = None
    graceful_shutdown_timeout_s: float = 20.0
    max_constructor_retry_count: int = 3
    start_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        check_integer("num_replicas", self.num_replicas, 1)
        if self.max_ongoing_requests is not None:
            check_integer("max_ongoing_requests", self.max_ongoing_requests, 1)
        if self.max_queued_requests != -1:
            check_integer("max_queued_requests", self.max_queued_requests, 1, " (-1: no limit)")
        msgspec.structs.force_setattr(self, "backpressure_config", backpressure_config(self.backpressure_config))
        if self.num_cpus is not None:
            check_number("num_cpus", self.num_cpus)
        check_number("num_gpus", self.num_gpus)
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise OptionError(f"num_gpus={self.num_gpus!r} must be a share of one GPU (0 to 1) or a whole number")
        check_environment("environment", self.environment)
        check_plain("user_config", self.user_config)
        if not isinstance(self.repeatable, bool):
            raise OptionTypeError(f"repeatable={self.repeatable!r} must be True or False")
        msgspec.structs.force_setattr(self, "retry_budget", retry_budget(self.retry_budget))
        msgspec.structs.force_setattr(self, "hedge", hedging(self.hedge))
        if self.hedge is not None and not self.repeatable:
            raise OptionError(
                "hedge and repeatable=False contradict: a call that is hedged may run twice. Leave one out"
            )
        config = request_router_config(self.request_router_config)
        msgspec.structs.force_setattr(self, "request_router_config", config)
        check_number("graceful_shutdown_timeout_s", self.graceful_shutdown_timeout_s)
        check_integer("max_constructor_retry_count", self.max_constructor_retry_count, 1)
        check_number("start_timeout_s", self.start_timeout_s)
        if self.start_timeout_s == 0:
            raise OptionError("start_timeout_s=0 must be a number of seconds above 0")
        self._check_placement()

    def _check_placement(self) -> None:
        bundles = placement.bundles(self.placement_group_bundles)
        checked = {
            "memory": placement.memory_bytes(self.memory),
            "resources": placement.custom_resources(self.resources),
            "accelerator_type": placement.accelerator(self.accelerator_type),
            "label_selector": placement.selector(self.label_selector),
            "fallback_strategy": placement.fallback(self.fallback_strategy),
            "runtime_env": placement.environment_of(self.runtime_env),
            "placement_group_bundles": bundles,
            "placement_group_strategy": placement.strategy(self.placement_group_strategy, len(bundles)),
            "placement_group_bundle_label_selector": placement.bundle_selectors(
                self.placement_group_bundle_label_selector, len(bundles)
            ),
        }
        for name, value in checked.items():
            msgspec.structs.force_setattr(self, name, value)
        if "env_vars" in self.runtime_env:
            raise OptionError("runtime_env of these options has no 'env_vars': they are the option environment")
        if self.max_replicas_per_node is not None:
            check_integer("max_replicas_per_node", self.max_replicas_per_node, 1, most=placement.MOST_PER_NODE)
        if not bundles:
            return
        if self.max_replicas_per_node is not None:
            raise OptionError(
                f"max_replicas_per_node={self.max_replicas_per_node!r} and placement_group_bundles do not go together: "
                "leave one of the two out"
            )
        own = {"CPU": self.num_cpus or 0.0, "GPU": self.num_gpus, "memory": self.memory, **self.resources}
        placement.check_first_bundle(bundles[0], own)

    def placement_of(self, group: str) -> Placement:
        """Where replicas may run; those of the same `group` (the key of the deployment) are spread over the nodes."""
        return Placement(
            resources=self.resources,
            memory=self.memory,
            accelerator_type=self.accelerator_type,
            label_selector=self.label_selector,
            fallback_label_selectors=tuple(each["label_selector"] for each in self.fallback_strategy),
            runtime_env=self.runtime_env,
            bundles=self.placement_group_bundles,
            bundle_label_selector=self.placement_group_bundle_label_selector,
            strategy=self.placement_group_strategy or "PACK",
            max_per_node=self.max_replicas_per_node or 0,
            group=group,
        )


def deployment_options(given: Mapping[str, Any], base: DeploymentOptions | None = None) -> DeploymentOptions:
    """The options that `given` names, under our names or Ray Serve's; all else is as in `base`, or the default.

    `ray_actor_options` replaces environment and all that may be in it: num_cpus, num_gpus, memory, resources,
    accelerator_type, label_selector, fallback_strategy and runtime_env. The `env_vars` of a runtime_env are the
    environment. Options that have no effect here give one warning at the user's line. Raises OptionTypeError for an
    unknown name, with the nearest one, and for a value of a wrong type; OptionError for a value that is not allowed and
    for an option that does not work yet.
    """
    ours: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    for name, value in given.items():
        if name == "ray_actor_options":
            continue
        if name in DeploymentOptions.__struct_fields__:
            ours[name] = value
        elif name in NO_EFFECT:
            if value is not None:
                ignored[name] = NO_EFFECT[name]
        elif name in NOT_YET:
            _refuse(name, value)
        else:
            raise _unknown(name)
    if given.get("num_replicas", 1) is None:
        ours["num_replicas"] = 1
    elif given.get("num_replicas") == "auto":
        raise OptionError(f"num_replicas='auto' does not work yet: {NOT_YET['autoscaling_config']}")
    if ours.get("runtime_env") is not None:
        _agree(ours, _from_runtime_env(ours.pop("runtime_env")))
    if given.get("ray_actor_options") is not None:
        _agree(ours, _from_actor_options(given["ray_actor_options"]))
        ours = {name: _DEFAULTS[name] for name in ("environment", *_ACTOR_OPTIONS)} | ours
    if ignored:
        warn_ignored(ignored)
    return DeploymentOptions(**ours) if base is None else msgspec.structs.replace(base, **ours)


_DEFAULTS: dict[str, Any] = msgspec.structs.asdict(DeploymentOptions())


def _agree(ours: dict[str, Any], actor: Mapping[str, Any]) -> None:
    """Add what `ray_actor_options` or a runtime_env say. Raises OptionError where another option says otherwise."""
    for name, value in actor.items():
        if ours.get(name, value) != value:
            raise OptionError(f"{name}={ours[name]!r} and ray_actor_options say different things ({value!r}): give one")
        ours[name] = value


def _from_actor_options(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"ray_actor_options={given!r} must be a dict, such as {{'num_cpus': 1}}")
    ours: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _ACTOR_OPTIONS:
            raise OptionError(
                f"ray_actor_options: {name!r} is none of {', '.join(_ACTOR_OPTIONS)}{_nearest(name, _ACTOR_OPTIONS)}"
            )
        if name == "runtime_env":
            ours |= _from_runtime_env(value)
        elif value is not None:
            ours[name] = value
    return ours


def _from_runtime_env(given: Any) -> dict[str, Any]:
    """`environment` and, where there is more in it, `runtime_env`, of what Ray has in one."""
    rest = placement.environment_of(given)
    variables = rest.pop("env_vars", {})
    check_environment("runtime_env['env_vars']", variables)
    return ({"environment": dict(variables)} if variables else {}) | ({"runtime_env": rest} if rest else {})


def _refuse(name: str, value: Any) -> None:
    if value is not None:
        raise OptionError(f"{name}={value!r} does not work yet: leave it out, and {NOT_YET[name]}")


def _unknown(name: str) -> Exception:
    if name in GONE:
        return OptionError(f"{name!r} is no option of a deployment: {GONE[name]}")
    known = ("name", "ray_actor_options", *DeploymentOptions.__struct_fields__, *NO_EFFECT, *NOT_YET)
    return OptionTypeError(f"{name!r} is no option of a deployment{_nearest(name, known)}")


def _nearest(name: object, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def warn_ignored(ignored: Mapping[str, str]) -> None:
    """One warning for all options that have no effect, at the line outside of this package that gave them."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    reasons = "; ".join(f"{name}: {reason}" for name, reason in ignored.items())
    plural = "s have" if len(ignored) > 1 else " has"
    warnings.warn(f"the following option{plural} no effect in Headrace: {reasons}", stacklevel=level)
