"""The versioned snapshot that the controller publishes and every router lives by; its differences; pure functions.

A deployment entry is keyed by `app/name@digest`: revisions whose digest of a deployment is the same name the same key,
and so share its replicas.
"""

from __future__ import annotations

import msgspec

from headrace.spec.hedging import HedgingConfig
from headrace.spec.request_router import RequestRouterConfig
from headrace.spec.rollout import ShadowTraffic
from headrace.spec.sticky import Sticky


class ReplicaEntry(msgspec.Struct, frozen=True, array_like=True):
    """A replica that takes calls at `address` (`unix:PATH`, `tcp:HOST:PORT`). `id`: `deployment#n`, unique per app.

    `node` is where it runs ("" where there is but one node); processes of that node reach it at `near` (`unix:PATH`).
    """

    id: str
    address: str
    node: str = ""
    near: str = ""

    def address_from(self, node: str) -> str:
        """The address at which a process of `node` reaches it."""
        return self.near if self.near and node == self.node else self.address


class DeploymentEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a router needs to know of one deployment. Only replicas that take calls are listed.

    `failed` is why no replica will come ("" while one may still come): calls fail at once instead of queueing.
    `routers` is about how many processes call it, at least 1 and rather too few than too many. `unrepeatable` are the
    methods whose calls are not repeated when a replica dies, besides all where `repeatable` is False. Repeats are
    bounded to `retry_ratio` of the calls and `retry_per_second` more. A call that is refused for load gets the HTTP
    status `busy_status` and, if set, `retry_after_s`. `hedge` says which slow calls get a copy (None: none),
    `hedged_methods` what methods say of theirs themselves, and
    `request_router` what chooses replicas (None: the power of two choices). `multiplexed`: calls that name a model go
    where it is loaded.
    """

    key: str
    app: str
    name: str
    max_ongoing_requests: int
    max_queued_requests: int
    repeatable: bool = True
    unrepeatable: tuple[str, ...] = ()
    retry_ratio: float = 0.1
    retry_per_second: float = 10.0
    busy_status: int = 503
    retry_after_s: float | None = None
    hedge: HedgingConfig | None = None
    hedged_methods: dict[str, HedgingConfig | None] = {}
    request_router: RequestRouterConfig | None = None
    multiplexed: bool = False
    failed: str = ""
    routers: int = 1
    replicas: tuple[ReplicaEntry, ...] = ()


class RevisionEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One revision that lives: its share of new traffic (`weight` >= 0) and deployment name -> entry key.

    `shadow` says which requests of other revisions are mirrored to it (None: none are). `ingress` is its deployment at
    the door, "" where that has the name that the application's has.
    """

    number: int
    weight: float
    deployments: dict[str, str]
    shadow: ShadowTraffic | None = None
    ingress: str = ""


class ApplicationEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One application: `ingress` is the deployment at the door; `route_prefix` None means no HTTP.

    `failed` is why the application has no revision to take traffic ("" while one may come). `request_timeout_s` is the
    time that its requests from outside have, unless they say less; None: no limit. `sticky` says by what requests keep
    to a revision (None: by their session, where they name one).
    """

    name: str
    route_prefix: str | None
    ingress: str
    revisions: tuple[RevisionEntry, ...] = ()
    failed: str = ""
    request_timeout_s: float | None = None
    sticky: Sticky | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that routers route by, at one version. Versions only grow, also over restarts of the controller.

    `lost` are nodes that cannot be reached, so that what is in work there will not be answered: not all that ever were,
    and none for long after it is back.
    """

    version: int = 0
    instance: str = "default"
    applications: dict[str, ApplicationEntry] = {}
    deployments: dict[str, DeploymentEntry] = {}
    lost: tuple[str, ...] = ()


class SnapshotDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What changed between two versions. An entry that changed is sent whole, and so are the lost nodes (None: they
    are the same).
    """

    from_version: int
    to_version: int
    applications: dict[str, ApplicationEntry] = {}
    removed_applications: tuple[str, ...] = ()
    deployments: dict[str, DeploymentEntry] = {}
    removed_deployments: tuple[str, ...] = ()
    lost: tuple[str, ...] | None = None


def diff(old: Snapshot, new: Snapshot) -> SnapshotDelta:
    """The delta that `apply` turns `old` into `new` with."""
    return SnapshotDelta(
        from_version=old.version,
        to_version=new.version,
        applications={k: v for k, v in new.applications.items() if old.applications.get(k) != v},
        removed_applications=tuple(k for k in old.applications if k not in new.applications),
        deployments={k: v for k, v in new.deployments.items() if old.deployments.get(k) != v},
        removed_deployments=tuple(k for k in old.deployments if k not in new.deployments),
        lost=new.lost if new.lost != old.lost else None,
    )


def apply(old: Snapshot, delta: SnapshotDelta) -> Snapshot:
    """`old` with `delta` applied. Raises ValueError when the delta is not from `old`'s version."""
    if delta.from_version != old.version:
        raise ValueError(f"a delta from version {delta.from_version} cannot be applied to version {old.version}")
    applications = {k: v for k, v in old.applications.items() if k not in delta.removed_applications}
    deployments = {k: v for k, v in old.deployments.items() if k not in delta.removed_deployments}
    return Snapshot(
        version=delta.to_version,
        instance=old.instance,
        applications=applications | delta.applications,
        deployments=deployments | delta.deployments,
        lost=old.lost if delta.lost is None else delta.lost,
    )
