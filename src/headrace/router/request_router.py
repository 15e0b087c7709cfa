"""What a router of a user's own is made from: its base class, and what it is shown of replicas and calls.

In: replicas with room and a call, as views. Out: the replicas in the order in which they are preferred. The shape is
Ray Serve's, so that a router written for it works here; what makes one run, and guards it, is `router/policy.py`.
"""

from __future__ import annotations

import random
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.core.balance import Replica
from headrace.core.routers import ConsistentHash, PrefixAffinity, RoundRobin
from headrace.core.routing import RoutingPolicy
from headrace.router.asked import arguments_of, headers_of
from headrace.router.call import Call
from headrace.wire.frames import GRPC, HTTP, STREAM


class DeploymentID(NamedTuple):
    """A deployment of an application."""

    name: str
    app_name: str = "default"


class ReplicaID(NamedTuple):
    """A replica: `unique_id` is unique in its application (`Model#3`)."""

    unique_id: str
    deployment_id: DeploymentID

    def __str__(self) -> str:
        return self.unique_id

    def to_full_id_str(self) -> str:
        """Unique in the instance."""
        return f"{self.deployment_id.app_name}#{self.unique_id}"


class RunningReplica:
    """A replica, as far as this process knows it. There is one such object for each, for as long as it takes calls."""

    __slots__ = ("_replica", "replica_id")

    def __init__(self, replica: Replica, deployment_id: DeploymentID) -> None:
        self._replica = replica
        self.replica_id = ReplicaID(replica.id, deployment_id)

    def __repr__(self) -> str:
        return f"<RunningReplica {self.replica_id} load={self.num_ongoing_requests} of {self.max_ongoing_requests}>"

    @property
    def max_ongoing_requests(self) -> int:
        """How many calls it takes at once."""
        return self._replica.limit

    @property
    def num_ongoing_requests(self) -> int:
        """How many calls it has: those of this process, and those of others as it last told."""
        return self._replica.ours + self._replica.others

    @property
    def num_own_requests(self) -> int:
        """How many calls it has from this process."""
        return self._replica.ours

    async def get_queue_len(self, *, deadline_s: float = 0.0) -> int:
        """`num_ongoing_requests`, at once: nothing is asked of the replica."""
        return self.num_ongoing_requests

    @property
    def multiplexed_model_ids(self) -> set[str]:
        """Empty: calls for a model go where it is loaded, before any router is asked."""
        return set()

    @property
    def routing_stats(self) -> dict[str, Any]:
        """Empty: replicas record none."""
        return {}

    @property
    def replica_metadata(self) -> dict[str, Any]:
        """Empty: replicas publish none."""
        return {}

    @property
    def node_id(self) -> str:
        """The node that it runs on; where there is but one, the name of this machine."""
        return self._replica.node or socket.gethostname()

    @property
    def is_near(self) -> bool:
        """Whether it runs on the node of this process, where there are several."""
        return self._replica.near

    @property
    def availability_zone(self) -> str | None:
        """None: it is not known."""
        return None


class RequestMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a call says of itself; texts that it does not say are empty."""

    request_id: str
    call_method: str
    app_name: str
    multiplexed_model_id: str = ""
    session_id: str = ""
    is_streaming: bool = False
    is_http_request: bool = False
    is_grpc_request: bool = False
    priority: int = 0
    attempt: int = 1


class PendingRequest:
    """A call that is about to be sent to a replica. What takes time to find out is found out when it is asked for."""

    __slots__ = ("_call", "_found", "created_at")

    def __init__(self, call: Call) -> None:
        self._call = call
        self.created_at = time.time()
        self._found: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<PendingRequest {self._call.request_id} for {self._call.method}>"

    @property
    def metadata(self) -> RequestMetadata:
        """What the call says of itself."""
        metadata: RequestMetadata = self._find("metadata", _metadata_of)
        return metadata

    @property
    def args(self) -> list[Any]:
        """The positional arguments of a call by handle; of requests from outside, none. Costs a decode.

        Raises what unpickling an object of the user's raises.
        """
        return list(self._find("arguments", arguments_of)[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        """The named arguments, as `args`."""
        named: dict[str, Any] = self._find("arguments", arguments_of)[1]
        return named

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an HTTP request, names in lower case, or the metadata of an RPC; of calls by handle, none."""
        headers: dict[str, str] = self._find("headers", headers_of)
        return headers

    def text(self) -> str:
        """The text that the call is about: `prompt`, `messages`, `text` or `inputs` of a JSON body or a dict among the
        arguments, the first string among them, or the beginning of a body that is none of these. "" for none.
        """
        text: str = self._find("text", Call.text)
        return text

    def _find(self, what: str, how: Any) -> Any:
        if what not in self._found:
            self._found[what] = how(self._call)
        return self._found[what]


