"""Request routers, one of them a user's own as in Ray Serve's guide; calls to all replicas; a choice before a call."""

from starlette.requests import Request

from headrace import serve
from headrace.serve.config import RequestRouterConfig
from headrace.serve.experimental.consistent_hash_router import ConsistentHashRouter
from headrace.serve.experimental.round_robin_router import RoundRobinRouter
from headrace.serve.handle import DeploymentHandle
from headrace.serve.request_router import (
    FIFOMixin,
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)


class LeastThroughput(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):
    """Ranks by model and nearness, then the first by name."""

    def initialize_state(self, largest: bool = False):
        self.largest = largest

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        best: dict[ReplicaID, RunningReplica] = {}
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            by_model = self.rank_replicas_via_multiplex(
                replicas=candidate_replicas, multiplexed_model_id=pending_request.metadata.multiplexed_model_id
            )
            for rank in map(self.select_available_replicas, by_model):
                best.update({replica.replica_id: replica for replica in rank})
        by_place = self.rank_replicas_via_locality(replicas=candidate_replicas)
        for rank in map(self.select_available_replicas, by_place):
            best.update({replica.replica_id: replica for replica in rank})
        if not best:
            return []
        ordered = sorted(
            best.values(),
            key=lambda replica: (replica.routing_stats.get("throughput", 0), replica.replica_id.unique_id),
        )
        return [[ordered[-1 if self.largest else 0]]]

    def rank(self, replica: RunningReplica):
        return replica.routing_stats.get("throughput", 0), replica.replica_id.unique_id

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result):
        assert pending_request.metadata.request_id


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1})
class Orders:
    def __init__(self):
        self.prices = {}

    def set_price(self, item: str, price: int):
        if price < 0:
            raise ValueError(price)
        self.prices[item] = price
        return self.who()

    def price(self, item: str):
        return self.prices[item]

    def who(self):
        return serve.get_replica_context().replica_tag


def routed(router, **kwargs):
    config = RequestRouterConfig(request_router_class=router, request_router_kwargs=kwargs)
    return Orders.options(request_router_config=config).bind()


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Front:
    def __init__(self, orders: DeploymentHandle):
        self.orders = orders

    async def __call__(self, request: Request):
        times = int(request.query_params["times"])
        handle = self.orders.options(session_id=request.query_params.get("session", ""))
        return [await handle.who.remote() for _ in range(times)]

    async def everywhere(self, item: str, price: int):
        return await self.orders.broadcast("set_price", item, price=price).results_async()

    async def chosen(self, item: str):
        async with self.orders.price.choose_replica(item) as selection:
            price = await self.orders.dispatch(selection, item)
            return bool(selection.replica_id), price


own = Front.bind(routed(LeastThroughput, largest=True))
in_turn = Front.bind(routed(RoundRobinRouter))
by_session = Front.bind(routed(ConsistentHashRouter, num_virtual_nodes=50))
