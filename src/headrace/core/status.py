"""What `serve.status()` tells, from what the controller knows.

In: the applications' records, the ingress processes, and `now`. Out: a ServeStatus, with the last error of whatever is
not well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from headrace.core.fleet import Application, Replica, entry_key
from headrace.core.lifecycle import Phase
from headrace.core.publication import shadow_of
from headrace.spec.application import DeploymentSpec
from headrace.spec.status import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    NodeDetails,
    ProxyDetails,
    ReplicaDetails,
    ReplicaState,
    RolloutStatus,
    ServeStatus,
)

_STATES = {
    Phase.LAUNCHING: ReplicaState.STARTING,
    Phase.STARTING: ReplicaState.STARTING,
    Phase.RUNNING: ReplicaState.RUNNING,
    Phase.RETIRING: ReplicaState.STOPPING,
    Phase.DRAINING: ReplicaState.STOPPING,
    Phase.FAILED: ReplicaState.FAILED,
    Phase.STOPPING: ReplicaState.STOPPING,
    Phase.GONE: ReplicaState.STOPPED,
}

# The worst of its deployments' states is the application's.
_GRAVITY = [
    (DeploymentStatus.DEPLOY_FAILED, ApplicationStatus.DEPLOY_FAILED),
    (DeploymentStatus.UNHEALTHY, ApplicationStatus.UNHEALTHY),
    (DeploymentStatus.UPDATING, ApplicationStatus.DEPLOYING),
    (DeploymentStatus.UPSCALING, ApplicationStatus.DEPLOYING),
    (DeploymentStatus.DOWNSCALING, ApplicationStatus.DEPLOYING),
]


def serve_status(
    apps: Iterable[Application],
    proxies: Mapping[str, ProxyDetails],
    instance: str,
    now: float,
    rollouts: Mapping[str, RolloutStatus] | None = None,
    nodes: Mapping[str, NodeDetails] | None = None,
) -> ServeStatus:
    """The whole instance at this moment, with `rollouts` under way, or the last ones, by application, and `nodes` of a
    cluster.
    """
    told = rollouts or {}
    return ServeStatus(
        instance=instance,
        proxies=dict(proxies),
        applications={app.name: application_status(app, now, told.get(app.name)) for app in apps},
        nodes=dict(nodes or {}),
    )


def application_status(app: Application, now: float, rollout: RolloutStatus | None = None) -> ApplicationStatusOverview:
    """One application: the deployments of the revision that was deployed last (or, where that was given up, of the one
    that has the traffic instead), and whatever of others still runs.
    """
    given_up = bool(app.failure) and app.current in app.revisions
    shown = app.revisions[app.current] if given_up else app.spec
    deployments = {spec.name: deployment_status(app, spec, now) for spec in shown.deployments}
    status = ApplicationStatus.RUNNING
    message = ""
    if app.deleting:
        status = ApplicationStatus.DELETING
    elif app.rolled_back:
        status, message = ApplicationStatus.RUNNING, f"revision {app.target} was rolled back: {app.failure}"
    elif app.failure:
        status, message = ApplicationStatus.DEPLOY_FAILED, app.failure
        if given_up and app.target != app.current:
            message = f"revision {app.target} failed; revision {app.current} has the traffic as before: {app.failure}"
    elif app.deploying or app.target != app.current:
        status = ApplicationStatus.DEPLOYING
    else:
        found = {overview.status for overview in deployments.values()}
        status = next((mine for theirs, mine in _GRAVITY if theirs in found), ApplicationStatus.RUNNING)
    if not message:
        message = "\n".join(f"{name}: {each.message}" for name, each in deployments.items() if each.message)
    return ApplicationStatusOverview(
        status=status,
        message=message,
        last_deployed_time_s=app.deployed_at,
        route_prefix=app.spec.route_prefix,
        request_timeout_s=app.spec.request_timeout_s,
        revision=app.current or app.target,
        newest=app.newest,
        weights=dict(app.weights),
        shadows={number: each.fraction for number in app.revisions if (each := shadow_of(app, number)) is not None},
        rollout=rollout,
        deployments=deployments,
        deployed_app_config=app.spec.config,
    )


def deployment_status(app: Application, spec: DeploymentSpec, now: float) -> DeploymentStatusOverview:
    """One deployment of the target revision; its replicas are those of every revision."""
    key = entry_key(app.name, spec)
    status, trigger = _deployment_state(app, key, spec, now)
    replicas = [replica for replica in app.replicas.values() if replica.name == spec.name]
    states = Counter(state_of(replica).value for replica in replicas)
    failures = app.failures.get(key)
    well = status in (DeploymentStatus.HEALTHY, DeploymentStatus.DOWNSCALING)
    return DeploymentStatusOverview(
        status=status,
        status_trigger=trigger,
        replica_states=dict(states),
        message="" if well or failures is None else failures.error,
        replicas=tuple(_details(replica) for replica in replicas),
    )


def _deployment_state(app: Application, key: str, spec: DeploymentSpec, now: float) -> tuple[DeploymentStatus, str]:
    live = any(app.deployment_of(number, key) is not None for number in app.live())
    wanted = 0 if app.deleting else app.number_wanted(key) if live else spec.options.num_replicas
    counted = app.counted(key)
    serving = sum(state_of(replica) is ReplicaState.RUNNING for replica in counted)
    failures = app.failures.get(key)
    if app.deleting:
        return DeploymentStatus.UPDATING, "DELETING"
    if serving >= wanted and not app.deploying:
        return DeploymentStatus.HEALTHY, "CONFIG_UPDATE_COMPLETED"
    if app.failure and failures is not None and failures.error:
        return DeploymentStatus.DEPLOY_FAILED, "REPLICA_STARTUP_FAILED"
    if failures is not None and failures.restarts.escalated(now, wanted):
        return DeploymentStatus.UNHEALTHY, "RESTARTING_TOO_OFTEN"
    if app.target != app.current and not app.failure:
        return DeploymentStatus.UPDATING, "CONFIG_UPDATE_STARTED"
    if not app.deploying:
        return DeploymentStatus.UNHEALTHY, "REPLICA_DIED"
    if serving < wanted:
        return DeploymentStatus.UPSCALING, "CONFIG_UPDATE_STARTED"
    if len(counted) > wanted:
        return DeploymentStatus.DOWNSCALING, "CONFIG_UPDATE_STARTED"
    if any(replica.reconfiguring for replica in counted):
        return DeploymentStatus.UPDATING, "CONFIG_UPDATE_STARTED"
    return DeploymentStatus.HEALTHY, "CONFIG_UPDATE_COMPLETED"


def state_of(replica: Replica) -> ReplicaState:
    """The state as users know it. One that this controller has not heard from yet is what it was when listed."""
    if replica.phase is Phase.RECOVERING:
        return ReplicaState.RUNNING if replica.listed else ReplicaState.STARTING
    return _STATES[replica.phase]


def _details(replica: Replica) -> ReplicaDetails:
    return ReplicaDetails(
        id=replica.id,
        state=state_of(replica),
        pid=replica.pid,
        revision=replica.revision,
        restarts=replica.level,
        ongoing=replica.ongoing,
        error=replica.error,
        node=replica.node,
    )
