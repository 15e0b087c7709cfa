"""Applications in tests: an instance in the event loop of a test, failures on demand, HTTP clients without a port.

In: applications, and what is to fail. Out: handles and HTTP clients, whose calls and requests take the way that they
take in service. User code runs in this process: a breakpoint in it stops the test there.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace import runtime as runtimes
from headrace.handle import DeploymentHandle
from headrace.serve.builder import call_builder
from headrace.serve.driver import local_tie
from headrace.serve.in_process import InProcess
from headrace.serve.inner_tie import InProcessTie
from headrace.spec.errors import HeadraceError, InstanceError
from headrace.spec.status import ServeStatus
from headrace.wire.control import Delete, GetStatus, Status

if TYPE_CHECKING:
    import httpx

    from headrace.serve.deployment import Application


class TestInstance:
    """`async with TestInstance() as instance`: an instance that ends with the block.

    `engine` makes processes fail (`instance.engine.crash(...)`). `cpus` and `gpus` are what the machine is to have.
    Replicas that failed are started again after milliseconds instead of seconds.
    """

    __test__ = False  # for pytest, which takes classes of this name for tests

    def __init__(self, *, cpus: float = 8.0, gpus: int = 0) -> None:
        self._instance = InProcess("test", cpus=cpus, gpus=gpus)
        self._tie = InProcessTie(self._instance, shared=True)
        self.engine = self._instance.engine
        self._replaced: runtimes.Runtime | None = None

    def __repr__(self) -> str:
        return f"<TestInstance {self.engine!r}>"

    async def __aenter__(self) -> TestInstance:
        await self._instance.begin()
        self._instance.runtime.tie = self._tie
        self._replaced = runtimes.installed()
        runtimes.install(self._instance.runtime)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if runtimes.installed() is self._instance.runtime:
            runtimes.install(self._replaced)
        await self._instance.end()
        self._tie.release()

    async def run(
        self,
        target: Application,
        name: str = "default",
        route_prefix: str | None = "/",
        request_timeout_s: float | None = None,
    ) -> DeploymentHandle:
        """As `serve.run`: returns a handle to the application once it is ready. Raises DeployFailedError.

        Code and arguments are used as they are, without a copy: a mock among them is the test's own.
        """
        spec, references = self._tie.pack(call_builder(target, {}), name, route_prefix, request_timeout_s)
        return await self._tie.deploy(spec, references)

    async def delete(self, name: str) -> None:
        """As `serve.delete`: returns when the application's last replica is gone."""
        await self._tie.delete(Delete(name))

    async def status(self) -> ServeStatus:
        """As `serve.status`."""
        answer = await self._instance.ask(GetStatus())
        if not isinstance(answer, Status):
            raise HeadraceError(f"the controller answered GetStatus with {type(answer).__name__}")
        return answer.status

    async def processes(self) -> list[str]:
        """The ids of the living processes, as `engine.crash` and `engine.stall` take them."""
        return sorted(info.id for info in await self.engine.list())

    def http_client(self, **options: Any) -> httpx.AsyncClient:
        """A client whose requests this instance answers, whatever host and port their URLs name.

        `options` are those of `httpx.AsyncClient`. The first request starts the ingress. Needs httpx.
        """
        from headrace.serve.http_client import async_client  # httpx is loaded by those who use it

        return async_client(self._instance.start_http, options)


def http_client(**options: Any) -> httpx.Client:
    """A client whose requests the applications of local testing mode answer, whatever host and port their URLs name.

    `options` are those of `httpx.Client`. Needs httpx. Raises InstanceError when nothing was run in that mode.
    """
    from headrace.serve.http_client import client

    return client(_local_http(), options)


def async_http_client(**options: Any) -> httpx.AsyncClient:
    """As `http_client`, for any event loop: an `httpx.AsyncClient`."""
    from headrace.serve.http_client import async_client

    path = _local_http()

    async def known() -> str:
        return path

    return async_client(known, options)


def http_socket() -> str:
    """The path of the Unix socket behind `http_client`, for clients of other kinds (WebSockets, curl)."""
    return _local_http()


def _local_http() -> str:
    tie = local_tie()
    if tie is None:
        raise InstanceError("nothing runs in local testing mode: serve.run(app, _local_testing_mode=True) first")
    return tie.start_http()
