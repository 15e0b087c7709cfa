"""The process's tie to its instance: finds it, starts one where none runs, asks its controller, ends it.

In: operations of `serve.*`. Out: requests to the controller; a keeper process, started and ended. One per process, as
an instance is; a fork begins with none. Beside it there may be an instance inside of this process, in local testing
mode: `current_tie()` tells which of the two is meant.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import msgspec

from headrace import runtime as runtimes
from headrace.engine.directory import InstanceDirectory
from headrace.engine.site import RaySite, Site
from headrace.handle import DeploymentHandle
from headrace.runtime import Runtime
from headrace.serve.deployment import Application
from headrace.serve.run_target import RunTarget
from headrace.spec.cluster import ClusterOptions
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import ApplicationNotFound, HeadraceError, InstanceError
from headrace.spec.grpc import GrpcService
from headrace.spec.snapshot import Snapshot
from headrace.wire.client import ControlClient
from headrace.wire.control import (
    Answer,
    ControlRollout,
    Delete,
    Deploy,
    GetHistory,
    GetSnapshot,
    Operation,
    Past,
    Rollback,
    SetShadow,
    SetTraffic,
    Shutdown,
    SnapshotMessage,
    StartHTTP,
)

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
FORCE_TIMEOUT_S = 10.0  # on a cluster, what answers nobody gets so long
POLL_S = 0.01
LOOK_S = 5.0  # without a controller, until Ray is asked whether there is one still

T = TypeVar("T")

_Traffic = SetTraffic | SetShadow | ControlRollout | Rollback
_ONCE = (ControlRollout, Rollback)  # what they mean depends on where the rollout is


class Tie(Protocol):
    """What the functions of `serve.*` go to: the instance of processes, or one inside of this process."""

    @property
    def name(self) -> str:
        """The instance's name."""

    def runtime(self) -> Runtime:
        """What its handles call by. Raises InstanceError when it does not run."""

    def runs(self) -> bool:
        """Whether there is such an instance now."""

    def ask(
        self, operation: Operation, timeout_s: float | None = None, on_progress: Callable[[str], None] | None = None
    ) -> Answer:
        """The controller's answer. Raises InstanceError when it does not run, else what the controller answers with."""

    def snapshot(self) -> Snapshot:
        """The controller's snapshot."""

    def shutdown(self) -> None:
        """End the instance and wait until it is gone. No error when none runs."""


class InnerTie(Tie, Protocol):
    """An instance inside of this process."""

    def run(self, application: Application, target: RunTarget) -> DeploymentHandle:
        """Run the application as the target says; returns a handle once it is ready. Raises what `serve.run` does."""

    def processes(self) -> list[str]:
        """The ids of its living processes."""

    def crash(self, process_id: str) -> None:
        """Have the process die now. Raises KeyError when it does not live."""

    def start_http(self) -> str:
        """The path of the Unix socket that HTTP is served on."""

    def leave(self) -> None:
        """The process was forked: the event loop is the parent's."""


