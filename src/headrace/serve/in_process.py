"""A whole instance in one event loop: controller, replicas, HTTP on a Unix socket, and the way to them all.

In: operations, as of the control socket, and the end. Out: their answers; a runtime for handles. What is different from
an instance of processes is the engine, which is the fake one, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from headrace.controller.main import Controller
from headrace.controller.packs import Packs
from headrace.controller.store import Store
from headrace.controller.waiters import Waiter
from headrace.core.restart import RestartPolicy
from headrace.engine.base import ProcessRequest
from headrace.engine.directory import InstanceDirectory
from headrace.engine.fake import FakeEngine
from headrace.handle import DeploymentHandle
from headrace.replica.worker import Worker
from headrace.router import Router
from headrace.runtime import Runtime
from headrace.spec.application import ApplicationSpec
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import HeadraceError, InstanceError
from headrace.spec.snapshot import Snapshot
from headrace.wire.client import named_error
from headrace.wire.control import (
    Answer,
    Delete,
    Deploy,
    Deployed,
    Failed,
    Hello,
    Message,
    Operation,
    Response,
    StartHTTP,
)
from headrace.wire.link import ControlLink

QUICK = RestartPolicy(first_wait_s=0.001, longest_wait_s=0.1)  # nothing is won by waiting for one's own process


@dataclass(frozen=True)
class _Parts:
    """What there is from the beginning to the end."""

    directory: InstanceDirectory
    controller: Controller
    runtime: Runtime
    link: ControlLink


class _HostedIngress:
    """An ingress as the fake engine hosts it, with a router of its own."""

    def __init__(self, process_id: str, options: HTTPOptions, control_path: str) -> None:
        # Here, so that tests of handles alone do not load it.
        from headrace.ingress.ingress import Ingress

        self._router = Router(asyncio.get_running_loop(), process_id, "ingress")
        self._ingress = Ingress(process_id, options, self._router, control_path)

    async def run(self) -> int:
        try:
            await self._ingress.run()
        finally:
            for connection in list(self._ingress.door.connections):
                connection.transport.abort()  # those of a process that is killed end with it
            await self._router.close()
        return 0

    def stop(self) -> None:
        self._ingress.stop()


class InProcess:
    """An instance in the event loop that runs, from `begin` to `end`. All methods belong to that loop.

    `cpus` and `gpus` are what the machine is to have.
    """

    def __init__(self, name: str, *, cpus: float, gpus: int) -> None:
        self.engine = FakeEngine({"worker": self._worker, "ingress": self._ingress}, cpus=cpus, gpus=gpus)
        self.name = name
        self._folder: Path | None = None
        self._parts: _Parts | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<InProcess {self.name} {self.engine!r}>"

    # ---- its life

    async def begin(self) -> None:
        """Start the controller, and follow it. Raises InstanceError when it does not come up."""
        # Short, for the paths of sockets have a limit.
        self._folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
        directory = InstanceDirectory(self._folder / self.name)
        try:
            directory.create()
            await self._begin(directory)
        except BaseException:
            await self.end()
            raise

    async def _begin(self, directory: InstanceDirectory) -> None:
        loop = asyncio.get_running_loop()
        # First of all: of what is older than it, it takes for counted what has been counted.
        store = Store(directory.state, synced=False)
        controller = Controller(self.engine, directory, self.name, QUICK, store=store, packs=Packs(directory))
        runtime = Runtime(Router(loop, self.name), loop, threading.get_ident())
        link = ControlLink(
            str(directory.control_socket),
            Hello(role="driver", id=self.name, pid=0),
            on_snapshot=runtime.adopt,
            on_connect=runtime.reports.connected,
        )
        runtime.reports.begin(link)
        self._parts = _Parts(directory, controller, runtime, link)
        up = asyncio.Event()
        life = self._spawn(controller.run(up.set), "controller")
        waiting = loop.create_task(up.wait())
        await asyncio.wait([waiting, life], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if life.done():
            life.result()
        self._spawn(link.run(), "link")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.append(task)
        return task

    async def end(self, drain_s: float = 0.0) -> None:
        """End all: in order, callers before callees, for `drain_s` seconds; what is left then is killed.

        Raises what ended the controller before, when all is gone.
        """
        try:
            await self._end_parts(drain_s)
        finally:
            await self.engine.end()
            self.remove_folder()

    async def _end_parts(self, drain_s: float) -> None:
        if self._parts is not None and drain_s > 0 and not self._tasks[0].done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await asyncio.gather(*map(self._let_go, self.snapshot.applications))
        # Callers first: the router goes before the replicas, so that nobody tries to repeat what is being ended.
        if self._parts is not None:
            self._parts.runtime.reports.stop()
            self._parts.runtime.close()
            await self._parts.runtime.router.close()
            self._parts.runtime.fail_waiting(InstanceError("the instance was ended during the call"))
        for task in reversed(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def remove_folder(self) -> None:
        """Remove what it has on disk. From any thread, where the loop is lost and `end` will never come."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _let_go(self, app: str) -> None:
        with contextlib.suppress(HeadraceError):  # somebody else deletes it, or it failed: it goes in any case
            await self.ask(Delete(app))

    # ---- what runs in it

    async def _worker(self, request: ProcessRequest) -> Worker:
        return Worker(request.id, str(self._begun.directory.control_socket), runtime=self.runtime)

    async def _ingress(self, request: ProcessRequest) -> _HostedIngress:
        options = msgspec.json.decode(request.env["HEADRACE_HTTP_OPTIONS"], type=HTTPOptions)
        return _HostedIngress(request.id, options, str(self._begun.directory.control_socket))

    # ---- what it is asked

    @property
    def begun(self) -> bool:
        """Whether `begin` has come so far that there is something to ask."""
        return self._parts is not None

    @property
    def _begun(self) -> _Parts:
        if self._parts is None:
            raise InstanceError("the instance has not begun: use it in `async with TestInstance() as instance`")
        return self._parts

    @property
    def runtime(self) -> Runtime:
        """What handles call by."""
        return self._begun.runtime

    @property
    def snapshot(self) -> Snapshot:
        """The controller's."""
        return self._begun.controller.feed.snapshot

    async def ask(self, operation: Operation) -> Answer:
        """The controller's answer. Raises the error that it answers with, or what ended the controller."""
        parts = self._begun
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()

        def take(message: Message) -> bool:
            if isinstance(message, Response) and not answered.done():
                answered.set_result(message.answer)
            return True

        parts.controller.operations.take(operation, Waiter(0, take), loop.time())
        either: list[asyncio.Future[Any]] = [answered, self._tasks[0]]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise InstanceError("the instance was ended meanwhile")
        answer = answered.result()
        if isinstance(answer, Failed):
            raise named_error(answer)
        return answer

    async def deploy(self, operation: Deploy) -> None:
        """Have the application run, and handles know it. Raises DeployFailedError and what else `serve.run` does."""
        answer = await self.ask(operation)
        if isinstance(answer, Deployed):
            self.runtime.adopt(self.snapshot)

    def specs(self, app: str) -> list[ApplicationSpec]:
        """The revisions of the application that may have replicas, now or once the traffic goes back to them."""
        controller = self._begun.controller
        present = controller.registry.apps.get(app)
        specs = [*present.revisions.values(), *([present.before] if present.before else [])] if present else []
        former = (controller.history.spec_of(app, number) for number in controller.history.kept(app))
        return specs + [spec for spec in former if spec is not None]

    def handle(self, deployment: str, app: str) -> DeploymentHandle:
        """A handle that calls by this instance from anywhere in the process."""
        return DeploymentHandle(deployment, app, None, self.runtime)

    async def processes(self) -> list[str]:
        """The ids of the living processes."""
        return sorted(info.id for info in await self.engine.list())

    async def crash(self, process_id: str) -> None:
        """Have the process die now, as by `kill -9`. Raises KeyError when it does not live."""
        self.engine.crash(process_id)

    async def start_http(self) -> str:
        """The path of the socket that HTTP is served on from now on, if it was not yet."""
        path = str(self._begun.directory.path / "http.sock")
        await self.ask(StartHTTP(HTTPOptions(host=f"unix:{path}", port=0, drain_timeout_s=0.0)))
        return path
