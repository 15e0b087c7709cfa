"""The router of one process: which deployment entry a call belongs to, by the last snapshot; the pools of all entries.

In: calls of the ingress and of handles; snapshots of the controller's feed. Out: calls to pools; errors for calls that
no entry can take.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from time import perf_counter

from headrace.core.subset import choose_subset
from headrace.core.traffic import Split
from headrace.observe.tally import Tallies, Tally
from headrace.router.call import Call
from headrace.router.link import Link
from headrace.router.mirror import Mirrors
from headrace.router.pool import Pool
from headrace.spec.errors import (
    ApplicationNotFound,
    DeploymentNotFound,
    DeploymentUnavailableError,
    HeadraceError,
    InstanceError,
)
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, ReplicaEntry, Snapshot
from headrace.wire.awake import Awake
from headrace.wire.tcp import Credentials

log = logging.getLogger("headrace.router")

FEW_LINKS = 8


class Routes:
    """One application, resolved: revision number -> deployment name -> pool and tally; how its traffic is split."""

    __slots__ = ("_door_names", "_door_of", "doors", "entry", "mirrors", "only", "revisions", "special", "split")

    def __init__(
        self,
        entry: ApplicationEntry,
        pools: dict[str, Pool],
        tallies: Tallies,
        mirrors: Mirrors,
        before: Routes | None = None,
    ) -> None:
        self.entry = entry
        self.revisions: dict[int, dict[str, tuple[Pool, Tally]]] = {
            revision.number: {
                name: (pools[key], tallies.of(entry.name, revision.number, name))
                for name, key in revision.deployments.items()
                if key in pools
            }
            for revision in entry.revisions
        }
        doors = {revision.number: revision.ingress or entry.ingress for revision in entry.revisions}
        # A call may come, or come back, by the name that a door had before.
        inner = {name for deployments in self.revisions.values() for name in deployments}
        past = set() if before is None else before._door_names - inner
        self._door_names: set[str] = past | set(doors.values()) | {entry.ingress}
        self._door_of = doors
        # Where doors have, or had, different names: which is whose.
        self.doors = doors if len(self._door_names) > 1 else None
        self.split = Split(((revision.number, revision.weight) for revision in entry.revisions), entry.name)
        self.only = self.split.only  # where all new calls go, when there is no choice
        self.mirrors = mirrors.of(entry)  # where copies of some of them go; None: there are none
        self.special = self.doors is not None or self.mirrors is not None

    def door_pools(self) -> list[Pool]:
        """Where requests from outside go."""
        found = [self.revisions.get(number, {}).get(name) for number, name in self._door_of.items()]
        return [] if self.entry.route_prefix is None else [each[0] for each in found if each is not None]

    def at_door(self, deployment: str, revision: int) -> str:
        """The revision's own door, if the deployment is one; else the deployment itself."""
        if self.doors is not None and deployment in self._door_names:
            return self.doors.get(revision, deployment)
        return deployment


