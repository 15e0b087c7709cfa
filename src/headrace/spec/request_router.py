"""Which replica a call goes to: the option `request_router_config`.

In: a name, a class, a dict or a RequestRouterConfig of the user's. Out: a RequestRouterConfig that is valid, or an
error that names the field, the value, and what would be right.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

POWER_OF_TWO = "headrace.serve.request_router:PowerOfTwoChoicesRequestRouter"


class RequestRouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The class of the router as `module:Class`, and the JSON-like arguments that it is made with.

    Raises OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    request_router_class: str = POWER_OF_TWO
    request_router_kwargs: dict[str, Any] = {}

    def __post_init__(self) -> None:
        path = self.request_router_class
        if inspect.isclass(path):
            path = f"{path.__module__}:{path.__qualname__}"
            msgspec.structs.force_setattr(self, "request_router_class", path)
        if not isinstance(path, str):
            raise OptionTypeError(
                f"request_router_config: request_router_class={path!r} must be a class or its 'module:Class'"
            )
        if not isinstance(self.request_router_kwargs, dict):
            raise OptionTypeError(
                f"request_router_config: request_router_kwargs={self.request_router_kwargs!r} must be a dict"
            )
        try:
            msgspec.msgpack.encode(self.request_router_kwargs)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise OptionError(
                f"request_router_config: request_router_kwargs must be JSON-like data: {error}"
            ) from error


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
