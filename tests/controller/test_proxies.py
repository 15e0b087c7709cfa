"""The ingress processes: started when asked for, started again when they die, known to the next controller."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest
from workshop import Workshop, application, deployment, run

from headrace.controller.nodes import Nodes
from headrace.controller.proxies import Proxies
from headrace.core.restart import RestartPolicy
from headrace.engine.fake import FakeEngine
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import InstanceError, PortBusyError
from headrace.wire.control import Done, IngressReport, StartHTTP


def test_http_is_answered_when_all_listen() -> None:
    async def body(shop: Workshop) -> None:
        assert await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=2))) == Done()
        proxies = (await shop.status()).proxies
        assert sorted(proxies) == ["ingress#0", "ingress#1"]
        ports = {proxy.port for proxy in proxies.values()}
        assert len(ports) == 1
        assert ports != {0}
        assert {proxy.status for proxy in proxies.values()} == {"HEALTHY"}
        # Asked again: the same ones, on the same port, whether it is named or not.
        for options in (HTTPOptions(port=0, ingress_workers=2), HTTPOptions(port=ports.pop(), ingress_workers=2)):
            assert await shop.ask(StartHTTP(options)) == Done()
        assert shop.started == ["ingress#0", "ingress#1"]

    run(body)


def test_another_address_is_told_and_not_taken() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        lines: list[str] = []
        await shop.ask(StartHTTP(HTTPOptions(host="127.0.0.2", port=1)), lines)
        assert "HTTP is served already on 127.0.0.1:" in lines[0]
        assert shop.started == ["ingress#0"]

    run(body)


def test_a_busy_port_is_an_error() -> None:
    async def body(shop: Workshop) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(PortBusyError, match=str(port)):
                await shop.ask(StartHTTP(HTTPOptions(port=port)))
        assert await shop.ask(StartHTTP(HTTPOptions(port=port))) == Done()

    run(body)


def test_one_that_dies_comes_back() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=2)))
        shop.engine.crash("ingress#1")
        await shop.until(lambda: shop.started.count("ingress#1") == 2)
        await shop.until(lambda: shop.controller.proxies.details()["ingress#1"].status == "HEALTHY")
        assert shop.controller.proxies.details()["ingress#1"].restarts == 1
        assert shop.started.count("ingress#0") == 1

    run(body)


def test_one_that_never_listens_is_an_error_with_what_it_said() -> None:
    async def body(shop: Workshop) -> None:
        for _ in range(3):
            shop.engine.fail_next_start(InstanceError("no such program"))
        with pytest.raises(InstanceError, match="ingress#0 does not start: no such program"):
            await shop.ask(StartHTTP(HTTPOptions(port=0)))

    run(body)


def test_fewer_are_stopped() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=3)))
        await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=1)))
        await shop.until(lambda: list(shop.controller.proxies.details()) == ["ingress#0"])
        assert await shop.living() == ["ingress#0"]

    run(body)


def test_the_next_controller_adopts_them() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0, ingress_workers=2)))
        await shop.deploy(application(deployment("D")))
        processes = await shop.engine.list()
        await shop.kill()
        await shop.begin()
        # Nothing is done that an ingress which has not come back yet would not know of.
        feed = shop.controller.feed
        now = asyncio.get_running_loop().time()
        assert feed.routed(now) == 0 or all(each.link.connected for each in shop.ingress.values())
        await shop.until(lambda: all(each.link.connected for each in shop.ingress.values()))
        assert await shop.engine.list() == processes
        shop.engine.crash("ingress#0")
        await shop.until(lambda: shop.started.count("ingress#0") == 2)
        await shop.until(lambda: shop.ingress["ingress#0"].snapshot == shop.snapshot)

    run(body)


def test_an_ingress_that_is_stopped_by_someone_comes_back() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        shop.ingress["ingress#0"].stop()
        await shop.until(lambda: shop.started == ["ingress#0", "ingress#0"])
        await shop.until(lambda: shop.controller.proxies.details()["ingress#0"].status == "HEALTHY")

    run(body)


def test_one_on_a_node_that_the_engine_has_not_named_yet_is_waited_for() -> None:
    async def body() -> None:
        now = asyncio.get_running_loop().time()
        async with FakeEngine({}, nodes=("a", "b")) as engine:
            named = engine.nodes()
            await engine.open(lambda event: None)
            nodes = Nodes(lambda: None)
            nodes.begin(named[:1], now)
            launched: list[Coroutine[Any, Any, None]] = []
            proxies = Proxies(engine, launched.append, lambda: None, RestartPolicy(), nodes)
            assert not proxies.connected("ingress#0@b", "b", 5, now)  # there is to be no HTTP
            proxies.options = HTTPOptions(port=0)
            assert proxies.connected("ingress#0@b", "b", 5, now)
            assert not proxies.connected("ingress#1@a", "a", 6, now)
            report = IngressReport(ingress_id="ingress#0@b", pid=5, host="127.0.0.1", port=7, node="b")
            proxies.report(report)
            for change in (named[:1], named):
                nodes.changed(change, now)
                nodes.connected("b", "", now)
                proxies.step(now)
                assert proxies.details()["ingress#0@b"].port == 7
            assert not proxies.connected("ingress#0@b", "b", 8, now)  # another has its place
            nodes.changed(named[:1], now)
            proxies.step(now)
            assert "ingress#0@b" not in proxies
            assert not proxies.connected("ingress#0@b", "b", 5, now)
            assert launched == []  # a has not come yet
            nodes.close()

    asyncio.run(body())
