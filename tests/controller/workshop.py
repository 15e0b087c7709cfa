"""An instance in one event loop for tests: a controller, the fake engine, and workers and ingress processes that speak
the control protocol over the real socket but run no user code.

What a worker does is named by its code: `ok` gets ready, `raise` fails with a traceback, `hang` never gets ready, `die`
exits while it constructs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from nodes_shop import Agent, Way

from headrace.controller.kept import PackStore, StateStore
from headrace.controller.main import Controller
from headrace.controller.packs import Packs
from headrace.controller.store import Store
from headrace.core.nodes import NodePolicy
from headrace.core.restart import RestartPolicy
from headrace.engine.base import ProcessRequest
from headrace.engine.directory import InstanceDirectory
from headrace.engine.fake import FakeEngine
from headrace.spec.application import ApplicationSpec, DeploymentSpec, ImportedCode
from headrace.spec.config import HTTPOptions
from headrace.spec.options import DeploymentOptions
from headrace.spec.snapshot import Snapshot
from headrace.spec.status import ReplicaState, ServeStatus
from headrace.wire.client import ControlClient
from headrace.wire.control import (
    Answer,
    Deploy,
    DrainReplica,
    EndProcess,
    GetStatus,
    Hello,
    HostReplica,
    IngressReport,
    Message,
    Operation,
    ReconfigureReplica,
    ReplicaReport,
    Status,
)
from headrace.wire.link import ControlLink

TRACEBACK = 'Traceback (most recent call last):\n  File "model.py", line 3\nValueError: no such model'


def deployment(
    name: str, does: str = "ok", *, digest: str = "", uses: tuple[str, ...] = (), **options: Any
) -> DeploymentSpec:
    """A deployment whose workers do as named. The digest follows what they do unless it is given."""
    options.setdefault("num_cpus", 0.0)
    return DeploymentSpec(
        name=name,
        code=ImportedCode("fake", does),
        arguments=b"",
        options=DeploymentOptions(**options),
        digest=digest or f"{does}-1",
        max_ongoing_requests=options.get("max_ongoing_requests", 10),
        uses=uses,
    )


def application(*deployments: DeploymentSpec, name: str = "app", route: str | None = "/") -> ApplicationSpec:
    """An application with the first deployment at the door."""
    return ApplicationSpec(name=name, route_prefix=route, ingress=deployments[0].name, deployments=deployments)


class FakeWorker:
    """A process that hosts one replica, as far as the controller can see."""

    def __init__(self, shop: Workshop, request: ProcessRequest) -> None:
        self.shop = shop
        self.request = request
        self.told: HostReplica | None = None
        self.state = ReplicaState.STARTING
        self.error = ""
        self.reconfigured: list[Any] = []
        self.drained: float | None = None
        self.ongoing = 0
        self.answers = True
        self.told_at = 0.0
        self._end = asyncio.Event()
        self.code = 0
        self.link = ControlLink(
            shop.control_path(request.node),
            Hello(role="worker", id=request.id, pid=0, node=request.node),
            self._on_message,
            on_snapshot=lambda _: None,
            on_connect=self.report,
        )

    @property
    def snapshot(self) -> Snapshot:
        return self.link.snapshot

    async def run(self) -> int:
        link = asyncio.create_task(self.link.run())
        try:
            await self._end.wait()
            return self.code
        finally:
            link.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await link

    def stop(self) -> None:
        self._end.set()

    def report(self) -> None:
        if self.told is not None:
            self.link.send(
                ReplicaReport(
                    replica_id=self.told.replica_id,
                    app=self.told.app,
                    key=self.told.key,
                    revision=self.told.revision,
                    state=self.state,
                    address=self.told.address,
                    pid=0,
                    ongoing=self.ongoing,
                    told_at=self.told_at,
                    error=self.error,
                    node=self.request.node,
                    near=f"near:{self.told.replica_id}" if self.request.node else "",
                )
            )

    def _on_message(self, message: Message) -> None:
        match message:
            case HostReplica() if self.told is None:
                self.told = message
                self._construct(message.spec)
            case ReconfigureReplica(spec=spec, told_at=told_at):
                self.reconfigured.append(spec.options.user_config)
                if spec.options.user_config == "bad":
                    self.fail()
                elif self.answers:
                    self.told_at = told_at
                    self.report()
            case DrainReplica(deadline_s=deadline_s):
                self.drained = deadline_s
                self.shop.order.append(message.replica_id)
                if not self.shop.busy:
                    self._end.set()
            case EndProcess(grace_s=grace_s):
                self.shop.told_to_end[self.request.id] = grace_s
                self._end.set()
            case _:
                self.report()

    def _construct(self, spec: DeploymentSpec) -> None:
        self.report()
        assert isinstance(spec.code, ImportedCode)
        match spec.code.qualname:
            case "ok":
                self.ready()
            case "raise":
                self.fail()
            case "die":
                self.code = -11
                self._end.set()

    def ready(self) -> None:
        self.state = ReplicaState.RUNNING
        self.report()

    def fail(self) -> None:
        self.state, self.error = ReplicaState.FAILED, TRACEBACK
        self.report()


class FakeIngress:
    """A process that says that it listens."""

    def __init__(self, shop: Workshop, request: ProcessRequest) -> None:
        self.options = msgspec.json.decode(request.env["HEADRACE_HTTP_OPTIONS"], type=HTTPOptions)
        self.request = request
        self.shop = shop
        self._end = asyncio.Event()
        self.link = ControlLink(
            shop.control_path(request.node),
            Hello(role="ingress", id=request.id, pid=0, node=request.node),
            self._on_message,
            on_snapshot=lambda _: None,
            on_connect=self._report,
        )

    @property
    def snapshot(self) -> Snapshot:
        return self.link.snapshot

    async def run(self) -> int:
        link = asyncio.create_task(self.link.run())
        try:
            await self._end.wait()
            return 0
        finally:
            link.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await link

    def stop(self) -> None:
        self._end.set()

    def _on_message(self, message: Message) -> None:
        assert isinstance(message, EndProcess)
        self.shop.told_to_end[self.request.id] = message.grace_s
        self._end.set()

    def _report(self) -> None:
        self.link.send(IngressReport(ingress_id=self.request.id, pid=0, host=self.options.host, port=self.options.port))


def in_files(directory: InstanceDirectory) -> tuple[StateStore, PackStore]:
    """The state and the packs as files of the instance's directory."""
    return Store(directory.state), Packs(directory)


