"""From a configuration to deploys: each application is built in a process of its own, and handed to the controller.

In: a ServeDeploySchema, and which instance is meant. Out: requests to its controller; what became of each application.
No module of a user's is imported here. One application that fails leaves the others as they are.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace.engine.directory import InstanceDirectory
from headrace.engine.site import controller_away_s, site_of
from headrace.serve.build_declared import DeclaredJob
from headrace.serve.build_process import Builder, builder_environment
from headrace.spec.config import http_options
from headrace.spec.config_schema import ServeApplicationSchema, ServeDeploySchema
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    HeadraceError,
    InstanceError,
    RequestTimeoutError,
)
from headrace.spec.grpc import GrpcService
from headrace.spec.status import ApplicationStatus, ServeStatus
from headrace.spec.strategy_kinds import declared_rollout
from headrace.wire.client import ControlClient
from headrace.wire.control import (
    Answer,
    Delete,
    Deploy,
    Deployed,
    GetStatus,
    Operation,
    StartHTTP,
    Status,
)
from headrace.wire.report import decode_built

BUILD_TIMEOUT_S = 1800.0
POLL_S = 0.05
MOST_BUILDS = 4

Tell = Callable[[str, str], None]
T = TypeVar("T")


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one application: `action` is "deployed", "deleted" or "failed".

    `outcome` is that of its rollout ("" while it is under way). `error` is the class of what went wrong and `reason`
    what it says, or why the rollout ended so.
    """

    app: str
    action: str
    revision: int = 0
    outcome: str = ""
    reason: str = ""
    error: str = ""

    @property
    def well(self) -> bool:
        """Whether it is as it was asked to be."""
        return self.action != "failed"


def deploy_config(
    schema: ServeDeploySchema,
    *,
    instance: str | None = None,
    directory: InstanceDirectory | None = None,
    wait: bool = True,
    until: str = "end",
    expected: int | Mapping[str, int] | None = None,
    by: str = "",
    on_progress: Tell | None = None,
    app_dir: str | Path = ".",
    source: str = "",
    exact: bool = True,
    timeout_s: float | None = None,
) -> dict[str, Declared]:
    """Have the instance's declared applications be those of the schema, and say what became of each, by name.

    The instance is that of `directory`, else the one of this name (None: as the environment says). Those that were
    declared before and are not any more are deleted (not with `exact` False), once all of the others are built: where
    one could not be, none is deleted. Those that code deployed are left alone. With `wait` each is waited for as
    `Deploy` says of `until`. `expected` is the newest revision that is known of an application, by name, or of the only
    one. After `timeout_s` seconds what has not ended has failed with RequestTimeoutError, and goes on in the instance.
    `on_progress` gets an application's name ("": the instance) and a line. Modules and relative paths are looked for in
    `app_dir`; `source` is what the schema was read from.
    Raises InstanceError where the instance does not run, ConfigError for a schema that is not valid.
    """
    # What was changed since it was made is checked here.
    schema = ServeDeploySchema.model_validate(schema.model_dump(exclude_unset=True))
    tell = on_progress or (lambda app, line: None)
    directory = directory or _running(instance)
    deployer = _Deployer(directory, Path(app_dir).absolute(), wait, until, by, tell, source, timeout_s)
    status = deployer.status()
    deployer.start_http(schema, status)  # first: a port that is taken leaves all as it was
    try:
        wanted = {app.name: _expected(expected, app.name) for app in schema.applications}
        return deployer.deploy(schema, wanted, _not_any_more(schema, status) if exact else ())
    finally:
        deployer.finish()


def build_declared(application: ServeApplicationSchema, *, app_dir: str | Path = ".", tell: Tell | None = None) -> Any:
    """The specification of the application, built in a process of its own and deployed nowhere. Raises
    DeployFailedError with the user's own traceback.
    """
    job = DeclaredJob(app_dir=str(Path(app_dir).absolute()), application=application.model_dump(exclude_unset=True))
    built = decode_built(_built(job, None, application.name, tell or (lambda app, line: None)))
    assert built is not None
    return built.spec


def _running(name: str | None) -> InstanceDirectory:
    site = site_of(name=name)
    directory = site.find()
    if directory is None:
        raise InstanceError(f"no instance {site.name!r} is running: start one with `headrace start{site.flags()}`")
    return directory


def _not_any_more(schema: ServeDeploySchema, status: ServeStatus) -> list[str]:
    names = {app.name for app in schema.applications}
    return [n for n, app in status.applications.items() if app.deployed_app_config is not None and n not in names]


def _expected(expected: int | Mapping[str, int] | None, app: str) -> int | None:
    return expected.get(app) if isinstance(expected, Mapping) else expected


