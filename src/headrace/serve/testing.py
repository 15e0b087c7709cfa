"""A whole instance in the event loop of a test, on the fake engine: controller, replicas, handles, failures on demand.

In: applications, and what is to fail. Out: handles whose calls go over the same wire as ever. User code runs in this
process: a breakpoint in it stops the test there. There is no HTTP: a test of that wants `serve.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from headrace import runtime as runtimes
from headrace.controller.main import Controller
from headrace.core.restart import RestartPolicy
from headrace.engine.base import ProcessRequest
from headrace.engine.directory import InstanceDirectory
from headrace.engine.fake import FakeEngine
from headrace.handle import DeploymentHandle
from headrace.replica.worker import Worker
from headrace.router import Router
from headrace.serve.deployment import Application
from headrace.serve.graph import build
from headrace.spec.errors import InstanceError
from headrace.spec.status import ServeStatus
from headrace.wire.client import ControlClient
from headrace.wire.control import (
    Answer,
    Delete,
    Deploy,
    Deployed,
    GetStatus,
    Hello,
    Operation,
    Status,
)
from headrace.wire.link import ControlLink


class TestInstance:
    """`async with TestInstance() as instance`: an instance that ends with the block. One at a time in a process.

    `engine` makes processes fail (`instance.engine.crash(...)`). `cpus` and `gpus` are what the machine is to have.
    Replicas that failed are started again after milliseconds instead of seconds.
    """

    __test__ = False  # for pytest, which takes classes of this name for tests

    def __init__(self, *, cpus: float = 8.0, gpus: int = 0) -> None:
        self.engine = FakeEngine({"worker": self._host}, cpus=cpus, gpus=gpus)
        self._folder: Path | None = None
        self._directory: InstanceDirectory | None = None
        self._link: ControlLink | None = None
        self._runtime: runtimes.Runtime | None = None
        self._replaced: runtimes.Runtime | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<TestInstance {self.engine!r}>"

    async def __aenter__(self) -> TestInstance:
        # Short, for the paths of sockets have a limit.
        self._folder = await asyncio.to_thread(lambda: Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp")))
        self._directory = InstanceDirectory(self._folder / "test")
        self._directory.create()
        try:
            await self._begin(self._directory)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def run(self, target: Application, name: str = "default") -> DeploymentHandle:
        """As `serve.run`: returns a handle to the application once it is ready. Raises DeployFailedError."""
        answer = await self._ask(Deploy(build(target, name, None)))
        assert isinstance(answer, Deployed)
        assert self._link is not None
        while self._link.snapshot.version < answer.version:  # noqa: ASYNC110 - it comes on this loop, in a moment
            await asyncio.sleep(0.001)
        return DeploymentHandle(self._link.snapshot.applications[name].ingress, name)

    async def delete(self, name: str) -> None:
        """As `serve.delete`: returns when the application's last replica is gone."""
        await self._ask(Delete(name))

    async def status(self) -> ServeStatus:
        """As `serve.status`."""
        answer = await self._ask(GetStatus())
        assert isinstance(answer, Status)
        return answer.status

    async def processes(self) -> list[str]:
        """The ids of the living processes, as `engine.crash` and `engine.stall` take them."""
        return sorted(info.id for info in await self.engine.list())

    async def _host(self, request: ProcessRequest) -> Worker:
        assert self._directory is not None
        return Worker(request.id, str(self._directory.control_socket))

    async def _begin(self, directory: InstanceDirectory) -> None:
        loop = asyncio.get_running_loop()
        controller = Controller(self.engine, directory, "test", RestartPolicy(first_wait_s=0.001, longest_wait_s=0.1))
        up = asyncio.Event()
        life = loop.create_task(controller.run(up.set), name="controller")
        self._tasks.append(life)
        waiting = loop.create_task(up.wait())
        await asyncio.wait([waiting, life], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if life.done():
            life.result()
        self._replaced = runtimes.installed()
        self._runtime = runtimes.Runtime(Router(loop, "test"), loop, threading.get_ident())
        runtimes.install(self._runtime)
        self._link = ControlLink(
            str(directory.control_socket), Hello(role="driver", id="test", pid=0), on_snapshot=self._runtime.adopt
        )
        self._tasks.append(loop.create_task(self._link.run(), name="link"))

    async def _end(self) -> None:
        # Callers first: the router goes before the replicas, so that nobody tries to repeat what is being ended.
        if self._runtime is not None:
            await self._runtime.router.close()
            runtimes.install(self._replaced)
        for task in reversed(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.engine.end()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _ask(self, operation: Operation) -> Answer:
        if self._directory is None:
            raise InstanceError("the instance has not begun: use it in `async with TestInstance() as instance`")
        client = ControlClient(str(self._directory.control_socket))
        try:
            return await asyncio.to_thread(client.request, operation, None)
        finally:
            client.close()
