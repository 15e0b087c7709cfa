"""One replica's life in this process: load its code, construct it, serve, reconfigure, drain, destroy.

In: the order to host it, then wishes (`reconfigure`, `drain`) that are only noted. Out: a ReplicaReport at each change
of state. Nothing here knows of the process around it, so that several replicas can live in one for tests.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.context import ReplicaContext, replica_variable
from headrace.replica import shelf
from headrace.replica.board import ModelBoard
from headrace.replica.destroy import call, disarm
from headrace.replica.failure import is_of_user_code
from headrace.replica.invoke import Invoker
from headrace.replica.place import Place
from headrace.replica.server import Server
from headrace.replica.threads import ThreadPool, in_thread
from headrace.spec.application import DeploymentSpec
from headrace.spec.errors import HeadraceError, InstanceError, OptionError
from headrace.spec.ingress import Ingress, ingress_of
from headrace.spec.status import ReplicaState
from headrace.wire.awake import Awake
from headrace.wire.code import load_code, unpack_arguments
from headrace.wire.control import HostReplica, ReplicaReport
from headrace.wire.payload import traceback_text

if TYPE_CHECKING:
    from headrace.replica.asgi import WebApplication

log = logging.getLogger("headrace.replica")

UNWIND_S = 0.5  # what cancelled calls have to come to an end
NO_LOOP = ("no running event loop", "There is no current event loop")  # how asyncio's errors begin
DESTROY_S = 1.0  # what a destructor has when the drain took all of its time

_S = ReplicaState
# What may follow what. FAILED is left only by being stopped.
TRANSITIONS: dict[ReplicaState | None, tuple[ReplicaState, ...]] = {
    None: (_S.STARTING,),
    _S.STARTING: (_S.RUNNING, _S.FAILED, _S.STOPPING),
    _S.RUNNING: (_S.RUNNING, _S.FAILED, _S.STOPPING),
    _S.FAILED: (_S.STOPPING,),
    _S.STOPPING: (_S.STOPPED,),
    _S.STOPPED: (),
}


class HostedReplica:
    """The replica that `order` asks for. `run` is its life; all else is called on the same loop and returns at once.

    `handle_for(name)` gives what stands for another deployment in the constructor's arguments. `prepare` readies the
    process for the replica's code, before that is loaded; what it raises is as if the code had raised it. `awake` is
    what the process waits with, where this replica is all that it hosts. `place` is its node's, where there are several
    nodes.
    """

    def __init__(
        self,
        order: HostReplica,
        report: Callable[[ReplicaReport], None],
        handle_for: Callable[[str], Any],
        prepare: Callable[[HostReplica], None] | None = None,
        awake: Awake | None = None,
        place: Place | None = None,
    ) -> None:
        self.order = order
        self._awake = awake
        self._place = place
        self._near = order.address if place is None else place.near(order.address)
        self._address = "" if place is not None else order.address
        self._models = ModelBoard()
        self.context = ReplicaContext(
            app_name=order.app,
            deployment=order.spec.name,
            replica_id=order.replica_id,
            revision=order.revision,
            max_ongoing_requests=order.spec.max_ongoing_requests,
            models=self._models,
            holds_handles=bool(order.spec.uses),
        )
        self.state: ReplicaState | None = None
        self.error = ""
        self._report = report
        self._handle_for = handle_for
        self._prepare = prepare
        self._spec = order.spec
        self._wanted = order.spec
        self._wanted_at = self._configured_at = 0.0  # `told_at` of what is wanted, and of what is done
        self._server: Server | None = None
        self._invoker: Invoker | None = None
        self._threads: ThreadPool | None = None
        self._application: WebApplication | None = None  # of a class with an ingress
        self._interruptible = False  # the constructor runs as a coroutine, which can be cancelled
        self._changed = asyncio.Event()
        self._drain_by: float | None = None
        self._drain_timer: asyncio.Timeout | None = None

    def __repr__(self) -> str:
        return f"<HostedReplica {self.order.replica_id} {self.state or 'new'} ongoing={self.ongoing}>"

    @property
    def ongoing(self) -> int:
        """Calls in work now."""
        return 0 if self._server is None else self._server.ongoing

    def describe(self) -> ReplicaReport:
        """The replica's state now, for the controller."""
        order = self.order
        return ReplicaReport(
            replica_id=order.replica_id,
            app=order.app,
            key=order.key,
            revision=order.revision,
            state=self.state or ReplicaState.STARTING,
            address=self._address or order.address,
            pid=os.getpid(),
            ongoing=self.ongoing,
            told_at=self._configured_at,
            error=self.error,
            node="" if self._place is None else self._place.node,
            near="" if self._place is None else self._near,
        )

    def reconfigure(self, spec: DeploymentSpec, told_at: float = 0.0) -> None:
        """Take over the options of `spec` that can change in place; a report follows, which repeats `told_at`."""
        self._wanted = spec
        self._wanted_at = told_at
        self._changed.set()

    def drain(self, deadline_s: float) -> None:
        """Take no new calls, finish those in work for `deadline_s` seconds at most, destroy the instance, and end.

        Again with less time shortens it.
        """
        by = asyncio.get_running_loop().time() + max(deadline_s, 0.0)
        if self._drain_by is None or by < self._drain_by:
            self._drain_by = by
            if self._drain_timer is not None and not self._drain_timer.expired():
                self._drain_timer.reschedule(by)
        self._changed.set()

    async def run(self) -> None:
        """Live until drained; every error of user code is reported as FAILED, and then waits for the drain."""
        replica_variable.set(self.context)
        self.context.loop = asyncio.get_running_loop()
        self._become(ReplicaState.STARTING)
        starting = asyncio.get_running_loop().create_task(self._start(), name="start")
        try:
            await self._until_started_or_drained(starting)
            while self._drain_by is None:
                if self._wanted is not self._spec and self.state is not ReplicaState.FAILED:
                    await self._apply(self._wanted, self._wanted_at)
                    continue
                self._changed.clear()
                await self._changed.wait()
            await self._finish(starting)
        finally:
            starting.cancel()
            if self._server is not None:
                self._server.close()
            if self._application is not None:
                self._application.release()
            if self._threads is not None:
                self._threads.close()

    # ---- starting

    async def _until_started_or_drained(self, starting: asyncio.Task[BaseException | None]) -> None:
        def ended(_: object) -> None:
            self._changed.set()

        starting.add_done_callback(ended)
        while not starting.done() and self._drain_by is None:
            self._changed.clear()
            await self._changed.wait()
        if starting.done() and self._drain_by is None and self.state is ReplicaState.STARTING:
            error = asyncio.CancelledError("cancelled by itself") if starting.cancelled() else starting.result()
            if error is not None:
                self._fail(error)

    async def _start(self) -> BaseException | None:
        """Come up; what user code raised on the way is returned, as raising it (a SystemExit) could end the loop."""
        try:
            await self._come_up()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the top of a task
            return error
        return None

    async def _come_up(self) -> None:
        """All that comes before RUNNING; goes no step further once a drain was asked for."""
        spec = self._spec
        if self._prepare is not None:
            # In a thread: it may have to fetch the sources.
            await in_thread(partial(self._prepare, self.order), "prepare")
        target, args, kwargs = await in_thread(self._load, "load")
        if self._drain_by is None:
            await self._construct(target, args, kwargs)
        if self._drain_by is None and spec.options.user_config is not None:
            await self._call_reconfigure(spec.options.user_config)
        if self._drain_by is None:
            ingress = ingress_of(target)
            if ingress is not None:
                await self._open(ingress)
        if self._drain_by is None:
            if self._spec.multiplexed:
                shelf.prepare(self.context, target)
            await self._serve()
            self._become(ReplicaState.RUNNING)

    def _load(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        target = load_code(self._spec.code)
        if not callable(target):
            raise OptionError(f"deployment {self._spec.name!r} is neither a class nor a function but {target!r}")
        args, kwargs = unpack_arguments(self._spec.arguments, self._handle_for)
        return target, args, kwargs

    async def _construct(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not inspect.isclass(target):
            self.context.servable_object = target
        elif inspect.iscoroutinefunction(target.__init__):
            # On the loop; if it is drained meanwhile, its destructor finds what there is of the instance.
            instance = self.context.servable_object = target.__new__(target, *args, **kwargs)
            self._interruptible = True
            await target.__init__(instance, *args, **kwargs)
            self._interruptible = False
        else:
            self.context.servable_object = await self._make(partial(target, *args, **kwargs))

    async def _make(self, construct: Callable[[], object]) -> object:
        """What a plain constructor makes: in a thread, for it may take long, and the process has to answer meanwhile.

        One that asks for the running loop, to leave a task on it, is called again on the loop: Ray Serve has it there.
        """
        try:
            return await in_thread(construct, "init")
        except RuntimeError as error:
            if not str(error).startswith(NO_LOOP):
                raise
        log.warning(
            "replica %s: its constructor asks for the running event loop, and is called again on the loop: make it "
            "`async def __init__`, and it is called once",
            self.order.replica_id,
        )
        return construct()

    async def _open(self, ingress: Ingress) -> None:
        from headrace.replica.asgi import open_application  # loaded where it is used

        self._interruptible = True
        self._application = await open_application(ingress, self.context, self._thread_pool())
        self._interruptible = False

    def _thread_pool(self) -> ThreadPool:
        if self._threads is None:
            self._threads = ThreadPool(asyncio.get_running_loop(), self._spec.max_ongoing_requests)
        return self._threads

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        limit = self._spec.max_ongoing_requests
        servable, application = self.context.servable_object, self._application
        self._invoker = Invoker(loop, servable, self.context, self._thread_pool(), application)
        self._server = Server(loop, self.order.replica_id, limit, self._invoker.start, self._awake, self._models)
        self._server.limit_queues(self._spec.options.max_queued_requests)
        try:
            await self._server.listen(self._near)
        except OSError as error:
            raise InstanceError(f"the replica cannot listen on {self._near}: {error}") from error
        if self._place is not None:
            self._address = self._place.listen(self._server, self.order.app)

    # ---- changing

    async def _apply(self, spec: DeploymentSpec, told_at: float) -> None:
        before, self._spec = self._spec, spec
        self._resize(spec.max_ongoing_requests)
        config = spec.options.user_config
        try:
            if config is not None and config != before.options.user_config:
                await self._call_reconfigure(config)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # user code may raise anything: this replica has failed, and no other
            self._fail(error)
        else:
            self._configured_at = told_at
            self._become(ReplicaState.RUNNING)

    def _resize(self, limit: int) -> None:
        self.context.max_ongoing_requests = limit
        server, threads = self._server, self._threads
        if server is not None:
            server.limit_queues(self._spec.options.max_queued_requests)
        if server is None or threads is None or server.gate.limit == limit:
            return
        threads.resize(limit)
        if self._application is not None:
            self._application.allow_threads(limit)
        server.gate.limit = limit
        while (caller := server.gate.offer(server.loop.time())) is not None:
            server.offer(caller)

    async def _call_reconfigure(self, config: Any) -> None:
        method = getattr(self.context.servable_object, "reconfigure", None)
        if not callable(method):
            raise OptionError(
                f"deployment {self._spec.name!r} has a user_config, but no method reconfigure(user_config) to take it"
            )
        await call(partial(method, config), method, "reconfigure")

    def _fail(self, error: BaseException) -> None:
        if is_of_user_code(error):
            self.error = traceback_text(error).rstrip()
        else:
            # Our own frames say nothing to the user: wrong arguments, a module that is not there.
            self.error = f"{type(error).__name__}: {error}"
        if self.error == self.order.last_error:
            last_line = self.error.rpartition("\n")[2]
            log.error("replica %s failed as the one before it did: %s", self.order.replica_id, last_line)
        else:
            log.error("replica %s failed:\n%s", self.order.replica_id, self.error)
        self._become(ReplicaState.FAILED)

    # ---- ending

    async def _finish(self, starting: asyncio.Task[BaseException | None]) -> None:
        self._become(ReplicaState.STOPPING)
        if self._interruptible:
            starting.cancel()
        try:
            async with asyncio.timeout_at(self._drain_by) as self._drain_timer:
                await asyncio.wait((starting,))
                await self._drain_calls()
        except TimeoutError:
            left = f"{self.ongoing} calls still in work" if starting.done() else "its constructor still runs"
            log.warning("replica %s: %s at the end of its drain", self.order.replica_id, left)
            await self._cut_off()
        self._drain_timer = None
        if self._application is not None:
            await self._application.close(self._last_moment())
        await self._close_models()
        await self._destroy()
        self._become(ReplicaState.STOPPED)

    async def _drain_calls(self) -> None:
        if self._server is not None and self._invoker is not None:
            self._server.drain()
            await self._server.drained()
            await self._invoker.rested()

    async def _cut_off(self) -> None:
        """Cancel what is left, and let it unwind."""
        if self._server is None or self._invoker is None:
            return
        self._server.drain()  # it may not have come to that
        self._server.close()
        self._invoker.cancel_background()
        try:
            async with asyncio.timeout(UNWIND_S):
                await self._server.drained()
                await self._invoker.rested()
        except TimeoutError:
            log.warning("replica %s: left %d calls behind", self.order.replica_id, self.ongoing)

    def _last_moment(self) -> float:
        """By when user code must have ended that runs after the calls."""
        return max(self._drain_by or 0.0, asyncio.get_running_loop().time() + DESTROY_S)

    async def _close_models(self) -> None:
        try:
            async with asyncio.timeout_at(self._last_moment()):
                await shelf.stop(self.context)
        except TimeoutError:
            log.warning("replica %s: closing its models did not end in time", self.order.replica_id)

    async def _destroy(self) -> None:
        """Call the instance's `__del__`, asynchronous or not, once and only here."""
        instance = self.context.servable_object
        if instance is None or inspect.isroutine(instance) or inspect.isclass(instance):
            return
        destructor = getattr(instance, "__del__", None)
        if destructor is None:
            return
        try:
            async with asyncio.timeout_at(self._last_moment()):
                await call(destructor, destructor, "del")
        except TimeoutError:
            log.warning("replica %s: its __del__ did not end in time", self.order.replica_id)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # as in _apply; the replica is going anyway
            log.error("replica %s: __del__ raised\n%s", self.order.replica_id, traceback_text(error).rstrip())
        disarm(instance)

    def _become(self, state: ReplicaState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise HeadraceError(f"replica {self.order.replica_id} cannot become {state} from {self.state}")
        self.state = state
        self._report(self.describe())
