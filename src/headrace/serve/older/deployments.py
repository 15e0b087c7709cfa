"""Deployments of 2021, which are deployed by themselves: `Model.deploy(...)`, `Model.get_handle()`, `Model.delete()`.

In: a Deployment with its options of that time. Out: an application of the deployment's name, whose revisions carry the
version as a label.

A version names code and arguments: the same version again changes options alone, in place, whatever the code is by
then; another one, and a deploy without any, is a new revision with replicas of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from headrace.handle import DeploymentHandle
from headrace.serve import api
from headrace.serve.deployment import Deployment, checked_target
from headrace.serve.digest import HEX_DIGITS, unique
from headrace.serve.driver import current_tie, driver
from headrace.serve.graph import DEFAULT_ASYNC_ONGOING, ByValue, build, resolved_max_ongoing
from headrace.serve.older.backends import ask
from headrace.serve.older.handle import AsyncHandle
from headrace.serve.older.mark import taken_apart
from headrace.serve.run_target import source_of
from headrace.spec.application import ApplicationSpec, DeploymentSpec
from headrace.spec.errors import ApplicationNotFound, OptionError, OptionTypeError, RevisionNotFound
from headrace.spec.ingress import ingress_of
from headrace.spec.names import checked_name, checked_route_prefix
from headrace.spec.options import OF_THE_PROCESS, DeploymentOptions, deployment_options
from headrace.wire.code import load_code, pack_arguments, unpack_arguments
from headrace.wire.control import Delete, Deploy, Deployed, GetRevision, GetStatus, Revision, Status
from headrace.wire.who import who

__all__ = ["FoundDeployment", "delete", "deploy", "get_deployment", "get_handle", "list_deployments", "url"]

# Labels of revisions.
DEPLOYMENT = "deployment"
VERSION = "version"


class FoundDeployment(Deployment):
    """A deployment that runs, as `get_deployment` gives it: its code is that which runs, and is loaded when it is asked
    for.
    """

    def __init__(
        self, revision: Revision, name: str, options: DeploymentOptions, older: Mapping[str, Any] | None = None
    ) -> None:
        self._revision = revision
        self._name = name
        self._options = options
        self._older = dict(older or {})

    @property
    def _func_or_class(self) -> Callable[..., Any]:  # type: ignore[override]  # an attribute of those that code has
        return checked_target(load_code(_only(self._revision.spec).code))

    @property
    def init_args(self) -> tuple[Any, ...]:
        """The positional arguments of its constructor."""
        return self._arguments()[0]

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of its constructor."""
        return self._arguments()[1]

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        spec = self._revision.spec
        return unpack_arguments(_only(spec).arguments, lambda name: DeploymentHandle(name, spec.name))

    def options(self, func_or_class: Callable[..., Any] | None = None, **changes: Any) -> Deployment:
        """A copy with other options; what is not named stays as it runs."""
        if func_or_class is not None:
            plain = Deployment(func_or_class, self._name, self._options, self._older)
            return plain.options(func_or_class, **changes)
        name = checked_name(changes.pop("name", self._name))
        present, older = taken_apart(changes)
        return FoundDeployment(
            self._revision, name, deployment_options(present, self._options), {**self._older, **older}
        )


def deploy(deployment: Deployment, args: tuple[Any, ...], kwargs: dict[str, Any], blocking: bool = True) -> None:
    """Deploy it as an application of its name; returns when it runs (with `blocking` False: when it is taken on).

    Raises ValueError where `prev_version` is another than runs, OptionError, DeployFailedError with the traceback of a
    constructor that raised.
    """
    older = deployment._older
    version, previous = _checked_version("version", older), _checked_version("prev_version", older)
    if older.get("_autoscaling_config") is not None:
        deployment_options({"autoscaling_config": older["_autoscaling_config"]})  # says what to do instead
    if not current_tie().runs():
        api.start()
    name = deployment.name
    present = _present(name)
    if previous is not None:
        _check_previous(name, previous, present)
    expected = ask(Status, GetStatus()).status.applications[name].newest if present is not None else 0
    spec, packs = _specified(deployment, args, kwargs)
    if present is not None and version is not None and present.spec.labels.get(VERSION) == version:
        spec, packs = _in_place(spec, present)
    else:
        spec = _marked(spec, version)
    # Without prev_version who is last wins, as it was.
    guard = expected if previous is not None else None
    ask(Deployed, Deploy(spec, wait=blocking, expected=guard, by=who(), packs=packs))


