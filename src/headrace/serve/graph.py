"""From bound applications to a specification: one deployment for each bound node, handles where nodes were bound.

In: an `Application` as the user wrote it. Out: an `ApplicationSpec`, in which callees stand before their callers. No
user object is in it, only bytes that make one.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from headrace.serve.builder import not_an_application
from headrace.serve.deployment import Application, Deployment
from headrace.serve.digest import digest
from headrace.serve.ingress import complete
from headrace.serve.pack import packs_of
from headrace.serve.sources import Sources
from headrace.spec.application import (
    DEFAULT_HISTORY,
    ApplicationSpec,
    Code,
    DeploymentSpec,
    Environment,
    checked_history,
    checked_labels,
    checked_request_timeout,
)
from headrace.spec.batching import MARK as BATCH_MARK
from headrace.spec.batching import BatchOptions, least_ongoing
from headrace.spec.errors import GraphError, OptionError, OptionTypeError, PayloadError
from headrace.spec.hedging import HedgingConfig
from headrace.spec.ingress import Interface, ingress_of
from headrace.spec.method import options_of
from headrace.spec.multiplexing import is_multiplexed
from headrace.spec.names import checked_name, checked_route_prefix, hint
from headrace.spec.options import DeploymentOptions, deployment_options
from headrace.spec.sticky import sticky as checked_sticky
from headrace.wire.code import pack_arguments, pack_code

DEFAULT_ASYNC_ONGOING = 100
DEFAULT_WSGI_ONGOING = 8  # of a WSGI application, whose calls mostly wait for something or compute outside of Python


def build(
    app: Application,
    name: str = "default",
    route_prefix: str | None = "/",
    request_timeout_s: float | None = None,
    packing: Packing | None = None,
    *,
    sticky: Any = None,
    revision_history_limit: int = DEFAULT_HISTORY,
    labels: Mapping[str, str] | None = None,
    source: str = "",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> ApplicationSpec:
    """The specification of `app` under this name and route prefix; its requests from outside have `request_timeout_s`.

    Its environment names the source pack, which `packing.packs()` has: pass `ByValue()`, and send it along.
    `sticky` says by what requests keep to a revision, `revision_history_limit` how many former revisions are kept;
    `labels` and `source` (what it was built from) are for people to read. `overrides` are options of deployments, by
    their names, that take the place of those in the code.

    Raises OptionError, OptionTypeError, GraphError, or PayloadError naming what cannot be sent to a replica.
    """
    if not isinstance(app, Application):
        raise OptionTypeError(not_an_application(app))
    checked_name(name)
    prefix = checked_route_prefix(route_prefix)
    timeout_s = checked_request_timeout(request_timeout_s)
    key = checked_sticky(sticky)
    depth = checked_history(revision_history_limit)
    named = checked_labels(labels)
    packing = packing or ByValue()
    graph = _Graph(packing, overrides or {})
    ingress = graph.add(app)
    graph.check_overrides()
    return ApplicationSpec(
        name=name,
        route_prefix=prefix,
        ingress=ingress,
        deployments=tuple(graph.deployments),
        environment=msgspec.structs.replace(environment(), pack=next(iter(packing.packs()), "")),
        request_timeout_s=timeout_s,
        sticky=key,
        history=depth,
        labels=named,
        source=source,
    )


def environment() -> Environment:
    """Where this process imports code from, as paths that hold in any working directory."""
    cwd = Path.cwd()
    return Environment(sys_path=tuple(str(cwd / entry) for entry in sys.path), cwd=str(cwd))


def with_router(options: DeploymentOptions) -> DeploymentOptions:
    """The options with all that other processes need to find the router that they name, if they do.

    Raises ImportPathError, OptionError, OptionTypeError.
    """
    config = options.request_router_config
    if config is None:
        return options
    from headrace.router.router_class import complete  # loaded where it is used

    return msgspec.structs.replace(options, request_router_config=complete(config, environment().sys_path))


class Packing(Protocol):
    """How code and arguments of one application get into its replicas.

    `name_of` is asked of each object and gives the name of the deployment that the object stands for, else None.
    """

    def code(self, target: Callable[..., Any]) -> Code:
        """What makes the class or function in a replica. Raises PayloadError."""

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], name_of: Callable[[Any], str | None]
    ) -> tuple[bytes, tuple[str, ...]]:
        """`(args, kwargs)` for `unpack_arguments`, and the names of the deployments in them. Raises PayloadError."""

    def digest(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: DeploymentOptions,
        name_of: Callable[[Any], str | None],
    ) -> tuple[str, dict[str, str]]:
        """Equal for deployments that may share replicas; and the digests of its parts, for people to be told of."""

    def reach(self, module: str) -> None:
        """Processes that run the application import this module too."""

    def packs(self) -> dict[str, bytes]:
        """The source pack of all that was packed, by its name, if there is one: goes with the specification."""


class ByValue:
    """To other processes: as import paths and pickles, with the sources that they need."""

    def __init__(self) -> None:
        self._sources = Sources()
        self._packs: dict[str, bytes] | None = None

    code = staticmethod(pack_code)
    arguments = staticmethod(pack_arguments)

    def digest(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: DeploymentOptions,
        name_of: Callable[[Any], str | None],
    ) -> tuple[str, dict[str, str]]:
        """Of code by its sources or its bytecode, of arguments by value."""
        return digest(target, args, kwargs, options, name_of, self._sources)

    def reach(self, module: str) -> None:
        """Its sources, and of what it imports, come along."""
        self._sources.of(module)

    def packs(self) -> dict[str, bytes]:
        """The sources of the first-party modules that were reached, by the name that the specification says."""
        if self._packs is None:
            self._packs = packs_of(self._sources)
        return self._packs


class _Graph:
    """Walks the bound nodes, children before parents, and names each."""

    def __init__(self, packing: Packing, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        self._packing = packing
        self._overrides = overrides
        self.deployments: list[DeploymentSpec] = []
        self._names: dict[int, str] = {}  # id of the node -> its name
        self._nodes: list[Application] = []  # alive as long as their ids are used
        self._under_way: set[int] = set()
        self._failure: Exception | None = None

    def add(self, app: Application) -> str:
        """The name of the node's deployment; the node and all below it are in `deployments` from now on."""
        key = id(app)
        known = self._names.get(key)
        if known is not None:
            return known
        bound = app._bound_deployment
        if key in self._under_way:
            raise GraphError(f"the arguments of {bound.name!r} lead back to itself: an application cannot be a cycle")
        self._under_way.add(key)
        for label, value in (*enumerate(app._args), *app._kwargs.items()):
            if isinstance(value, Deployment):
                raise GraphError(
                    f"argument {label!r} of {bound.name!r} is the unbound deployment {value.name!r}: "
                    f"pass {value.name}.bind(...) instead"
                )
        complete(bound.func_or_class)
        arguments, uses = self._pack(app)
        name = self._unique(bound.name)
        self._names[key] = name
        self._nodes.append(app)
        options = with_router(self._options_of(name, bound._options))
        if options.request_router_config is not None:
            self._packing.reach(options.request_router_config.request_router_class.partition(":")[0])
        made, parts = self._packing.digest(bound.func_or_class, app._args, app._kwargs, options, self._name_of)
        self.deployments.append(
            DeploymentSpec(
                name=name,
                code=self._packing.code(bound.func_or_class),
                arguments=arguments,
                options=options,
                digest=made,
                parts=parts,
                max_ongoing_requests=resolved_max_ongoing(bound.func_or_class, options),
                uses=uses,
                is_function=not inspect.isclass(bound.func_or_class),
                unrepeatable=unrepeatable_methods(bound.func_or_class, name, options),
                hedged_methods=hedged_methods(bound.func_or_class, name, options),
                multiplexed=is_multiplexed(bound.func_or_class),
            )
        )
        return name

    def check_overrides(self) -> None:
        """Raise OptionError for options of a deployment that is not there."""
        there = [deployment.name for deployment in self.deployments]
        for name in self._overrides:
            if name not in there:
                raise OptionError(f"there is no deployment {name!r} to have these options: {hint(name, there)}")

    def _options_of(self, name: str, options: DeploymentOptions) -> DeploymentOptions:
        given = self._overrides.get(name)
        try:
            return deployment_options(given, options) if given else options
        except (OptionError, OptionTypeError) as error:
            raise type(error)(f"deployment {name!r}: {error}") from None

    def _pack(self, app: Application) -> tuple[bytes, tuple[str, ...]]:
        try:
            return self._packing.arguments(app._args, app._kwargs, self._name_of)
        except PayloadError as error:
            # What went wrong in a node below is told as it is, not as a trouble of the pickle that found the node.
            if self._failure is not None:
                raise self._failure from self._failure.__cause__
            raise PayloadError(f"{app._bound_deployment.name}.bind(...): {error}") from error.__cause__

    def _name_of(self, value: object) -> str | None:
        if not isinstance(value, Application):
            return None
        try:
            return self.add(value)
        except Exception as error:  # it crosses the pickler, which would wrap it; _pack raises it as it is
            self._failure = self._failure or error
            raise

    def _unique(self, name: str) -> str:
        taken = set(self._names.values())
        unique, number = name, 0
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        return unique


