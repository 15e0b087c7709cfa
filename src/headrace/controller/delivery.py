"""What is deployed, and how its traffic is shared: deploys, splits, shadows, and what rollouts are told.

In: operations of drivers, CLI and API, each with its Waiter. Out: changed wishes in the registry, and in the history;
answers, at once or when it is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from headrace.controller.act import Actor
from headrace.controller.history import Chronicle, cut
from headrace.controller.kept import PackStore, StateStore
from headrace.controller.registry import Registry
from headrace.controller.waiters import Waiter, Waiters
from headrace.core import rollout as rollouts
from headrace.core.fleet import Application, callees_first
from headrace.core.rollout import Stage
from headrace.core.rollout_status import rollout_status
from headrace.spec.application import ApplicationSpec
from headrace.spec.counts import Mirrored
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    GraphError,
    InstanceError,
    OptionError,
    RevisionConflictError,
    RevisionNotFound,
    RolloutError,
)
from headrace.spec.rollout import Command, RollingUpdate
from headrace.spec.rollout import weights as checked_weights
from headrace.spec.status import RolloutStatus
from headrace.wire.control import (
    ControlRollout,
    Deploy,
    Deployed,
    Done,
    Rollback,
    Rollout,
    SetShadow,
    SetTraffic,
)

logger = logging.getLogger(__name__)


class Delivery:
    """Takes up what concerns revisions and traffic. `version` tells that of the present snapshot, `routed` the oldest
    that some router may go by, `again` takes up an operation that had to wait.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        history: Chronicle,
        store: StateStore,
        packs: PackStore,
        actor: Actor,
        waiters: Waiters,
        version: Callable[[], int],
        routed: Callable[[float], int],
        mirrored: Callable[[Application], Mirrored | None],
        again: Callable[[Deploy, Waiter], None],
    ) -> None:
        self._registry = registry
        self._history = history
        self._store = store
        self._packs = packs
        self._actor = actor
        self._waiters = waiters
        self._version = version
        self._routed = routed
        self._mirrored = mirrored
        self._again = again
        self._epoch_s = time.time() - time.monotonic()  # taken once: times that are told do not jitter
        self.waiting: dict[str, tuple[Deploy, Waiter]] = {}

    def __repr__(self) -> str:
        return f"<Delivery{f' {len(self.waiting)} waiting' if self.waiting else ''}>"

    # --- deploys ----------------------------------------------------------------------------------------------------

    def deploy(self, operation: Deploy, waiter: Waiter, now: float) -> None:
        """Make a new revision of the application, or change the options of the present one in place."""
        spec = operation.spec
        check_application(spec, self._registry.apps)
        self._check_store()
        app = self._registry.apps.get(spec.name)
        if app is not None and app.deleting:
            self._wait_for_deletion(operation, waiter)
            return
        self.check_expected(spec.name, app, operation.expected)
        self.prune_packs()
        self._packs.keep(operation.packs, spec.environment.pack)
        if operation.parked:
            self._park(app, operation, waiter)
            return
        if app is not None and is_alive(app) and same_code(app.spec, spec):
            before = app.spec
            self._registry.replace_target(app, spec, time.time())
            self._history.changed(app.name, app.target, spec, operation.by, time.time(), before)
        else:
            app = self._registry.application(spec.name, self._history.newest(spec.name))
            number = max(app.newest, self._history.newest(spec.name)) + 1
            if app.deploying:
                self._actor.supersede(app, f"revision {number} was deployed meanwhile")
            previous = app.revisions.get(app.current)
            strategy = operation.rollout or RollingUpdate()
            self._registry.begin_rollout(app, number, spec, strategy, now, time.time())
            self._history.begin(app.name, number, spec, strategy, operation.by, time.time(), previous)
            logger.info("deploying application %r as revision %d", spec.name, number)
        if not operation.wait:
            waiter.answer(Deployed(spec.name, app.target, self._version()))
            return
        if operation.until == "ready" and app.rollout is not None and has_begun(app.rollout, app.weights):
            waiter.answer(Deployed(spec.name, app.target, self._version()))  # only its options are others now
            return
        self._waiters.add_deploy(spec.name, waiter, to_the_end=operation.until != "ready" or app.rollout is None)
        what = ", ".join(
            f"{each.name} ({each.options.num_replicas} replica{'s' * (each.options.num_replicas != 1)})"
            for each in callees_first(spec)
        )
        waiter.progress(f"deploying application {spec.name!r} as revision {app.target}: {what}")

    def _wait_for_deletion(self, operation: Deploy, waiter: Waiter) -> None:
        """Deploy when the application is gone; until then the last who asks wins."""
        name = operation.spec.name
        before = self.waiting.pop(name, None)
        if before is not None:
            before[1].fail(DeployFailedError(f"application {name!r} was deployed again meanwhile"))
        self.waiting[name] = (operation, waiter)
        waiter.progress(f"waiting for the deletion of application {name!r}")
        self._waiters.when_gone(name, lambda: self._again(*self.waiting.pop(name)))

    def _park(self, app: Application | None, operation: Deploy, waiter: Waiter) -> None:
        spec = operation.spec
        if app is None:
            raise RolloutError(
                f"no application is called {spec.name!r}: deploy its first revision, which cannot be parked"
            )
        app.newest = max(app.newest, self._history.newest(spec.name)) + 1
        self._registry.keep(app)
        self._history.begin(app.name, app.newest, spec, None, operation.by, time.time(), app.revisions.get(app.current))
        waiter.answer(Deployed(spec.name, app.newest, self._version()))

    def prune_packs(self) -> None:
        """Remove the source packs of revisions that are not kept any more."""
        specs = [spec for app in self._registry.apps.values() for spec in (*app.revisions.values(), app.before) if spec]
        self._packs.prune(self._history.packs() | {spec.environment.pack for spec in specs})

    def _check_store(self) -> None:
        """What is deployed must outlive this controller: raise DeployFailedError where it could not."""
        try:
            self._store.check()
        except InstanceError as error:
            # Not as it is: to a driver it would mean that there is no controller now, and to ask again.
            raise DeployFailedError(str(error)) from error

    def check_expected(self, name: str, app: Application | None, expected: int | None) -> None:
        """Raise RevisionConflictError where another revision is the newest than is expected."""
        newest = app.newest if app is not None else 0
        if expected is not None and expected != newest:
            present = f"its newest revision is {newest}" if newest else "there is no such application"
            raise RevisionConflictError(
                f"application {name!r}: revision {expected} was expected to be its newest, but {present}: somebody "
                "else deployed meanwhile; look at what they did, and deploy again"
            )

    # --- traffic ----------------------------------------------------------------------------------------------------

    def set_traffic(self, operation: SetTraffic, waiter: Waiter) -> None:
        """Share the traffic as it is asked for, until somebody changes it."""
        app = self._present(operation.app)
        self.check_expected(app.name, app, operation.expected)
        weights = checked_weights(operation.weights)
        self._check_no_rollout(app)
        self._check_store()
        specs = {number: self._spec_of(app, number) for number in weights}
        check_route(specs[rollouts.heaviest(weights)], self._registry.apps)
        if app.before is not None:
            self._actor.supersede(app, "the traffic was shared otherwise meanwhile")
        for number, spec in specs.items():
            self._registry.revive(app, number, spec)
        if operation.sticky is not None or operation.keyless:
            app.sticky, app.keyless = operation.sticky, operation.keyless
        self._registry.share_traffic(app, weights, time.time())
        shares = ", ".join(f"{weight:g} to revision {number}" for number, weight in sorted(weights.items()))
        self._history.event(app.name, app.target, "asked for", shares, operation.by, at=time.time())
        self._waiters.add_deploy(app.name, waiter)

    def set_shadow(self, operation: SetShadow, waiter: Waiter) -> None:
        """Mirror requests as it is asked for."""
        app = self._present(operation.app)
        shadows = {number: shadow for number, shadow in operation.shadows.items() if shadow.fraction}
        for number, shadow in operation.shadows.items():
            if not 0.0 <= shadow.fraction <= 1.0:
                raise OptionError(f"shadows: {number}: {shadow.fraction!r} must be a share of requests, from 0 to 1")
        self._check_store()
        specs = {number: self._spec_of(app, number) for number in shadows}
        for number, spec in specs.items():
            self._registry.revive(app, number, spec)
        app.shadows = shadows
        self._registry.keep(app)
        shares = ", ".join(f"{each.fraction:g} to revision {number}" for number, each in shadows.items()) or "none"
        self._history.event(
            app.name, max(shadows, default=app.current), "mirrored", shares, operation.by, at=time.time()
        )
        waiter.answer(Done())

    # --- rollouts ---------------------------------------------------------------------------------------------------

    def rollouts(self, now: float) -> dict[str, RolloutStatus]:
        """The rollouts under way, or the last ones, by application."""
        found = {app.name: self._status(app, now) for app in self._registry.apps.values()}
        return {name: status for name, status in found.items() if status is not None}

    def _status(self, app: Application, now: float) -> RolloutStatus | None:
        return rollout_status(app, self._routed(now), now, now + self._epoch_s, self._mirrored(app))

    def rollout(self, name: str, now: float) -> Rollout:
        """How far the rollout is. Raises RolloutError where there was none."""
        status = self._status(self._present(name), now)
        if status is None:
            raise RolloutError(f"application {name!r} has had no rollout yet")
        return Rollout(status)

    def control(self, operation: ControlRollout, waiter: Waiter, now: float) -> None:
        """Tell the rollout under way. Raises RolloutError where there is none, or it makes no sense."""
        app = self._present(operation.app)
        if app.rollout is None:
            raise RolloutError(
                f"application {app.name!r} has no rollout under way: nothing to {operation.command.value}"
            )
        if operation.revision and operation.revision != app.rollout.revision:
            raise RolloutError(
                f"the rollout of application {app.name!r} under way is of revision {app.rollout.revision}, not of "
                f"{operation.revision}"
            )
        reason = cut(operation.reason)
        if operation.command is Command.ABORT:
            reason = f"aborted{f' by {cut(operation.by)}' if operation.by else ''}{f': {reason}' if reason else ''}"
        told = rollouts.command(app.rollout, operation.command, now, reason)
        app.rollout = told
        self._registry.keep(app)
        what = operation.command.value
        self._history.event(app.name, told.revision, what, operation.reason, operation.by, at=time.time())
        self._waiters.progress(app.name, f"revision {told.revision}: {what}")
        if operation.wait and operation.command in (Command.PROMOTE, Command.ABORT):
            self._waiters.add_end(app.name, waiter)
        else:
            waiter.answer(Done())

    def roll_back(self, operation: Rollback, waiter: Waiter, now: float) -> None:
        """Abort the rollout under way, or give the traffic back to a former revision."""
        app = self._present(operation.app)
        if app.rollout is not None and not operation.revision:
            reason = operation.reason or "rolled back"
            abort = ControlRollout(
                app=app.name, command=Command.ABORT, reason=reason, by=operation.by, wait=operation.wait
            )
            self.control(abort, waiter, now)
            return
        number = operation.revision or self._history.last_promoted(app.name, app.current)
        if not number:
            raise RevisionNotFound(
                f"application {app.name!r} has no revision before {app.current} that was promoted and is kept"
            )
        if number == app.current and app.rollout is None and not app.split:
            raise RolloutError(f"revision {number} of application {app.name!r} has the traffic already")
        spec = self._spec_of(app, number)
        check_route(spec, self._registry.apps)
        self._check_store()
        if app.deploying:
            self._actor.supersede(app, f"the application is rolled back to revision {number}")
        strategy = operation.rollout or RollingUpdate()
        self._registry.begin_rollout(app, number, spec, strategy, now, time.time())
        self._history.begin(app.name, number, spec, strategy, operation.by, time.time())
        why = operation.reason
        self._history.event(app.name, number, "rollback", why, operation.by, at=time.time())
        logger.info("rolling application %r back to revision %d", app.name, number)
        if operation.wait:
            self._waiters.add_deploy(app.name, waiter)
        else:
            waiter.answer(Deployed(app.name, number, self._version()))

    # --- what they have in common -----------------------------------------------------------------------------------

    def _present(self, name: str) -> Application:
        app = self._registry.apps.get(name)
        if app is None or app.deleting:
            known = ", ".join(sorted(self._registry.apps)) or "none"
            raise ApplicationNotFound(f"no application is called {name!r}; there are: {known}")
        return app

    def _check_no_rollout(self, app: Application) -> None:
        if app.rollout is not None:
            raise RolloutError(
                f"application {app.name!r} has a rollout of revision {app.rollout.revision} under way: promote or "
                "abort it first"
            )

    def _spec_of(self, app: Application, number: int) -> ApplicationSpec:
        spec = app.revisions.get(number) or self._history.spec_of(app.name, number)
        if spec is None:
            kept = ", ".join(map(str, sorted({*app.revisions, *self._history.kept(app.name)})))
            raise RevisionNotFound(f"application {app.name!r} keeps no revision {number}; it keeps {kept}")
        return spec


