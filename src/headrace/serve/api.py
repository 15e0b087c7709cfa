"""The functions of `serve.*`: start an instance, run applications on it, look at it, end it.

In: users' applications and options. Out: requests to the instance's controller, through the process's driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import runtime as runtimes
from headrace.context import current_replica
from headrace.engine.site import Site, site_of
from headrace.handle import DeploymentHandle
from headrace.serve.builder import call_builder
from headrace.serve.deployment import Application
from headrace.serve.driver import Driver, Tie, current_tie, driver, inner_tie, local_tie, mean_driver
from headrace.serve.graph import ByValue
from headrace.serve.grpc_options import grpc_service
from headrace.serve.objections import check_local
from headrace.serve.run_target import DEFAULT_APP_NAME, RunTarget, Target
from headrace.spec.application import DEFAULT_HISTORY
from headrace.spec.cluster import ClusterOptions
from headrace.spec.cluster import cluster_options as parse_cluster_options
from headrace.spec.config import HTTPOptions
from headrace.spec.config import http_options as parse_http_options
from headrace.spec.errors import (
    ApplicationNotFound,
    DeploymentNotFound,
    HeadraceError,
    InstanceError,
    OptionError,
    OptionTypeError,
)
from headrace.spec.grpc import GrpcService, gRPCOptions
from headrace.spec.snapshot import ApplicationEntry
from headrace.spec.status import ServeStatus
from headrace.wire.control import Delete, Deploy, Deployed, GetStatus, StartHTTP, Status

if TYPE_CHECKING:
    from headrace.serve.older.client import Client

__all__ = [
    "RunTarget",
    "delete",
    "get_app_handle",
    "get_deployment_handle",
    "missing_is_logged",
    "resolve_target",
    "run",
    "run_many",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
]

logger = logging.getLogger("headrace.serve")

KEEPER_POLL_S = 0.2


def start(
    proxy_location: Any = None,
    http_options: HTTPOptions | Mapping[str, Any] | None = None,
    grpc_options: gRPCOptions | Mapping[str, Any] | None = None,
    logging_config: Any = None,
    tracing_config: Any = None,
    controller_options: Any = None,
    *,
    detached: bool = False,
    http_host: str | None = None,
    http_port: int | None = None,
    engine: str | None = None,
    address: str | None = None,
    cluster_options: ClusterOptions | Mapping[str, Any] | None = None,
) -> Client:
    """Start the instance, and HTTP and (where `grpc_options` say so) gRPC on it, where they do not run yet.

    Returns what code of 2020 makes its backends and endpoints by; `http_host` and `http_port` are its names for what
    `http_options` say.

    The instance is that of `HEADRACE_INSTANCE`, else `default`; it ends with this process unless `detached`. With
    `engine="ray"` it is on the Ray cluster at `address` ("auto": that of this node), outlives this process, and its
    nodes reach each other as `cluster_options` say; else as `HEADRACE_ENGINE` and `HEADRACE_ADDRESS` say. What follows
    in this process means the same instance. Called again with other options than it runs with, it warns and changes
    nothing. Raises OptionError, ImportPathError, PortBusyError, or InstanceError when it does not come up.
    """
    for name, value in (
        ("logging_config", logging_config),
        ("tracing_config", tracing_config),
        ("controller_options", controller_options),
    ):
        _warn_ignored(name, value)
    options = _http_options(_with_address(http_options, http_host, http_port), proxy_location)
    grpc = grpc_service(grpc_options)
    if grpc is not None and options is not None and not options.ingress_workers:
        raise OptionError(
            "grpc_options need an ingress process: let ingress_workers be 1 or more, and HTTP not disabled"
        )
    site = runtimes.own_site() if engine is None and address is None else site_of(engine, address)
    between = _cluster_options(cluster_options, site)
    tie = mean_driver()
    tie.mean(site)
    started = tie.start(detached, between)
    if between is not None and not started:
        warnings.warn("the instance runs already and keeps its cluster_options", stacklevel=2)
    try:
        _start_http(tie, options, grpc)
    except BaseException:
        if started:
            tie.shutdown()  # half an instance helps nobody, and holds the port
        raise
    from headrace.serve.older.client import Client  # loaded where somebody starts an instance by hand

    return Client()


def run(
    target: Target,
    blocking: bool = False,
    name: str = DEFAULT_APP_NAME,
    route_prefix: str | None = "/",
    logging_config: Any = None,
    _local_testing_mode: bool = False,
    external_scaler_enabled: bool = False,
    controller_options: Any = None,
    *,
    request_timeout_s: float | None = None,
    rollout: Any = None,
    sticky: Any = None,
    expected_revision: int | None = None,
    revision_history_limit: int = DEFAULT_HISTORY,
    labels: Mapping[str, str] | None = None,
) -> DeploymentHandle:
    """Run the application (or what a builder function returns) and return a handle to its ingress once it is ready.

    Starts the instance and HTTP if need be. Where an application of this name runs, this is its next revision, which
    takes over the traffic as `rollout` says: a strategy such as `serve.Canary(...)`, its name, or a dict. By default it
    is a rolling update, and this returns when it has ended; with another strategy this returns when the revision has
    its first traffic, or is mirrored, and `serve.wait_for_rollout` waits for the end. `sticky` says by what requests
    keep to one revision (`"header:x-user"`, `"cookie:uid"`, `"query:user"`). With `expected_revision` the deploy is
    refused where the newest revision is another (0: where there is such an application). `revision_history_limit`
    former revisions are kept to go back to. `labels` are texts for the history.

    `route_prefix` None: no HTTP. `request_timeout_s` is the time in seconds that requests from outside have, unless
    they say less; None: no limit. With `blocking`, does not return before Ctrl-C, which then ends the instance, or
    before the instance is gone. With `_local_testing_mode` all of it runs in a thread of this process, without other
    processes and without a port.

    Raises DeployFailedError with the replica's own traceback, RolledBackError, RevisionConflictError, OptionError,
    GraphError, PayloadError, or InstanceError.
    """
    one = RunTarget(
        target,
        name,
        route_prefix,
        logging_config,
        external_scaler_enabled,
        request_timeout_s,
        rollout,
        sticky,
        expected_revision,
        revision_history_limit,
        labels,
    )
    (handle,) = run_many(
        [one], blocking, controller_options=controller_options, _local_testing_mode=_local_testing_mode
    )
    return handle


def run_many(
    targets: Sequence[RunTarget],
    blocking: bool = False,
    wait_for_ingress_deployment_creation: bool = True,
    wait_for_applications_running: bool = True,
    controller_options: Any = None,
    _local_testing_mode: bool = False,
) -> list[DeploymentHandle]:
    """Run several applications, each as `run` does, and return their handles in the same order.

    All are built before the first is deployed. With `wait_for_applications_running` False, returns once the controller
    has taken them on.
    """
    _check_distinct(targets)
    _warn_ignored("controller_options", controller_options)
    for target in targets:
        _warn_ignored("logging_config", target.logging_config)
        if target.external_scaler_enabled:
            raise OptionError("external_scaler_enabled=True is not supported yet: leave it out")
    if _local_testing_mode or inner_tie() is not None:
        return _run_inside(targets, blocking)
    deploys = [_deploy(target, wait_for_applications_running) for target in targets]
    specs = [deploy.spec for deploy in deploys]
    tie = mean_driver()
    owned = tie.start()
    http = _HttpStart(tie)
    try:
        if owned or tie.keeper is not None:
            http.begin()  # on an instance of somebody else's, HTTP is theirs to decide
        for deploy in deploys:
            answer = tie.ask(deploy, on_progress=logger.info)
            if isinstance(answer, Deployed):
                logger.info("application %s is ready (revision %d)", answer.app, answer.revision)
        http.finish()
        if runtimes.installed() is not None and wait_for_applications_running:
            runtimes.current().adopt(tie.snapshot())
        if blocking:
            _block(tie, [spec.name for spec in specs], owned or tie.keeper is not None)
    except (KeyboardInterrupt, InstanceError):
        if owned and tie.engine == "local":
            tie.shutdown()
        raise
    return [DeploymentHandle(spec.ingress, spec.name) for spec in specs]


def _deploy(target: RunTarget, wait: bool) -> Deploy:
    """What asks for the application, with the sources that its replicas import."""
    packing = ByValue()
    spec = target.spec(resolve_target(target.target), packing)
    if driver().engine == "local":
        check_local(spec)
    return target.deploy(spec, packing, wait)


def _run_inside(targets: Sequence[RunTarget], blocking: bool) -> list[DeploymentHandle]:
    """Run on the instance that runs the calling code, or else in local testing mode."""
    if blocking:
        raise OptionError("blocking=True has no sense with _local_testing_mode=True, which ends with this process")
    applications = [resolve_target(target.target) for target in targets]
    inner = inner_tie()
    if inner is None:
        # Here: it brings along the controller and replicas, which other ways of running have in other processes.
        from headrace.serve.local_testing import local_instance

        inner = local_instance()
    return [inner.run(application, target) for application, target in zip(applications, targets, strict=True)]


def status() -> ServeStatus:
    """The state of the instance, its ingress processes and applications; empty when no instance runs."""
    meant = current_tie()
    if not meant.runs():
        return ServeStatus(instance=meant.name)
    return _status(meant)


def delete(name: str, _blocking: bool = True) -> None:
    """Delete the application; returns when its last replica is gone and all callers know it. For one that is not there,
    only warns in the log.

    Raises InstanceError.
    """
    with missing_is_logged():
        current_tie().ask(Delete(name))


@contextlib.contextmanager
def missing_is_logged() -> Iterator[None]:
    """Have a delete of an application that is not there pass: who tidies up deletes what may be there."""
    try:
        yield
    except ApplicationNotFound as error:
        logger.warning("nothing is deleted: %s", error)


def shutdown() -> None:
    """End the instance with all its applications, and wait until it is gone. No error when none runs.

    One in local testing mode is ended too; it alone, when that is what was run last.
    """
    meant, local = current_tie(), local_tie()
    if local is not None and local is not meant:
        local.shutdown()
    meant.shutdown()


async def shutdown_async() -> None:
    """As `shutdown`, without blocking the event loop."""
    await asyncio.to_thread(shutdown)


def get_app_handle(name: str) -> DeploymentHandle:
    """A handle to the ingress deployment of the application. Raises ApplicationNotFound, InstanceError."""
    meant = current_tie()
    return DeploymentHandle(_application(name, meant).ingress, name, None, meant.runtime())


def get_deployment_handle(
    deployment_name: str, app_name: str | None = None, _check_exists: bool = True
) -> DeploymentHandle:
    """A handle to the deployment of the application; inside of a replica, by default of its own application.

    Raises DeploymentNotFound, ApplicationNotFound, InstanceError, or OptionError when no application is named outside.
    """
    replica = current_replica()
    meant = current_tie()
    if app_name is None:
        if replica is None:
            raise OptionError(
                f"get_deployment_handle({deployment_name!r}) needs app_name=... outside of a replica: of which one?"
            )
        app_name = replica.app_name
    # While an application starts, no snapshot names its deployments yet: its own replicas are believed.
    if _check_exists and (replica is None or replica.app_name != app_name):
        entry = _application(app_name, meant)
        known = {name for revision in entry.revisions for name in revision.deployments}
        if deployment_name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise DeploymentNotFound(f"application {app_name!r} has no deployment {deployment_name!r}; it has: {there}")
    return DeploymentHandle(deployment_name, app_name, None, meant.runtime() if meant is not driver() else None)


def resolve_target(target: Any, arguments: Mapping[str, Any] | None = None) -> Application:
    """The application that `target` is, or that it builds from `arguments` when it is a builder function."""
    if isinstance(target, Application):
        return target
    built = call_builder(target, dict(arguments or {}))
    return built


def _status(tie: Tie) -> ServeStatus:
    answer = tie.ask(GetStatus())
    if not isinstance(answer, Status):
        raise HeadraceError(f"the controller answered GetStatus with {type(answer).__name__}")
    return answer.status


def _application(name: str, meant: Tie) -> ApplicationEntry:
    """The application as the process's router knows it, or else as the controller does."""
    runtime = meant.runtime()
    entry = runtime.router.snapshot.applications.get(name)
    if entry is not None:
        return entry
    snapshot = runtime.router.snapshot
    if not runtime.owns_this_thread():
        snapshot = meant.snapshot()
        runtime.adopt(snapshot)
    entry = snapshot.applications.get(name)
    if entry is None:
        known = ", ".join(sorted(snapshot.applications)) or "none"
        raise ApplicationNotFound(f"no application is called {name!r}; there are: {known}")
    return entry