def _specified(
    deployment: Deployment, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ApplicationSpec, dict[str, bytes]]:
    """The application as the deployment says, and the sources that come with it."""
    older = deployment._older
    if not args and not kwargs:
        args, kwargs = _given_arguments(older)
    options = _options(deployment)
    prefix = checked_route_prefix(older.get("route_prefix", f"/{deployment.name}"))
    if isinstance(deployment, FoundDeployment):
        return _found(deployment, options, prefix, args, kwargs)
    packing = ByValue()
    bound = Deployment(deployment.func_or_class, deployment.name, options).bind(*args, **kwargs)
    spec = build(bound, deployment.name, prefix, packing=packing, labels=_labels(deployment), source=source_of(bound))
    return spec, dict(packing.packs())


def _found(
    deployment: FoundDeployment,
    options: DeploymentOptions,
    prefix: str | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[ApplicationSpec, dict[str, bytes]]:
    """As `_specified`, with the code that runs, and its arguments where there are no others."""
    former = deployment._revision.spec
    only = _only(former)
    if "route_prefix" not in deployment._older and deployment.name == former.name:
        prefix = former.route_prefix
    if args or kwargs:
        packed, _ = pack_arguments(args, kwargs, lambda value: None)
        only = msgspec.structs.replace(only, arguments=packed, digest=unique(), uses=())
    limit = options.max_ongoing_requests or only.max_ongoing_requests
    only = msgspec.structs.replace(only, name=deployment.name, options=options, max_ongoing_requests=limit)
    spec = msgspec.structs.replace(
        former,
        name=deployment.name,
        ingress=deployment.name,
        route_prefix=prefix,
        deployments=(only,),
        labels=_labels(deployment),
    )
    return spec, deployment._revision.packs


def _labels(deployment: Deployment) -> dict[str, str]:
    version = deployment._older.get("version")
    return {DEPLOYMENT: deployment.name} | ({} if version is None else {VERSION: version})


def _options(deployment: Deployment) -> DeploymentOptions:
    """The present options, with what `max_concurrent_queries` means for code of this kind."""
    limit = deployment._older.get("max_concurrent_queries")
    if limit is None:
        return deployment._options
    options = deployment_options({"max_ongoing_requests": limit}, deployment._options)
    target = deployment.func_or_class
    by_kind = resolved_max_ongoing(target, msgspec.structs.replace(options, max_ongoing_requests=None))
    if ingress_of(target) is None and by_kind < DEFAULT_ASYNC_ONGOING:
        # Plain code ran one request at a time: the number was of those that waited in the replica.
        return msgspec.structs.replace(options, max_ongoing_requests=by_kind)
    return options


def _given_arguments(older: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = older.get("init_args") or (), older.get("init_kwargs") or {}
    if not isinstance(args, tuple | list):
        raise OptionTypeError(f"init_args={args!r} must be a tuple of the constructor's arguments")
    if not isinstance(kwargs, Mapping):
        raise OptionTypeError(f"init_kwargs={kwargs!r} must be a dict of the constructor's arguments")
    return tuple(args), dict(kwargs)


def _checked_version(name: str, older: Mapping[str, Any]) -> str | None:
    version = older.get(name)
    if version is not None and (not isinstance(version, str) or not version):
        raise OptionTypeError(f"{name}={version!r} of a deployment must be a string, or None")
    return version


def _check_previous(name: str, previous: str, present: Revision | None) -> None:
    if present is None:
        raise OptionError(f"prev_version={previous!r} is given, but there is no deployment {name!r}")
    existing = present.spec.labels.get(VERSION)
    if existing != previous:
        raise OptionError(
            f"prev_version={previous!r} does not match the version of deployment {name!r} that runs, {existing!r}: "
            "somebody else deployed meanwhile"
        )


def _in_place(spec: ApplicationSpec, present: Revision) -> tuple[ApplicationSpec, dict[str, bytes]]:
    """The version that runs, with the options of `spec`."""
    before, after = _only(present.spec), _only(spec)
    kept = {name: getattr(before.options, name) for name in OF_THE_PROCESS}
    only = msgspec.structs.replace(
        before,
        options=msgspec.structs.replace(after.options, **kept),
        max_ongoing_requests=after.max_ongoing_requests,
    )
    changed = msgspec.structs.replace(spec, deployments=(only,), environment=present.spec.environment)
    return changed, present.packs


def _marked(spec: ApplicationSpec, version: str | None) -> ApplicationSpec:
    """With a digest that the version is part of; without any, one that never was."""
    only = _only(spec)
    text = f"{only.digest}\0{version}".encode("utf-8", "surrogatepass")
    marked = unique() if version is None else hashlib.blake2b(text).hexdigest()[:HEX_DIGITS]
    return msgspec.structs.replace(spec, deployments=(msgspec.structs.replace(only, digest=marked),))


def _only(spec: ApplicationSpec) -> DeploymentSpec:
    (only,) = spec.deployments
    return only


def _present(name: str) -> Revision | None:
    """What runs under the name; None where nothing does. Raises OptionError where that is something else."""
    if name not in current_tie().snapshot().applications:
        return None
    try:
        found = ask(Revision, GetRevision(name))
    except (ApplicationNotFound, RevisionNotFound):  # it goes, or its first revision never came up
        return None
    if DEPLOYMENT not in found.spec.labels:
        raise OptionError(
            f"there is an application {name!r} that was not made by .deploy(): choose another name for the deployment, "
            f"or serve.delete({name!r}) first"
        )
    return found


def delete(name: str) -> None:
    """Delete the deployment; for one that is not there, only says so in the log."""
    with api.missing_is_logged():
        current_tie().ask(Delete(name))


def get_handle(name: str, sync: bool = True) -> DeploymentHandle:
    """A handle to the deployment; with `sync` False, `remote` is awaited for the response. Raises KeyError."""
    meant = current_tie()
    handle = api.get_app_handle(name)
    runtime = meant.runtime() if meant is not driver() else None
    return (DeploymentHandle if sync else AsyncHandle)(handle.deployment_name, name, None, runtime)


def url(name: str) -> str | None:
    """Where it answers HTTP; None where it does not."""
    if not current_tie().runs():
        return None
    entry = current_tie().snapshot().applications.get(name)
    proxies = list(ask(Status, GetStatus()).status.proxies.values())
    if entry is None or entry.route_prefix is None or not proxies:
        return None
    first = proxies[0]
    return f"{first.scheme}://{first.host}:{first.port}{entry.route_prefix}"


def get_deployment(name: str) -> Deployment:
    """The deployment of that name that runs. Raises ApplicationNotFound (a KeyError)."""
    found = _present(name)
    if found is None:
        raise ApplicationNotFound(f"no deployment is called {name!r}: did you call its .deploy()?")
    return _as_deployment(found)


def list_deployments() -> dict[str, Deployment]:
    """All deployments that were made by `.deploy()` and run, by name."""
    listed: dict[str, Deployment] = {}
    for name in sorted(current_tie().snapshot().applications):
        try:
            found = ask(Revision, GetRevision(name))
        except (ApplicationNotFound, RevisionNotFound):
            continue
        if DEPLOYMENT in found.spec.labels:
            listed[name] = _as_deployment(found)
    return listed


def _as_deployment(found: Revision) -> FoundDeployment:
    spec = found.spec
    older: dict[str, Any] = {"route_prefix": spec.route_prefix}
    if VERSION in spec.labels:
        older["version"] = spec.labels[VERSION]
    return FoundDeployment(found, spec.name, _only(spec).options, older)
