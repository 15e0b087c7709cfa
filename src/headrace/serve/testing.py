"""Applications in tests: an instance in the event loop of a test, failures on demand, HTTP clients without a port.

In: applications, and what is to fail. Out: handles and HTTP clients, whose calls and requests take the way that they
take in service. User code runs in this process: a breakpoint in it stops the test there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from headrace import runtime as runtimes
from headrace.handle import DeploymentHandle
from headrace.serve import api
from headrace.serve.builder import call_builder
from headrace.serve.driver import InnerTie, calling_on, local_tie
from headrace.serve.in_process import InProcess
from headrace.serve.inner_tie import InProcessTie
from headrace.serve.run_target import RunTarget
from headrace.spec.errors import ApplicationNotFound, HeadraceError, InstanceError
from headrace.spec.status import ServeStatus
from headrace.wire.control import Answer, Delete, GetStatus, Status

if TYPE_CHECKING:
    import httpx

    from headrace.serve.deployment import Application

T = TypeVar("T")


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
            # One that was begun before this may have ended before it, too.
            replaced, self._replaced = self._replaced, None
            runtimes.install(replaced if replaced is not None and replaced.alive else None)
        try:
            await self._instance.end()
        finally:
            self._tie.release()

    async def run(
        self,
        target: Application,
        name: str = "default",
        route_prefix: str | None = "/",
        request_timeout_s: float | None = None,
        **options: Any,
    ) -> DeploymentHandle:
        """As `serve.run`, with its options: returns a handle to the application once it is ready.

        Raises DeployFailedError.
        Code and arguments are used as they are, without a copy: a mock among them is the test's own.
        """
        one = RunTarget(target, name, route_prefix, request_timeout_s=request_timeout_s, **options)
        operation, references = self._tie.pack(call_builder(target, {}), one)
        return await self._tie.deploy(operation, references)

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function of `serve`, such as `serve.set_traffic`, in a thread where it means this instance."""
        return await asyncio.to_thread(calling_on, self._tie, function, *args, **kwargs)

    async def delete(self, name: str) -> None:
        """As `serve.delete`: returns when the application's last replica is gone."""
        with api.missing_is_logged():
            await self._tie.delete(Delete(name))

    async def status(self) -> ServeStatus:
        """As `serve.status`."""
        return _status_of(await self._instance.ask(GetStatus()))

    async def processes(self) -> list[str]:
        """The ids of the living processes, as `engine.crash` and `engine.stall` take them."""
        return await self._instance.processes()

    def http_client(self, **options: Any) -> httpx.AsyncClient:
        """A client whose requests this instance answers, whatever host and port their URLs name.

        `options` are those of `httpx.AsyncClient`. The first request starts the ingress. Needs httpx.
        """
        from headrace.serve.http_client import async_client  # httpx is loaded by those who use it

        return async_client(self._instance.start_http, options)


class LocalTesting:
    """Local testing mode for one test: what the fixture `headrace_local` is. `close` ends what was run with it."""

    def __init__(self) -> None:
        self._client: httpx.Client | None = None
        self._found = local_tie()  # somebody else's, who goes on with it
        self._names: list[str] = []

    def __repr__(self) -> str:
        return f"<LocalTesting {local_tie() or 'nothing runs'}>"

    def run(
        self,
        target: Application | Callable[..., Application],
        name: str = "default",
        route_prefix: str | None = "/",
        request_timeout_s: float | None = None,
        **options: Any,
    ) -> DeploymentHandle:
        """As `serve.run(..., _local_testing_mode=True)`: returns a handle to the application once it is ready."""
        self._names.append(name)
        return api.run(
            target,
            name=name,
            route_prefix=route_prefix,
            request_timeout_s=request_timeout_s,
            _local_testing_mode=True,
            **options,
        )

    @property
    def http(self) -> httpx.Client:
        """A client of all that was run, closed after the test. Needs httpx."""
        if self._client is None:
            self._client = http_client()
        return self._client

    def http_client(self, **options: Any) -> httpx.Client:
        """A client with options of `httpx.Client`, for `with`."""
        return http_client(**options)

    def async_http_client(self, **options: Any) -> httpx.AsyncClient:
        """A client with options of `httpx.AsyncClient`, for `async with`."""
        return async_http_client(**options)

    def delete(self, name: str) -> None:
        """As `serve.delete`."""
        with api.missing_is_logged():
            _local().ask(Delete(name))

    def status(self) -> ServeStatus:
        """As `serve.status`."""
        return _status_of(_local().ask(GetStatus()))

    def processes(self) -> list[str]:
        """The ids of the living processes, such as `Model#1@default`."""
        return _local().processes()

    def crash(self, process_id: str) -> None:
        """Have the process die now, as by `kill -9`. Raises KeyError when it does not live."""
        _local().crash(process_id)

    def close(self) -> None:
        """End what was run with this; all of local testing mode, unless somebody had begun it before."""
        if self._client is not None:
            self._client.close()
            self._client = None
        local = local_tie()
        if local is not None and local is not self._found:
            local.shutdown()
        elif local is not None:
            for name in dict.fromkeys(self._names):
                with contextlib.suppress(ApplicationNotFound):  # the test deleted it, or it never ran
                    local.ask(Delete(name))


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


def _local() -> InnerTie:
    tie = local_tie()
    if tie is None:
        raise InstanceError("nothing runs in local testing mode: serve.run(app, _local_testing_mode=True) first")
    return tie


def _local_http() -> str:
    return _local().start_http()


def _status_of(answer: Answer) -> ServeStatus:
    if not isinstance(answer, Status):
        raise HeadraceError(f"the controller answered GetStatus with {type(answer).__name__}")
    return answer.status