class Driver:
    """Requests to the instance of this process, and the keeper, where this process started it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.keeper: subprocess.Popen[bytes] | None = None
        self.detached = False
        self.http: HTTPOptions | None = None  # what HTTP was started with, as far as this process knows
        self.grpc: GrpcService | None = None  # likewise
        self._lifeline: int | None = None  # its end tells the keeper that this process is gone

    def __repr__(self) -> str:
        return f"<Driver of {runtimes.own_site()!r}{' with its keeper' if self.keeper else ''}>"

    def directory(self) -> InstanceDirectory:
        """Where the instance of this process lives. Raises InstanceError for one on a cluster that does not run."""
        return runtimes.own_directory()

    @property
    def name(self) -> str:
        """The instance's name."""
        return runtimes.own_site().name

    @property
    def engine(self) -> str:
        """What places the processes of the instance: "local" or "ray"."""
        return runtimes.own_site().engine

    def mean(self, site: Site) -> None:
        """Have this process talk to the instance at `site` from now on; one of an instance's own stays with that.

        Raises InstanceError where it has started an instance that would end with it.
        """
        with self.lock:
            if runtimes.in_instance() or site == runtimes.own_site():
                return
            if self.keeper is not None and not self.detached:
                raise InstanceError(
                    f"this process runs instance {self.name!r}, which ends with it: serve.shutdown() first, to go on "
                    f"with {site}"
                )
            runtimes.close_own()
            self.keeper = self.http = self.grpc = None
            runtimes.mean(site)

    def runtime(self) -> Runtime:
        """The process's own. Raises InstanceError when the instance does not run."""
        return runtimes.current()

    def runs(self) -> bool:
        """Whether the instance has a keeper. Raises InstanceError (no such cluster)."""
        return runtimes.own_site().find() is not None

    def _is_there(self, site: Site) -> bool:
        """Whether the instance runs, looked for anew. Raises InstanceError where that cannot be told."""
        return (site.find(anew=True) if isinstance(site, RaySite) else site.find()) is not None

    def start(self, detached: bool = False, options: ClusterOptions | None = None) -> bool:
        """See to it that the instance runs; True when this started it. Raises InstanceError when it does not come up.

        Unless `detached`, the instance ends with this process; on a Ray cluster it never does. `options` are for that.
        """
        with self.lock:
            site = runtimes.own_site()
            if self._is_there(site):
                return False
            if runtimes.in_instance():
                raise InstanceError("the instance that this process belongs to is gone")
            if not isinstance(site, RaySite):
                return self._spawn(detached)
            directory, started = site.start(options or ClusterOptions())
            self._await_controller(directory, time.monotonic() + START_TIMEOUT_S)
            return started

    def _spawn(self, detached: bool) -> bool:
        """Start a keeper and wait for its controller; False when somebody else's keeper was faster."""
        directory = self.directory()
        directory.create()
        command = [sys.executable, "-m", "headrace.engine.keeper", "--instance", directory.name]
        watched, lifeline = os.pipe()
        try:
            environment = {name: value for name, value in os.environ.items() if name != "HEADRACE_LIFELINE_FD"}
            if detached:
                os.close(lifeline)
            else:
                environment["HEADRACE_LIFELINE_FD"] = str(watched)
            # A session of its own: Ctrl-C at the terminal is for the script, which then ends the instance in order.
            self.keeper = subprocess.Popen(
                command, env=environment, pass_fds=() if detached else (watched,), start_new_session=True
            )
        except BaseException:
            if not detached:
                os.close(lifeline)
            raise
        finally:
            os.close(watched)
        self._lifeline = None if detached else lifeline
        self.detached = detached
        try:
            self._await_controller(directory, time.monotonic() + START_TIMEOUT_S)
        except BaseException:
            self._end_keeper()
            raise
        return self.keeper is not None

    def _await_controller(self, directory: InstanceDirectory, deadline: float) -> None:
        keeper = self.keeper
        while True:
            client = ControlClient(str(directory.control_socket))
            try:
                client.connect()
            except InstanceError:
                if keeper is not None and keeper.poll() is not None:
                    if self.runs():
                        self.keeper = None  # somebody else was faster: their instance is as good
                        keeper = None
                        continue
                    raise InstanceError(
                        f"instance {directory.name!r} did not start: its keeper exited with code {keeper.returncode}, "
                        "and what it said is above"
                    ) from None
                if time.monotonic() > deadline:
                    raise InstanceError(
                        f"instance {directory.name!r} did not start within {START_TIMEOUT_S:g} s; see {directory.logs}"
                    ) from None
                time.sleep(POLL_S)
            else:
                return
            finally:
                client.close()

    def ask(
        self, operation: Operation, timeout_s: float | None = None, on_progress: Callable[[str], None] | None = None
    ) -> Answer:
        """The controller's answer. While the controller is away and the keeper brings it back, the request is repeated,
        but for what must not be done twice.

        Raises InstanceError when the instance does not run, or the controller goes away in the middle of what must not
        be done twice; else the error that the controller answers with.
        """
        if isinstance(operation, Deploy | Delete | StartHTTP | _Traffic):
            # These end when all routers know of it, the one of this thread among them.
            runtimes.check_not_on_loop(type(operation).__name__)
        site = runtimes.own_site()
        directory = site.directory()
        away_since: float | None = None
        look_at = time.monotonic() + LOOK_S
        while True:
            # A connection for each: a deploy that takes minutes holds up no other thread's question, nor a fork's.
            client = ControlClient(str(directory.control_socket))
            connected = False
            try:
                client.connect()
                connected = True
                return client.request(operation, timeout_s, on_progress)
            except InstanceError as error:
                if type(error) is not InstanceError:
                    raise
                now = time.monotonic()
                away_since = away_since or now
                if directory.keeper_pid() is None and now - away_since >= site.keeper_away_s:
                    raise site.not_running() from None
                if isinstance(site, RaySite) and now >= look_at:
                    if not self._is_there(site):
                        raise site.not_running() from None
                    look_at = time.monotonic() + LOOK_S
                if connected and isinstance(operation, _ONCE):
                    told = f"{error}; whether it acted, serve.rollout_status({operation.app!r}) tells"
                    raise InstanceError(told) from error
                if connected and isinstance(operation, Deploy) and operation.expected is not None:
                    operation = self._repeated(operation)
                if now - away_since > site.controller_away_s:
                    raise
                time.sleep(POLL_S)
            finally:
                client.close()

    def _repeated(self, operation: Deploy) -> Deploy:
        """The deploy as it is to be repeated: where it was taken on before, the newest revision is its own."""
        try:
            answer = self.ask(GetHistory(operation.spec.name))
        except ApplicationNotFound:
            return operation
        newest = answer.history.revisions[-1:] if isinstance(answer, Past) else ()
        if newest and newest[0].by == operation.by and newest[0].number > (operation.expected or 0):
            return msgspec.structs.replace(operation, expected=newest[0].number)
        return operation

    def snapshot(self) -> Snapshot:
        """The controller's snapshot, which the process's router follows from now on as well."""
        answer = self.ask(GetSnapshot())
        if not isinstance(answer, SnapshotMessage):
            raise HeadraceError(f"the controller answered GetSnapshot with {type(answer).__name__}")
        return answer.snapshot

    def shutdown(self) -> None:
        """End the instance and wait until it is gone. No error when none runs."""
        with self.lock:
            runtimes.close_own()
            self.http = self.grpc = None
            site = runtimes.own_site()
            directory = site.find(anew=True) if isinstance(site, RaySite) else site.find()
            if directory is not None:
                with contextlib.suppress(InstanceError):
                    self.ask(Shutdown())
            if runtimes.in_instance():
                return  # this very process ends with it
            ended = directory is None or self._await_end(directory)
            if isinstance(site, RaySite):
                site.end(FORCE_TIMEOUT_S)  # what a node that answers nobody has kept, or an unfinished start
            elif not ended:
                raise InstanceError(f"instance {site.name!r} did not end within {STOP_TIMEOUT_S:g} s")
            self._end_keeper()

    def _await_end(self, directory: InstanceDirectory) -> bool:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while directory.keeper_pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _end_keeper(self) -> None:
        """Let go of the lifeline, upon which the keeper ends if it has not yet, and take its exit status."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        keeper, self.keeper = self.keeper, None
        if keeper is None or self.detached:
            return
        try:
            keeper.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def at_exit(self) -> None:
        """The script is at its end: so is the instance that it started, unless it is detached."""
        if self.keeper is not None and not self.detached:
            with contextlib.suppress(HeadraceError):
                self.shutdown()

    def forked(self) -> Driver:
        """What a forked child has: the same instance, but none of the parent's connections, and not its lifeline."""
        if self._lifeline is not None:
            os.close(self._lifeline)
        return Driver()


