"""The controller's loop: observe, plan, act, publish; woken by events, never by the clock alone.

In: exits from the engine, reports of workers and ingress processes, changed wishes from the operations. Out: actions to
the Actor, snapshots to the feed and to the disk.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from headrace.controller.act import PRINTED_LAST, Actor
from headrace.controller.census import Census
from headrace.controller.feed import Feed
from headrace.controller.judge import Judge
from headrace.controller.nodes import Nodes
from headrace.controller.proxies import Proxies
from headrace.controller.registry import Registry
from headrace.controller.waiters import Waiters
from headrace.core import plan
from headrace.core.fleet import Replica
from headrace.core.lifecycle import Event, Phase
from headrace.core.publication import build_snapshot, note_published, same_routes
from headrace.engine.base import Engine, ProcessExited, ProcessInfo
from headrace.spec.errors import ProtocolError
from headrace.spec.snapshot import Snapshot
from headrace.spec.status import ReplicaState
from headrace.wire.channel import ControlChannel
from headrace.wire.control import EndProcess, IngressReport, Message, ReplicaReport

logger = logging.getLogger(__name__)

_EVENTS = {
    ReplicaState.STARTING: Event.CONSTRUCTING,
    ReplicaState.RUNNING: Event.READY,
    ReplicaState.FAILED: Event.BROKEN,
    ReplicaState.STOPPING: Event.LEAVING,
    ReplicaState.STOPPED: Event.LEAVING,
}


def describe_exit(event: ProcessExited) -> str:
    """What a person should read of the end of a process that nobody asked for."""
    how = f"exit code {event.code}"
    if event.code < 0:
        try:
            how = signal.Signals(-event.code).name
        except ValueError:
            how = f"signal {-event.code}"
    tail = "\n".join(event.tail)
    return f"its process (pid {event.pid}) died: {how}" + (f"{PRINTED_LAST}\n{tail}" if tail else "")


class Reconciler:
    """Brings what is towards what should be, one application at a time.

    `write` keeps a snapshot on disk, `cut` ends the connections of a node that is lost, `after_round` is called when a
    round has acted.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        registry: Registry,
        nodes: Nodes,
        actor: Actor,
        proxies: Proxies,
        feed: Feed,
        census: Census,
        judge: Judge,
        waiters: Waiters,
        write: Callable[[Snapshot], None],
        cut: Callable[[str], None],
        after_round: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._nodes = nodes
        self._actor = actor
        self._proxies = proxies
        self._feed = feed
        self._census = census
        self._judge = judge
        self._waiters = waiters
        self._write = write
        self._cut = cut
        self._after_round = after_round
        self._woken = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Reconciler {self._registry!r} {self._feed!r}>"

    def wake(self) -> None:
        """Look again: something happened."""
        self._woken.set()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            try:
                wake_at = self.step(loop.time())
            except Exception:  # the top of the loop: a fault in one round must not end the controller
                logger.exception("a round of the controller failed")
                wake_at = loop.time() + 1.0
            timer = loop.call_at(wake_at, self.wake) if wake_at is not None else None
            try:
                await self._woken.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            await asyncio.sleep(0)  # whatever else arrived meanwhile goes into the same round

    def step(self, now: float) -> float | None:
        """One round. Returns when the next is due if nothing happens before; wakes itself where more can be done."""
        self._note_nodes(now)
        wake_at = self._proxies.step(now, {replica.node for replica in self._registry.replicas()})
        acted = False
        routed = self._feed.routed(now)
        leaving = self._nodes.leaving()
        for app in list(self._registry.apps.values()):
            app.leaving = leaving
            if self._judge.look(app):
                self._registry.keep(app)
            planned = plan.plan_application(app, routed, now)
            for action in planned.actions:
                self._actor.perform(app, action, now)
                acted = True
            wake_at = _earlier(wake_at, planned.wake_at)
        if self._publish(now) or acted:
            self.wake()
        self._waiters.published(self._feed.snapshot.version, self._feed.routed(now))
        self._after_round()
        return _earlier(wake_at, self._feed.next_timeout(now))

    def _note_nodes(self, now: float) -> None:
        """What runs on nodes that are lost is gone, at once and all of it; where there is more room, it may be used."""
        for node in self._nodes.take_losses():
            for id in self._proxies.on_node(node):
                self._feed.leave(id)  # it goes on by what it knows, for those who can reach it
            self._cut(node)  # what is there says hello anew when it can, and is told what it is by then
        for replica in self._registry.replicas():
            if replica.node and self._nodes.is_lost(replica.node):
                self._feed.leave(replica.process_id)
                self._census.heard(replica.process_id)
                self._actor.give_up(replica)
        if self._nodes.take_arrivals():
            for app in self._registry.apps.values():
                for failures in app.failures.values():
                    if failures.short:
                        failures.short = False
                        failures.restarts.hurry(now)

    def _publish(self, now: float) -> bool:
        """Publish what routers should know, if it is other than what they do. True: plans may go further now."""
        present = self._feed.snapshot
        apps = self._registry.apps.values()
        version, lost = present.version + 1, self._nodes.all_lost()
        snapshot = build_snapshot(apps, present.instance, version, self._proxies.number, lost)
        if same_routes(present, snapshot):
            snapshot = present
        else:
            self._write(snapshot)
            self._feed.publish(snapshot, now)
        return note_published(apps, snapshot)

    # --- what came before -------------------------------------------------------------------------------------------

    def adopt(self, processes: list[ProcessInfo], published: Snapshot | None, now: float) -> None:
        """Take over what an earlier controller left: `processes` that live, `published` as routers still know it.

        A replica whose process lives goes on as it was until its worker reports; one whose process does not is gone.
        Processes that nobody knows are ended.
        """
        living = {info.id: info for info in processes}
        listed = {
            f"{replica.id}@{entry.app}": replica
            for entry in (published.deployments.values() if published is not None else ())
            for replica in entry.replicas
        }
        for replica in self._registry.replicas():
            info = living.pop(replica.process_id, None)
            replica.launched_at = now
            replica.phase = Phase.RECOVERING
            if info is None:
                self._actor.gone(replica, "its process died while there was no controller", now)
                continue
            replica.pid, replica.node = info.pid, info.node
            known = listed.get(replica.process_id)
            if known is not None and published is not None:
                replica.address, replica.near = known.address, known.near
                replica.node = replica.node or known.node
                replica.listed, replica.listed_at = True, published.version
            else:
                replica.listed, replica.listed_at = False, None
            self._nodes.expect(replica.node, now)
            self._feed.expect(replica.process_id, now)
        for info in living.values():
            if info.role == "ingress":
                self._proxies.adopt(info, now)
                self._feed.expect(info.id, now)
            elif info.role == "worker":
                logger.warning("ending %s (pid %d), of which nothing is known", info.id, info.pid)
                self._engine.stop(info.id, 0.0)
        self.wake()

    # --- what happens -----------------------------------------------------------------------------------------------

    def exited(self, event: ProcessExited, now: float) -> None:
        """A process is gone."""
        self._feed.leave(event.id)
        replica = self._registry.replica(event.id)
        if replica is not None and self._nodes.is_doubtful(replica.node):
            self._actor.give_up(replica)
        elif replica is not None:
            self._actor.gone(replica, describe_exit(event), now)
        elif event.id in self._proxies:
            self._proxies.exited(event, now)
        self.wake()

    def worker_connected(self, process_id: str, channel: ControlChannel, now: float) -> None:
        """A worker has said hello. One that nobody knows (any more) is ended."""
        replica = self._registry.replica(process_id)
        if replica is None:
            logger.warning("ending worker %s, of which nothing is known", process_id)
            self._actor.end_unknown(process_id, channel)
            return
        self._actor.connected(replica, channel, now)
        self.wake()

    def worker_lost(self, process_id: str, channel: ControlChannel) -> None:
        """A worker's connection has ended."""
        self._census.heard(process_id)
        self._actor.disconnected(process_id, channel)

    def reported(self, process_id: str, report: ReplicaReport, now: float) -> None:
        """A worker says how its replica is. Raises ProtocolError when it speaks of another's."""
        if process_id != f"{report.replica_id}@{report.app}":
            raise ProtocolError(f"{process_id} reports on {report.replica_id} of {report.app}, which is not its own")
        replica = self._registry.replica(process_id)
        if replica is None:
            return  # it ends already
        try:
            self._observe(replica, report, now)
        finally:
            self._census.heard(process_id)
            self.wake()

    def _observe(self, replica: Replica, report: ReplicaReport, now: float) -> None:
        app = self._registry.app_of(replica)
        before = replica.phase
        replica.on(_EVENTS[report.state])
        replica.pid = report.pid or replica.pid
        replica.ongoing = report.ongoing
        replica.address = report.address or replica.address
        replica.node, replica.near = report.node or replica.node, report.near or replica.near
        match replica.phase:
            case Phase.RUNNING if before is not Phase.RUNNING:
                self._actor.started(replica)
            case Phase.RUNNING if report.told_at == replica.told_at:
                replica.reconfiguring = False
            case Phase.FAILED if before is not Phase.FAILED:
                # One that served says so for no other reason than options that it does not take.
                served = before is Phase.RUNNING or replica.listed
                error = report.error or "it gave no reason"
                self._actor.failed(app, replica, error, now, starting=not served, refused=served)
            case Phase.DRAINING if before is not Phase.DRAINING:
                spec = plan.specification(app, replica.key)
                grace_s = spec.options.graceful_shutdown_timeout_s if spec is not None else 0.0
                replica.stop_by = now + grace_s + plan.DRAIN_MARGIN_S
            case Phase.STOPPING if before in (Phase.LAUNCHING, Phase.STARTING):
                self._engine.stop(replica.process_id, plan.KILL_GRACE_S)
                self._actor.failed(app, replica, "it stopped before it was ready", now, starting=True)
            case _:
                pass

    def ingress_connected(self, process_id: str, node: str, pid: int, channel: ControlChannel, now: float) -> None:
        """An ingress has said hello. One that has no place (any more) is ended."""
        if not self._proxies.connected(process_id, node, pid, now):
            logger.warning("ending %s (pid %d), which has no place", process_id, pid)
            channel.send(EndProcess(self._proxies.drain_s))
        self.wake()

    def ingress_reported(self, process_id: str, report: IngressReport) -> None:
        """An ingress says how it is. Raises ProtocolError when it speaks of another."""
        if process_id != report.ingress_id:
            raise ProtocolError(f"{process_id} reports on {report.ingress_id}, which is not itself")
        try:
            self._proxies.report(report)
        finally:
            self.wake()

    # --- subscriptions ----------------------------------------------------------------------------------------------

    def subscribed(self, id: str, have: int, send: Callable[[Message], bool], now: float) -> None:
        """Somebody routes by the snapshots from now on."""
        self._feed.subscribe(id, have, send, now)
        self.wake()

    def unsubscribed(self, id: str) -> None:
        """Somebody is gone who routed by the snapshots."""
        self._feed.leave(id)
        self.wake()

    def acknowledged(self, id: str, version: int, now: float) -> None:
        """Somebody routes by this version."""
        self._feed.acknowledge(id, version, now)
        self.wake()


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
