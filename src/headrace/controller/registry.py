"""The controller's records, in memory and on disk together: each change here is kept before it is acted on.

In: changes from the reconciler and the operations. Out: the records, by application and by process.
"""

from __future__ import annotations

import math

from headrace.controller.kept import StateStore
from headrace.core import rollout as rollouts
from headrace.core.analysis import PASS, Evidence, Verdict
from headrace.core.fleet import Application, Replica
from headrace.core.plan import Start
from headrace.core.restart import RestartPolicy
from headrace.engine.directory import InstanceDirectory
from headrace.spec.application import ApplicationSpec
from headrace.spec.rollout import Strategy


class Registry:
    """All applications and replicas of the instance."""

    def __init__(self, store: StateStore, directory: InstanceDirectory, policy: RestartPolicy) -> None:
        self.apps: dict[str, Application] = {}
        self._store = store
        self._directory = directory
        self._policy = policy
        self._replicas: dict[str, Replica] = {}
        self._next_socket = 1

    def __repr__(self) -> str:
        return f"<Registry {len(self.apps)} applications, {len(self._replicas)} replicas>"

    def load(self) -> None:
        """Read what an earlier controller kept."""
        self.apps = self._store.applications()
        for app in self.apps.values():
            app.policy = self._policy
            app.idle = dict.fromkeys(app.revisions, math.inf)  # for all that we know
            for replica in app.replicas.values():
                self._replicas[replica.process_id] = replica
        self._next_socket = int(self._store.fact("next_socket") or 1)

    def replica(self, process_id: str) -> Replica | None:
        """The replica that the process hosts."""
        return self._replicas.get(process_id)

    def replicas(self) -> list[Replica]:
        """All replicas."""
        return list(self._replicas.values())

    def app_of(self, replica: Replica) -> Application:
        """The application that the replica belongs to."""
        return self.apps[replica.app]

    def application(self, name: str, newest: int = 0) -> Application:
        """The application of this name, a new one where there is none, whose revisions are numbered from `newest`."""
        app = self.apps.get(name)
        if app is None:
            app = self.apps[name] = Application(name=name, newest=newest, policy=self._policy)
        return app

    def begin_rollout(
        self, app: Application, number: int, spec: ApplicationSpec, strategy: Strategy, now: float, now_s: float
    ) -> None:
        """Have the revision take over the traffic. `now` is the loop's time, `now_s` seconds since the epoch."""
        base = app.base()
        app.newest = max(app.newest, number)
        app.target = number
        app.before = None
        app.fallback = {}
        app.revisions[number] = spec
        app.rollout = rollouts.begin(number, base, strategy, now)
        app.evidence, app.verdict = Evidence(), Verdict(PASS)
        self._begin(app, now_s)

    def revive(self, app: Application, number: int, spec: ApplicationSpec) -> None:
        """Have a former revision among those that may have replicas again."""
        if number not in app.revisions:
            app.revisions[number] = spec
            self._store.keep_revision(app, number)

    def share_traffic(self, app: Application, weights: dict[int, float], now_s: float) -> None:
        """Share the traffic so, until somebody changes it. All revisions named are there."""
        app.fallback = app.fallback or app.base()  # of those before, the last that all came to be
        app.split = dict(weights) if len(weights) > 1 else {}
        app.current = app.target = rollouts.heaviest(weights)
        app.weights_at = None
        self._begin(app, now_s)

    def replace_target(self, app: Application, spec: ApplicationSpec, now_s: float) -> None:
        """Put other options in the target's place; its code is the same."""
        if app.before is None and app.target == app.current:
            app.before = app.spec
        app.revisions[app.target] = spec
        app.weights_at = None  # the route may have changed
        self._begin(app, now_s)

    def _begin(self, app: Application, now_s: float) -> None:
        app.failure = ""
        app.rolled_back = False
        app.deploying = True
        app.deployed_at = now_s
        for failures in app.failures.values():
            failures.starts = 0
            failures.final = ""
            failures.restarts.forgive()
        self._store.keep_revision(app, app.target)

    def restore_target(self, app: Application) -> None:
        """Put the target back as it was before its options were changed in place, if they were."""
        if app.before is not None:
            app.revisions[app.target], app.before = app.before, None
            app.weights_at = None
            for failures in app.failures.values():
                failures.final = ""
            self._store.keep_revision(app, app.target)

    def weigh(self, app: Application, weights: dict[int, float]) -> None:
        """Give the revisions these weights; those of before count until every router knows."""
        for number, weight in app.weights.items():
            app.former[number] = max(app.former.get(number, 0.0), weight)
        app.weights = weights
        app.weights_at = None

    def fall_back(self, app: Application) -> None:
        """Share the traffic as it was before it was asked for otherwise."""
        app.current = app.target = rollouts.heaviest(app.fallback)
        app.split = app.fallback if len(app.fallback) > 1 else {}
        app.fallback = {}
        app.weights_at = None

    def keep(self, app: Application) -> None:
        """Keep a change of the application itself."""
        self._store.keep_application(app)

    def forget_revision(self, app: Application, number: int) -> None:
        """Forget the revision, and what went wrong with deployments that no other has."""
        del app.revisions[number]
        present = {replica.key for replica in app.replicas.values()}
        for key in app.failures.keys() - app.wanted().keys() - present:
            del app.failures[key]
        self._store.forget_revision(app.name, number)

    def forget_application(self, app: Application) -> None:
        """Forget the application."""
        del self.apps[app.name]
        self._store.forget_application(app.name)

    async def settled(self) -> None:
        """Wait until all that was changed so far is kept, where that can be waited for."""
        await self._store.settled()

    def add_replica(self, app: Application, start: Start, now: float) -> Replica:
        """A new replica, with a number that none of its application had and a socket that none of the instance had."""
        replica = Replica(
            id=f"{start.spec.name}#{app.next_replica}",
            app=app.name,
            key=start.key,
            name=start.spec.name,
            revision=start.revision,
            address=f"unix:{self._directory.replica_socket(self._next_socket)}",
            level=start.level,
            launched_at=now,
        )
        app.next_replica += 1
        self._next_socket += 1
        self._store.keep_fact("next_socket", str(self._next_socket))
        self._store.keep_replica(app, replica)
        app.replicas[replica.id] = replica
        self._replicas[replica.process_id] = replica
        return replica

    def remove_replica(self, replica: Replica) -> None:
        """Forget the replica, which is gone."""
        del self._replicas[replica.process_id]
        self.app_of(replica).replicas.pop(replica.id, None)
        self._store.forget_replica(replica.app, replica.id)
