"""The control socket against those who do not keep to the protocol: their connection ends, the controller lives."""

from __future__ import annotations

import asyncio
import socket
import stat
import struct

import pytest
from workshop import Workshop, application, deployment, run

from headrace.spec.snapshot import ApplicationEntry, Snapshot
from headrace.spec.status import ReplicaState
from headrace.wire.control import (
    Deployed,
    GetStatus,
    Hello,
    IngressReport,
    Message,
    MessageBuffer,
    ReplicaReport,
    Request,
    SnapshotAck,
    SnapshotMessage,
    Subscribe,
    encode,
)

DRIVER = encode(Hello(role="driver", id="d", pid=1))
WORKER = encode(Hello(role="worker", id="X#1@app", pid=1))
STRANGE = b"\x82\xa4type\xa7Unknown\xa1x\x01"
REPORT = ReplicaReport(
    replica_id="D#1", app="app", key="app/D@ok-1", revision=1, state=ReplicaState.RUNNING, address="unix:/evil", pid=1
)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack("<I", 2**32 - 1),
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", len(STRANGE)) + STRANGE,
        encode(Request(1, GetStatus())),  # without a hello
        encode(Hello(role="driver", id="d", pid=1, version=99)),
        encode(Hello(role="emperor", id="d", pid=1)),
        DRIVER + struct.pack("<I", len(STRANGE)) + STRANGE,
        DRIVER + encode(REPORT),
        DRIVER + encode(Hello(role="driver", id="d", pid=1)),
        DRIVER + encode(SnapshotMessage(Snapshot())),
        WORKER + encode(REPORT),  # on another's replica
        WORKER + encode(IngressReport(ingress_id="ingress#0", pid=1, host="h", port=1)),
        encode(Hello(role="ingress", id="ingress#7", pid=1))
        + encode(IngressReport(ingress_id="ingress#0", pid=1, host="h", port=1)),
    ],
)
def test_what_is_not_allowed_ends_the_connection_alone(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        reader, writer = await asyncio.open_unix_connection(str(shop.directory.control_socket))
        writer.write(data)
        await asyncio.wait_for(reader.read(), 10)  # to its end
        writer.close()
        assert any("closing the control connection" in record.message for record in caplog.records)
        status = (await shop.status()).applications["app"]
        assert status.status == "RUNNING"
        assert shop.snapshot.deployments["app/D@ok-1"].replicas[0].address != "unix:/evil"
        answer = await shop.deploy(application(deployment("D", num_replicas=2)))
        assert isinstance(answer, Deployed)

    run(body)


def test_the_socket_is_ours_alone() -> None:
    async def body(shop: Workshop) -> None:
        info = shop.directory.control_socket.stat()
        assert stat.S_ISSOCK(info.st_mode)
        assert stat.S_IMODE(info.st_mode) == 0o600
        assert stat.S_IMODE(shop.directory.path.stat().st_mode) == 0o700

    run(body)


def test_a_message_in_pieces_is_one_message() -> None:
    async def body(shop: Workshop) -> None:
        reader, writer = await asyncio.open_unix_connection(str(shop.directory.control_socket))
        for byte in DRIVER + encode(Request(5, GetStatus())):
            writer.write(bytes([byte]))
            await writer.drain()
        buffer = MessageBuffer()
        messages: list[Message] = []
        while len(messages) < 2:
            messages += buffer.feed(await reader.read(1000))
        assert isinstance(messages[0], Hello)
        writer.close()

    run(body)


def test_a_router_that_does_not_acknowledge_is_waited_for_and_one_that_left_is_not() -> None:
    async def body(shop: Workshop) -> None:
        reader, writer = await asyncio.open_unix_connection(str(shop.directory.control_socket))
        writer.write(DRIVER + encode(Subscribe(0)))
        buffer = MessageBuffer()
        messages: list[Message] = []
        while not any(isinstance(message, SnapshotMessage) for message in messages):
            messages += buffer.feed(await reader.read(1000))
        deploying = asyncio.create_task(shop.deploy(application(deployment("D"))))
        await shop.until(lambda: shop.listed("app/D@ok-1") == ["D#1"])
        assert shop.snapshot.applications["app"].revisions[0].weight == 0.0
        version = shop.snapshot.version
        writer.write(encode(SnapshotAck(version)))
        await shop.until(lambda: shop.snapshot.version == version + 1)
        assert shop.snapshot.applications["app"].revisions[0].weight == 1.0
        assert not deploying.done()  # it has not acknowledged this one
        writer.close()
        assert isinstance(await deploying, Deployed)

    run(body)


def test_a_worker_that_nobody_knows_is_sent_away() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        worker = shop.workers["D#1@app"]
        replica = shop.controller.registry.replica("D#1@app")
        assert replica is not None
        shop.controller.registry.remove_replica(replica)
        assert worker.link._channel is not None
        worker.link._channel.close()  # it comes back, and is a stranger
        await shop.until(lambda: "D#1" not in repr(shop.engine))

    run(body)


def test_one_that_never_reads_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        shop.controller.server.max_unsent_bytes = 10_000
        with socket.socket(socket.AF_UNIX) as mute:
            mute.connect(str(shop.directory.control_socket))
            mute.sendall(DRIVER + encode(Subscribe(0)))
            await shop.until(lambda: "1 subscribers" in repr(shop.controller.feed))
            for number in range(1000):
                if any("which does not read" in record.message for record in caplog.records):
                    break
                entry = ApplicationEntry(name="x" * 5000, route_prefix=None, ingress="D")
                version = shop.snapshot.version + 1
                now = asyncio.get_running_loop().time()
                shop.controller.feed.publish(Snapshot(version=version, applications={str(number): entry}), now)
            else:
                raise AssertionError("never cut off")
        await shop.until(lambda: "0 connections" in repr(shop.controller.server))

    run(body)


def test_a_driver_that_leaves_is_forgotten() -> None:
    async def body(shop: Workshop) -> None:
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(str(shop.directory.control_socket))
            writer.write(DRIVER + encode(Subscribe(0)))
            await reader.read(1)
            writer.close()
        await shop.until(lambda: "0 connections" in repr(shop.controller.server))
        assert isinstance(await shop.deploy(application(deployment("D"))), Deployed)

    run(body)