def unrepeatable_methods(target: Callable[..., Any], name: str, options: DeploymentOptions) -> tuple[str, ...]:
    """The methods of the deployment `name` that say themselves that they must not run twice, by name.

    With `serve.ingress` an HTTP request is a call of `__call__`, whichever route it takes: one such method, and no
    request may run twice.
    Raises OptionError where a method says the contrary of its deployment.
    """
    marked = options_of(target)
    contrary = [method for method, said in marked.items() if said.repeatable and not options.repeatable]
    if contrary:
        raise OptionError(
            f"{name}.{contrary[0]} is marked repeatable=True, but no call of a deployment with repeatable=False is "
            f"repeated: leave {name} repeatable, and mark the methods that must not run twice with repeatable=False"
        )
    unrepeatable = {method for method, said in marked.items() if said.repeatable is False}
    if unrepeatable and ingress_of(target) is not None:
        unrepeatable.add("__call__")
    return tuple(sorted(unrepeatable))


def hedged_methods(
    target: Callable[..., Any], name: str, options: DeploymentOptions
) -> dict[str, HedgingConfig | None]:
    """How the methods of the deployment `name` that say so themselves are hedged, by name; None: not at all.

    With `serve.ingress`, as with `unrepeatable_methods`: one that is not to be hedged, and no request is.
    Raises OptionError where a method says the contrary of its deployment.
    """
    hedged: dict[str, HedgingConfig | None] = {}
    marked = options_of(target)
    for method, said in marked.items():
        if said.hedge is None:
            continue
        if said.hedge is not False and not options.repeatable:
            raise OptionError(
                f"{name}.{method} is marked hedge={said.hedge!r}, but calls of a deployment with repeatable=False may "
                "not run twice: leave one of the two out"
            )
        hedged[method] = (options.hedge or HedgingConfig()) if said.hedge is True else said.hedge or None
    if None in hedged.values() and ingress_of(target) is not None:
        hedged["__call__"] = None
    return hedged


