"""The controller's records, in memory and on disk together: each change here is kept before it is acted on.

In: changes from the reconciler and the operations. Out: the records, by application and by process.
"""

from __future__ import annotations

from headrace.controller.store import Store
from headrace.core.fleet import Application, Replica
from headrace.core.plan import Start
from headrace.core.restart import RestartPolicy
from headrace.engine.directory import InstanceDirectory
from headrace.spec.application import ApplicationSpec


class Registry:
    """All applications and replicas of the instance."""

    def __init__(self, store: Store, directory: InstanceDirectory, policy: RestartPolicy) -> None:
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

    def add_revision(self, spec: ApplicationSpec, now_s: float) -> Application:
        """The application with a new revision as its target. `now_s` is seconds since the epoch."""
        app = self.apps.get(spec.name)
        if app is None:
            app = self.apps[spec.name] = Application(name=spec.name, policy=self._policy)
        app.target += 1
        app.before = None
        app.revisions[app.target] = spec
        self._begin(app, now_s)
        return app

    def replace_target(self, app: Application, spec: ApplicationSpec, now_s: float) -> None:
        """Put other options in the target's place; its code is the same."""
        if app.before is None and app.target == app.current:
            app.before = app.spec
        app.revisions[app.target] = spec
        app.weights_at = None  # the route may have changed
        self._begin(app, now_s)

    def _begin(self, app: Application, now_s: float) -> None:
        app.failure = ""
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
