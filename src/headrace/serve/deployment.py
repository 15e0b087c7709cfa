"""Deployments and applications as users write them: a decorated class or function, and what `.bind()` makes of it.

In: users' classes, functions, options and constructor arguments. Out: `Application` nodes, which `graph.py` turns into
a specification. Nothing runs here: binding only notes.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, overload

from headrace.serve.older.mark import taken_apart
from headrace.spec.errors import OptionTypeError
from headrace.spec.method import options_of
from headrace.spec.names import checked_name
from headrace.spec.options import DeploymentOptions, deployment_options

F = TypeVar("F", bound=Callable[..., Any])


class Application:
    """A deployment bound to the arguments of its constructor, with the applications bound among those.

    Give it to `serve.run`, name it in `headrace run module:app`, or pass it as an argument to another `.bind()`, where
    a DeploymentHandle takes its place. The same Application in two places is one deployment.
    """

    def __init__(self, deployment: Deployment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._bound_deployment = deployment
        self._args = args
        self._kwargs = kwargs

    @property
    def deployment(self) -> Deployment:
        """The deployment that was bound."""
        return self._bound_deployment

    def __repr__(self) -> str:
        return f"Application({self._bound_deployment.name!r})"

    def __getattr__(self, name: str) -> NoReturn:
        if name == "remote" or (not name.startswith("_") and hasattr(self._bound_deployment.func_or_class, name)):
            raise AttributeError(
                f"the application of {self._bound_deployment.name!r} does not run yet: call {name!r} on the handle "
                "that serve.run(app) returns, or on the one that a deployment bound to it gets"
            )
        raise AttributeError(f"an Application has no attribute {name!r}")


class Deployment:
    """A class or function with its options, made by `@serve.deployment`. `.bind()` makes an application of it."""

    def __init__(
        self,
        func_or_class: Callable[..., Any],
        name: str,
        options: DeploymentOptions,
        older: Mapping[str, Any] | None = None,
    ) -> None:
        self._func_or_class = func_or_class
        self._name = name
        self._options = options
        self._older = dict(older or {})  # options of 2021, which only `deploy` takes
        self.__doc__ = func_or_class.__doc__
        self.__module__ = getattr(func_or_class, "__module__", __name__)
        self.__wrapped__ = func_or_class

    def __repr__(self) -> str:
        return f"Deployment(name={self._name!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Deployment):
            return NotImplemented
        return (
            self._func_or_class is other._func_or_class
            and self._name == other._name
            and self._options == other._options
            and self._older == other._older
        )

    def __hash__(self) -> int:
        return hash((self._name, id(self._func_or_class)))

    @property
    def name(self) -> str:
        """Its name, unique within an application (`.bind()` of several under one name: the later get a number)."""
        return self._name

    @property
    def func_or_class(self) -> Callable[..., Any]:
        """The user's own class or function."""
        return self._func_or_class

    @property
    def num_replicas(self) -> int:
        """How many replicas it should have."""
        return self._options.num_replicas

    @property
    def max_ongoing_requests(self) -> int | None:
        """How many calls a replica works on at once; None: chosen by the kind of its methods."""
        return self._options.max_ongoing_requests

    @property
    def max_queued_requests(self) -> int:
        """How many calls may wait before further ones are refused."""
        return self._options.max_queued_requests

    @property
    def user_config(self) -> Any:
        """What `reconfigure` is called with."""
        return self._options.user_config

    @property
    def ray_actor_options(self) -> dict[str, Any]:
        """The resources and the environment of a replica, under the names that Ray Serve has for them; of the rarer
        ones those that are given.
        """
        options = self._options
        found: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
        for name in ("memory", "resources", "accelerator_type", "label_selector"):
            if getattr(options, name):
                found[name] = getattr(options, name)
        if options.fallback_strategy:
            found["fallback_strategy"] = list(options.fallback_strategy)
        variables = {"env_vars": options.environment} if options.environment else {}
        if variables or options.runtime_env:
            found["runtime_env"] = {**options.runtime_env, **variables}
        return found

    def bind(self, *args: Any, **kwargs: Any) -> Application:
        """An application of this deployment, whose constructor will get these arguments in each replica.

        Raises OptionTypeError at once when the constructor cannot take them, OptionError for options that only
        `deploy` takes.
        """
        if self._older:
            deployment_options(self._older)  # its error says what took the place of each
        self._check_arguments(args, kwargs)
        return Application(self, args, kwargs)

    def options(self, func_or_class: Callable[..., Any] | None = None, **changes: Any) -> Deployment:
        """A copy with other options, `name` among them; what is not named stays.

        Raises OptionError or OptionTypeError, as the decorator does.
        """
        name = checked_name(changes.pop("name", self._name))
        target = self._func_or_class if func_or_class is None else checked_target(func_or_class)
        present, older = taken_apart(changes)
        return Deployment(target, name, deployment_options(present, self._options), {**self._older, **older})

    # ---- as of 2021

    @property
    def version(self) -> str | None:
        """What names its code and arguments, for `deploy`."""
        return self._older.get("version")

    @property
    def prev_version(self) -> str | None:
        """The version that must run for `deploy` to take place."""
        return self._older.get("prev_version")

    @property
    def init_args(self) -> tuple[Any, ...]:
        """The positional arguments of its constructor, for `deploy`."""
        return tuple(self._older.get("init_args") or ())

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of its constructor, for `deploy`."""
        return dict(self._older.get("init_kwargs") or {})

    @property
    def route_prefix(self) -> str | None:
        """Where `deploy` has it answer HTTP; None: nowhere."""
        given: str | None = self._older.get("route_prefix", f"/{self._name}")
        return given

    @property
    def max_concurrent_queries(self) -> int | None:
        """How many calls a replica works on at once; None: chosen by the kind of its methods."""
        given: int | None = self._older.get("max_concurrent_queries", self._options.max_ongoing_requests)
        return given

    @property
    def url(self) -> str | None:
        """Where it answers HTTP now; None where it does not."""
        found: str | None = _of_2021().url(self._name)
        return found

    def deploy(self, *init_args: Any, _blocking: bool = True, **init_kwargs: Any) -> None:
        """Deploy it by itself, as an application of its name, as code of 2021 does; `serve.run(....bind(...))` is how
        it is done now. Raises ValueError where `prev_version` is not what runs, OptionError, DeployFailedError.
        """
        _of_2021().deploy(self, init_args, init_kwargs, _blocking)

    def delete(self) -> None:
        """Delete what `deploy` made."""
        _of_2021().delete(self._name)

    def get_handle(self, sync: bool = True) -> Any:
        """A handle to what `deploy` made; with `sync` False, `await handle.remote()` gives a response to await.

        Raises ApplicationNotFound (a KeyError).
        """
        return _of_2021().get_handle(self._name, sync)

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        target = self._func_or_class
        if not inspect.isclass(target):
            if args or kwargs:
                raise OptionTypeError(
                    f"{self._name!r} is a function, which takes no arguments when it is bound: bind() it without any"
                )
            return
        try:
            inspect.signature(target).bind(*args, **kwargs)
        except TypeError as error:
            raise OptionTypeError(f"{self._name}.bind() does not fit its constructor: {error}") from None
        except ValueError:
            pass  # no signature (a class of an extension module): the replica will tell

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise OptionTypeError(
            f"the deployment {self._name!r} is not called directly: {self._name}.bind(...) makes an application of it "
            f"for serve.run, and {self._name}.func_or_class is the plain class or function, to use as it is"
        )


def _of_2021() -> Any:
    # By its name: it stands above this module, and few need it.
    return importlib.import_module("headrace.serve.older.deployments")


def checked_target(target: object) -> Callable[..., Any]:
    """`target` when it can be deployed: a class, or a function. Raises OptionTypeError."""
    if isinstance(target, Deployment):
        raise OptionTypeError(f"{target.name!r} is a deployment already: use its .options(...) to change it")
    if inspect.isclass(target) or inspect.isroutine(target):
        return target
    raise OptionTypeError(f"@serve.deployment takes a class or a function, not {target!r}")


# Methods of Ray Serve's deployments that nothing calls here yet: to define one and be told nothing would be a trap.
UNCALLED_HOOKS = ("check_health", "record_routing_stats", "record_autoscaling_stats", "record_replica_metadata")


@overload
def deployment(func_or_class: Callable[..., Any], /) -> Deployment: ...
@overload
def deployment(name: str | None = None, /, **options: Any) -> Callable[[Callable[..., Any]], Deployment]: ...


def deployment(
    target: Callable[..., Any] | str | None = None, /, **options: Any
) -> Deployment | Callable[[Callable[..., Any]], Deployment]:
    """Make a class or function deployable: `@serve.deployment`, or with options, `@serve.deployment(num_replicas=2)`.

    The first argument may be the name, else `name=` or the class's own. All options: `DeploymentOptions`. Raises
    OptionTypeError for an unknown option (with the nearest known one), OptionError for a value that is not allowed.
    """
    given_name = options.pop("name", None)
    func_or_class = options.pop("_func_or_class", None) if target is None else target
    if isinstance(func_or_class, str):
        given_name, func_or_class = func_or_class, None
    present, older = taken_apart(options)
    parsed = deployment_options(present)
    if given_name is not None:
        checked_name(given_name)

    def decorate(decorated: Callable[..., Any]) -> Deployment:
        checked = checked_target(decorated)
        options_of(checked)  # raises at the user's line what `build` would raise later
        silent = [hook for hook in UNCALLED_HOOKS if hasattr(checked, hook)]
        if silent:
            told = f"{checked.__name__}.{', '.join(silent)} will not be called: not supported yet"
            warnings.warn(told, stacklevel=2 if func_or_class is None else 3)
        return Deployment(checked, checked_name(given_name or checked.__name__), parsed, older)

    return decorate if func_or_class is None else decorate(func_or_class)