def _metadata_of(call: Call) -> RequestMetadata:
    return RequestMetadata(
        request_id=call.request_id,
        call_method=call.method,
        app_name=call.app,
        multiplexed_model_id=call.model_id or "",
        session_id=call.sticky or "",
        is_streaming=bool(call.kind & STREAM),
        is_http_request=bool(call.kind & HTTP),
        is_grpc_request=bool(call.kind & GRPC),
        priority=call.priority,
        attempt=call.attempt,
    )


Ranks = Sequence[Sequence[RunningReplica]]


class RequestRouter(ABC):
    """Chooses the replicas that calls go to: subclass it, and name the subclass in `request_router_config`.

    Each process that calls the deployment (the ingress, replicas of other deployments, scripts) makes one for itself,
    with `request_router_kwargs` as the arguments of `initialize_state`, where the subclass has one, else of its
    constructor. All methods run on the event loop that requests pass through: they must be quick, and may not wait.
    """

    _deployment_id = DeploymentID("", "")

    def __new__(cls, *args: Any, **kwargs: Any) -> RequestRouter:
        """Whatever the constructors of subclasses do, what the mixins and properties look at is there."""
        router = super().__new__(cls)
        router._replicas = {}
        router._replica_id_set = set()
        return router

    _replicas: dict[ReplicaID, RunningReplica]
    _replica_id_set: set[ReplicaID]

    def __init__(self) -> None:  # noqa: B027 - may be left as it is
        """Takes no arguments, where a subclass does not say otherwise."""

    def initialize_state(self, **kwargs: Any) -> None:  # noqa: B027 - may be left as it is
        """Take the `request_router_kwargs`; called once, after the constructor."""

    @abstractmethod
    def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Ranks | Awaitable[Ranks]:
        """Ranks of replicas, best first; of the first rank that has any with room, the least busy gets the call.

        `candidate_replicas` are those with room, in the order in which they came. `[]`: no preference, and the less
        busy of two random ones gets it. May be `async`, but what it awaits must be there at once.
        """

    def on_request_routed(  # noqa: B027 - may be left as it is
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """The call leaves for this replica: one that was chosen, or one that had a slot after the call had waited.

        `result` is None: there is none yet.
        """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """These are the replicas that take calls now, those without room included. Called before the next choice."""
        self._replicas = {replica.replica_id: replica for replica in replicas}
        self._replica_id_set = set(self._replicas)

    @property
    def curr_replicas(self) -> dict[ReplicaID, RunningReplica]:
        """The replicas that take calls, by id, those without room included."""
        return self._replicas

    @property
    def app_name(self) -> str:
        """The application."""
        return self._deployment_id.app_name

    def select_available_replicas(self, candidates: list[RunningReplica] | None = None) -> list[RunningReplica]:
        """Those of `candidates` (None: of all) that have room."""
        among = list(self._replicas.values()) if candidates is None else candidates
        return [replica for replica in among if replica.num_ongoing_requests < replica.max_ongoing_requests]


class FIFOMixin:
    """For routers written for Ray Serve: calls are always sent in the order in which they came, by priority."""


class LocalityMixin:
    """For routers written for Ray Serve: replicas of the same node are near; where there is but one node, all are."""

    _replicas: dict[ReplicaID, RunningReplica]
    _replica_id_set: set[ReplicaID]

    def apply_locality_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """The replicas of this node; all of them, where it has none."""
        return {name for name, replica in self._replicas.items() if replica.is_near} or self._replica_id_set

    def rank_replicas_via_locality(self, replicas: list[RunningReplica]) -> list[list[RunningReplica]]:
        """By nearness: on this node, in this zone (which is not known), elsewhere. Where none is on this node, no
        difference is made.
        """
        near = [replica for replica in replicas if replica.is_near]
        if not near:
            return [list(replicas), [], []]
        return [near, [], [replica for replica in replicas if not replica.is_near]]


class MultiplexMixin:
    """For routers written for Ray Serve: a call that names a model goes where it is loaded before a router is asked."""

    _replica_id_set: set[ReplicaID]

    def apply_multiplex_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """The replicas for the call's model: all of them."""
        return self._replica_id_set

    def rank_replicas_via_multiplex(
        self, replicas: list[RunningReplica], multiplexed_model_id: str
    ) -> list[list[RunningReplica]]:
        """By what they have loaded: the model, few models, others. None is known to have any."""
        return [[], list(replicas), []]


class PowerOfTwoChoicesRequestRouter(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):
    """The less busy of two random replicas: what is done where no router is named. Takes no arguments."""

    def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Ranks:
        """Two at random."""
        if len(candidate_replicas) < 2:
            return [candidate_replicas]
        return [random.sample(candidate_replicas, 2)]


class _ByPolicy(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):
    """A policy of ours, to name or to subclass. Where it is named as it is, it runs without this around it."""

    _policy: RoutingPolicy

    def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Ranks:
        """The replica that the policy chooses, then all others."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        chosen = self._policy.choose(pending_request._call, [replica._replica for replica in candidate_replicas])
        best = [replica for replica in candidate_replicas if replica._replica is chosen]
        return [best, candidate_replicas] if best else [candidate_replicas]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """The policy learns of it."""
        replica = self._replicas.get(replica_id)
        if replica is not None:
            self._policy.sent(pending_request._call, replica._replica)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """The policy learns who came and who went."""
        before = self._replicas
        super().update_replicas(replicas)
        for replica_id, gone in before.items():
            if self._replicas.get(replica_id) is not gone:
                self._policy.removed(gone._replica)
        for replica in replicas:
            if before.get(replica.replica_id) is not replica:
                self._policy.added(replica._replica)


class RoundRobinRouter(_ByPolicy):
    """One replica after the other. Takes no arguments."""

    def __init__(self) -> None:
        self._policy = RoundRobin(random.random())


class ConsistentHashRouter(_ByPolicy):
    """Calls of one session (`x-session-id`, or `session_id` of a handle) go to one replica, as long as it has room.

    Few sessions move when replicas come and go, and all processes agree on where a session belongs. Calls without a
    session go to the less busy of two random replicas. Arguments: `num_virtual_nodes` (100), points of a replica on the
    ring; `num_fallback_replicas` (None: all), how many others are tried for a session whose replica has no room.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Take the arguments. Raises OptionError."""
        self._policy = ConsistentHash(**kwargs)


class PrefixCacheAffinityRouter(_ByPolicy):
    """Calls go to the replica that has seen the longest prefix of their text, for language models that keep what they
    have computed for it.

    Unless that replica has more than `imbalanced_threshold` (10) calls more than the least busy one, and where less
    than the share `match_rate_threshold` (0.1) of the text has been seen: then to the less busy of two random replicas.
    Each process remembers `eviction_threshold_chars` (400,000) of the texts that it has sent, at most, and forgets
    those of longest ago down to `eviction_target_chars` (360,000). Texts are found as `PendingRequest.text` says.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Take the arguments. Raises OptionError."""
        self._policy = PrefixAffinity(**kwargs)