_called_on: ContextVar[InnerTie | None] = ContextVar("called_on", default=None)


class _Process:
    driver = Driver()
    local: InnerTie | None = None
    local_is_meant = False  # what was run last, was run in it
    left_behind: list[InnerTie] = []


def driver() -> Driver:
    """The one of this process."""
    return _Process.driver


def local_tie() -> InnerTie | None:
    """The instance in local testing mode, where there is one."""
    local = _Process.local
    return local if local is not None and local.runs() else None


def inner_tie() -> InnerTie | None:
    """The instance inside of this process that runs the calling code; None for code that none runs."""
    runtime = runtimes.of_replica()
    found: InnerTie | None = runtime.tie if runtime is not None else None
    return found


def current_tie() -> Tie:
    """What the calling code means: the instance that it is called on, or that runs it, where that is one inside of this
    process; else the one that this process ran something on last.
    """
    inner = _called_on.get() or inner_tie()
    if inner is not None:
        return inner
    local = local_tie()
    return local if local is not None and _Process.local_is_meant else _Process.driver


def calling_on(tie: InnerTie, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What the function returns or raises, with `current_tie()` giving this instance meanwhile."""
    token = _called_on.set(tie)
    try:
        return function(*args, **kwargs)
    finally:
        _called_on.reset(token)


def mean_driver() -> Driver:
    """The driver, which `current_tie()` gives from now on."""
    _Process.local_is_meant = False
    return _Process.driver


def mean_local(local: InnerTie) -> None:
    """Have `current_tie()` give this instance from now on, as long as it runs."""
    _Process.local = local
    _Process.local_is_meant = True


def _after_fork_in_child() -> None:
    _Process.driver = _Process.driver.forked()
    if _Process.local is not None:
        # Never finalized: its event loop shares its descriptors with the parent's.
        _Process.left_behind.append(_Process.local)
        _Process.local.leave()
        _Process.local = None


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(lambda: _Process.driver.at_exit())
