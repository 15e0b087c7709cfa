"""Where a user's router is: its class by `module:Class`, found alike in every process that calls its deployment.

In: a configuration. Out: in the process that builds an application, the same configuration with what others need to
find the class, or an error that says what is wrong with it; in the others, the class.

A module that this process has imported already, from the same place and in the same state, is taken as it is. Of one
that has changed since (an ingress lives on while applications are run again), or that is another of the same name, a
copy is loaded beside it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from headrace.router.request_router import (
    ConsistentHashRouter,
    DeploymentID,
    PowerOfTwoChoicesRequestRouter,
    PrefixCacheAffinityRouter,
    RequestRouter,
    RoundRobinRouter,
)
from headrace.spec.errors import ImportPathError, OptionError, OptionTypeError
from headrace.spec.names import hint
from headrace.spec.request_router import HOME, POWER_OF_TWO, RequestRouterConfig

OURS: dict[str, type[RequestRouter]] = {
    f"{HOME}:{cls.__name__}": cls
    for cls in (PowerOfTwoChoicesRequestRouter, RoundRobinRouter, ConsistentHashRouter, PrefixCacheAffinityRouter)
}

_NO_EFFECT = {"do_eviction", "eviction_interval_secs"}  # of Ray Serve's

_lock = threading.Lock()
_states: dict[str, str] = {}  # module -> the state of its source that this process imported
_copies: dict[tuple[str, str], ModuleType] = {}  # of other states: (file, state) -> the module


def complete(config: RequestRouterConfig, sys_path: Sequence[str]) -> RequestRouterConfig:
    """The configuration with all that other processes need to find the class: for the process that builds.

    Raises ImportPathError when it cannot be imported, OptionError or OptionTypeError when it is no router, cannot be
    found by others, or does not take its arguments.
    """
    path = config.request_router_class
    if path == POWER_OF_TWO:
        return config
    if path in OURS:
        for name in _NO_EFFECT & config.request_router_kwargs.keys():
            warnings.warn(
                f"request_router_kwargs: {name} has no effect in Headrace: what {_what(path)} remembers is "
                "always bounded",
                stacklevel=2,
            )
        try:
            make(OURS[path], config.request_router_kwargs, DeploymentID("", ""))
        except TypeError as error:
            raise OptionTypeError(f"{_what(path)} does not take its request_router_kwargs: {error}") from None
        return config
    module_name = path.partition(":")[0]
    if module_name == "__main__":
        raise OptionError(
            f"{_what(path)} is in the script itself, where other processes cannot import it from: put it at the top of "
            "a module of its own"
        )
    cls = load(config)
    parameters = _taker(cls)
    try:
        inspect.signature(parameters).bind(None, **config.request_router_kwargs)
    except TypeError as error:
        raise OptionTypeError(f"{_what(path)} does not take its request_router_kwargs: {error}") from None
    origin = _located(module_name, sys_path)
    if origin is None:
        raise OptionError(
            f"{_what(path)} is in a module that other processes cannot import: there is no {module_name} on the path"
        )
    return msgspec.structs.replace(config, sys_path=tuple(sys_path), source=_state_of(origin))


def is_loaded(config: RequestRouterConfig) -> bool:
    """Whether to `load` the class takes no import, and so no time."""
    return config.request_router_class.partition(":")[0] in sys.modules and not _lock.locked()


def load(config: RequestRouterConfig) -> type[RequestRouter]:
    """The class, imported where need be. Raises ImportPathError, OptionTypeError."""
    path = config.request_router_class
    module_name, _, name = path.partition(":")
    with _lock:
        try:
            found: Any = _module(module_name, config)
        except (Exception, SystemExit) as error:  # whatever the user's module raises
            raise ImportPathError(f"{_what(path)} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            classes = [n for n, value in vars(found).items() if inspect.isclass(value)] or ["none"]
            raise ImportPathError(f"{_what(path)}: {module_name} has no {part!r}: {hint(part, classes)}") from None
    if not inspect.isclass(found) or not issubclass(found, RequestRouter):
        raise OptionTypeError(f"{_what(path)} must be a subclass of serve.request_router.RequestRouter, not {found!r}")
    if inspect.isabstract(found):
        raise OptionTypeError(f"{_what(path)} has no choose_replicas")
    return found


def make(cls: type[RequestRouter], kwargs: dict[str, Any], deployment: DeploymentID) -> RequestRouter:
    """A router of this class, with its arguments. Raises whatever the user's code raises."""
    if cls.initialize_state is RequestRouter.initialize_state:
        router = cls(**kwargs)
        router._deployment_id = deployment
    else:
        router = cls()
        router._deployment_id = deployment
        router.initialize_state(**kwargs)
    return router


def _taker(cls: type[RequestRouter]) -> Callable[..., Any]:
    """What takes the arguments."""
    return cls.__init__ if cls.initialize_state is RequestRouter.initialize_state else cls.initialize_state


def _module(name: str, config: RequestRouterConfig) -> ModuleType:
    origin = _located(name, config.sys_path) if config.sys_path else None
    module = sys.modules.get(name)
    if module is None and origin is None:
        return importlib.import_module(name)
    if module is None:
        sys.path.extend(path for path in config.sys_path if path not in sys.path)
        _states[name] = config.source
        module = importlib.import_module(name)
    if origin is None or (_same_file(module, origin) and _states.setdefault(name, config.source) == config.source):
        return module
    return _copy(name, origin, config.source)


def _copy(name: str, origin: Path, state: str) -> ModuleType:
    """The module as its file is now, under a name of its own."""
    copy = _copies.get((str(origin), state))
    if copy is None:
        spec = importlib.util.spec_from_file_location(f"{name}__{state[:12]}", origin)
        if spec is None or spec.loader is None:
            raise ImportError(f"{origin} is no module")
        copy = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = copy
        try:
            # From the source itself: what was compiled of it is known by a time of change in whole seconds.
            exec(compile(origin.read_bytes(), str(origin), "exec"), copy.__dict__)
        except BaseException:
            del sys.modules[spec.name]
            raise
        _copies[str(origin), state] = copy
    return copy


def _located(name: str, sys_path: Sequence[str]) -> Path | None:
    """The file of the module, by this path alone; None: there is none."""
    importlib.invalidate_caches()
    search: Sequence[str] | None = list(sys_path)
    found = None
    parts = name.split(".")
    for i in range(len(parts)):
        found = PathFinder.find_spec(".".join(parts[: i + 1]), search)
        if found is None:
            return None
        search = found.submodule_search_locations or []
    return Path(found.origin) if found is not None and found.origin is not None and found.has_location else None


def _same_file(module: ModuleType, origin: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == origin.resolve()


def _state_of(origin: Path) -> str:
    return hashlib.sha256(origin.read_bytes()).hexdigest()[:32]


def _what(path: str) -> str:
    return f"request_router_config: request_router_class={path!r}"
