"""The way of plain code to an instance in an event loop of this process: what `serve.*` asks, asked from a thread.

In: operations and applications, on any thread but that of the loop. Out: answers, handles.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec

from headrace.handle import DeploymentHandle
from headrace.runtime import Runtime
from headrace.serve.deployment import Application
from headrace.serve.in_process import InProcess
from headrace.serve.references import References
from headrace.serve.run_target import RunTarget
from headrace.spec.application import ApplicationSpec, Code
from headrace.spec.errors import DeployFailedError, InstanceError, LoopBlockedError, RolledBackError
from headrace.spec.snapshot import Snapshot
from headrace.wire.control import Answer, Delete, Deploy, Operation

log = logging.getLogger("headrace.serve")

T = TypeVar("T")


def check_elsewhere(runtime: Runtime, what: str) -> None:
    """Raise LoopBlockedError on the thread of the instance's own event loop: to wait there would stop the instance."""
    if runtime.owns_this_thread():
        raise LoopBlockedError(
            f"{what} waits for the instance, and would block the event loop that it runs on: call it in a thread, "
            "`await asyncio.to_thread(...)`"
        )


def _same_route(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one.rstrip("/") == other.rstrip("/")


class InProcessTie:
    """See `driver.InnerTie`. `shared`: replicas serve on in the next run of their application where nothing changed."""

    def __init__(self, instance: InProcess, *, shared: bool) -> None:
        self.instance = instance
        self._shared = shared
        self._specs: dict[str, ApplicationSpec] = {}
        self._failed: dict[str, ApplicationSpec] = {}  # that never ran, and are there all the same
        self._references: dict[str, list[tuple[Code, References]]] = {}  # by what only their revision has

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    def runtime(self) -> Runtime:
        """What its handles call by. Raises InstanceError before its begin."""
        return self.instance.runtime

    def runs(self) -> bool:
        """Whether it has begun and not ended."""
        return self.instance.begun and self.instance.runtime.alive

    def snapshot(self) -> Snapshot:
        """The controller's snapshot."""
        return self.instance.snapshot

    def start_http(self) -> str:
        """The path of the Unix socket that HTTP is served on."""
        return self._wait_for(self.instance.start_http, "an HTTP client")

    def processes(self) -> list[str]:
        """The ids of the living processes, such as `Model#1@default`."""
        return self._wait_for(self.instance.processes, "processes()")

    def crash(self, process_id: str) -> None:
        """Have the process die now, as by `kill -9`. Raises KeyError when it does not live."""
        self._wait_for(partial(self.instance.crash, process_id), "crash()")

    def ask(
        self, operation: Operation, timeout_s: float | None = None, on_progress: Callable[[str], None] | None = None
    ) -> Answer:
        """The controller's answer. Raises what it answers with, LoopBlockedError on the instance's own event loop."""
        what = type(operation).__name__
        if isinstance(operation, Delete):
            return self._wait_for(partial(self.delete, operation), what)
        return self._wait_for(partial(self.instance.ask, operation), what)

    def run(self, application: Application, target: RunTarget) -> DeploymentHandle:
        """Run the application, and return a handle once it is ready. Of two with one route, the later has it.

        Raises DeployFailedError, OptionError, GraphError, PayloadError, LoopBlockedError.
        """
        operation, references = self.pack(application, target)
        return self._wait_for(partial(self.deploy, operation, references), "serve.run()")

    def pack(self, application: Application, target: RunTarget) -> tuple[Deploy, References]:
        """What asks for the application, and what owns the objects that it refers to."""
        references = References(lambda deployment: self.instance.handle(deployment, target.name), shared=self._shared)
        try:
            return target.deploy(target.spec(application, references), references), references
        except BaseException:
            references.release()
            raise

    async def deploy(self, operation: Deploy, references: References) -> DeploymentHandle:
        """Have it run. Called on the instance's event loop."""
        spec = operation.spec
        try:
            await self._take_route(spec)
            await self.instance.deploy(operation)
        except BaseException as error:
            if isinstance(error, RolledBackError):
                self._keep(spec, references)
            else:
                references.release()
            if isinstance(error, DeployFailedError) and spec.name not in self._specs:
                self._failed[spec.name] = spec
            raise
        self._failed.pop(spec.name, None)
        self._specs[spec.name] = spec
        self._keep(spec, references)
        return self.instance.handle(spec.ingress, spec.name)

    def _keep(self, spec: ApplicationSpec, references: References) -> None:
        """Keep what the revision refers to, as long as it may have replicas."""
        kept = self._references.setdefault(spec.name, [])
        kept.append((spec.deployments[0].code, references))
        # Where replicas are shared between runs, those that die are started again from what an earlier run was given.
        if not self._shared:
            codes = [deployment.code for each in self.instance.specs(spec.name) for deployment in each.deployments]
            for code, former in kept:
                if code not in codes:
                    former.release()
            kept[:] = [(code, former) for code, former in kept if code in codes]

    async def _take_route(self, spec: ApplicationSpec) -> None:
        """Take the route from the application that has it: tests run one after the other, and few of them clean up."""
        for other in [*self._specs.values(), *self._failed.values()]:
            if other.name == spec.name or not _same_route(other.route_prefix, spec.route_prefix):
                continue
            log.info("application %r has the route %s of %r now", spec.name, spec.route_prefix, other.name)
            if other.name in self._failed:
                await self.instance.ask(Delete(other.name))
                del self._failed[other.name]
            else:
                changed = msgspec.structs.replace(other, route_prefix=None)
                await self.instance.deploy(Deploy(changed))
                self._specs[other.name] = changed

    async def delete(self, operation: Delete) -> Answer:
        """Delete the application. Called on the instance's event loop. Raises ApplicationNotFound."""
        answer = await self.instance.ask(operation)
        self._specs.pop(operation.app, None)
        self._failed.pop(operation.app, None)
        for _, references in self._references.pop(operation.app, []):
            references.release()
        return answer

    def shutdown(self) -> None:
        """Raises InstanceError: who began it ends it."""
        raise InstanceError("this instance ends with the `async with` block that began it, and not by serve.shutdown()")

    def leave(self) -> None:
        """The process was forked, or its loop is lost: nothing can be asked any more."""
        if self.instance.begun:
            self.instance.runtime.alive = False

    def release(self) -> None:
        """Let go of the objects that applications referred to: the instance has ended."""
        for kept in self._references.values():
            for _, references in kept:
                references.release()
        self._references.clear()
        self._specs.clear()
        self._failed.clear()

    def _wait_for(self, begin: Callable[[], Coroutine[Any, Any, T]], what: str) -> T:
        """Run the coroutine that `begin` makes on the instance's loop, and wait for it. Not on that loop's thread."""
        runtime = self.instance.runtime
        check_elsewhere(runtime, what)
        if not runtime.alive:
            raise InstanceError(f"{what}: the instance has ended")
        work = begin()
        try:
            future = asyncio.run_coroutine_threadsafe(work, runtime.loop)
        except RuntimeError as error:
            work.close()
            raise InstanceError(f"{what}: the instance has ended") from error
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise InstanceError(f"{what}: the instance was ended meanwhile") from None