def _with_address(given: Any, host: str | None, port: int | None) -> Any:
    """What was asked for, with these for its host and port."""
    address = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    if not address:
        return given
    if given is not None:
        raise OptionError(f"http_options and http_{next(iter(address))} say the same thing: give http_options alone")
    return address


def _http_options(given: HTTPOptions | Mapping[str, Any] | None, proxy_location: Any) -> HTTPOptions | None:
    """What was asked for in both, None when nothing was."""
    location = getattr(proxy_location, "value", proxy_location)
    if given is None and location is None:
        return None
    if isinstance(given, HTTPOptions):
        return given if location is None else parse_http_options(_fields(given) | {"location": location})
    if given is not None and not isinstance(given, Mapping):
        raise OptionTypeError(f"http_options={given!r} must be a dict or HTTPOptions, not {type(given).__name__}")
    return parse_http_options(dict(given or {}) | ({} if location is None else {"location": location}))


def _cluster_options(given: ClusterOptions | Mapping[str, Any] | None, site: Site) -> ClusterOptions | None:
    if given is None:
        return None
    if site.engine != "ray":
        raise OptionError("cluster_options have no effect with engine='local', which has one machine: leave them out")
    return parse_cluster_options(given)


def _fields(options: HTTPOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__struct_fields__}


