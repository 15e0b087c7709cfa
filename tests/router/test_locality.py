"""A router with replicas on several nodes: calls stay near while there is room, and none waits for a near slot."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

from test_router import Replica, echo, until
from test_router_tcp import Cluster, in_cluster

from headrace.handle.handle import DeploymentHandle
from headrace.router.policy import GuardedRouter
from headrace.router.request_router import LocalityMixin, RequestRouter
from headrace.runtime import Runtime
from headrace.spec.request_router import RequestRouterConfig
from headrace.spec.snapshot import ReplicaEntry


async def add_near(cluster: Cluster) -> Replica:
    cluster.started += 1
    replica = Replica(cluster.directory, cluster.started, cluster.limit)
    await replica.server.listen(replica.entry.address)
    # Another process would reach it at an address of which nothing listens here: only the near one is to be used.
    replica.entry = ReplicaEntry(replica.entry.id, "tcp:127.0.0.1:1", "here", replica.entry.address)
    cluster.replicas[replica.entry.id] = replica
    cluster.publish()
    return replica


def test_calls_stay_near_until_there_is_no_room(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        near = await add_near(cluster)
        near.handle = echo
        far = await cluster.add_distant(count=2)
        pool = next(iter(cluster.router._pools.values()))
        await until(lambda: len(pool.balancer.replicas) == 3)
        assert [record.near for record in pool.balancer.replicas.values()].count(True) == 1

        for _ in range(50):
            assert await cluster.ask(b"x").outcome() == b"x"
        await until(lambda: all(replica.server.links for replica in far))
        assert not any(replica.most for replica in far), "no call had a reason to leave"

        near.handle = near.calls.append  # it is busy from now on
        for replica in far:
            replica.handle = replica.calls.append
        calls = [cluster.ask(b"y") for _ in range(3 * cluster.limit)]
        await until(lambda: sum(len(each.calls) for each in cluster.replicas.values()) == 3 * cluster.limit)
        counts = Counter({name: len(each.calls) for name, each in cluster.replicas.items()})
        assert set(counts.values()) == {cluster.limit}
        for replica in cluster.replicas.values():
            for incoming in replica.calls:
                echo(incoming)
        assert [await call.outcome() for call in calls] == [b"y"] * len(calls)

    in_cluster(test, tmp_path)


def test_a_near_replica_that_dies_leaves_its_calls_to_far_ones(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        near = await add_near(cluster)
        (far,) = await cluster.add_distant(count=1)
        calls = [cluster.ask(b"%d" % i) for i in range(2)]
        await near.until_calls(2)
        near.crash()
        del cluster.replicas[near.entry.id]
        cluster.publish()
        async with asyncio.timeout(20):
            assert [await call.outcome() for call in calls] == [b"0", b"1"]
        assert far.server.links

    in_cluster(test, tmp_path)


class Homely(LocalityMixin, RequestRouter):
    """Stays on its node, where it can."""

    def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        return self.rank_replicas_via_locality(candidate_replicas)


def test_a_users_router_knows_what_is_near(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        path = f"{Homely.__module__}:{Homely.__qualname__}"
        cluster.options["request_router"] = RequestRouterConfig(request_router_class=path)
        far = await cluster.add_distant(count=2)
        assert await cluster.ask(b"x").outcome() == b"x"
        policy = next(iter(cluster.router._pools.values())).balancer.policy
        assert isinstance(policy, GuardedRouter)
        homely = policy._router
        assert isinstance(homely, Homely)
        assert {each.unique_id for each in homely.apply_locality_routing()} == {each.entry.id for each in far}
        near = await add_near(cluster)
        near.handle = echo
        for replica in far:
            replica.handle = replica.calls.append
        assert [await cluster.ask(b"y").outcome() for _ in range(20)] == [b"y"] * 20
        assert {each.unique_id for each in homely.apply_locality_routing()} == {near.entry.id}
        views = homely.curr_replicas.values()
        assert {each.replica_id.unique_id: each.node_id for each in views} == {
            near.entry.id: "here",
            **{each.entry.id: "there" for each in far},
        }

    in_cluster(test, tmp_path)


def test_a_selection_says_on_which_node_its_replica_is(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.add_distant()
        runtime = Runtime(cluster.router, cluster.router.loop, threading.get_ident())
        handle = DeploymentHandle("Model", "app", None, runtime)
        async with handle.choose_replica() as selection:
            assert (selection.node_id, selection.node_ip, selection.address) == ("there", "127.0.0.1", "127.0.0.1")
            assert selection.to_dict()["node_id"] == "there"

    in_cluster(test, tmp_path)
