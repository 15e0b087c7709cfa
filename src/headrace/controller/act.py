"""The controller's hands: each action of a plan, carried out.

In: actions from `core.plan`, by the reconciler. Out: starts and stops to the engine, messages to workers, changes of
the records, lines and answers to those who wait. What an act cannot finish at once goes on as a task, which wakes the
reconciler when it is done.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from headrace.controller.history import Chronicle
from headrace.controller.nodes import Nodes
from headrace.controller.registry import Registry
from headrace.controller.waiters import Waiters
from headrace.core import plan
from headrace.core import rollout as rollouts
from headrace.core.fleet import Application, Replica
from headrace.core.lifecycle import COUNTED, Event, Phase
from headrace.core.rollout import Rollout, Stage
from headrace.engine.base import Engine, ProcessRequest, Resources
from headrace.spec.application import DeploymentSpec
from headrace.spec.errors import DeployFailedError, HeadraceError, OptionError, ResourcesShortError
from headrace.spec.status import RolloutOutcome
from headrace.wire.channel import ControlChannel
from headrace.wire.control import (
    Deployed,
    DescribeReplica,
    DrainReplica,
    EndProcess,
    Failed,
    HostReplica,
    Message,
    ReconfigureReplica,
)

logger = logging.getLogger(__name__)

LEAVING = frozenset({Phase.RETIRING, Phase.DRAINING, Phase.FAILED, Phase.STOPPING})
WORKING = frozenset({Phase.RUNNING, Phase.RETIRING, Phase.DRAINING})
RESOURCES_WAIT_S = 0.2
MOVE_WAIT_S = 5.0  # before what has no room elsewhere is tried again
BESIDE = (
    "; new replicas start beside those that they replace: where there is no room for that, deploy with "
    "rollout=RollingUpdate(max_surge=0, max_unavailable=1), which stops one before it starts another"
)
PRINTED_LAST = "; it printed last:"  # before the last lines of a process that died


def last_line(error: str) -> str:
    """The line of a traceback that says what it was; of a process that died, how it did before what it printed last."""
    first, _, rest = error.rstrip().partition("\n")
    last = rest.rpartition("\n")[2]
    return f"{first} {last}" if first.endswith(PRINTED_LAST) else last or first


class Actor:
    """Carries out actions. `version` tells that of the present snapshot, `wake` has the reconciler look again."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        waiters: Waiters,
        history: Chronicle,
        version: Callable[[], int],
        wake: Callable[[], None],
        nodes: Nodes,
    ) -> None:
        self._engine = engine
        self._nodes = nodes
        self._registry = registry
        self._waiters = waiters
        self._history = history
        self._version = version
        self._wake = wake
        self._channels: dict[str, ControlChannel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends = 0  # of replicas, so far: each may have made room for another

    def __repr__(self) -> str:
        return f"<Actor {len(self._channels)} workers connected, {len(self._tasks)} tasks>"

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine as a task of this object, to its end or until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the controller failed", exc_info=task.exception())

    async def close(self) -> None:
        """Cancel what still goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def perform(self, app: Application, action: plan.Action, now: float) -> None:
        """Take up the action: the record changes at once, what takes time follows."""
        match action:
            case plan.Start():
                self._start(app, action, now)
            case plan.Retire(id=id):
                app.replicas[id].on(Event.RETIRE)
            case plan.Drain(id=id, deadline_s=deadline_s):
                self._drain(app.replicas[id], deadline_s, now)
            case plan.Stop(id=id, grace_s=grace_s, error=error):
                self._stop(app, app.replicas[id], grace_s, error, now)
            case plan.Reconfigure(id=id, spec=spec):
                self._reconfigure(app.replicas[id], spec, now)
            case plan.Share(weights=weights):
                self._share(app, weights)
            case plan.Advance(rollout=rollout):
                self._advance(app, rollout)
            case plan.Promote(rollout=rollout):
                self._promote(app, rollout)
            case plan.Abandon(error=error, kind=kind, rollout=rollout):
                self._abandon(app, error, kind, rollout)
            case plan.Settle():
                self._settle(app)
            case plan.Forget(revision=revision):
                self._registry.forget_revision(app, revision)
            case plan.Vanish():
                self._registry.forget_application(app)
                logger.info("application %r is gone", app.name)
                self._waiters.vanished(app.name)

    # --- replicas ---------------------------------------------------------------------------------------------------

    def _start(self, app: Application, action: plan.Start, now: float) -> None:
        replica = self._registry.add_replica(app, action, now)
        logger.info("starting %s of application %r", replica.id, app.name)
        self.spawn(self._launch(app, replica, action.spec))

    async def _launch(self, app: Application, replica: Replica, spec: DeploymentSpec) -> None:
        options = spec.options
        request = ProcessRequest(
            id=replica.process_id,
            role="worker",
            argv=(sys.executable, "-P", "-m", "headrace.replica"),
            env=app.revisions[replica.revision].environment.variables | options.environment,
            resources=Resources(cpus=options.num_cpus, gpus=options.num_gpus),
            placement=options.placement_of(replica.key),
            avoid=self._nodes.avoided(),
        )
        ends = self._ends
        try:
            # Its name is used up before there is anything of that name: the next controller must not give it again.
            await self._registry.settled()
            info = await self._engine.start(request)
        except HeadraceError as error:
            self._refused(app, replica, error, made_room=self._ends != ends)
        else:
            if replica.phase is Phase.GONE and replica.node:
                self._engine.abandon(replica.process_id)  # it was given up before the engine told of it
            replica.pid = info.pid
            replica.node = info.node or replica.node
            if replica.phase is not Phase.GONE:
                replica.on(Event.LAUNCHED)
            if replica.phase is Phase.STOPPING:
                # It was stopped before the engine knew of it.
                self._engine.stop(replica.process_id, plan.KILL_GRACE_S)
        self._wake()

    def _refused(self, app: Application, replica: Replica, error: HeadraceError, *, made_room: bool) -> None:
        """The engine does not start the replica. `made_room`: another has ended since it was asked to."""
        now = asyncio.get_running_loop().time()
        if replica.phase is Phase.GONE:
            return  # it was given up
        wanted = replica.phase is Phase.LAUNCHING
        replica.on(Event.EXITED)
        self._registry.remove_replica(replica)
        if not wanted:
            return
        failures = app.failures_of(replica.key)
        failures.short = isinstance(error, ResourcesShortError)
        if failures.short and app.moving(replica.key):
            logger.warning("what runs on a node that leaves has no room elsewhere, and stays for now: %s", error)
            failures.restarts.postpone(now + MOVE_WAIT_S, replica.level)
            return
        if failures.short and (made_room or self._something_leaves()):
            failures.restarts.postpone(now + RESOURCES_WAIT_S, replica.level)
            return
        if app.deploying and isinstance(error, ResourcesShortError | OptionError):
            failures.final = type(error).__name__
        text = str(error)
        if isinstance(error, ResourcesShortError) and app.rollout is not None and app.rollout.base:
            text += BESIDE
        self.failed(app, replica, text, now, starting=True)

    def _something_leaves(self) -> bool:
        wanted = {app.name: app.wanted() for app in self._registry.apps.values()}
        return any(each.phase in LEAVING or each.key not in wanted[each.app] for each in self._registry.replicas())

    def failed(
        self, app: Application, replica: Replica, error: str, now: float, *, starting: bool, refused: bool = False
    ) -> None:
        """Note that the replica failed (while `starting`, or later), tell who waits, and plan its successor.

        `refused`: it did not take its new options. Then a deploy ends at once, before others are told them too.
        """
        replica.error = error
        failures = app.failures_of(replica.key)
        failures.error = error
        failures.starts += starting
        if refused and app.deploying:
            failures.final = DeployFailedError.__name__
        if app.deleting:
            return
        wait_s = failures.restarts.fail(now, replica.level, now - replica.launched_at, app.number_wanted(replica.key))
        what = "failed to start" if starting else "failed"
        # Its whole traceback is in its own log, in the status, and on the terminal of who waits.
        logger.error(
            "%s of application %r %s (next try in %g s): %s", replica.id, app.name, what, wait_s, last_line(error)
        )
        self._waiters.progress(app.name, f"{replica.id} {what}:\n{error}")

    def _drain(self, replica: Replica, deadline_s: float, now: float) -> None:
        replica.on(Event.DRAIN)
        replica.stop_by = now + deadline_s + plan.DRAIN_MARGIN_S
        self._send(replica, DrainReplica(replica.id, deadline_s))

    def _stop(self, app: Application, replica: Replica, grace_s: float, error: str, now: float) -> None:
        starting = replica.phase is not Phase.RUNNING
        replica.on(Event.STOP)
        self._engine.stop(replica.process_id, grace_s)
        if error:
            self.failed(app, replica, error, now, starting=starting, refused=replica.reconfiguring)

    def _reconfigure(self, replica: Replica, spec: DeploymentSpec, now: float) -> None:
        replica.configured = spec
        replica.told_at = now
        replica.reconfiguring = self._send(replica, ReconfigureReplica(replica.id, spec, now))
        if not replica.reconfiguring:
            replica.configured = None  # it comes back, and is told then

    # --- workers' connections ---------------------------------------------------------------------------------------

    def connected(self, replica: Replica, channel: ControlChannel, now: float) -> None:
        """The replica's worker has said hello: tell it what it should be."""
        self._channels[replica.process_id] = channel
        if replica.phase in (Phase.LAUNCHING, Phase.STARTING, Phase.RECOVERING):
            self._host(replica)
        elif replica.phase is Phase.DRAINING:
            self._send(replica, DrainReplica(replica.id, max(0.0, replica.stop_by - plan.DRAIN_MARGIN_S - now)))
        elif replica.reconfiguring and replica.configured is not None:
            self._send(replica, ReconfigureReplica(replica.id, replica.configured, replica.told_at))

    def disconnected(self, process_id: str, channel: ControlChannel) -> None:
        """A worker's connection has ended; whether its process has, the engine says."""
        if self._channels.get(process_id) is channel:
            del self._channels[process_id]

    def _host(self, replica: Replica) -> None:
        app = self._registry.app_of(replica)
        spec = app.wanted().get(replica.key) or plan.specification(app, replica.key)
        if spec is None:
            return
        number = replica.revision
        if number not in app.revisions:  # whose replicas it shares has the same code, and perhaps other surroundings
            number = max(each for each in app.revisions if app.deployment_of(each, replica.key) is not None)
        if replica.phase is not Phase.RECOVERING:
            replica.configured = spec  # one that hosts it already goes by what it was told before
        self._send(
            replica,
            HostReplica(
                replica_id=replica.id,
                app=app.name,
                key=replica.key,
                revision=number,
                spec=spec,
                environment=app.revisions[number].environment,
                address=replica.address,
                last_error=app.failures_of(replica.key).error,
            ),
        )

    def ask_reports(self) -> list[str]:
        """Ask the workers of all replicas that may have calls in work to report. Returns the ids of those reached."""
        return [
            replica.process_id
            for replica in self._registry.replicas()
            if replica.phase in WORKING and self._send(replica, DescribeReplica(replica.id))
        ]

    def _send(self, replica: Replica, message: Message) -> bool:
        channel = self._channels.get(replica.process_id)
        return channel is not None and channel.send(message)

    # --- revisions --------------------------------------------------------------------------------------------------

    def _share(self, app: Application, weights: dict[int, float]) -> None:
        before = app.weights
        self._registry.weigh(app, weights)
        self._registry.keep(app)
        shares = ", ".join(f"{weight:.1%} to revision {number}" for number, weight in weights.items())
        logger.info("the traffic of application %r goes %s", app.name, shares)
        number = app.rollout.revision if app.rollout is not None else rollouts.heaviest(weights)
        if before:
            self._waiters.progress(app.name, f"the traffic goes {shares}")
        self._history.event(app.name, number, "traffic", shares, at=time.time())
        if number in weights and (app.rollout is None or app.rollout.stage is not Stage.RETREATING):
            self._waiters.reached(app.name, Deployed(app.name, number, self._version()))

    def _advance(self, app: Application, rollout: Rollout) -> None:
        app.rollout = rollout
        self._registry.keep(app)
        what = f"revision {rollout.revision}: {rollouts.describe(rollout)}"
        logger.info("application %r, %s", app.name, what)
        self._waiters.progress(app.name, what)
        if rollout.stage is Stage.WATCHING:  # of a shadow, all that it gets
            self._waiters.reached(app.name, Deployed(app.name, rollout.revision, self._version()))
        self._history.event(app.name, rollout.revision, rollout.stage.value, rollouts.describe(rollout), at=time.time())

    def _promote(self, app: Application, rollout: Rollout) -> None:
        before, app.current = app.current, rollout.revision
        app.rollout, app.ended = None, rollout
        app.split = {}
        app.weights_at = None
        self._registry.keep(app)
        self.ended(app, rollout)
        if before > app.current:
            why = f"the traffic went back to revision {app.current}"
            self._history.end(app.name, before, RolloutOutcome.ROLLED_BACK.value, why, time.time())
        logger.info("revision %d of application %r takes the traffic", app.current, app.name)
        if before:
            self._waiters.progress(app.name, f"revision {app.current} takes the traffic from revision {before}")

    def _abandon(self, app: Application, error: str, kind: str, rollout: Rollout | None) -> None:
        app.failure = error
        app.deploying = False
        what = "did not come up"
        if rollout is not None:
            app.rollout, app.ended = None, rollout
            app.rolled_back = rollout.outcome == RolloutOutcome.ROLLED_BACK
            self.ended(app, rollout)
            if not rollout.base:  # a first revision, which may have had the traffic for a moment
                self._registry.weigh(app, {})
        number = app.target
        if app.before is not None:
            what = "did not take its new options, and goes on with those before"
        elif rollout is None and app.fallback:
            shares = ", ".join(f"{weight:.1%} to revision {each}" for each, weight in app.fallback.items())
            what = f"did not come up; the traffic goes as before: {shares}"
        elif app.rolled_back:
            what = f"was rolled back; revision {rollouts.heaviest(app.base())} has the traffic"
        elif app.current:
            what = f"did not come up; revision {app.current} goes on serving as before"
        message = f"application {app.name!r}, revision {number}, {what}: {error}"
        self._restore(app)
        if rollout is None and app.fallback:
            self._history.event(app.name, app.target, "not shared", f"it stays as it was: {error}", at=time.time())
            self._registry.fall_back(app)
        self._registry.keep(app)
        level = logging.WARNING if app.rolled_back else logging.ERROR
        logger.log(level, "application %r, revision %d, %s: %s", app.name, number, what, last_line(error))
        self._waiters.end_deploy(app.name, Failed(kind, message))
        outcome = rollout.outcome if rollout is not None else RolloutOutcome.FAILED.value
        self._waiters.end_rollout(
            app.name, Deployed(app.name, rollouts.heaviest(app.base()), self._version(), outcome, error)
        )

    def _settle(self, app: Application) -> None:
        app.failure = ""
        app.before = None
        app.fallback = {}
        app.deploying = False
        for key in app.wanted():
            app.failures_of(key).starts = 0
        self._registry.keep(app)
        logger.info("application %r runs as revision %d", app.name, app.current)
        # Options may have changed in place, or the split: then the last rollout, however it ended, is long past.
        outcome = RolloutOutcome.PROMOTED.value
        answer = Deployed(app.name, app.current, self._version(), outcome)
        self._waiters.end_deploy(app.name, answer)
        self._waiters.end_rollout(app.name, answer)

    def ended(self, app: Application, rollout: Rollout) -> None:
        """Note how a rollout has ended, and keep no more of the past than the application asks for."""
        self._history.end(app.name, rollout.revision, rollout.outcome, rollout.reason, time.time())
        in_use = {app.target, app.current, *app.weights, *app.split, *app.fallback, *app.shadows, *app.base()}
        self._history.prune(app.name, app.spec.history, in_use)

    def supersede(self, app: Application, reason: str) -> None:
        """What is being deployed will not be: tell those who wait for it. Options that were to change in place, or a
        split that was not there yet, are as before again. A rollout that was going back already has ended as it was to.
        """
        rollout = app.rollout
        if rollout is not None and not rollout.outcome:
            rollout = msgspec.structs.replace(rollout, outcome=RolloutOutcome.SUPERSEDED.value, reason=reason)
        if rollout is not None:
            self.ended(app, rollout)
        number = app.target
        self._restore(app)
        if rollout is None and app.fallback:
            self._registry.fall_back(app)
        ended = rollout or app.ended
        if ended is not None:
            good, version = rollouts.heaviest(app.base()), self._version()
            self._waiters.end_rollout(app.name, Deployed(app.name, good, version, ended.outcome, ended.reason))
        error = DeployFailedError(f"application {app.name!r}, revision {number}, was given up: {reason}")
        self._waiters.end_deploy(app.name, Failed(type(error).__name__, str(error)))

    def _restore(self, app: Application) -> None:
        """Put the target back as it was before its options were changed in place, if they were."""
        refused = app.revisions.get(app.target)
        if app.before is None or refused is None:
            return
        self._registry.restore_target(app)
        self._history.changed(app.name, app.target, app.spec, "", time.time(), refused)

    def started(self, replica: Replica) -> None:
        """The replica takes calls: tell who waits."""
        app = self._registry.app_of(replica)
        ready = sum(other.phase is Phase.RUNNING for other in app.of(replica.key))
        wanted = app.number_wanted(replica.key)
        logger.info("%s of application %r is ready (pid %d)", replica.id, app.name, replica.pid)
        self._waiters.progress(app.name, f"{replica.id} is ready ({ready} of {wanted})")

    def give_up(self, replica: Replica) -> None:
        """The replica's node is lost: it is gone, by no fault of its own, and its successor starts at once."""
        app = self._registry.app_of(replica)
        logger.warning("%s of application %r is gone with node %s", replica.id, app.name, replica.node)
        self._waiters.progress(app.name, f"{replica.id} is gone with node {replica.node}")
        replica.on(Event.EXITED)
        self._ends += 1
        self._registry.remove_replica(replica)
        self._channels.pop(replica.process_id, None)
        self._engine.abandon(replica.process_id)

    def end_unknown(self, process_id: str, channel: ControlChannel) -> None:
        """End a worker whose place is another's by now: over its connection, as the engine may not know it any more. It
        has as long for what it has in work as its deployment gives, if that is still there.
        """
        id, _, name = process_id.rpartition("@")
        deployment = id.rpartition("#")[0]
        app = self._registry.apps.get(name)
        given = [
            each.options.graceful_shutdown_timeout_s
            for spec in (app.revisions.values() if app is not None else ())
            for each in spec.deployments
            if each.name == deployment
        ]
        grace_s = max(given, default=0.0)
        channel.send(EndProcess(grace_s))
        self._engine.stop(process_id, grace_s + plan.DRAIN_MARGIN_S if given else 0.0)

    def gone(self, replica: Replica, error: str, now: float) -> None:
        """The replica's process is gone; `error` says how, where it should not be."""
        app = self._registry.app_of(replica)
        before = replica.phase
        replica.on(Event.EXITED)
        if before in COUNTED:
            starting = before in (Phase.LAUNCHING, Phase.STARTING)
            self.failed(app, replica, error, now, starting=starting, refused=replica.reconfiguring)
        self._ends += 1
        self._registry.remove_replica(replica)