def _start_http(tie: Driver, options: HTTPOptions | None, grpc: GrpcService | None = None) -> None:
    """HTTP with these options, the defaults for None, and gRPC if given; where it runs already, only warn when it runs
    otherwise.
    """
    if options is not None:
        options = options.located(str(Path.cwd()))
    if tie.http is None:
        proxies = _status(tie).proxies.values()
        listening = [proxy for proxy in proxies if proxy.host]
        if not listening:  # or not yet: somebody else has just asked for it, and is waited for
            wanted = options or HTTPOptions()
            if wanted.ingress_workers:
                if wanted.ssl_certfile:
                    from headrace.ingress.tls import context_of  # it takes a while to load, for the few who ask for TLS

                    context_of(wanted)  # an ingress that cannot read its files would be started again and again
                tie.ask(StartHTTP(wanted, grpc))
            tie.http, tie.grpc = wanted, grpc
            return
        first = listening[0]
        if grpc is not None and (not first.grpc_port or grpc.options.port not in (0, first.grpc_port)):
            _warn_grpc(f"serves gRPC on port {first.grpc_port}" if first.grpc_port else "serves no gRPC", grpc)
        beside = sum(proxy.node == first.node for proxy in proxies)
        tie.http = HTTPOptions(host=first.host, port=first.port, ingress_workers=beside)
        if options is not None and (options.host != first.host or options.port not in (0, first.port)):
            _warn_differs(tie.http, options)
        return
    if options is not None and options != tie.http:
        _warn_differs(tie.http, options)
    if grpc is not None and (tie.grpc is None or grpc.options != tie.grpc.options):
        _warn_grpc("serves no gRPC" if tie.grpc is None else "serves gRPC with other options", grpc)


