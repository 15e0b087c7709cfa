"""Nodes that are lost, come back, leave and come: what runs there, and what follows for what runs elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from workshop import Workshop, application, deployment, run

from headrace.core.nodes import NodePolicy
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import InstanceError
from headrace.spec.rollout import Canary
from headrace.wire.control import Deploy, Done, Shutdown, StartHTTP

KEY = "app/D@ok-1"
NODES = ("a", "b", "c")


def on_three(body: Callable[[Workshop], Awaitable[None]], cpus: float = 64.0) -> None:
    run(body, cpus, NODES)


def test_a_lost_node_s_replicas_leave_at_once_and_start_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3), deployment("E", num_replicas=3)))
        assert sorted(shop.placed().values()) == sorted(NODES * 2)
        lost = {id for id, node in shop.placed().items() if node == "b"}
        shop.cut("b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        await shop.until(lambda: not lost & shop.placed().keys())
        await shop.until(lambda: len(shop.placed()) == 6)
        assert sorted(shop.placed().values()) == ["a", "a", "a", "c", "c", "c"]
        assert shop.controller.feed.snapshot.lost == ("b",)
        status = await shop.status()
        assert {id: node.status for id, node in status.nodes.items()} == {"a": "ALIVE", "b": "LOST", "c": "ALIVE"}
        assert status.nodes["a"].head
        assert status.nodes["c"].host == "host-c"
        replicas = status.applications["app"].deployments["D"].replicas
        assert {replica.node for replica in replicas} == {"a", "c"}
        assert {replica.restarts for replica in replicas} == {0}  # it was no failure of theirs
        assert status.applications["app"].status == "RUNNING"

    on_three(body)
    told = [record.message for record in caplog.records if "is lost" in record.message]
    assert told == ["node b is lost: it cannot be reached; what ran there starts elsewhere"]


def test_what_comes_back_is_told_to_end_and_its_place_stays_another_s() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3, graceful_shutdown_timeout_s=7.0)))
        (lost,) = (id for id, node in shop.placed().items() if node == "b")
        shop.cut("b")
        await shop.until(lambda: len(shop.placed()) == 3 and lost not in shop.placed())
        before = shop.placed()
        await shop.mend("b")
        await shop.until(lambda: shop.told_to_end)
        assert shop.told_to_end == {f"{lost}@app": 7.0}
        await shop.until(lambda: shop.status_of("b") == "ALIVE")
        await shop.until(lambda: shop.controller.feed.snapshot.lost == ())
        shop.engine.return_node("b")
        assert shop.placed() == before
        assert await shop.living() == sorted(f"{id}@app" for id in before)
        # It is used again, under numbers that none had.
        await shop.deploy(application(deployment("D", num_replicas=4, graceful_shutdown_timeout_s=7.0)))
        assert shop.placed()["D#5"] == "b"

    on_three(body)


def test_of_a_node_that_is_silent_the_connections_end_too() -> None:
    """What is there says hello anew, and is told that it has no place any more."""

    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        (lost,) = (id for id, node in shop.placed().items() if node == "b")
        shop.engine.lose_node("b")
        shop.agents["b"].quiet = True
        await shop.until(lambda: shop.status_of("b") == "LOST")
        await shop.until(lambda: f"{lost}@app" in shop.told_to_end)
        await shop.until(lambda: len(shop.placed()) == 3 and lost not in shop.placed())
        assert shop.told_to_end.keys() == {f"{lost}@app"}
        shop.agents["b"].quiet = False
        await shop.until(lambda: shop.status_of("b") == "ALIVE")

    run_patiently(body, silent_s=1.0, suspect_s=0.6, stalled_s=0.3)


def test_a_short_break_is_nothing() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        before = shop.placed()
        shop.ways["b"].cut()
        await shop.until(lambda: shop.status_of("b") == "SUSPECT")
        await shop.mend("b")
        await shop.until(lambda: shop.status_of("b") == "ALIVE")
        await shop.until(lambda: all(worker.link.connected for worker in shop.workers.values()))
        assert shop.placed() == before
        assert len(shop.started) == 3

    run_patiently(body)


def test_a_node_whose_agent_is_started_anew_keeps_its_replicas_for_longer_than_one_that_is_cut_off() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        before = shop.placed()
        shop.engine.restart_agent("b")
        for node in ("b", "c"):
            shop.ways[node].cut()
        await shop.until(lambda: shop.status_of("c") == "LOST")
        assert shop.status_of("b") == "SUSPECT"
        await shop.mend("b")
        await shop.until(lambda: shop.status_of("b") == "ALIVE")
        shop.engine.restart_agent("b", False)
        await shop.until(lambda: len(shop.placed()) == 3 and "c" not in shop.placed().values())
        assert {id for id, node in before.items() if node == "b"} <= shop.placed().keys()

    run_patiently(body, broken_s=0.5)


def run_patiently(body: Callable[[Workshop], Awaitable[None]], **policy: float) -> None:
    """With all the time that nodes have in service, but for what is said."""

    async def patient(shop: Workshop) -> None:
        await shop.kill()
        shop.node_policy = NodePolicy(**policy)
        await shop.begin()
        await shop.until(lambda: all(shop.status_of(node) == "ALIVE" for node in NODES))
        await body(shop)

    run(patient, 64.0, NODES)


def test_what_dies_with_a_node_before_that_is_known_did_not_fail_by_itself() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        (dies,) = (id for id, node in shop.placed().items() if node == "b")
        shop.ways["b"].cut()
        await shop.until(lambda: shop.status_of("b") == "SUSPECT")
        shop.engine.crash(f"{dies}@app")
        await shop.until(lambda: "D#4" in shop.placed())
        assert shop.placed()["D#4"] in "ac"  # and not where nobody knows whether it can be reached
        replicas = (await shop.status()).applications["app"].deployments["D"].replicas
        assert [replica.restarts for replica in replicas] == [0, 0, 0]

    run_patiently(body)


def test_a_deploy_goes_on_over_the_loss_of_a_node() -> None:
    async def body(shop: Workshop) -> None:
        spec = application(deployment("D", "hang", num_replicas=3, max_constructor_retry_count=1))
        deploying = asyncio.create_task(shop.deploy(spec))
        await shop.until(lambda: len(shop.workers) == 3 and all(each.told for each in shop.workers.values()))
        shop.cut("b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        await shop.until(lambda: "D#4@app" in shop.workers and shop.workers["D#4@app"].told)
        assert shop.controller.registry.apps["app"].failures["app/D@hang-1"].starts == 0
        for worker in shop.workers.values():
            worker.ready()
        await deploying
        assert len(shop.placed()) == 3
        assert "b" not in shop.placed().values()

    on_three(body)


def test_a_second_loss_while_the_first_is_made_good() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        shop.cut("b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        shop.cut("c")
        await shop.until(lambda: shop.status_of("c") == "LOST")
        await shop.until(lambda: list(shop.placed().values()) == ["a", "a", "a"])
        assert (await shop.status()).applications["app"].status == "RUNNING"
        for node in "bc":
            await shop.mend(node)
        await shop.until(lambda: len(shop.told_to_end) >= 2)
        await shop.until(lambda: {shop.status_of(node) for node in NODES} == {"ALIVE"})
        for node in "bc":
            shop.engine.return_node(node)
        await shop.until(lambda: "D#1@app" in repr(shop.engine))
        assert await shop.living() == sorted(f"{id}@app" for id in shop.placed())

    on_three(body)


def test_the_last_node_that_can_be_reached_is_not_judged() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        before = shop.placed()
        for node in NODES:
            shop.ways[node].cut()
        await shop.until(lambda: {shop.status_of(node) for node in NODES} == {"SUSPECT"})
        over = asyncio.get_running_loop().time() + 2 * shop.node_policy.broken_s
        await shop.until(lambda: asyncio.get_running_loop().time() > over)
        assert {shop.status_of(node) for node in NODES} == {"SUSPECT"}
        assert shop.placed() == before
        for node in NODES:
            await shop.mend(node)
        await shop.until(lambda: {shop.status_of(node) for node in NODES} == {"ALIVE"})
        assert len(shop.started) == 3

    run_patiently(body, broken_s=0.3)  # silent_s, which all have to come back, is as in service


def test_where_there_is_no_room_left_it_starts_when_the_node_is_back() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=6, num_cpus=1.0)))
        shop.cut("b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        await shop.until(lambda: len(shop.placed()) == 4)
        await shop.until(lambda: shop.controller.registry.apps["app"].failures[KEY].short)
        assert "does not fit" in (await shop.status()).applications["app"].message
        await shop.mend("b")
        await shop.until(lambda: shop.status_of("b") == "ALIVE")
        shop.engine.return_node("b")
        await shop.until(lambda: sorted(shop.placed().values()) == ["a", "a", "b", "b", "c", "c"])

    on_three(body, cpus=2.0)


def test_the_engine_may_tell_first_that_a_node_is_gone() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        await shop.deploy(application(deployment("D", num_replicas=3)))
        shop.engine.remove_node("c")
        shop.ways["c"].cut()
        await shop.until(lambda: sorted(shop.placed().values()) == ["a", "a", "b"])
        await shop.until(lambda: sorted(shop.controller.proxies.details()) == ["ingress#0@a", "ingress#0@b"])
        assert sorted((await shop.status()).nodes) == ["a", "b"]

    on_three(body)


def test_the_engine_may_tell_long_after() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        await shop.deploy(application(deployment("D", num_replicas=3)))
        shop.cut("c")
        await shop.until(lambda: sorted(shop.placed().values()) == ["a", "a", "b"])
        assert shop.controller.proxies.details()["ingress#0@c"].status == "UNHEALTHY"
        before = shop.snapshot
        shop.engine.remove_node("c")
        await shop.until(lambda: sorted(shop.controller.proxies.details()) == ["ingress#0@a", "ingress#0@b"])
        assert shop.placed() == {replica.id: replica.node for replica in before.deployments[KEY].replicas}

    on_three(body)


# --- ingress --------------------------------------------------------------------------------------------------------


def test_each_node_has_its_ingress_with_ports_of_its_own() -> None:
    async def body(shop: Workshop) -> None:
        assert await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=2))) == Done()
        proxies = (await shop.status()).proxies
        assert sorted(proxies) == [f"ingress#{number}@{node}" for number in (0, 1) for node in NODES]
        assert {proxy.status for proxy in proxies.values()} == {"HEALTHY"}
        ports = {node: {proxy.port for proxy in proxies.values() if proxy.node == node} for node in NODES}
        assert all(len(each) == 1 for each in ports.values())
        assert len(set.union(*ports.values())) == 3
        # One that comes later has it too; one that crashes comes back, on the same port.
        shop.engine.add_node("d")
        await shop.join("d")
        await shop.until(lambda: shop.started.count("ingress#1@d") == 1)
        shop.engine.crash("ingress#0@a")
        await shop.until(lambda: shop.started.count("ingress#0@a") == 2)
        await shop.until(lambda: {each.status for each in shop.controller.proxies.details().values()} == {"HEALTHY"})
        assert {shop.controller.proxies.details()[f"ingress#{i}@a"].port for i in (0, 1)} == ports["a"]

    on_three(body)


def test_head_only_is_the_head() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0, location="HeadOnly")))
        assert shop.started == ["ingress#0@a"]

    on_three(body)


def test_http_waits_for_nodes_that_come_and_not_for_those_that_are_lost() -> None:
    async def body(shop: Workshop) -> None:
        shop.cut("b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        shop.engine.add_node("d")
        asking = asyncio.create_task(shop.ask(StartHTTP(HTTPOptions(port=0))))
        await shop.until(lambda: len(shop.started) == 2)
        assert not asking.done()
        await shop.join("d")
        assert await asking == Done()
        assert sorted(shop.started) == ["ingress#0@a", "ingress#0@c", "ingress#0@d"]
        # The one that was lost has it when it is back.
        shop.engine.return_node("b")
        await shop.mend("b")
        await shop.until(lambda: "ingress#0@b" in shop.started)

    on_three(body)


def test_an_ingress_of_a_lost_node_is_left_alone_and_taken_up_again() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        shop.cut("b")
        await shop.until(lambda: shop.controller.proxies.details()["ingress#0@b"].status == "UNHEALTHY")
        await shop.deploy(application(deployment("D")))  # which does not wait for it
        await shop.mend("b")
        shop.engine.return_node("b")
        await shop.until(lambda: shop.controller.proxies.details()["ingress#0@b"].status == "HEALTHY")
        await shop.until(lambda: shop.ingress["ingress#0@b"].snapshot == shop.snapshot)
        assert shop.started.count("ingress#0@b") == 1
        assert "ingress#0@b" not in shop.told_to_end

    on_three(body)


def test_one_that_died_unseen_on_a_lost_node_comes_back_with_it() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        shop.cut("b")
        shop.engine.crash("ingress#0@b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        shop.engine.return_node("b")
        await shop.mend("b")
        await shop.until(lambda: shop.started.count("ingress#0@b") == 2)
        await shop.until(lambda: shop.controller.proxies.details()["ingress#0@b"].status == "HEALTHY")
        assert shop.controller.proxies.details()["ingress#0@b"].restarts == 1

    on_three(body)


def test_an_ingress_without_a_place_is_told_to_end() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=2, drain_timeout_s=3.0)))
        shop.cut("b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=1, drain_timeout_s=3.0)))
        await shop.until(lambda: "ingress#1@b" not in shop.controller.proxies.details())
        await shop.mend("b")
        await shop.until(lambda: shop.told_to_end == {"ingress#1@b": 3.0})
        await shop.until(lambda: shop.controller.proxies.details()["ingress#0@b"].status == "HEALTHY")

    on_three(body)


def test_the_end_does_not_wait_for_a_lost_node() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        await shop.deploy(application(deployment("D", num_replicas=3)))
        shop.cut("b")
        await shop.until(lambda: shop.status_of("b") == "LOST")
        await shop.ask(Shutdown())
        await shop.ended()

    on_three(body)


def test_no_http_where_none_of_its_nodes_can_be_reached() -> None:
    async def body(shop: Workshop) -> None:
        shop.cut("a")
        await shop.until(lambda: shop.status_of("a") == "LOST")
        with pytest.raises(InstanceError, match="none of the nodes can be reached"):
            await shop.ask(StartHTTP(HTTPOptions(port=0, location="HeadOnly")))

    on_three(body)


# --- leaving --------------------------------------------------------------------------------------------------------


def test_a_node_that_leaves_is_emptied_and_its_ingress_goes_last() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        await shop.deploy(application(deployment("A", num_replicas=3, uses=("B",)), deployment("B", num_replicas=3)))
        least: dict[str, int] = {"app/A@ok-1": 3, "app/B@ok-1": 3}
        shop.busy = True
        shop.engine.drain_node("c")

        def emptied() -> bool:
            for key in least:
                least[key] = min(least[key], len(shop.listed(key)))
            return len(shop.order) == 2

        await shop.until(emptied)
        assert least == {"app/A@ok-1": 3, "app/B@ok-1": 3}
        assert sorted(id[0] for id in shop.order) == ["A", "B"]
        assert "c" not in shop.placed().values()
        assert shop.controller.proxies.details()["ingress#0@c"].status == "HEALTHY"  # what is in work may need it
        for id in shop.order:
            shop.workers[f"{id}@app"].stop()
        await shop.until(lambda: "ingress#0@c" not in shop.controller.proxies.details())
        assert sorted(await shop.living()) == sorted(
            ["ingress#0@a", "ingress#0@b", *(f"{id}@app" for id in shop.placed())]
        )
        assert (await shop.status()).nodes["c"].status == "LEAVING"
        # It stays after all: what starts may start there.
        shop.engine.drain_node("c", leaving=False)
        await shop.until(lambda: "ingress#0@c" in shop.controller.proxies.details())

    on_three(body)


def test_a_node_that_leaves_while_there_is_no_room_keeps_what_it_has_until_there_is() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3, num_cpus=1.0)))
        before = shop.placed()
        shop.engine.drain_node("c")
        await shop.until(lambda: shop.controller.registry.apps["app"].failures[KEY].short)
        assert shop.placed() == before
        assert (await shop.status()).applications["app"].status == "RUNNING"
        shop.engine.add_node("d")
        await shop.join("d")
        await shop.until(lambda: sorted(shop.placed().values()) == ["a", "b", "d"])

    on_three(body, cpus=1.0)


def test_a_node_that_leaves_in_the_middle_of_a_rollout() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        shop.busy = True
        rolling = asyncio.create_task(shop.deploy(application(deployment("D", num_replicas=3, digest="two"))))
        await shop.until(lambda: shop.listed("app/D@two"))
        shop.busy = False
        shop.engine.drain_node("a")
        await rolling
        await shop.until(lambda: len(shop.placed()) == 3 and "a" not in shop.placed().values())
        assert len(shop.listed("app/D@two")) == 3

    on_three(body)


# --- rollouts and restarts of the controller ------------------------------------------------------------------------


def test_the_only_replica_of_a_canary_is_lost_with_its_node() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2)))
        strategy = Canary(steps=((0.1, None),), analysis=())
        new = application(deployment("D", num_replicas=1, digest="two"))
        await shop.ask(Deploy(new, rollout=strategy, until="ready"))
        (node,) = (node for id, node in shop.placed().items() if id == "D#3")
        shop.cut(node)
        await shop.until(lambda: shop.status_of(node) == "LOST")
        await shop.until(lambda: len(shop.listed("app/D@two")) == 1 and "D#3" not in shop.placed())
        await shop.until(lambda: shop.controller.registry.apps["app"].weights == {1: 0.9, 2: 0.1})
        rollout = (await shop.status()).applications["app"].rollout
        assert rollout is not None
        assert (rollout.outcome, rollout.stage) == ("", "watching")

    on_three(body)


def test_a_controller_that_comes_back_during_a_loss_judges_when_it_had_the_time() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        await shop.deploy(application(deployment("D", num_replicas=3)))
        before = shop.snapshot
        await shop.kill()
        shop.cut("b")
        await shop.begin()
        assert shop.snapshot == before  # addresses and nodes too
        await shop.until(lambda: shop.status_of("b") == "LOST")
        await shop.until(lambda: sorted(shop.placed().values()) in (["a", "a", "c"], ["a", "c", "c"]))
        assert shop.controller.proxies.details()["ingress#0@b"].status == "UNHEALTHY"
        await shop.mend("b")
        await shop.until(lambda: shop.told_to_end)
        await shop.until(lambda: shop.controller.proxies.details()["ingress#0@b"].status == "HEALTHY")
        assert shop.started.count("ingress#0@b") == 1

    on_three(body)


def test_a_controller_that_comes_back_after_a_loss_ends_what_was_given_up() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        (lost,) = (id for id, node in shop.placed().items() if node == "b")
        shop.cut("b")
        await shop.until(lambda: len(shop.placed()) == 3 and lost not in shop.placed())
        await shop.kill()
        await shop.begin()
        before = shop.placed()
        await shop.mend("b")
        await shop.until(lambda: f"{lost}@app" in shop.told_to_end)
        await shop.until(lambda: shop.status_of("b") == "ALIVE")
        assert shop.placed() == before

    on_three(body)


def test_a_controller_on_another_machine_routes_as_the_one_before_until_it_hears_of_replicas() -> None:
    async def body(shop: Workshop) -> None:
        await shop.kill()
        shop.roams = True
        await shop.begin()
        await shop.deploy(application(deployment("D", num_replicas=3)))
        before = shop.snapshot
        await shop.kill()
        shop.directory.snapshot.unlink()
        for node in NODES:
            shop.ways[node].cut()
        await shop.begin()
        assert shop.snapshot.deployments == before.deployments
        assert shop.snapshot.applications == before.applications
        assert shop.snapshot.version > before.version + 1000  # there may have been more, of which nothing was kept
        assert {each.near for each in shop.snapshot.deployments[KEY].replicas} == {"near:D#1", "near:D#2", "near:D#3"}
        for node in NODES:
            await shop.mend(node)
        await shop.until(lambda: all(worker.link.connected for worker in shop.workers.values()))
        assert shop.placed().keys() == {"D#1", "D#2", "D#3"}

    on_three(body)
