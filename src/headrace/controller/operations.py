"""What drivers and the CLI ask for: deploys, deletes, HTTP, status, the end.

In: operations of the control socket, each with its Waiter. Out: changed wishes in the registry, which the reconciler
acts on; answers, at once or when it is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from headrace.controller.act import Actor
from headrace.controller.census import Census
from headrace.controller.delivery import Delivery
from headrace.controller.feed import Feed
from headrace.controller.history import Chronicle
from headrace.controller.kept import PackStore, StateStore
from headrace.controller.nodes import Nodes
from headrace.controller.proxies import Proxies, reserve_ports
from headrace.controller.registry import Registry
from headrace.controller.waiters import Waiter, Waiters
from headrace.core.fleet import Application
from headrace.core.status import serve_status
from headrace.engine.base import Engine
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    HeadraceError,
    InstanceError,
    RevisionConflictError,
    RevisionNotFound,
)
from headrace.spec.grpc import GrpcService
from headrace.spec.status import NodeStatus, RolloutOutcome
from headrace.wire.control import (
    ControlRollout,
    Delete,
    Deploy,
    Done,
    Failed,
    GetHistory,
    GetNotes,
    GetPack,
    GetRevision,
    GetRollout,
    GetSnapshot,
    GetStatus,
    KeepNotes,
    Notes,
    Operation,
    Pack,
    Past,
    Revision,
    Rollback,
    SetShadow,
    SetTraffic,
    Shutdown,
    SnapshotMessage,
    StartHTTP,
    Status,
)
from headrace.wire.pack import is_pack_name

logger = logging.getLogger(__name__)

_ASKS_ONLY = (GetStatus, GetHistory, GetRevision, GetPack, GetNotes, GetSnapshot, GetRollout, Shutdown)


class Operations:
    """Takes up operations. `wake` has the reconciler look; `end` begins the orderly end of the instance."""

    def __init__(
        self,
        *,
        engine: Engine,
        registry: Registry,
        history: Chronicle,
        store: StateStore,
        packs: PackStore,
        actor: Actor,
        waiters: Waiters,
        proxies: Proxies,
        nodes: Nodes,
        feed: Feed,
        census: Census,
        delivery: Delivery,
        wake: Callable[[], None],
        end: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._history = history
        self._store = store
        self._packs = packs
        self._actor = actor
        self._waiters = waiters
        self._proxies = proxies
        self._nodes = nodes
        self._feed = feed
        self._census = census
        self._wake = wake
        self._end = end
        self._spawn = spawn
        self._delivery = delivery
        self.ending = False

    def __repr__(self) -> str:
        return f"<Operations{' ending' if self.ending else ''}>"

    def take(self, operation: Operation, waiter: Waiter, now: float) -> None:
        """Take up the operation. Its errors are its answer."""
        if not isinstance(operation, _ASKS_ONLY):
            waiter.hold(self._when_kept)
        try:
            self._take(operation, waiter, now)
        except HeadraceError as error:
            waiter.fail(error)
        except Exception as error:  # the top of an operation: whoever waits for it must get an answer
            logger.exception("a %s could not be taken up", type(operation).__name__)
            waiter.fail(HeadraceError(f"{type(operation).__name__}: the controller failed: {error!r}"))
        self._wake()

    def _take(self, operation: Operation, waiter: Waiter, now: float) -> None:
        match operation:
            case GetStatus():
                self._spawn(self._tell_status(waiter, now))
            case GetHistory(app=name):
                waiter.answer(self._past(name))
            case GetRevision(app=name, number=number):
                waiter.answer(self._revision(name, number))
            case GetPack(name=name):
                waiter.answer(self._pack(name))
            case GetNotes(prefix=prefix):
                waiter.answer(Notes(self._store.notes(prefix)))
            case GetSnapshot():
                waiter.answer(SnapshotMessage(self._feed.snapshot))
            case Shutdown():
                waiter.answer(Done())
                self._end()
            case _ if self.ending:
                raise InstanceError(f"the instance is shutting down: {type(operation).__name__} comes too late")
            case GetRollout(app=name):
                waiter.answer(self._delivery.rollout(name, now))
            case Deploy():
                self._delivery.deploy(operation, waiter, now)
            case SetTraffic():
                self._delivery.set_traffic(operation, waiter)
            case SetShadow():
                self._delivery.set_shadow(operation, waiter)
            case ControlRollout():
                self._delivery.control(operation, waiter, now)
            case Rollback():
                self._delivery.roll_back(operation, waiter, now)
            case KeepNotes(notes=notes, absent=absent):
                self._keep_notes(notes, absent)
                waiter.answer(Done())
            case Delete(app=name, expected=expected):
                self._delete(name, expected, waiter)
            case StartHTTP(options=options, grpc=grpc):
                self._start_http(options, grpc, waiter)

    def _when_kept(self, tell: Callable[[], object]) -> None:
        """Tell of what was done once it is kept: at once where it is, or nobody knows when it will be."""
        if self._store.settling and not self.ending:
            self._spawn(self._tell_when_kept(tell))
        else:
            tell()

    async def _tell_when_kept(self, tell: Callable[[], object]) -> None:
        await self._store.settled()
        tell()

    async def _tell_status(self, waiter: Waiter, now: float) -> None:
        await self._census.take()
        apps = self._registry.apps.values()
        rollouts = self._delivery.rollouts(now)
        proxies = self._proxies.details()
        nodes = self._nodes.details()
        waiter.answer(Status(serve_status(apps, proxies, self._feed.snapshot.instance, now, rollouts, nodes)))

    # --- what was, and of whom --------------------------------------------------------------------------------------

    def _past(self, name: str) -> Past:
        if name not in self._registry.apps and name not in self._history:
            raise self._not_found(name)
        return Past(self._history.history(name))

    def _revision(self, name: str, number: int) -> Revision:
        app = self._registry.apps.get(name)
        if app is None and name not in self._history:
            raise self._not_found(name)
        number = number or (app.current if app is not None else 0)
        if not number:
            raise RevisionNotFound(f"no revision of application {name!r} has the traffic now: name one by its number")
        spec = app.revisions.get(number) if app is not None else None
        spec = spec or self._history.spec_of(name, number)
        if spec is None:
            kept = ", ".join(map(str, self._history.kept(name))) or "none"
            raise RevisionNotFound(f"revision {number} of application {name!r} is not kept; those that are: {kept}")
        return Revision(number, spec, self._packs.load([spec.environment.pack]))

    def _pack(self, name: str) -> Pack:
        if not is_pack_name(name):  # nor may it be the path of any other file
            raise RevisionNotFound(f"{name!r} is no name of a source pack: 64 hex digits, the SHA-256 of its bytes")
        return Pack(self._packs.load([name])[name])

    def _keep_notes(self, notes: dict[str, bytes | None], absent: tuple[str, ...]) -> None:
        for name in absent:
            if name in self._store.notes(name):
                raise RevisionConflictError(f"there is a note {name!r} already: somebody else was faster")
        try:
            self._store.check()
        except InstanceError as error:
            raise DeployFailedError(str(error)) from error  # as it is, it would mean that no instance runs
        self._store.keep_notes(notes)

    def _not_found(self, name: str) -> ApplicationNotFound:
        known = ", ".join(sorted(self._registry.apps)) or "none"
        return ApplicationNotFound(f"no application is called {name!r}; there are: {known}")

    # --- applications -----------------------------------------------------------------------------------------------

    def _delete(self, name: str, expected: int | None, waiter: Waiter) -> None:
        app = self._registry.apps.get(name)
        if app is None:
            raise self._not_found(name)
        self._delivery.check_expected(name, app, expected)
        self._waiters.add_delete(name, waiter)
        self.begin_delete(app)

    def begin_delete(self, app: Application) -> None:
        """Let the application go: its routes first, then its replicas."""
        if app.deleting:
            return
        app.deleting = True
        app.weights_at = None
        self._registry.keep(app)
        logger.info("deleting application %r", app.name)
        error = DeployFailedError(f"application {app.name!r} was deleted while it was being deployed")
        self._waiters.end_all(app.name, Failed(type(error).__name__, str(error)))
        if app.rollout is not None:
            why = "the application was deleted"
            outcome = app.rollout.outcome or RolloutOutcome.SUPERSEDED.value
            self._history.end(app.name, app.rollout.revision, outcome, app.rollout.reason or why, time.time())

    # --- HTTP and gRPC ----------------------------------------------------------------------------------------------

    def _start_http(self, options: HTTPOptions, grpc: GrpcService | None, waiter: Waiter) -> None:
        present = self._proxies.options
        if present is not None and present.ingress_workers:
            if grpc is not None and not same_service(self._proxies.grpc, grpc):
                waiter.progress("what is served over gRPC stays as it is (stop the instance first to change it)")
            grpc = self._proxies.grpc
        if present is not None and present.ingress_workers and not same_address(present, options):
            waiter.progress(
                f"HTTP is served already on {present.host}:{present.port}, and stays there: "
                f"{options.host}:{options.port} is not used (stop the instance first to change it)"
            )
            options = present
        self._spawn(self._listen(options, grpc, waiter))

    async def _listen(self, options: HTTPOptions, grpc: GrpcService | None, waiter: Waiter) -> None:
        try:
            if options.ingress_workers:
                # Whoever asks is told at once of a port that cannot be had. Each of several nodes has its own.
                for place in self._nodes.places():
                    if place.status is NodeStatus.ALIVE and (place.head or options.location != "HeadOnly"):
                        reserved = await reserve_ports(self._engine, options, grpc, place.node)
                        if not place.node:
                            options, grpc = reserved
        except HeadraceError as error:
            waiter.fail(error)
            return
        self._store.keep_ingress(options, grpc)
        self._proxies.configure(options, grpc)
        self._proxies.when_listening(lambda error: waiter.answer(Done()) if error is None else waiter.fail(error))


def same_address(present: HTTPOptions, asked: HTTPOptions) -> bool:
    """Whether who asks for these options means the address that is listened on already (port 0: any)."""
    return present.host == asked.host and asked.port in (0, present.port)


def same_service(present: GrpcService | None, asked: GrpcService) -> bool:
    """Whether what is served over gRPC is what is asked for (port 0: any)."""
    if present is None:
        return False
    if asked.options.port:
        return present.options == asked.options
    return msgspec.structs.replace(present.options, port=0) == asked.options