class _HttpStart:
    """Starts HTTP in a thread of its own, so that its process comes up beside the replicas."""

    def __init__(self, tie: Driver) -> None:
        self._tie = tie
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="headrace-start-http", daemon=True)

    def begin(self) -> None:
        """Start, and return at once."""
        self._thread.start()

    def _run(self) -> None:
        try:
            _start_http(self._tie, None)
        except Exception as error:  # the top of the thread: `finish` raises it where the user is
            self._failure = error

    def finish(self) -> None:
        """Wait until HTTP is there. Raises what kept it from starting."""
        if self._thread.ident is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure


def _warn_differs(running: HTTPOptions, asked: HTTPOptions) -> None:
    names = [name for name in running.__struct_fields__ if getattr(running, name) != getattr(asked, name)]
    differences = ", ".join(f"{name}={running.shown(name)} (asked: {asked.shown(name)})" for name in names)
    warnings.warn(
        f"the instance runs already and keeps its HTTP options: {differences}; to change them, end it first, by "
        "serve.shutdown() or `headrace shutdown`",
        stacklevel=4,
    )


def _warn_grpc(present: str, asked: GrpcService) -> None:
    warnings.warn(
        f"the instance runs already, {present}, and stays so; to have it as {asked.options} say, end it "
        "first, by serve.shutdown() or `headrace shutdown`",
        stacklevel=4,
    )


def _block(tie: Driver, apps: Sequence[str], owned: bool) -> None:
    """Wait for Ctrl-C or the end of the instance; after Ctrl-C, end what was started here. What is on a cluster stays
    there: it belongs to no terminal.
    """
    try:
        while tie.runs():
            time.sleep(KEEPER_POLL_S)
    except KeyboardInterrupt:
        if tie.engine == "ray":
            logger.info("the applications go on")
            return
        logger.info("stopping")
        if owned:
            tie.shutdown()
        else:
            for app in apps:
                delete(app)
    else:
        raise InstanceError(f"instance {tie.name!r} has ended")


def _check_distinct(targets: Sequence[RunTarget]) -> None:
    names: set[str] = set()
    prefixes: set[str] = set()
    for target in targets:
        if target.name in names:
            raise OptionError(f"two applications are called {target.name!r}: give each RunTarget a name of its own")
        names.add(target.name)
        prefix = target.route_prefix
        if prefix is not None and prefix in prefixes:
            raise OptionError(f"two applications have route_prefix={prefix!r}: give each RunTarget its own, or None")
        if prefix is not None:
            prefixes.add(prefix)


def _warn_ignored(name: str, value: Any) -> None:
    if value is not None:
        warnings.warn(f"{name} has no effect here yet and is ignored", stacklevel=4)