class Router:
    """Sends each call to a replica of the deployment that it names. All methods are called on the loop's thread.

    `node` is the node of this process, whose replicas it reaches by their Unix sockets; the first time that it connects
    to one of another node, it asks `read_credentials` for what it proves by that it belongs to the instance.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        identity: str,
        role: str = "driver",
        awake: Awake | None = None,
        node: str = "",
        read_credentials: Callable[[], Credentials | None] | None = None,
    ) -> None:
        self.loop = loop
        self.identity = identity
        self.role = role
        self.awake = awake  # None: the loop sleeps whenever there is nothing to do
        self.node = node  # where this is: "" where there is but one
        self._read_credentials = read_credentials
        self._credentials: Credentials | None = None
        self.links: set[Link] = set()
        self.closed = False
        self.snapshot = Snapshot()
        self.rng = random.Random(
            int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) ^ random.getrandbits(64)
        )
        self.tallies = Tallies()
        self.mirrors = Mirrors(self)
        self._pools: dict[str, Pool] = {}
        self._routes: dict[str, Routes] = {}

    def __repr__(self) -> str:
        return f"<Router {self.identity} snapshot={self.snapshot.version} pools={list(self._pools.values())}>"

    def credentials(self) -> Credentials | None:
        """What replicas of other nodes are shown; None: none are to be reached. Raises InstanceError."""
        if self._credentials is None and self._read_credentials is not None:
            self._credentials = self._read_credentials()
        return self._credentials

    # --- snapshots -------------------------------------------------------------------------------------------------

    def update(self, snapshot: Snapshot) -> None:
        """Route by this snapshot from now on. An older one than the present is ignored."""
        if snapshot.version < self.snapshot.version or self.closed:
            return
        before, self.snapshot = self.snapshot, snapshot
        pools = self._pools
        for key, entry in snapshot.deployments.items():
            if key not in pools:
                pools[key] = Pool(self, entry)
        gone = [pools.pop(key) for key in list(pools) if key not in snapshot.deployments]
        self._routes = {
            name: Routes(entry, pools, self.tallies, self.mirrors, self._routes.get(name))
            for name, entry in snapshot.applications.items()
        }
        self.tallies.keep(
            (
                (name, number, deployment)
                for name, routes in self._routes.items()
                for number, deployments in routes.revisions.items()
                for deployment in deployments
            ),
            self._routes,
        )
        self.mirrors.adopt(snapshot, pools)
        for key, entry in snapshot.deployments.items():
            if before.deployments.get(key) != entry:
                pools[key].update(entry)
        for pool in gone:
            for call in pool.close():
                self.replace(call, pool)
        if self.role == "ingress":
            for routes in self._routes.values():
                for pool in routes.door_pools():
                    pool.connections.use()
        self._leave_lost(set(snapshot.lost).difference(before.lost, (self.node,)))

    def _leave_lost(self, nodes: set[str]) -> None:
        """These nodes are lost: what is in work there counts as gone, whatever their connections look like. They may
        look well for long, where something between here and there acknowledges what it cannot deliver.
        """
        if nodes:
            for link in [link for link in self.links if link.replica.node in nodes]:
                log.info("giving up replica %s: node %s is lost", link.replica.id, link.replica.node)
                link.give_up()

    def replace(self, call: Call, pool: Pool) -> None:
        """The call waits at an entry that is gone: if it was drawn here it is drawn again, else it is lost."""
        call.pool = None
        if call.drawn:
            call.revision = 0
            self.submit(call)
        else:
            call.fail(
                DeploymentUnavailableError(
                    f"revision {call.revision} of application {call.app} is gone, and with it {pool.entry.name}"
                )
            )

    def subset(self, entry: DeploymentEntry) -> Sequence[ReplicaEntry]:
        """The replicas of the entry that this router keeps connections to: all, or a share where there are many."""
        return choose_subset(self.identity, entry.replicas, routers=entry.routers, node=self.node)

    # --- calls -----------------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Send the call now, let it wait for a slot, or tell it why neither can be (`on_error`)."""
        routes = self._routes.get(call.app)
        if routes is None:
            self._refuse_unknown(call, None)
            return
        revision = call.revision
        if not revision:
            revision = routes.only
            if not revision:
                # A pure function of the weights and the request's key, else its session, else its id.
                key = call.key or call.sticky or call.request_id
                revision = routes.split.of(key) if key else routes.split.at(self.rng.random())
            call.revision = revision
            call.drawn = True
            if routes.special:
                call.deployment = routes.at_door(call.deployment, revision)
                if routes.mirrors is not None:
                    self.mirrors.look(routes.mirrors, call)
        deployments = routes.revisions.get(revision)
        found = deployments.get(call.deployment) if deployments is not None else None
        if found is None:
            self._refuse_unknown(call, routes)
            return
        pool, tally = found
        if call.tally is None:  # else its revision has gone, and it is drawn again
            call.came_at = perf_counter()
        call.tally = tally
        pool.submit(call)

    def _refuse_unknown(self, call: Call, routes: Routes | None) -> None:
        call.fail(self._unknown(call.app, call.deployment, call.revision, routes))

    def _unknown(self, app: str, deployment: str, revision: int, routes: Routes | None) -> HeadraceError:
        """Why no pool can take calls for this deployment."""
        if self.closed:
            return InstanceError("this process has closed its connection to the instance")
        if routes is None:
            known = ", ".join(sorted(self._routes)) or "none"
            return ApplicationNotFound(f"no application is called {app!r}; there are: {known}")
        if routes.entry.failed or not revision:
            reason = routes.entry.failed or "no revision of it is ready yet"
            return DeploymentUnavailableError(f"application {app}: {reason}")
        if revision not in routes.revisions:
            return DeploymentUnavailableError(f"revision {revision} of application {app} is gone")
        known = ", ".join(sorted(routes.revisions[revision])) or "none"
        return DeploymentNotFound(f"application {app} has no deployment {deployment!r}; there are: {known}")

    def replicas_of(self, app: str, deployment: str, revision: int = 0) -> list[tuple[int, str]]:
        """All replicas of the deployment that take calls, also those that this router keeps no connection to: (the
        revision to name in a call, the replica's id). Of each revision that takes traffic, where none is named.

        Raises what a call to the deployment would be told.
        """
        routes = self._routes.get(app)
        if routes is None:
            raise self._unknown(app, deployment, revision, None)
        weighted = [each.number for each in routes.entry.revisions if each.weight > 0]
        listed: dict[str, int] = {}
        pool: Pool | None = None
        for number in [revision] if revision else weighted:
            found = routes.revisions.get(number, {}).get(deployment)
            if found is None:
                raise self._unknown(app, deployment, number, routes)
            pool = found[0]
            listed |= {replica.id: number for replica in pool.entry.replicas}
        if pool is None:
            raise self._unknown(app, deployment, revision, routes)
        if not listed:
            reason = pool.entry.failed or "it has no replica yet"
            raise DeploymentUnavailableError(f"deployment {deployment} of application {app}: {reason}")
        return [(number, replica_id) for replica_id, number in listed.items()]

    def shadow_of(self, app: str, deployment: str, revision: int) -> tuple[Pool, Tally, float | None] | None:
        """Where the revision has a copy of a call to the deployment go, and how long its application gives requests."""
        routes = self._routes.get(app)
        if routes is None:
            return None
        found = routes.revisions.get(revision, {}).get(routes.at_door(deployment, revision))
        return None if found is None else (*found, routes.entry.request_timeout_s)

    def cancel(self, call: Call) -> None:
        """The answer is of no interest any more: nothing more is told to the call."""
        if call.watch is not None:
            call.watch.dropped()
        if call.pool is not None:
            call.pool.cancel(call)

    def send_body(self, call: Call, data: bytes, more: bool) -> bool:
        """The next part of a streamed body. False: hold back the source until `on_writable`."""
        if call.outflow is not None:
            call.keep(data, more)
            return call.outflow.write(data, more)
        if not call.more:
            return True  # answered, or cancelled, before its body had ended
        call.body += data
        call.more = more
        call.paused = True
        return False

    def consumed(self, call: Call, n: int) -> None:
        """`n` bytes of what `on_data` or `on_items` brought are done with: the replica may send as many more."""
        link = call.link
        if link is not None and link.calls.get(call.stream) is call:  # else it has ended, and nothing is owed
            link.consumed(call.stream, n)

    def alone(self, link: Link) -> bool:
        """Whether no other link has a call under way; where there are many links, not worth finding out."""
        return len(self.links) <= FEW_LINKS and not any(other.calls for other in self.links if other is not link)

    async def close(self) -> None:
        """Close all connections. Calls that wait or are in work end with InstanceError."""
        self.closed = True
        error = InstanceError("this process has closed its connection to the instance")
        for pool in self._pools.values():
            pool.connections.cut(error)
            pool.fail_queued(error)
        for link in list(self.links):
            link.cut(error)
        self._pools.clear()
        self._routes.clear()
