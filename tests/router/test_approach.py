"""What a router makes of replicas of other nodes before the connections to them are there."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from test_locality import add_near
from test_policy import FirstLetter, config, said
from test_reservations import reserve, settled, use
from test_router import Asked, Replica, echo, until
from test_router_tcp import SECRET, Cluster, Distant, in_cluster

from headrace.replica.incoming import Incoming
from headrace.router import Router
from headrace.router.approach import Approach
from headrace.router.pool import Pool
from headrace.spec.errors import BackPressureError, InstanceError, ReplicaDiedError, RequestTimeoutError
from headrace.spec.hedging import HedgingConfig
from headrace.spec.request_router import RequestRouterConfig
from headrace.spec.snapshot import ReplicaEntry
from headrace.wire.handshake import Handshake
from headrace.wire.tcp import replica_purpose


def name_of(replica: Replica) -> Any:
    def answer(incoming: Incoming) -> None:
        incoming.reply(replica.entry.id.encode())

    return answer


async def named(cluster: Cluster, count: int, config: RequestRouterConfig | None = None) -> list[Replica]:
    """Replicas that answer with their names: the first on the routers' node, the others on another."""
    cluster.options["request_router"] = config
    near = await add_near(cluster)
    replicas = [near, *await cluster.add_distant(None, count - 1)]
    for replica in replicas:
        replica.handle = name_of(replica)
    return replicas


def another(cluster: Cluster, name: str, role: str = "driver") -> Router:
    """One more router on the node of the first, which knows what that knows."""
    router = Router(asyncio.get_running_loop(), name, role, node="here", read_credentials=lambda: cluster.credentials)
    router.update(cluster.snapshot)
    return router


def pool_of(router: Router) -> Pool:
    (pool,) = router._pools.values()
    return pool


