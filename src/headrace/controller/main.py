"""The composition root of the controller, and its life: adopt what runs, reconcile, and end in order.

In: the instance's directory and an engine. Out: the control socket. The end comes by SIGTERM, by a Shutdown over the
socket, or by the loss of the lifeline: the first two drain in order (ingress, then applications), the last kills what
does not go by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable

import msgspec

from headrace.controller.act import Actor
from headrace.controller.api import ControlServer
from headrace.controller.census import Census
from headrace.controller.delivery import Delivery
from headrace.controller.feed import Feed
from headrace.controller.history import Chronicle
from headrace.controller.judge import Judge
from headrace.controller.kept import PackStore, StateStore
from headrace.controller.ledger import Ledger
from headrace.controller.nodes import Nodes
from headrace.controller.operations import Operations
from headrace.controller.packs import Packs
from headrace.controller.proxies import Proxies
from headrace.controller.reconcile import Reconciler
from headrace.controller.registry import Registry
from headrace.controller.store import Store
from headrace.controller.timelines import Timelines
from headrace.controller.waiters import Waiters
from headrace.core.nodes import NodePolicy
from headrace.core.plan import DRAIN_MARGIN_S
from headrace.core.restart import RestartPolicy
from headrace.engine import linux
from headrace.engine.base import Engine, EngineEvent, EngineLost, NodesChanged
from headrace.engine.directory import InstanceDirectory, read_snapshot, runtime_directory, write_snapshot
from headrace.engine.local import LocalEngine
from headrace.spec.errors import InstanceError
from headrace.spec.snapshot import Snapshot

logger = logging.getLogger(__name__)

END_MARGIN_S = 10.0
LOST_GRACE_S = 5.0
LEAP = 100_000  # versions


class Controller:
    """One controller. `life` names the life of the instance: state kept in another life is forgotten.

    `roams`: the next one may be on another machine, where it finds the store and not this directory.
    """

    def __init__(
        self,
        engine: Engine,
        directory: InstanceDirectory,
        life: str,
        policy: RestartPolicy | None = None,
        *,
        store: StateStore,
        packs: PackStore,
        node_policy: NodePolicy | None = None,
        roams: bool = False,
    ) -> None:
        policy = policy or RestartPolicy()
        self.engine = engine
        self.directory = directory
        self.life = life
        self.store = store
        self.packs = packs
        self.roams = roams
        self.feed = Feed(directory.name)
        self.waiters = Waiters()
        self.registry = Registry(self.store, directory, policy)
        self.history = Chronicle(self.store, lambda: self.registry.apps)
        self.timelines = Timelines(self.store)
        self.ledger = Ledger(self.timelines, time.time(), self._knows, self._counted)
        self.judge = Judge(self.ledger)
        self.ended = asyncio.Event()
        self.lost = ""
        self.superseded = ""
        self.nodes = Nodes(self.wake, node_policy)
        self.actor = Actor(
            engine, self.registry, self.waiters, self.history, lambda: self.feed.snapshot.version, self.wake, self.nodes
        )
        self.proxies = Proxies(engine, self.actor.spawn, self.wake, policy, self.nodes)
        census = Census(self.actor.ask_reports)
        self.reconciler = Reconciler(
            engine=engine,
            registry=self.registry,
            nodes=self.nodes,
            actor=self.actor,
            proxies=self.proxies,
            feed=self.feed,
            census=census,
            judge=self.judge,
            waiters=self.waiters,
            write=self._write,
            cut=lambda node: self.server.cut(node),
            after_round=self._check_end,
        )
        self.delivery = self._delivery()
        self.operations = self._operations(census)
        self.server = ControlServer(directory.control_socket, self.reconciler, self.operations, self.ledger, self.nodes)

    def _delivery(self) -> Delivery:
        return Delivery(
            registry=self.registry,
            history=self.history,
            store=self.store,
            packs=self.packs,
            actor=self.actor,
            waiters=self.waiters,
            version=lambda: self.feed.snapshot.version,
            routed=self.feed.routed,
            mirrored=self.judge.mirrored,
            again=lambda operation, waiter: self.operations.take(operation, waiter, asyncio.get_running_loop().time()),
        )

    def _operations(self, census: Census) -> Operations:
        return Operations(
            engine=self.engine,
            registry=self.registry,
            history=self.history,
            store=self.store,
            packs=self.packs,
            actor=self.actor,
            waiters=self.waiters,
            proxies=self.proxies,
            nodes=self.nodes,
            feed=self.feed,
            census=census,
            delivery=self.delivery,
            wake=self.wake,
            end=self.end,
            spawn=self.actor.spawn,
        )

    def __repr__(self) -> str:
        return f"<Controller of {self.directory.name}{' ending' if self.operations.ending else ''}>"

    def wake(self) -> None:
        """Have the reconciler look again."""
        self.reconciler.wake()

    def _knows(self, app: str, revision: int, deployment: str) -> bool:
        """Whether there is this application, and where they are named this revision and deployment of it."""
        found = self.registry.apps.get(app)
        if found is None or not revision:
            return found is not None
        spec = found.revisions.get(revision)
        return spec is not None and (not deployment or any(each.name == deployment for each in spec.deployments))

    def _counted(self, app: str) -> None:
        """There is news of the application's requests: a rollout may go by them."""
        self.judge.heard(app)
        if self.registry.apps[app].rollout is not None:
            self.wake()

    def _write(self, snapshot: Snapshot) -> None:
        """Keep the snapshot on disk. A full disk must not stop the instance: routers are told all the same."""
        self.timelines.published(snapshot, time.time())
        self.ledger.forget()
        try:
            self.store.keep_fact("version", str(snapshot.version))
            if self.roams:
                self.store.keep_fact("snapshot", msgspec.json.encode(snapshot).decode())
            write_snapshot(self.directory, snapshot)
        except OSError as error:
            logger.error("snapshot %d could not be kept on disk: %s", snapshot.version, error)

    async def run(self, started: Callable[[], None] | None = None) -> None:
        """Live until the end was asked for and is reached. Raises InstanceError when it cannot begin, or another has
        taken over.
        """
        loop = asyncio.get_running_loop()

        def superseded(reason: str) -> None:
            loop.call_soon_threadsafe(self.supersede, reason)

        self.store.open(superseded)
        work: list[asyncio.Task[None]] = []
        try:
            await self.engine.open(self._engine_event)
            await self._recover()
            await self.server.listen()
            work.append(asyncio.create_task(self.reconciler.run(), name="reconcile"))
            if started is not None:
                started()
            await self.ended.wait()
            if self.superseded:
                raise InstanceError(f"{self.superseded}: this one ends, and leaves all that runs to that one")
            if self.lost:
                logger.error("%s: ending what it left behind", self.lost)
                await self.end_what_is_left()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await self.server.close()
            self.nodes.close()
            await self.actor.close()
            await self.engine.close()
            self.packs.close()
            self.store.close()

    async def _recover(self) -> None:
        """Take up what an earlier controller of this life left; forget what one of another life did."""
        before = self.store.fact("life")
        ended = before not in ("", self.life)
        published = read_snapshot(self.directory)
        version = int(self.store.fact("version") or 0)
        if version and (published is None or published.version < version - 1):
            # Routers were told by a controller elsewhere, and of more than it could keep, perhaps: no version that they
            # know may come again with another meaning.
            published, version = self._published_elsewhere(), version + LEAP
        if ended:
            published, version = None, version + 1  # what it named has ended with that life
        if before != self.life:
            if self.store.set_aside is None:
                self.store.forget_all()
            self.store.keep_fact("life", self.life)
        self.feed.begin(published, version)
        self.registry.load()
        self.history.load()
        self.timelines.load()
        if self.store.set_aside is None:
            self.delivery.prune_packs()
        self.proxies.options = self.store.http_options()
        self.proxies.grpc = self.store.grpc_service()
        now = asyncio.get_running_loop().time()
        self.nodes.begin(self.engine.nodes(), now)
        self.reconciler.adopt(list(await self.engine.list()), published, now)
        # Before anybody is let in: whoever subscribes gets what this controller stands for.
        self.reconciler.step(now)
        self.timelines.published(self.feed.snapshot, time.time())

    def _published_elsewhere(self) -> Snapshot | None:
        """What routers were told by a controller on another machine, as far as that was kept."""
        kept = self.store.fact("snapshot")
        try:
            return msgspec.json.decode(kept, type=Snapshot) if kept else None
        except msgspec.MsgspecError as error:
            logger.error("the snapshot in the controller's state cannot be read: %s", error)
            return None

    def _engine_event(self, event: EngineEvent) -> None:
        match event:
            case EngineLost(reason=reason):
                self.lost = reason
                self.ended.set()
            case NodesChanged(nodes=nodes):
                self.nodes.changed(nodes, asyncio.get_running_loop().time())
            case _:
                self.reconciler.exited(event, asyncio.get_running_loop().time())

    # --- the end ----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Begin the orderly end: the ingress drains, then the applications go, callers before callees."""
        if self.operations.ending:
            return
        logger.info("shutting down")
        self.operations.ending = True
        self.engine.shutdown(self.drain_bound_s())
        self.proxies.drain_all()

    def lose(self, reason: str) -> None:
        """The keeper is gone: nothing can be drained in order any more."""
        self.lost = reason
        self.ended.set()

    def supersede(self, reason: str) -> None:
        """Another controller of the instance has taken over: end, and leave all that runs to it."""
        self.superseded = reason
        self.ended.set()

    def drain_bound_s(self) -> float:
        """How long the orderly end may take: each drain in turn, at its longest."""
        options = self.proxies.options
        bound_s = END_MARGIN_S + (options.drain_timeout_s if options is not None else 0.0)
        applications_s = [
            sum(each.options.graceful_shutdown_timeout_s + DRAIN_MARGIN_S for each in app.spec.deployments)
            for app in self.registry.apps.values()
        ]
        return bound_s + max(applications_s, default=0.0)

    def _check_end(self) -> None:
        if not self.operations.ending or not self.proxies.gone:
            return
        for app in self.registry.apps.values():
            if not app.deleting:
                self.operations.begin_delete(app)
                self.wake()
        if not self.registry.apps:
            self.waiters.published(self.feed.snapshot.version, self.feed.snapshot.version)
            self.ended.set()

    async def end_what_is_left(self) -> None:
        """End all processes by ourselves, and wait until they are gone: for when the keeper that would do it is not."""
        pids = [replica.pid for replica in self.registry.replicas()] + self.proxies.pids()
        for id in [replica.process_id for replica in self.registry.replicas()] + self.proxies.ids():
            self.engine.stop(id, LOST_GRACE_S)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + LOST_GRACE_S + 1.0
        # They are not our children: nobody tells when they go.
        while any(linux.started_at(pid) is not None for pid in pids if pid) and loop.time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def serve() -> int:
    """Run the controller of the instance that the environment names. Returns the exit status."""
    directory = runtime_directory(os.environ["HEADRACE_RUNTIME_DIR"])
    keeper = os.getppid()
    engine = LocalEngine(directory)
    life = f"{keeper}@{linux.started_at(keeper)}"
    controller = Controller(engine, directory, life, store=Store(directory.state), packs=Packs(directory))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, controller.end)
    lifeline = os.environ.get("HEADRACE_LIFELINE_FD")
    if lifeline is not None:
        loop.add_reader(int(lifeline), controller.lose, "the keeper is gone")
    try:
        await controller.run()
    except InstanceError as error:
        logger.error("%s", error)
        return 1
    return 1 if controller.lost else 0


def main() -> int:
    """The controller's process. Returns its exit status."""
    level = os.environ.get("HEADRACE_LOG_LEVEL", "WARNING").upper()
    known = level in logging.getLevelNamesMapping()
    logging.basicConfig(level=level if known else "WARNING", format="%(asctime)s %(levelname)s %(message)s")
    if not known:
        logger.warning("HEADRACE_LOG_LEVEL=%r is no level: DEBUG, INFO, WARNING or ERROR would be one", level)
    return asyncio.run(serve())
