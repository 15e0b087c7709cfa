"""ControlLink against a controller's end that the test plays: hello, snapshots and acks, reconnection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import msgspec
import pytest
from control_peer import ControlPeer

from headrace.spec.snapshot import ApplicationEntry, Snapshot, SnapshotDelta
from headrace.spec.status import ReplicaState
from headrace.wire.control import (
    DeltaMessage,
    DrainReplica,
    Hello,
    Message,
    ReplicaReport,
    SnapshotAck,
    SnapshotMessage,
    Subscribe,
)
from headrace.wire.link import ControlLink

HELLO = Hello(role="worker", id="D#1@app", pid=7)
APP = ApplicationEntry(name="any", route_prefix=None, ingress="D")
REPORT = ReplicaReport(
    replica_id="D#1", app="app", key="app/D@1", revision=1, state=ReplicaState.RUNNING, address="unix:/x", pid=7
)


@contextlib.asynccontextmanager
async def running(link: ControlLink) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_says_hello_subscribes_with_what_it_has_and_acknowledges(tmp_path: Path) -> None:
    async def body() -> None:
        got: list[Message] = []
        snapshots: list[Snapshot] = []
        peer = ControlPeer(tmp_path / "c.sock")
        await peer.start()
        known = Snapshot(version=4)
        link = ControlLink(str(peer.path), HELLO, got.append, snapshot=known, on_snapshot=snapshots.append)
        async with running(link):
            await peer.until(lambda: len(peer.received) == 2)
            assert peer.received == [HELLO, Subscribe(4)]
            peer.channels[0].send(SnapshotMessage(Snapshot(version=5, applications={"a": APP})))
            more = SnapshotDelta(from_version=5, to_version=6, applications={"b": APP})
            peer.channels[0].send(DeltaMessage(more))
            peer.channels[0].send(DrainReplica("D#1", 3.0))
            await peer.until(lambda: SnapshotAck(6) in peer.received)
            assert peer.of(SnapshotAck) == [SnapshotAck(5), SnapshotAck(6)]
            assert got == [DrainReplica("D#1", 3.0)]
            assert [sorted(each.applications) for each in snapshots] == [["a"], ["a", "b"]]
            assert link.snapshot is snapshots[-1]
        await peer.stop()

    run(body)


def test_a_delta_that_does_not_fit_asks_for_the_whole(tmp_path: Path) -> None:
    async def body() -> None:
        got: list[Snapshot] = []
        peer = ControlPeer(tmp_path / "c.sock")
        await peer.start()
        async with running(ControlLink(str(peer.path), HELLO, on_snapshot=got.append)):
            await peer.until(lambda: Subscribe(0) in peer.received)
            peer.channels[0].send(DeltaMessage(SnapshotDelta(from_version=5, to_version=6)))
            await peer.until(lambda: peer.received.count(Subscribe(0)) == 2)
            assert got == []
            assert peer.of(SnapshotAck) == []
        await peer.stop()

    run(body)


def test_reconnects_for_ever_and_reports_again(tmp_path: Path) -> None:
    async def body() -> None:
        peer = ControlPeer(tmp_path / "c.sock")
        link = ControlLink(str(peer.path), HELLO, lambda _: None, on_connect=lambda: link.send(REPORT) and None)
        async with running(link):
            assert not link.send(REPORT)
            for times in (1, 2, 3):
                await peer.start()
                await peer.until(lambda n=times: len(peer.of(ReplicaReport)) == n)
                assert link.connected
                await peer.stop()
            assert len(peer.of(Hello)) == 3

    run(body)


def test_a_controller_of_another_version_is_left_alone(tmp_path: Path) -> None:
    async def body() -> None:
        connected: list[bool] = []
        peer = ControlPeer(tmp_path / "c.sock", version=99)
        await peer.start()
        link = ControlLink(str(peer.path), HELLO, lambda _: None, on_connect=lambda: connected.append(True))
        async with running(link):
            await peer.until(lambda: len(peer.of(Hello)) >= 2)
            assert not connected
            assert not link.connected
        await peer.stop()

    run(body)


def test_an_owner_that_raises_does_not_end_the_link(tmp_path: Path) -> None:
    async def body() -> None:
        def broken(news: object) -> None:
            raise KeyError("bug")

        connected = asyncio.Event()
        peer = ControlPeer(tmp_path / "c.sock")
        await peer.start()
        link = ControlLink(str(peer.path), HELLO, broken, on_snapshot=broken, on_connect=connected.set)
        async with running(link):
            await peer.until(lambda: Subscribe(0) in peer.received)
            peer.channels[0].send(SnapshotMessage(Snapshot(version=5)))
            peer.channels[0].send(DrainReplica("D#1", 3.0))
            await connected.wait()
            link.send(REPORT)
            await peer.until(lambda: REPORT in peer.received)
            assert peer.of(SnapshotAck) == []  # it does not route by what it failed to take
            assert link.snapshot.version == 0
            assert len(peer.of(Hello)) == 1
        await peer.stop()

    run(body)


def test_cancelling_closes_the_connection(tmp_path: Path) -> None:
    async def body() -> None:
        peer = ControlPeer(tmp_path / "c.sock")
        await peer.start()
        async with running(ControlLink(str(peer.path), HELLO, lambda _: None)):
            await peer.until(lambda: peer.received)
        await peer.until(lambda: not peer.channels)
        assert peer.received == [HELLO]
        await peer.stop()

    run(body)


def test_one_who_says_no_hello_is_asked_anew(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "c.sock"
        came: list[asyncio.StreamWriter] = []
        mute = await asyncio.start_unix_server(lambda _, writer: came.append(writer), path)
        link = ControlLink(str(path), HELLO)
        link.hello_timeout_s = 0.01
        async with running(link):
            while len(came) < 3:
                await asyncio.sleep(0.001)
            assert not link.connected
        mute.close()
        for writer in came:
            writer.close()

    run(body)


def test_it_says_on_which_node_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        peer = ControlPeer(tmp_path / "c.sock")
        await peer.start()
        monkeypatch.setenv("HEADRACE_NODE", "n1")
        for hello, said in ((HELLO, "n1"), (msgspec.structs.replace(HELLO, node="n2"), "n2")):
            async with running(ControlLink(str(peer.path), hello)):
                await peer.until(lambda node=said: node in [each.node for each in peer.of(Hello)])
        await peer.stop()

    run(body)
