"""The snapshot that follows from what the controller knows, and what publishing it changes in the records.

In: the applications' records. Out: the snapshot; and, once it is published, the versions in the records by which plans
know what routers have been told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.core import rollout as rollouts
from headrace.core.fleet import Application, Replica, entry_key
from headrace.core.lifecycle import Phase
from headrace.core.plan import specification
from headrace.spec.application import DeploymentSpec
from headrace.spec.rollout import ShadowTraffic
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, ReplicaEntry, RevisionEntry, Snapshot


def build_snapshot(
    apps: Iterable[Application], instance: str, version: int, ingress_workers: int, lost: Sequence[str] = ()
) -> Snapshot:
    """All that routers should route by now, under this version. `ingress_workers` is how many are to listen, `lost` are
    the nodes that are.
    """
    applications: dict[str, ApplicationEntry] = {}
    deployments: dict[str, DeploymentEntry] = {}
    for app in apps:
        listed = listed_replicas(app)
        wanted = app.wanted()
        routers = count_routers(app, ingress_workers)
        keys = sorted(wanted.keys() | listed.keys() | app.held)
        for key in keys:
            spec = wanted.get(key) or specification(app, key)
            if spec is not None:
                deployments[key] = _deployment_entry(app, key, spec, listed.get(key, []), routers.get(key, 1))
        applications[app.name] = _application_entry(app, deployments)
    return Snapshot(
        version=version, instance=instance, applications=applications, deployments=deployments, lost=tuple(lost)
    )


def listed_replicas(app: Application) -> dict[str, list[Replica]]:
    """Key -> the replicas that take calls: those that run, and those that were listed before this controller came and
    have not reported to it yet.
    """
    listed: dict[str, list[Replica]] = {}
    for replica in app.replicas.values():
        if replica.phase is Phase.RUNNING or (replica.phase is Phase.RECOVERING and replica.listed):
            listed.setdefault(replica.key, []).append(replica)
    return listed


def count_routers(app: Application, ingress_workers: int) -> dict[str, int]:
    """Key -> about how many processes call the deployment: those of the ingress, where it is at the door, and the
    replicas that its callers should have, in whatever revision.

    Rounded down to a power of two, so that a caller that grows or shrinks by a few publishes nothing about its callees.
    """
    callers: dict[str, dict[str, int]] = {}
    for spec in app.revisions.values():
        keys = {deployment.name: entry_key(app.name, deployment) for deployment in spec.deployments}
        if spec.route_prefix is not None:
            callers.setdefault(keys[spec.ingress], {})["the door"] = ingress_workers
        for deployment in spec.deployments:
            caller = keys[deployment.name]
            for used in deployment.uses:
                counts = callers.setdefault(keys[used], {})
                counts[caller] = max(counts.get(caller, 0), deployment.options.num_replicas)
    return {key: 1 << max(sum(counts.values()), 1).bit_length() - 1 for key, counts in callers.items()}


def _deployment_entry(
    app: Application, key: str, spec: DeploymentSpec, replicas: list[Replica], routers: int
) -> DeploymentEntry:
    options = spec.options
    return DeploymentEntry(
        key=key,
        app=app.name,
        name=spec.name,
        max_ongoing_requests=spec.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        repeatable=options.repeatable,
        unrepeatable=spec.unrepeatable,
        retry_ratio=options.retry_budget.ratio,
        retry_per_second=options.retry_budget.per_second,
        busy_status=options.backpressure_config.status_code,
        retry_after_s=options.backpressure_config.retry_after_s,
        hedge=options.hedge,
        hedged_methods=spec.hedged_methods,
        request_router=options.request_router_config,
        multiplexed=spec.multiplexed,
        routers=routers,
        replicas=tuple(ReplicaEntry(replica.id, replica.address, replica.node, replica.near) for replica in replicas),
    )


def _application_entry(app: Application, deployments: dict[str, DeploymentEntry]) -> ApplicationEntry:
    """Revisions that go keep weight 0 and those of their deployments that still take calls, for what is pinned to them.

    The first revision has its route before it has its weight: the door answers that it is not ready yet.
    """
    door = app.revisions[app.current or app.target]
    revisions = []
    for number, spec in sorted(app.revisions.items()):
        named = {deployment.name: entry_key(app.name, deployment) for deployment in spec.deployments}
        open_keys = {name: key for name, key in named.items() if key in deployments}
        if open_keys:
            weight = 0.0 if app.deleting else app.weights.get(number, 0.0)
            ingress = "" if spec.ingress == door.ingress else spec.ingress
            shadow = None if app.deleting else shadow_of(app, number)
            revisions.append(
                RevisionEntry(number=number, weight=weight, deployments=open_keys, shadow=shadow, ingress=ingress)
            )
    failed = ""
    if app.deleting:
        failed = f"application {app.name!r} is being deleted"
    elif not app.weights and app.failure:
        failed = f"application {app.name!r} failed to deploy: {app.failure}"
    return ApplicationEntry(
        name=app.name,
        route_prefix=None if app.deleting else door.route_prefix,
        ingress=door.ingress,
        revisions=tuple(revisions),
        failed=failed,
        request_timeout_s=door.request_timeout_s,
        sticky=None if app.keyless else app.sticky or door.sticky,
    )


def shadow_of(app: Application, number: int) -> ShadowTraffic | None:
    """What is mirrored to the revision: what somebody asked for, else what its rollout does."""
    asked = app.shadows.get(number)
    if asked is None and app.rollout is not None and app.rollout.revision == number:
        return rollouts.shadow_of(app.rollout)
    return asked


def same_routes(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots say the same but for their versions."""
    return one.applications == other.applications and one.deployments == other.deployments and one.lost == other.lost


def note_published(apps: Iterable[Application], snapshot: Snapshot) -> bool:
    """Note in the records what routers that know `snapshot` know. True: something was new, so plans may go further."""
    news = False
    for app in apps:
        if app.weights_at is None:
            app.weights_at = snapshot.version
            news = True
        listed = {id(replica) for replicas in listed_replicas(app).values() for replica in replicas}
        for replica in app.replicas.values():
            replica.listed = id(replica) in listed
            if replica.listed and replica.listed_at is None:
                replica.listed_at = snapshot.version
                news = True
            elif not replica.listed and replica.listed_at is not None and replica.unlisted_at is None:
                replica.unlisted_at = snapshot.version
                news = True
    return news
