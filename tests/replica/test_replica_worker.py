"""A worker between its controller and its replica, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from control_peer import ControlPeer
from deployed_code import EVENTS, RELEASE
from fake_incoming import run
from hosting import S, order_of, short_directory, snapshot_of, spec_of

from headrace.replica.worker import Worker
from headrace.spec.snapshot import Snapshot, diff
from headrace.wire.control import (
    DeltaMessage,
    DrainReplica,
    EndProcess,
    Hello,
    Message,
    ReconfigureReplica,
    ReplicaReport,
    SnapshotAck,
    SnapshotMessage,
    Subscribe,
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    EVENTS.clear()
    RELEASE.clear()
    yield
    RELEASE.set()


class Pair:
    """A worker and what plays its controller."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.peer = ControlPeer(directory / "control.sock")
        self.worker = Worker("Echo#0@shop", str(directory / "control.sock"), **options)
        self.life: asyncio.Task[int] | None = None

    def say(self, message: Message) -> None:
        self.peer.channels[-1].send(message)

    @property
    def reports(self) -> list[ReplicaReport]:
        return [message for message in self.peer.received if isinstance(message, ReplicaReport)]

    async def until_reported(self, state: S, times: int = 1) -> ReplicaReport:
        await self.peer.until(lambda: [r.state for r in self.reports].count(state) >= times)
        return self.reports[-1]


@contextlib.asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[Pair]:
    with short_directory() as directory:
        both = Pair(directory, **options)
        await both.peer.start()
        both.life = asyncio.ensure_future(both.worker.run())
        try:
            await both.peer.until(lambda: both.peer.of(Hello))
            yield both
        finally:
            both.life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await both.life
            await both.peer.stop()


def test_it_hosts_what_it_is_told_reports_and_ends_when_drained() -> None:
    async def check() -> None:
        drains: list[float] = []
        async with pair(on_drain=drains.append) as both:
            both.say(order_of(both.directory, spec_of("Configured")))
            report = await both.until_reported(S.RUNNING)
            assert (report.replica_id, report.error) == ("Configured#0", "")
            assert report.address == f"unix:{both.directory}/Configured-0.sock"
            both.say(DrainReplica("Configured#0", 12.0))
            await both.until_reported(S.STOPPED)
            assert both.life is not None
            assert await both.life == 0
            assert [r.state for r in both.reports] == [S.STARTING, S.RUNNING, S.STOPPING, S.STOPPED]
            assert drains == [12.0]
            assert EVENTS == ["deleted"]

    run(check())


def test_it_drains_and_ends_when_its_place_is_another_s(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        drains: list[float] = []
        async with pair(on_drain=drains.append) as both:
            both.say(order_of(both.directory, spec_of("Configured")))
            await both.until_reported(S.RUNNING)
            both.say(EndProcess(3.0))
            await both.until_reported(S.STOPPED)
            assert both.life is not None
            assert await both.life == 0
            assert drains == [3.0]
        async with pair() as both:  # also one that was told nothing to host yet
            both.say(EndProcess())
            assert both.life is not None
            assert await both.life == 0

    run(check())
    assert "its place was given to another" in caplog.text


def test_it_reports_again_to_a_controller_that_came_back() -> None:
    async def check() -> None:
        async with pair() as both:
            order = order_of(both.directory, spec_of("Echo"))
            both.say(order)
            await both.until_reported(S.RUNNING)
            await both.peer.stop()
            both.peer.received.clear()
            await both.peer.start()
            await both.until_reported(S.RUNNING)
            both.say(order)  # asked again for what it hosts, it says so and starts nothing
            await both.until_reported(S.RUNNING, 2)
            assert {r.state for r in both.reports} == {S.RUNNING}

    run(check())


def test_one_that_failed_stays_to_tell_why() -> None:
    async def check() -> None:
        async with pair() as both:
            both.say(order_of(both.directory, spec_of("Fails")))
            report = await both.until_reported(S.FAILED)
            assert "no such model" in report.error
            await both.peer.stop()
            both.peer.received.clear()
            await both.peer.start()
            report = await both.until_reported(S.FAILED)
            assert "no such model" in report.error
            both.worker.stop(1.0)
            assert both.life is not None
            assert await both.life == 0

    run(check())


def test_another_replica_than_its_own_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with pair() as both:
            both.say(order_of(both.directory, spec_of("Echo")))
            await both.until_reported(S.RUNNING)
            both.say(order_of(both.directory, spec_of("Echo"), n=1))
            await both.until_reported(S.RUNNING, 2)
            both.say(DrainReplica("Echo#1", 0.0))
            both.say(ReconfigureReplica("Echo#1", spec_of("Echo", limit=2)))
            both.say(ReconfigureReplica("Echo#0", spec_of("Echo", limit=3), 12.5))
            await both.until_reported(S.RUNNING, 3)
            assert [r.told_at for r in both.reports if r.state is S.RUNNING] == [0.0, 0.0, 12.5]
            assert {r.replica_id for r in both.reports} == {"Echo#0"}
            assert both.worker.replica is not None
            assert both.worker.replica.context.max_ongoing_requests == 3

    run(check())
    assert "not Echo#1" in caplog.text


def test_it_passes_on_snapshots_whole_and_as_differences() -> None:
    async def check() -> None:
        adopted: list[Snapshot] = []
        async with pair(adopt=adopted.append) as both:
            await both.peer.until(lambda: both.peer.of(Subscribe))
            order = order_of(both.directory, spec_of("Echo"))
            one, two = (
                snapshot_of(order, version=4),
                snapshot_of(order, order_of(both.directory, spec_of("Slotted")), version=5),
            )
            both.say(SnapshotMessage(one))
            both.say(DeltaMessage(diff(one, two)))
            await both.peer.until(lambda: len(both.peer.of(SnapshotAck)) == 2)
            assert adopted == [one, two]

    run(check())


def test_what_it_knows_already_is_not_sent_again() -> None:
    async def check() -> None:
        async with pair(adopt=lambda _: None, snapshot=Snapshot(version=9)) as both:
            await both.peer.until(lambda: both.peer.of(Subscribe))
            assert both.peer.of(Subscribe) == [Subscribe(9)]

    run(check())


def test_stopped_without_a_replica_it_ends_at_once() -> None:
    async def check() -> None:
        async with pair() as both:
            both.worker.stop()
            assert both.life is not None
            assert await both.life == 0

    run(check())


def test_stopped_it_drains_as_long_as_the_deployment_says() -> None:
    async def check() -> None:
        drains: list[float] = []
        async with pair(on_drain=drains.append) as both:
            both.say(order_of(both.directory, spec_of("Echo", options={"graceful_shutdown_timeout_s": 7.0})))
            await both.until_reported(S.RUNNING)
            both.worker.stop()
            assert both.life is not None
            assert await both.life == 0
            assert drains == [7.0]

    run(check())


def test_it_needs_no_controller_to_go_on_and_to_end() -> None:
    async def check() -> None:
        async with pair() as both:
            both.say(order_of(both.directory, spec_of("Configured")))
            await both.until_reported(S.RUNNING)
            await both.peer.stop()
            assert both.life is not None
            assert not both.life.done()
            both.worker.stop(1.0)
            assert await both.life == 0
            assert EVENTS == ["deleted"]
            await both.peer.start()

    run(check())
