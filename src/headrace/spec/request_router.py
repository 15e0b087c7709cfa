"""Which replica a call goes to: the option `request_router_config`.

In: a name, a class, a dict or a RequestRouterConfig of the user's. Out: a RequestRouterConfig that is valid, or an
error that names the field, the value, and what would be right. Nothing is imported here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

HOME = "headrace.serve.request_router"
BUILT_IN = ("PowerOfTwoChoicesRequestRouter", "RoundRobinRouter", "ConsistentHashRouter", "PrefixCacheAffinityRouter")
POWER_OF_TWO = f"{HOME}:{BUILT_IN[0]}"

# Of Ray Serve's, without effect here, and why.
_ASKING = "nothing is asked of replicas: their replies say how busy they are"
_BACKING_OFF = "a call that finds no room waits until a replica offers a slot, and does not ask again"


class RequestRouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The class of the router, itself or as `module:Class`, and the JSON-like arguments that it is made with.

    `sys_path` and `source` say where its module is found, and which state of it this is: they are filled in when an
    application is built. The other fields are Ray Serve's, and have no effect here: a warning says so. Raises
    OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    request_router_class: str = POWER_OF_TWO
    request_router_kwargs: dict[str, Any] = {}
    sys_path: tuple[str, ...] = ()
    source: str = ""
    request_routing_stats_period_s: float | None = None
    request_routing_stats_timeout_s: float | None = None
    initial_backoff_s: float | None = None
    backoff_multiplier: float | None = None
    max_backoff_s: float | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "request_router_class", _path_of(self.request_router_class))
        if not isinstance(self.request_router_kwargs, dict) or not all(
            isinstance(name, str) for name in self.request_router_kwargs
        ):
            raise OptionTypeError(
                f"request_router_config: request_router_kwargs={self.request_router_kwargs!r} must be a dict whose "
                "keys are names"
            )
        try:
            msgspec.msgpack.encode(self.request_router_kwargs)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise OptionError(
                f"request_router_config: request_router_kwargs must be JSON-like data: {error}"
            ) from error
        if self.request_router_kwargs and self.request_router_class == POWER_OF_TWO:
            raise OptionError(
                f"request_router_config: request_router_kwargs={self.request_router_kwargs!r} say nothing to "
                f"{BUILT_IN[0]}, which takes no arguments: name the request_router_class that they are for"
            )
        for name in self.__struct_fields__[4:]:
            if getattr(self, name) is not None:
                reason = _BACKING_OFF if "backoff" in name else _ASKING
                warnings.warn(f"request_router_config: {name} has no effect in Headrace: {reason}", stacklevel=2)
                msgspec.structs.force_setattr(self, name, None)


def request_router_config(given: Any) -> RequestRouterConfig | None:
    """The config that `given` is or names, None where it is the default. Raises OptionError, OptionTypeError."""
    if given is None:
        return None
    if isinstance(given, str) or inspect.isclass(given):
        given = RequestRouterConfig(request_router_class=given)  # type: ignore[arg-type]
    elif isinstance(given, Mapping):
        known = RequestRouterConfig.__struct_fields__
        for name in given:
            if name not in known:
                raise OptionTypeError(f"request_router_config has no {name!r}: {hint(name, known)}")
        given = RequestRouterConfig(**given)
    elif not isinstance(given, RequestRouterConfig):
        raise OptionTypeError(f"request_router_config={given!r} must be a RequestRouterConfig, a class or a dict")
    return None if given.request_router_class == POWER_OF_TWO else given


def _path_of(given: object) -> str:
    """`module:Class` of a class, a path with a colon or (Ray Serve's) a dot, or the name of a router of ours."""
    if inspect.isclass(given):
        return _path_of_class(given)
    if not isinstance(given, str):
        raise OptionTypeError(
            f"request_router_config: request_router_class={given!r} must be a class or its 'module:Class'"
        )
    path = given if ":" in given or "." not in given else ":".join(given.rsplit(".", 1))
    module, _, name = path.rpartition(":")
    if name in BUILT_IN and (not module or module.startswith(("headrace.serve.", "ray.serve."))):
        return f"{HOME}:{name}"
    if not module:
        raise OptionError(
            f"request_router_config: request_router_class={given!r} must be 'module:Class' of a router of your own, or "
            f"one of {', '.join(BUILT_IN)}"
        )
    if module.startswith(("ray.", "headrace.")):
        raise OptionError(
            f"request_router_config: there is no request_router_class={given!r} here: {hint(name, BUILT_IN)}"
        )
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise OptionError(f"request_router_config: request_router_class={given!r} is not 'module:Class'")
    return path


def _path_of_class(given: type) -> str:
    module, name = given.__module__, given.__qualname__
    if module.startswith("headrace.") and name in BUILT_IN:
        return f"{HOME}:{name}"
    if not callable(getattr(given, "choose_replicas", None)):
        raise OptionTypeError(
            f"request_router_config: request_router_class={name} has no choose_replicas: it must be a subclass of "
            "serve.request_router.RequestRouter"
        )
    if module == "__main__" or "<locals>" in name:
        where = "a script or a notebook" if module == "__main__" else "a function"
        raise OptionError(
            f"request_router_config: request_router_class={name} is defined in {where}, and the processes that route "
            "requests cannot import it from there: put it at the top of a module of its own, and import it"
        )
    return f"{module}:{name}"
