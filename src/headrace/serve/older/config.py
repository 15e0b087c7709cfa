"""How a backend is configured: BackendConfig, the dict that stood for it before, and what went with it.

In: what users write. Out: a BackendConfig that is valid, or an error that names the field, the value, and what would be
right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from headrace.serve.older.kinds import ACCEPTS_BATCHES
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

F = TypeVar("F", bound=Callable[..., Any])

MOST_CALLS = 1_000_000  # what stood for "no limit"


class BackendConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend, all of which change in place.

    `max_batch_size` is for code that accepts batches; `batch_wait_timeout` (seconds) how long the first of a batch
    waits for others. `max_concurrent_queries` None: as many as suits the code; of plain code, which runs one request
    at a time, it says nothing. `user_config` goes to the `reconfigure` of its class.
    """

    num_replicas: int = 1
    max_batch_size: int | None = None
    batch_wait_timeout: float = 0.0
    max_concurrent_queries: int | None = None
    user_config: Any = None
    experimental_graceful_shutdown_wait_loop_s: float = 2.0
    experimental_graceful_shutdown_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        _check_count("num_replicas", self.num_replicas)
        for name in ("max_batch_size", "max_concurrent_queries"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in (
            "batch_wait_timeout",
            "experimental_graceful_shutdown_wait_loop_s",
            "experimental_graceful_shutdown_timeout_s",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise OptionTypeError(f"BackendConfig: {name}={value!r} must be a number of seconds")
            if not 0 <= value <= 3600:
                raise OptionError(f"BackendConfig: {name}={value!r} must be a number of seconds from 0 to 3600")

    def dict(self) -> dict[str, Any]:
        """All fields by name."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"BackendConfig: {name}={value!r} must be an integer of at least 1")
    if not 1 <= value <= MOST_CALLS:
        raise OptionError(f"BackendConfig: {name}={value!r} must be an integer from 1 to {MOST_CALLS}")


def changed_config(given: Any, base: BackendConfig) -> BackendConfig:
    """`base` with what `given` says: a dict of the fields to change, or a BackendConfig, which replaces all of it."""
    if given is None:
        return base
    if isinstance(given, BackendConfig):
        return BackendConfig(**given.dict())  # its fields may have been set since it was checked
    if not isinstance(given, Mapping):
        raise OptionTypeError(
            f"config={given!r} must be a dict, such as {{'num_replicas': 2}}, or a BackendConfig, not "
            f"{type(given).__name__}"
        )
    known = BackendConfig.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionTypeError(f"a backend's config has no {name!r}: {hint(name, known)}")
    return BackendConfig(**{**base.dict(), **given})


class CondaEnv:
    """A Conda environment for a backend. Environments are not made here: to use one is an error that says so."""

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.name = name
        refuse_environment(self)

    def __repr__(self) -> str:
        return f"CondaEnv({self.name!r})"


def refuse_environment(env: object) -> NoReturn:
    """Raise the error that says what to do instead."""
    raise OptionError(
        f"env={env!r} does not work here: replicas run in the Python environment of their instance. Install what the "
        "backend imports there, or start a second instance (headrace --instance NAME) from the other environment"
    )


def accept_batch(function: F) -> F:
    """Mark a function, or a method, that takes a list of requests and returns a list of as many results."""
    if not callable(function) or isinstance(function, type):
        raise OptionTypeError(f"@serve.accept_batch marks a function or a method, not {function!r}")
    setattr(function, ACCEPTS_BATCHES, True)
    return function
