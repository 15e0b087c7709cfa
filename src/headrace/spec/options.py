"""Options of a deployment: one frozen struct, validated once; `.options()`, CLI and config files derive from it.

In: what users write, under our names and Ray Serve's. Out: a DeploymentOptions that is valid, or an error that names
the option, the value, and what would be right. Of the options of Ray Serve that Headrace has no counterpart for, those
that cannot change an answer here give one warning; those that would change one are an error.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.spec.backpressure import BackpressureConfig, backpressure_config
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.hedging import HedgingConfig, hedging
from headrace.spec.request_router import RequestRouterConfig, request_router_config
from headrace.spec.retries import RetryBudgetConfig, retry_budget
from headrace.spec.values import check_environment, check_integer, check_number, check_plain

NO_EFFECT: dict[str, str] = {
    "graceful_shutdown_wait_loop_s": "a draining replica ends when its last call does, without looking at intervals",
    "health_check_period_s": "a replica is well while its process and its connection live, and is never probed",
    "health_check_timeout_s": "a replica is well while its process and its connection live, and is never probed",
    "logging_config": "what replicas print goes to the output of the instance and to its log files as it is",
    "max_replicas_per_node": "the local engine has one machine",
    "max_surge_percent": "new replicas always start before old ones stop",
    "placement_group_strategy": "the local engine has one machine",
    "rolling_update_percentage": "new replicas always start before old ones stop",
}
"""Options of Ray Serve that cannot change an answer here, and why: accepted with one warning."""

NOT_YET: dict[str, str] = {
    "autoscaling_config": "set num_replicas to the number that the peak needs",
    "deployment_actors": "make what replicas share a deployment of its own, and bind it",
    "gang_scheduling_config": "replicas start one by one",
    "placement_group_bundles": "name the resources of a replica by num_cpus and num_gpus",
    "placement_group_bundle_label_selector": "the local engine has one machine",
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

ACTOR_NO_EFFECT: dict[str, str] = {
    "accelerator_type": "the local engine has one machine",
    "fallback_strategy": "the local engine has one machine",
    "label_selector": "the local engine has one machine",
    "memory": "memory is not accounted for",
}
"""Keys of `ray_actor_options` that are accepted with one warning, and why."""

_ACTOR_OPTIONS = ("num_cpus", "num_gpus", "resources", "runtime_env", *ACTOR_NO_EFFECT)
_PACKAGE = str(Path(__file__).parents[1])


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one deployment, described in docs/reference/options.md. Times in seconds.

    `max_ongoing_requests` None: chosen by the kind of the methods. `max_queued_requests` -1: no limit. `num_cpus` None:
    none is reserved. `environment` is set in the process of each replica. `user_config` is JSON-like data. `repeatable`
    False: a call that a replica had started is not tried on another when the replica dies. `backpressure_config`,
    `retry_budget`, `hedge` and `request_router_config` are also taken as what a user writes for them. Raises
    OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    num_replicas: int = 1
    max_ongoing_requests: int | None = None
    max_queued_requests: int = 1000
    backpressure_config: BackpressureConfig = BackpressureConfig()
    num_cpus: float | None = None
    num_gpus: float = 0.0
    environment: dict[str, str] = {}
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


def deployment_options(given: Mapping[str, Any], base: DeploymentOptions | None = None) -> DeploymentOptions:
    """The options that `given` names, under our names or Ray Serve's; all else is as in `base`, or the default.

    `ray_actor_options` replaces all of num_cpus, num_gpus and environment. Options that have no effect here give one
    warning at the user's line. Raises OptionTypeError for an unknown name, with the nearest one, and for a value of a
    wrong type; OptionError for a value that is not allowed and for an option that does not work yet.
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
    if given.get("ray_actor_options") is not None:
        actor = _from_actor_options(given["ray_actor_options"], ignored)
        for name in actor.keys() & ours.keys():
            if actor[name] != ours[name] and actor[name] is not None:
                raise OptionError(
                    f"{name}={ours[name]!r} and ray_actor_options say different things ({actor[name]!r}): give one"
                )
        ours = {"num_cpus": None, "num_gpus": 0.0, "environment": {}} | actor | ours
    if ignored:
        _warn(ignored)
    return DeploymentOptions(**ours) if base is None else msgspec.structs.replace(base, **ours)


def _from_actor_options(given: Any, ignored: dict[str, str]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"ray_actor_options={given!r} must be a dict, such as {{'num_cpus': 1}}")
    ours: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _ACTOR_OPTIONS:
            raise OptionError(
                f"ray_actor_options: {name!r} is none of {', '.join(_ACTOR_OPTIONS)}{_nearest(name, _ACTOR_OPTIONS)}"
            )
        if value is None or (name in ("resources", "runtime_env") and not value):
            continue
        if name == "resources":
            raise OptionError(
                f"ray_actor_options: resources={value!r} does not work yet: only num_cpus and num_gpus are known"
            )
        if name == "runtime_env":
            ours |= _from_runtime_env(value, ignored)
        elif name in ACTOR_NO_EFFECT:
            ignored[f"ray_actor_options[{name!r}]"] = ACTOR_NO_EFFECT[name]
        else:
            ours[name] = value
    return ours


def _from_runtime_env(given: Any, ignored: dict[str, str]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"runtime_env={given!r} must be a dict, such as {{'env_vars': {{'A': '1'}}}}")
    for name in given:
        if name == "config":
            ignored["runtime_env['config']"] = "environments are not built"
        elif name != "env_vars":
            raise OptionError(
                f"runtime_env: {name!r} does not work yet, only 'env_vars': install what the deployment imports in the "
                "environment that runs the instance"
            )
    variables = given.get("env_vars") or {}
    check_environment("runtime_env['env_vars']", variables)
    return {"environment": dict(variables)}


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


def _warn(ignored: Mapping[str, str]) -> None:
    """One warning for all options that have no effect, at the line outside of this package that gave them."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    reasons = "; ".join(f"{name}: {reason}" for name, reason in ignored.items())
    plural = "s have" if len(ignored) > 1 else " has"
    warnings.warn(f"the following option{plural} no effect in Headrace: {reasons}", stacklevel=level)
