"""The end of an instance: in order when it is asked for, by force when the keeper is gone."""

from __future__ import annotations

import asyncio

import pytest
from workshop import Workshop, application, deployment, run

from headrace.engine.base import ProcessInfo
from headrace.engine.fake import FakeEngine
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import InstanceError
from headrace.wire.control import Delete, Done, Shutdown, StartHTTP


class KeptEngine(FakeEngine):
    """The fake engine with a keeper's way to shut down: it leaves the processes to the controller."""

    bound_s = 0.0

    def shutdown(self, grace_s: float) -> None:
        self.bound_s = grace_s


def test_a_shutdown_is_answered_at_once_and_drains_the_door_first() -> None:
    async def body(shop: Workshop) -> None:
        engine = KeptEngine({"worker": shop._worker, "ingress": shop._ingress})
        await shop.kill()
        shop.engine = engine
        await shop.begin()
        await shop.ask(StartHTTP(HTTPOptions(port=0, drain_timeout_s=7.0)))
        await shop.deploy(application(deployment("A", uses=("B",)), deployment("B", graceful_shutdown_timeout_s=3.0)))
        engine.stall("ingress#0")  # a request is still in work
        assert await shop.ask(Shutdown()) == Done()
        assert engine.bound_s > 7.0 + 20.0 + 3.0
        with pytest.raises(InstanceError, match="shutting down"):
            await shop.ask(Delete("app"))
        assert await shop.living() == ["A#2@app", "B#1@app", "ingress#0"]
        assert shop.order == []
        engine.resume("ingress#0")
        await shop.ended()
        assert shop.order == ["A#2", "B#1"]
        assert repr(engine) == "FakeEngine()"
        assert not shop.directory.control_socket.exists()

    run(body)


def test_an_empty_instance_ends_too() -> None:
    async def body(shop: Workshop) -> None:
        assert await shop.ask(Shutdown()) == Done()
        await shop.ended()

    run(body)


def test_a_signal_does_the_same_and_twice_does_no_more() -> None:
    async def body(shop: Workshop) -> None:
        engine = KeptEngine({"worker": shop._worker, "ingress": shop._ingress})
        await shop.kill()
        shop.engine = engine
        await shop.begin()
        await shop.deploy(application(deployment("D")))
        shop.controller.end()
        shop.controller.end()
        await shop.ended()
        assert shop.order == ["D#1"]

    run(body)


def test_a_lost_keeper_ends_all() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(StartHTTP(HTTPOptions(port=0)))
        await shop.deploy(application(deployment("D", num_replicas=2)))
        processes: list[ProcessInfo] = list(await shop.engine.list())
        assert len(processes) == 3
        shop.engine.lose()
        await asyncio.wait_for(shop.ended(), 10)
        await shop.until(lambda: repr(shop.engine) == "FakeEngine()")
        assert shop.controller.lost

    run(body)