class Workshop:
    """One instance. `keep` gives each of its controllers what its state is kept in."""

    def __init__(self, path: Path, cpus: float, nodes: Sequence[str] = ("",)) -> None:
        self.path = path
        self.directory = InstanceDirectory(path / "i")
        self.directory.create()
        self.engine = FakeEngine({"worker": self._worker, "ingress": self._ingress}, cpus=cpus, nodes=nodes)
        self.ways: dict[str, Way] = {}
        self.agents: dict[str, Agent] = {}
        self.node_policy = NodePolicy(broken_s=0.1, look_s=0.02, first_s=1.0)
        self.roams = False
        self.told_to_end: dict[str, float] = {}
        self.workers: dict[str, FakeWorker] = {}
        self.ingress: dict[str, FakeIngress] = {}
        self.started: list[str] = []
        self.order: list[str] = []  # of draining
        self.busy = False
        self.keep: Callable[[InstanceDirectory], tuple[StateStore, PackStore]] = in_files
        self.controller: Controller
        self._running: asyncio.Task[None] | None = None
        self.clients: list[ControlClient] = []

    # --- nodes ------------------------------------------------------------------------------------------------------

    def control_path(self, node: str) -> str:
        """Where processes of the node find the controller."""
        return str(self.ways[node].path if node else self.directory.control_socket)

    async def join(self, node: str) -> None:
        """The node's agent comes."""
        way = self.ways[node] = Way(self.path / f"{node}.sock", self.directory.control_socket)
        await way.open()
        self.agents[node] = Agent(node, way)
        self.agents[node].begin()

    def cut(self, node: str) -> None:
        """The controller and the engine do not reach the node, nor does the node reach them."""
        self.engine.lose_node(node)
        self.ways[node].cut()

    async def mend(self, node: str) -> None:
        """The node's processes reach the controller again; the engine reaches the node when `return_node` says so."""
        await self.ways[node].open()

    def status_of(self, node: str) -> str:
        """What the controller makes of the node."""
        return self.controller.nodes.status(node).value

    def placed(self) -> dict[str, str]:
        """Where each replica that is listed runs, by what routers know."""
        entries = self.snapshot.deployments.values()
        return {replica.id: replica.node for entry in entries for replica in entry.replicas}

    # --- processes --------------------------------------------------------------------------------------------------

    async def _worker(self, request: ProcessRequest) -> FakeWorker:
        worker = self.workers[request.id] = FakeWorker(self, request)
        self.started.append(request.id)
        return worker

    async def _ingress(self, request: ProcessRequest) -> FakeIngress:
        ingress = self.ingress[request.id] = FakeIngress(self, request)
        self.started.append(request.id)
        return ingress

    async def begin(self, life: str = "one") -> None:
        """Start a controller, and wait until it can be talked to."""
        policy = RestartPolicy(first_wait_s=0.001, longest_wait_s=0.01)
        store, packs = self.keep(self.directory)
        self.controller = Controller(
            self.engine,
            self.directory,
            life,
            policy,
            store=store,
            packs=packs,
            node_policy=self.node_policy,
            roams=self.roams,
        )
        up = asyncio.Event()
        self._running = asyncio.create_task(self.controller.run(up.set))
        waiting = asyncio.create_task(up.wait())
        await asyncio.wait([waiting, self._running], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._running.done():
            self._running.result()

    async def kill(self) -> None:
        """End the controller as a kill would, as far as others can see: nothing is drained."""
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        self._running = None

    async def ended(self) -> None:
        """Wait until the controller has ended by itself."""
        assert self._running is not None
        await self._running
        self._running = None

    async def ask(self, operation: Operation, lines: list[str] | None = None) -> Answer:
        """What the controller answers. Raises what it answers by."""
        client = ControlClient(str(self.directory.control_socket))
        try:
            on_progress = None if lines is None else lines.append
            return await asyncio.to_thread(client.request, operation, 20.0, on_progress)
        finally:
            client.close()

    async def deploy(self, spec: ApplicationSpec, lines: list[str] | None = None) -> Answer:
        return await self.ask(Deploy(spec), lines)

    async def status(self) -> ServeStatus:
        answer = await self.ask(GetStatus())
        assert isinstance(answer, Status)
        return answer.status

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for the condition."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)

    @property
    def snapshot(self) -> Snapshot:
        return self.controller.feed.snapshot

    def listed(self, key: str) -> list[str]:
        """The replicas that routers send calls to."""
        entry = self.snapshot.deployments.get(key)
        return [] if entry is None else [replica.id for replica in entry.replicas]

    async def living(self) -> list[str]:
        return sorted(info.id for info in await self.engine.list())


@contextlib.asynccontextmanager
async def workshop(cpus: float = 64.0, nodes: Sequence[str] = ("",)) -> AsyncIterator[Workshop]:
    """An instance with its controller; whatever is left of it at the end is ended."""
    path = Path(tempfile.mkdtemp(prefix="hr"))  # short: socket paths have a limit
    shop = Workshop(path, cpus, nodes)
    try:
        await shop.begin()
        for node in filter(None, nodes):
            await shop.join(node)
        await shop.until(lambda: all(shop.status_of(node) == "ALIVE" for node in nodes))
        yield shop
    finally:
        if shop._running is not None:
            await shop.kill()
        await shop.engine.end()
        for agent in shop.agents.values():
            await agent.end()
        for way in shop.ways.values():
            await way.close()
        shutil.rmtree(path)


def run(test: Callable[[Workshop], Awaitable[None]], cpus: float = 64.0, nodes: Sequence[str] = ("",)) -> None:
    """Run the test against a workshop of its own."""

    async def body() -> None:
        async with asyncio.timeout(60), workshop(cpus, nodes) as shop:
            await test(shop)

    asyncio.run(body())