def is_alive(app: Application) -> bool:
    """Whether the target may go on with other options: it has not failed, and does not give back its traffic."""
    if app.rollout is not None and app.rollout.stage is Stage.RETREATING:
        return False
    return not app.failure or (app.target == app.current and not app.rolled_back)


def has_begun(rollout: rollouts.Rollout, weights: Mapping[int, float]) -> bool:
    """Whether the revision has its first traffic, or what a shadow gets of it."""
    return rollout.stage is Stage.WATCHING or rollout.revision in weights


def same_code(one: ApplicationSpec, other: ApplicationSpec) -> bool:
    """Whether two specifications are of one revision: the same deployments by digest, and the same at the door."""
    return one.ingress == other.ingress and digests(one) == digests(other)


def digests(spec: ApplicationSpec) -> dict[str, str]:
    """Deployment name -> digest."""
    return {deployment.name: deployment.digest for deployment in spec.deployments}


def check_application(spec: ApplicationSpec, apps: dict[str, Application]) -> None:
    """Raise the error that says why the application cannot be deployed beside the others, if it cannot."""
    if not spec.name:
        raise OptionError("name='' is no name for an application: give it at least one character")
    callees_first(spec)
    names = [deployment.name for deployment in spec.deployments]
    if spec.ingress not in names:
        raise GraphError(
            f"application {spec.name!r}: {spec.ingress!r} should take its requests, but its deployments are "
            f"{', '.join(names) or 'none'}"
        )
    if spec.route_prefix is not None and not spec.route_prefix.startswith("/"):
        raise OptionError(f"route_prefix={spec.route_prefix!r} of application {spec.name!r} must start with '/'")
    check_route(spec, apps)


def check_route(spec: ApplicationSpec, apps: Mapping[str, Application]) -> None:
    """Raise OptionError where another application has the route."""
    if spec.route_prefix is None:
        return
    for other in apps.values():
        numbers = () if other.deleting or other.name == spec.name else (other.target, other.current)
        taken = {other.revisions[number].route_prefix for number in numbers if number}
        if spec.route_prefix.rstrip("/") in {prefix.rstrip("/") for prefix in taken if prefix is not None}:
            raise OptionError(
                f"route_prefix={spec.route_prefix!r} of application {spec.name!r} is taken by application "
                f"{other.name!r}: choose another, or delete {other.name!r} first"
            )
