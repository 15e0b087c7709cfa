"""What an ingress hears from its controller besides snapshots, over a real control socket."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from door_harness import run

from headrace.ingress.ingress import Ingress
from headrace.router import Router
from headrace.spec.config import HTTPOptions
from headrace.wire.awake import awake_for
from headrace.wire.channel import ControlChannel
from headrace.wire.control import DrainReplica, EndProcess, Hello, IngressReport, Message


def test_it_drains_and_ends_when_its_place_is_another_s(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        heard: list[Message] = []
        told = asyncio.Event()

        def answer(channel: ControlChannel, message: Message) -> None:
            heard.append(message)
            if isinstance(message, Hello):
                channel.send(Hello(role="controller", id="controller", pid=os.getpid()))
            if isinstance(message, IngressReport) and not told.is_set():
                told.set()
                channel.send(DrainReplica("not an ingress's", 1.0))
                channel.send(EndProcess(1.5))

        loop = asyncio.get_running_loop()
        with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder:
            path = str(Path(folder) / "control.sock")
            server = await loop.create_unix_server(lambda: ControlChannel(answer, lambda _: None), path)
            router = Router(loop, "ingress#0", "ingress", awake_for(loop))
            ingress = Ingress("ingress#0", HTTPOptions(port=0), router, path)
            await ingress.run()  # it ends
            await router.close()
            server.close()
        reports = [message for message in heard if isinstance(message, IngressReport)]
        assert [report.draining for report in reports] == [False, True]

    run(body())
    assert "ingress#0 does not know what to do with DrainReplica" in caplog.text
    assert "ingress#0: its place was given to another; it ends within 1.5 s" in caplog.text