def resolved_max_ongoing(target: Callable[..., Any], options: DeploymentOptions) -> int:
    """`max_ongoing_requests` as given; else 100 where calls are coroutines, and a replica's CPUs where they are not,
    but never less than its batches need to be full.

    A WSGI application has a few threads, and a CPU's worth at least; other web applications count as coroutines.
    """
    if options.max_ongoing_requests is not None:
        return options.max_ongoing_requests
    return max(_by_kind(target, options), least_ongoing(target))


def _by_kind(target: Callable[..., Any], options: DeploymentOptions) -> int:
    cpus = max(1, math.ceil(options.num_cpus or 1))
    ingress = ingress_of(target)
    if ingress is not None:
        return max(DEFAULT_WSGI_ONGOING, cpus) if ingress.interface is Interface.WSGI else DEFAULT_ASYNC_ONGOING
    return DEFAULT_ASYNC_ONGOING if _is_async(target) else cpus


def _is_async(target: Callable[..., Any]) -> bool:
    """Whether calls run on the event loop: by `__call__`, or by any public method of a class that has none."""
    if not inspect.isclass(target):
        return _is_async_function(target)
    called = inspect.getattr_static(target, "__call__", None)
    if "__call__" in {name for cls in target.__mro__ for name in vars(cls)}:
        return _is_async_function(called)
    return any(
        _is_async_function(method) for name, method in inspect.getmembers_static(target) if not name.startswith("_")
    )


def _is_async_function(function: object) -> bool:
    plain = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    if isinstance(inspect.getattr_static(plain, BATCH_MARK, None), BatchOptions):
        return True  # its calls wait on the loop, also where its batches run in threads
    return inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain)