class _Builders:
    """The builders at work. Once they are ended, none goes on; `deadline` is when none may any more."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._lock = threading.Lock()
        self._builders: set[Builder] = set()
        self._ended = False

    def add(self, builder: Builder) -> None:
        """It is about to start."""
        with self._lock:
            self._builders.add(builder)
            if self._ended:
                builder.kill()

    def remove(self, builder: Builder) -> None:
        """It has ended, and was waited for."""
        with self._lock:
            self._builders.discard(builder)

    def end(self) -> None:
        """Kill them all."""
        with self._lock:
            self._ended = True
            for builder in self._builders:
                builder.kill()


class _Deployer:
    """One deploy of a configuration."""

    def __init__(
        self,
        directory: InstanceDirectory,
        app_dir: Path,
        wait: bool,
        until: str,
        by: str,
        tell: Tell,
        source: str,
        timeout_s: float | None,
    ) -> None:
        self._directory = directory
        self._app_dir = str(app_dir)
        self._wait = wait
        self._until = until
        self._by = by
        self._tell_one = tell
        self._source = source
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._deletes: list[threading.Thread] = []
        self._builders = _Builders(self._deadline)

    def _tell(self, app: str, line: str) -> None:
        with self._lock:  # applications are built beside each other
            self._tell_one(app, line)

    def _ask(self, operation: Operation, on_progress: Callable[[str], None] | None = None) -> Answer:
        """The controller's answer. While it is away and its keeper brings it back, it is asked again; not where that
        could be another than the first time.
        """
        once = isinstance(operation, Deploy) and operation.expected is not None
        away_since: float | None = None
        while True:
            client = ControlClient(str(self._directory.control_socket))
            sent = False
            try:
                client.connect()
                sent = True
                left_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
                return client.request(operation, left_s, on_progress)
            except InstanceError as error:
                if type(error) is not InstanceError or (sent and once) or self._directory.keeper_pid() is None:
                    raise
                now = time.monotonic()
                away_since = now if sent or away_since is None else away_since
                if now - away_since > controller_away_s(self._directory):
                    raise
                time.sleep(POLL_S)
            finally:
                client.close()

    def status(self) -> ServeStatus:
        """The instance as it is. Raises InstanceError."""
        answer = self._ask(GetStatus())
        if not isinstance(answer, Status):
            raise HeadraceError(f"the controller answered GetStatus with {type(answer).__name__}")
        return answer.status

    def delete(self, names: Iterable[str]) -> dict[str, Declared]:
        """Begin to delete these: once it is begun, their routes are free. `finish` waits for the end where asked to."""
        threads = {name: threading.Thread(target=self._delete, args=(name,), daemon=True) for name in names}
        for name, thread in threads.items():
            self._tell(name, f"deleting application {name!r}, which is not declared any more")
            thread.start()
        self._deletes += threads.values()
        waiting = set(threads)
        while waiting:
            time.sleep(POLL_S)
            apps = self.status().applications
            known = {name for name in waiting if name in apps and apps[name].status != ApplicationStatus.DELETING}
            waiting = {name for name in known if threads[name].is_alive()}
        return {name: Declared(app=name, action="deleted") for name in threads}

    def _delete(self, name: str) -> None:
        try:
            self._ask(Delete(name))
        except ApplicationNotFound:
            pass  # somebody else was faster
        except HeadraceError as error:
            self._tell(name, f"application {name!r} may not be deleted: {error}")

    def finish(self) -> None:
        """Wait for what is being deleted."""
        if self._wait:
            for thread in self._deletes:
                thread.join(None if self._deadline is None else max(0.0, self._deadline - time.monotonic()))

    def start_http(self, schema: ServeDeploySchema, status: ServeStatus) -> None:
        """Serve HTTP, and gRPC if asked to, where nothing is served yet. Raises what StartHTTP does."""
        given = schema.http_options.model_dump(exclude_unset=True)
        if status.proxies:
            proxy = next(iter(status.proxies.values()))
            differs = [name for name in ("host", "port") if given.get(name) not in (None, 0, getattr(proxy, name))]
            if differs:
                here = f"{proxy.host}:{proxy.port}"
                self._tell("", f"HTTP is served on {here} already, and stays there: http_options are not used")
            return
        options = http_options({**given, "location": schema.proxy_location}).located(self._app_dir)
        if options.ingress_workers:
            self._ask(StartHTTP(options, self._grpc(schema)), lambda line: self._tell("", line))

    def _grpc(self, schema: ServeDeploySchema) -> GrpcService | None:
        given = schema.grpc_options.model_dump(exclude_unset=True)
        given.pop("enable_reflection", None)
        if not given.get("grpc_servicer_functions"):
            return None
        job = DeclaredJob(app_dir=self._app_dir, grpc=given)
        return msgspec.msgpack.decode(_built(job, self._directory, "", self._tell), type=GrpcService | None)

    def deploy(
        self, schema: ServeDeploySchema, expected: Mapping[str, int | None], not_any_more: Sequence[str]
    ) -> dict[str, Declared]:
        """Build all of them, delete what is not declared any more, and deploy them, each on its own.

        A typo in a file is no reason to take away what serves: where one cannot be built, nothing is deleted.
        """
        builds = threading.Semaphore(MOST_BUILDS)
        capacity = schema.target_capacity

        def build(app: ServeApplicationSchema) -> bytes | Declared:
            job = DeclaredJob(
                app_dir=self._app_dir,
                application=app.model_dump(exclude_unset=True),
                target_capacity=None if capacity is None or capacity == 100 else capacity,
                source=f"{self._source}: {app.import_path}" if self._source else app.import_path,
            )
            try:
                with builds:
                    return _built(job, self._directory, app.name, self._tell, self._builders)
            except HeadraceError as error:
                return _failed(app.name, error, str(error))

        def deploy(app: ServeApplicationSchema) -> Declared:
            data = built[app.name]
            if isinstance(data, Declared):
                return data
            try:
                return self._deploy_one(app, data, expected[app.name])
            except RequestTimeoutError as error:
                return _failed(app.name, error, f"it has not ended within {self._timeout_s:g} s, and goes on")
            except HeadraceError as error:
                return _failed(app.name, error, str(error))

        built = self._each(build, schema.applications)
        broken = ", ".join(repr(name) for name, data in built.items() if isinstance(data, Declared))
        if broken:
            for name in not_any_more:
                line = f"application {name!r} is not declared any more, but stays: {broken} could not be built"
                self._tell(name, line)
        deleted = {} if broken else self.delete(not_any_more)
        return deleted | self._each(deploy, schema.applications)

    def _each(self, one: Callable[[ServeApplicationSchema], T], apps: Sequence[ServeApplicationSchema]) -> dict[str, T]:
        """What `one` makes of each, at once. Who interrupts it waits for none of them: their builders are ended."""
        results: dict[str, T] = {}
        errors: list[BaseException] = []

        def run(app: ServeApplicationSchema) -> None:
            try:
                results[app.name] = one(app)
            except BaseException as error:  # the top of a thread: who waits for all of them gets it
                errors.append(error)

        threads = [threading.Thread(target=run, args=(app,), name=f"deploy {app.name}", daemon=True) for app in apps]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            self._builders.end()
            raise
        if errors:
            raise errors[0]
        return {app.name: results[app.name] for app in apps}

    def _deploy_one(self, app: ServeApplicationSchema, data: bytes, expected: int | None) -> Declared:
        built = decode_built(data)
        if built is None:
            raise DeployFailedError(f"the process that imports {app.import_path} ended before it had built anything")
        operation = Deploy(
            built.spec,
            wait=self._wait,
            rollout=declared_rollout(app.rollout),
            until=self._until,
            expected=expected,
            by=self._by,
            packs=built.packs,
        )
        answer = self._ask(operation, lambda line: self._tell(app.name, line))
        if not isinstance(answer, Deployed):
            raise HeadraceError(f"the controller answered Deploy with {type(answer).__name__}")
        return Declared(
            app=app.name,
            action="deployed",
            revision=answer.revision,
            outcome=answer.outcome,
            reason=answer.reason,
        )


def _failed(app: str, error: HeadraceError, reason: str) -> Declared:
    return Declared(app=app, action="failed", error=type(error).__name__, reason=reason)


def _built(
    job: DeclaredJob, directory: InstanceDirectory | None, app: str, tell: Tell, builders: _Builders | None = None
) -> bytes:
    """What a builder made of the job. Raises DeployFailedError with what it told, or with how it died."""
    builders = builders or _Builders()
    builder = Builder(
        job.application.get("import_path") or "the gRPC services",
        app,
        lambda result: (sys.executable, "-P", "-m", "headrace.serve.build_declared", str(result)),
        _environment(job, directory),
        given=msgspec.json.encode(job),
        cwd=job.app_dir,
    )
    left_s = BUILD_TIMEOUT_S
    if builders.deadline is not None:
        left_s = max(0.0, min(left_s, builders.deadline - time.monotonic()))
    builders.add(builder)
    try:
        return builder.run(lambda line: tell(app, line), left_s)
    finally:
        builders.remove(builder)


def _environment(job: DeclaredJob, directory: InstanceDirectory | None) -> dict[str, str]:
    """The builder's environment: that of this process, with the application's own variables."""
    variables = (job.application.get("runtime_env") or {}).get("env_vars") or {}
    return builder_environment({**os.environ, **variables}, "" if directory is None else directory.name)