def deaf() -> socket.socket:
    """Takes connections and says nothing."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


# --- where calls go ------------------------------------------------------------------------------------------------


def test_a_session_has_one_home_from_its_first_call_on_in_all_routers(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        await named(cluster, 4, config("ConsistentHashRouter"))
        routers = [cluster.router, another(cluster, "a#1"), another(cluster, "b#1")]
        homes: dict[str, set[object]] = {}
        for turn in range(2):
            for i in range(12):
                calls = [cluster.ask(router=router, sticky=f"s{i}") for router in routers]
                homes.setdefault(f"s{i}", set()).update([await call.outcome() for call in calls])
                assert len(homes[f"s{i}"]) == 1, (turn, i, homes)
        assert len(set().union(*homes.values())) > 1
        for router in routers[1:]:
            await router.close()

    in_cluster(test, tmp_path)


def test_a_users_router_has_its_way_with_replicas_not_connected_yet(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        await named(cluster, 3, config(FirstLetter))
        for text in ("cut", "all", "but", "cat"):
            assert await cluster.ask(said(text)).outcome() == f"Model#{'abc'.index(text[0]) + 1}".encode()

    in_cluster(test, tmp_path)


def test_all_routers_take_one_replica_for_the_first_home_of_a_model(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        cluster.options["multiplexed"] = True
        await named(cluster, 5)
        routers = [cluster.router, another(cluster, "a#1"), another(cluster, "b#1")]
        for i in range(8):
            calls = [cluster.ask(router=router, model_id=f"m{i}") for router in routers]
            assert len({await call.outcome() for call in calls}) == 1
        for router in routers[1:]:
            await router.close()

    in_cluster(test, tmp_path)


def test_a_first_burst_goes_to_all_alike_and_none_of_it_is_refused(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        cluster.max_queued = 1
        replicas = await cluster.add_distant(None, 3)
        calls = [cluster.ask(b"x") for _ in range(24)]
        await until(lambda: sum(len(replica.calls) for replica in replicas) == 24)
        counts = [len(replica.calls) for replica in replicas]
        assert min(counts) >= 6, counts
        for replica in replicas:
            for incoming in replica.calls:
                incoming.reply(b"")
        assert [await call.outcome() for call in calls] == [b""] * 24

    in_cluster(test, tmp_path)


def test_a_call_for_each_replica_comes_to_each_at_once(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        replicas = await named(cluster, 3)
        calls = [cluster.ask(target=replica.entry.id) for replica in replicas]
        assert [await call.outcome() for call in calls] == [replica.entry.id.encode() for replica in replicas]
        assert all(call.attempt == 1 for call in calls)

    in_cluster(test, tmp_path)


def test_a_replica_that_comes_later_takes_calls_when_it_is_connected(tmp_path: Path) -> None:
    """Where nothing but who is there matters, no call waits for one that is not, and may never be."""

    async def test(cluster: Cluster) -> None:
        await cluster.add_distant(count=1)
        assert await cluster.ask(b"x").outcome() == b"x"
        with deaf() as silent:
            (mute,) = await cluster.add_distant()
            mute.entry = ReplicaEntry(mute.entry.id, f"tcp:127.0.0.1:{silent.getsockname()[1]}", "there")
            cluster.publish()
            pool = pool_of(cluster.router)
            assert mute.entry.id not in pool.balancer.replicas
            calls = [cluster.ask(b"x") for _ in range(10)]
            assert [await call.outcome() for call in calls] == [b"x"] * 10
        (third,) = await cluster.add_distant()
        await until(lambda: third.server.links)
        await until(lambda: third.entry.id in pool.balancer.replicas)

    in_cluster(test, tmp_path)


# --- when connections are made -------------------------------------------------------------------------------------


def test_nothing_is_connected_to_before_the_first_call_and_all_is_with_it(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        first, second, third = await cluster.add_distant(count=3)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert await cluster.ask(b"x").outcome() == b"x"
        await until(lambda: first.server.links and second.server.links and third.server.links)
        (fourth,) = await cluster.add_distant()
        await until(lambda: fourth.server.links)

    in_cluster(test, tmp_path)


def test_an_ingress_is_connected_to_what_is_behind_its_doors(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (replica,) = await cluster.add_distant()
        ingress = another(cluster, "ingress#0", "ingress")
        await until(lambda: replica.server.links)
        assert await cluster.ask(b"x", router=ingress).outcome() == b"x"
        await ingress.close()

    in_cluster(test, tmp_path)


# --- what becomes of calls that wait for a connection --------------------------------------------------------------


async def add_deaf(cluster: Cluster, silent: socket.socket) -> ReplicaEntry:
    """A replica whose connection is not made: somebody listens, and says nothing."""
    (replica,) = await cluster.add_distant()
    replica.entry = ReplicaEntry(replica.entry.id, f"tcp:127.0.0.1:{silent.getsockname()[1]}", "there")
    cluster.publish()
    return replica.entry


def in_cluster_of_deaf(test: Any, tmp_path: Path) -> None:
    """With one replica that a call waits for, as only the connection to it can show that it is not there."""

    async def body(cluster: Cluster) -> None:
        with deaf() as silent:
            await test(cluster, await add_deaf(cluster, silent))
            pool = pool_of(cluster.router) if cluster.router._pools else None
            if pool is not None:
                assert all(replica.ours >= 0 for replica in pool.balancer.replicas.values())

    in_cluster(body, tmp_path)


def waits_for(call: Asked) -> Approach:
    assert isinstance(call.link, Approach)
    assert call.link.calls[call.stream] is call
    return call.link


def test_a_call_whose_replica_is_not_reached_in_time_goes_elsewhere(tmp_path: Path) -> None:
    async def test(cluster: Cluster, mute: ReplicaEntry) -> None:
        call = cluster.ask(b"x")
        assert waits_for(call).replica.id == mute.id
        await cluster.add_distant()
        assert await call.outcome() == b"x"
        assert call.attempt == 1, "it had not started"

    in_cluster_of_deaf(test, tmp_path)


def test_a_call_whose_replica_is_gone_while_it_is_connected_to_goes_elsewhere(tmp_path: Path) -> None:
    async def test(cluster: Cluster, mute: ReplicaEntry) -> None:
        call = cluster.ask(b"x")
        waits_for(call)
        del cluster.replicas[mute.id]
        cluster.publish()
        assert call.link is None
        assert pool_of(cluster.router).balancer.queued == 1
        await cluster.add_distant()
        assert await call.outcome() == b"x"
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == f"dial {mute.id}"])

    in_cluster_of_deaf(test, tmp_path)


def test_a_replica_that_is_said_to_be_elsewhere_is_connected_to_there(tmp_path: Path) -> None:
    async def test(cluster: Cluster, mute: ReplicaEntry) -> None:
        replica = cluster.replicas[mute.id]
        call = cluster.ask(b"x")
        waits_for(call)
        assert isinstance(replica, Distant)
        address = f"tcp:127.0.0.1:{replica.listening}"
        replica.entry = ReplicaEntry(mute.id, address, "elsewhere")
        cluster.publish()
        assert await call.outcome() == b"x"
        assert [record.node for record in pool_of(cluster.router).balancer.replicas.values()] == ["elsewhere"]

    in_cluster_of_deaf(test, tmp_path)


def test_a_call_that_is_cancelled_while_it_waits_gives_its_slot_back(tmp_path: Path) -> None:
    async def test(cluster: Cluster, mute: ReplicaEntry) -> None:
        calls = [cluster.ask(b"x") for _ in range(cluster.limit)]
        waiting = cluster.ask(b"y")
        assert waiting.link is None
        replica = waits_for(calls[0]).replica
        assert replica.ours == cluster.limit
        for call in calls:
            cluster.router.cancel(call)
        await until(lambda: waiting.link is not None)
        assert replica.ours == 1
        assert not any(call.replies or call.errors for call in calls)

    in_cluster_of_deaf(test, tmp_path)


def test_a_call_whose_time_is_over_while_it_waits_is_told_so(tmp_path: Path) -> None:
    async def test(cluster: Cluster, mute: ReplicaEntry) -> None:
        call = cluster.ask(b"x", deadline=asyncio.get_running_loop().time() + 0.05)
        replica = waits_for(call).replica
        assert isinstance(await call.outcome(), RequestTimeoutError)
        assert replica.ours == 0

    in_cluster_of_deaf(test, tmp_path)


def test_a_router_that_closes_ends_the_calls_that_wait(tmp_path: Path) -> None:
    async def test(cluster: Cluster, mute: ReplicaEntry) -> None:
        calls = [cluster.ask(b"x"), cluster.ask(b"x", target=mute.id)]
        waits_for(calls[0])
        await cluster.router.close()
        assert [type(await call.outcome()) for call in calls] == [InstanceError] * 2
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    in_cluster_of_deaf(test, tmp_path)


def test_a_call_for_one_replica_alone_is_told_when_that_is_not_reached(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        with deaf() as silent:
            mute = await add_deaf(cluster, silent)
            await cluster.add_distant()
            call = cluster.ask(b"x", target=mute.id)
            silent.setblocking(False)
            sock, _ = await asyncio.get_running_loop().sock_accept(silent)
            assert not call.errors
            sock.close()
        assert isinstance(await call.outcome(), ReplicaDiedError)

    in_cluster(test, tmp_path)


def test_arrays_and_bodies_that_follow_wait_with_their_call(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        got: list[tuple[bytes, list[bytes]]] = []

        def answer(incoming: Incoming) -> None:
            got.append((bytes(incoming.body), [bytes(buffer) for buffer in incoming.buffers]))
            incoming.reply(b"done")

        await cluster.add_distant(answer)
        source = bytearray(b"before" * 10_000)
        call = cluster.ask(b"x", buffers=[memoryview(source)])
        waits_for(call)
        source[:] = b"behind" * 10_000
        assert await call.outcome() == b"done"
        assert got == [(b"x", [b"before" * 10_000])]

    in_cluster(test, tmp_path)


def test_a_hedged_call_has_a_copy_elsewhere_while_its_replica_is_connected_to(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        cluster.options["request_router"] = config("ConsistentHashRouter")
        cluster.options["hedge"] = HedgingConfig(quantile=0.5, budget=1.0, least_delay_s=0.01)
        await cluster.add_distant(count=2)
        for _ in range(100):
            assert await cluster.ask(b"x").outcome() == b"x"
        pool = pool_of(cluster.router)
        with deaf() as silent:
            mute = await add_deaf(cluster, silent)
            calls = [cluster.ask(b"x", sticky=f"s{i}") for i in range(20)]
            waiting = [call for call in calls if isinstance(call.link, Approach)]
            assert waiting
            assert [await call.outcome() for call in calls] == [b"x"] * 20
            assert pool.hedges.won_count >= 1
            await until(lambda: mute.id not in pool.balancer.replicas)

    in_cluster(test, tmp_path)


@pytest.mark.parametrize("host", ["a" * 70, "127.0.0.1:1:2", "", "no.such.host.invalid"])
def test_an_address_that_cannot_be_used_holds_up_nobody(tmp_path: Path, host: str) -> None:
    async def test(cluster: Cluster) -> None:
        (broken,) = await cluster.add_distant()
        broken.entry = ReplicaEntry(broken.entry.id, f"tcp:{host}:1", "there")
        cluster.publish()
        call = cluster.ask(b"x", target=broken.entry.id)
        assert isinstance(await call.outcome(), ReplicaDiedError)

    in_cluster(test, tmp_path)


def test_a_replica_that_was_lost_is_connected_to_again(tmp_path: Path) -> None:
    """And no call waits for that, nor finds the replica chosen, before it is there."""

    async def test(cluster: Cluster) -> None:
        first, _ = await cluster.add_distant(count=2)
        assert await cluster.ask(b"x").outcome() == b"x"
        pool = pool_of(cluster.router)
        await until(lambda: len(cluster.router.links) == 2)
        for link in list(first.server.links):
            link.sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: first.entry.id not in pool.balancer.replicas)
        calls = [cluster.ask(b"x") for _ in range(5)]
        assert [await call.outcome() for call in calls] == [b"x"] * 5
        assert first.entry.id not in pool.balancer.replicas
        await until(lambda: first.entry.id in pool.balancer.replicas)
        assert pool.balancer.replicas[first.entry.id].link is not None

    in_cluster(test, tmp_path)


def test_a_connection_that_breaks_as_soon_as_it_is_made_loses_no_call(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        cluster.limit = 400

        async def meet_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handshake = Handshake(SECRET, initiator=False, purpose=replica_purpose("app", "Model#1"))
            writer.write(handshake.begin())
            while not handshake.done:
                writer.write(handshake.feed(await reader.read(1000)))
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(meet_and_reset, "127.0.0.1", 0)
        (broken,) = await cluster.add_distant()
        broken.entry = ReplicaEntry("Model#1", f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}", "there")
        cluster.publish()
        calls = [cluster.ask(b"%d" % i) for i in range(cluster.limit)]
        assert len(waits_for(calls[-1]).calls) == cluster.limit
        await cluster.add_distant()
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(cluster.limit)]
        server.close()

    in_cluster(test, tmp_path)


# --- slots, and places in the queue --------------------------------------------------------------------------------


def test_a_slot_is_kept_at_a_replica_that_is_not_connected_yet(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.add_distant()
        kept = reserve(cluster)
        assert isinstance(kept.link, Approach)
        assert not kept.stands
        early = reserve(cluster)
        cluster.router.cancel(early)
        await until(lambda: kept.told == ["kept"])
        assert kept.stands
        assert await use(cluster, kept).outcome() == b"in"
        await settled(cluster)
        assert kept.told == ["kept", "over"]
        assert not early.told

    in_cluster(test, tmp_path)


def test_no_more_calls_wait_than_may_in_all_routers_together(tmp_path: Path) -> None:
    """Who keeps the places is on another node, and not connected to when the first calls come."""

    async def test(cluster: Cluster) -> None:
        cluster.limit, cluster.max_queued, cluster.options["routers"] = 1, 10, 2
        replicas = await cluster.add_distant(None, 2)
        for replica in replicas:
            replica.server.limit_queues(cluster.max_queued)
        routers = [cluster.router, another(cluster, "a#1")]
        calls = [cluster.ask(router=router) for router in routers for _ in range(20)]
        await until(lambda: sum(len(replica.calls) for replica in replicas) == 2)

        def refused() -> list[Asked]:
            return [call for call in calls if call.errors]

        await until(lambda: len(refused()) == 28)
        assert sum(pool_of(router).balancer.queued for router in routers) == 10
        assert {type(call.errors[0]) for call in refused()} == {BackPressureError}
        for replica in replicas:
            replica.handle = echo
            for incoming in replica.calls:
                incoming.reply(b"")
        await until(lambda: all(call.end.is_set() for call in calls))
        assert all(len(call.replies) + len(call.errors) == 1 for call in calls)
        await routers[1].close()

    in_cluster(test, tmp_path)


# --- nodes that are lost -------------------------------------------------------------------------------------------


def lose(cluster: Cluster, *nodes: str, keep: bool = False) -> None:
    """The controller has given up what was on these nodes."""
    cluster.lost = nodes
    if not keep:
        for replica_id in [name for name, each in cluster.replicas.items() if each.entry.node in nodes]:
            cluster.given_up.append(cluster.replicas.pop(replica_id))
    cluster.publish()


def test_calls_in_work_on_a_lost_node_move_at_once(tmp_path: Path) -> None:
    """The connection still looks well: what is between acknowledges all."""

    async def test(cluster: Cluster) -> None:
        (first,) = await cluster.add_distant(None)
        calls = [cluster.ask(b"%d" % i) for i in range(3)]
        await first.until_calls(3)
        near = await add_near(cluster)
        near.handle = echo
        lose(cluster, "there")
        assert [await call.outcome() for call in calls] == [b"0", b"1", b"2"]
        assert [call.attempt for call in calls] == [2, 2, 2]
        assert not [link for link in cluster.router.links if link.replica.node == "there"]

    in_cluster(test, tmp_path)


def test_calls_that_may_not_run_twice_get_the_error_of_a_dead_replica(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (first,) = await cluster.add_distant(None)
        call = cluster.ask(b"x")
        await first.until_calls(1)
        lose(cluster, "there")
        assert isinstance(await call.outcome(), ReplicaDiedError)

    in_cluster(test, tmp_path, repeatable=False)


def test_a_stream_from_a_lost_node_ends_with_the_error_of_a_dead_replica(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.add_distant(lambda incoming: incoming.start_reply(b"part", b"", 0))
        call = cluster.ask(b"x")
        await until(lambda: call.replies)
        lose(cluster, "there")
        assert isinstance(await call.outcome(), ReplicaDiedError)
        assert call.replies[0][2] == b"part"

    in_cluster(test, tmp_path)


def test_a_router_on_the_lost_node_keeps_what_is_near(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        near = await add_near(cluster)
        call = cluster.ask(b"x")
        (incoming,) = await near.until_calls(1)
        lose(cluster, "here")
        assert not call.errors
        incoming.reply(b"y")
        assert await call.outcome() == b"y"

    in_cluster(test, tmp_path)


def test_a_node_that_is_back_is_connected_to_where_its_replicas_are_listed(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (first,) = await cluster.add_distant()
        assert await cluster.ask(b"x").outcome() == b"x"
        lose(cluster, "there")
        call = cluster.ask(b"x")
        await until(lambda: not first.server.links)
        lose(cluster)
        assert not call.replies
        (second,) = await cluster.add_distant()
        assert await call.outcome() == b"x"
        assert not first.server.links
        assert second.server.links

    in_cluster(test, tmp_path)


def test_nothing_is_cut_twice_for_one_loss(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.add_distant()
        lose(cluster, "there", keep=True)
        assert await cluster.ask(b"x").outcome() == b"x"
        (link,) = cluster.router.links
        lose(cluster, "elsewhere", "there", keep=True)
        assert cluster.router.links == {link}
        assert await cluster.ask(b"x").outcome() == b"x"

    in_cluster(test, tmp_path)
