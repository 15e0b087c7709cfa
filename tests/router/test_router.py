"""A router and real replicas' servers over Unix sockets, in one loop: every call is answered once, whatever breaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.replica.incoming import Incoming
from headrace.replica.server import Server
from headrace.router import Call, Router
from headrace.spec.errors import (
    ApplicationNotFound,
    BackPressureError,
    DeploymentNotFound,
    DeploymentUnavailableError,
    HeadraceError,
    NotServableError,
    PoisonousRequestError,
    ReplicaDiedError,
    RequestTimeoutError,
)
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, ReplicaEntry, RevisionEntry, Snapshot
from headrace.wire.frames import ARENAS, MORE, ErrorInfo
from headrace.wire.payload import Payload


class Asked(Call):
    """Keeps what it is told, and lets a test wait for it."""

    def __init__(self, body: bytes = b"", app: str = "app", deployment: str = "Model", **fields: Any) -> None:
        super().__init__(app, deployment)
        self.body = body
        self.replies: list[tuple[int, bytes, bytes]] = []
        self.errors: list[HeadraceError | ErrorInfo] = []
        self.data: list[bytes] = []
        self.end = asyncio.Event()
        self.writable = asyncio.Event()
        for name, value in fields.items():
            setattr(self, name, value)

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        self.replies.append((flags, meta, bytes(payload)))
        if not flags & MORE:
            self.end.set()

    def on_data(self, payload: bytes, more: bool) -> None:
        self.data.append(payload)
        if not more:
            self.end.set()

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self.errors.append(error)
        self.end.set()

    def on_writable(self) -> None:
        self.writable.set()

    async def outcome(self) -> bytes | HeadraceError | ErrorInfo:
        async with asyncio.timeout(20):
            await self.end.wait()
        assert len(self.replies) + len(self.errors) == 1 or (self.replies and self.errors and self.data is not None)
        return self.errors[0] if self.errors else self.replies[0][2] + b"".join(self.data)


class Replica:
    """A server whose calls wait until the test answers them."""

    def __init__(self, directory: Path, number: int, limit: int) -> None:
        self.entry = ReplicaEntry(f"Model#{number}", f"unix:{directory}/{number}.sock")
        self.calls: list[Incoming] = []
        self.most = 0
        self.handle: Callable[[Incoming], None] = self.calls.append
        self.arrived = asyncio.Event()
        self.server = Server(asyncio.get_running_loop(), self.entry.id, limit, self.start)

    def start(self, incoming: Incoming) -> None:
        self.most = max(self.most, self.server.ongoing)
        self.handle(incoming)
        self.arrived.set()

    async def until_calls(self, count: int) -> list[Incoming]:
        async with asyncio.timeout(20):
            while len(self.calls) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.calls

    def crash(self) -> None:
        """As a killed process does: the sockets close, nothing is said."""
        links = list(self.server.links)
        self.server.links.clear()
        for link in links:
            link.sock.shutdown(2)
        self.server.close()


class World:
    """Replicas of one deployment, a router, and the snapshot between them."""

    def __init__(self, directory: Path, limit: int, max_queued: int, repeatable: bool) -> None:
        self.directory, self.limit, self.max_queued, self.repeatable = directory, limit, max_queued, repeatable
        self.replicas: dict[str, Replica] = {}
        self.router = Router(asyncio.get_running_loop(), "test#0")
        self.version = 0
        self.started = 0
        self.options: dict[str, Any] = {}  # what else the entry says
        self.lost: tuple[str, ...] = ()  # nodes
        self.given_up: list[Replica] = []

    async def add(self, count: int = 1) -> list[Replica]:
        added = []
        for _ in range(count):
            self.started += 1
            replica = Replica(self.directory, self.started, self.limit)
            await replica.server.listen(replica.entry.address)
            self.replicas[replica.entry.id] = replica
            added.append(replica)
        self.publish()
        return added

    def publish(self, failed: str = "", router: Router | None = None) -> None:
        self.version += 1
        entry = DeploymentEntry(
            key="app/Model@1",
            app="app",
            name="Model",
            max_ongoing_requests=self.limit,
            max_queued_requests=self.max_queued,
            repeatable=self.repeatable,
            failed=failed,
            replicas=tuple(replica.entry for replica in self.replicas.values()),
            **self.options,
        )
        app = ApplicationEntry(
            name="app",
            route_prefix="/",
            ingress="Model",
            revisions=(RevisionEntry(number=1, weight=1.0, deployments={"Model": entry.key}),),
        )
        self.snapshot = Snapshot(
            version=self.version, applications={"app": app}, deployments={entry.key: entry}, lost=self.lost
        )
        (router or self.router).update(self.snapshot)

    def ask(self, body: bytes = b"", router: Router | None = None, **fields: Any) -> Asked:
        call = Asked(body, **fields)
        (router or self.router).submit(call)
        return call

    async def close(self) -> None:
        await self.router.close()
        for replica in (*self.replicas.values(), *self.given_up):
            replica.server.close()


def in_world(
    test: Callable[[World], Awaitable[None]],
    tmp_path: Path,
    limit: int = 10,
    max_queued: int = 100,
    repeatable: bool = True,
) -> None:
    async def run() -> None:
        world = World(tmp_path, limit, max_queued, repeatable)
        try:
            await test(world)
        finally:
            await world.close()

    asyncio.run(run())


def echo(incoming: Incoming) -> None:
    incoming.reply(bytes(incoming.body))


def taken_bytes(world: World, *others: Router) -> int:
    """What the arenas of all connections of this world hold, at both of their ends."""
    buffers = [link._buffers for router in (world.router, *others) for link in router.links]
    buffers += [link.buffers for replica in world.replicas.values() for link in replica.server.links]
    senders = [each._sender for each in buffers if each._sender is not None]
    return sum(arena.blocks.taken_bytes for sender in senders for arena in sender._arenas.values())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def test_calls_are_answered_each_with_its_own(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for replica in await world.add(2):
            replica.handle = echo
        calls = [world.ask(b"%d" % i) for i in range(50)]
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(50)]

    in_world(test, tmp_path, limit=100)


def test_a_call_carries_all_its_fields(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        deadline = asyncio.get_running_loop().time() + 100
        world.ask(b"b", request_id="r", deadline=deadline, sticky="s", model_id="m", trace="t", method="predict")
        meta = (await replica.until_calls(1))[0].meta
        assert (meta.request_id, meta.app, meta.revision, meta.snapshot, meta.key) == ("r", "app", 1, 1, "app/Model@1")
        assert (meta.method, meta.attempt, meta.sticky, meta.model_id, meta.trace) == ("predict", 1, "s", "m", "t")
        assert 90 < meta.remaining_s <= 100

    in_world(test, tmp_path)


def test_unknown_names_are_refused_with_what_there_is(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.add()
        error = await world.ask(app="nope").outcome()
        assert isinstance(error, ApplicationNotFound)
        assert "'nope'" in str(error)
        assert "app" in str(error)
        error = await world.ask(deployment="Modell").outcome()
        assert isinstance(error, DeploymentNotFound)
        assert "there are: Model" in str(error)

    in_world(test, tmp_path)


def test_a_failed_deployment_fails_those_that_wait_and_those_that_come(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        waiting = world.ask()
        world.publish(failed="its constructor raised ValueError")
        for call in (waiting, world.ask()):
            error = await call.outcome()
            assert isinstance(error, DeploymentUnavailableError)
            assert "constructor raised" in str(error)

    in_world(test, tmp_path)


def test_calls_wait_for_the_first_replica(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        calls = [world.ask(b"%d" % i) for i in range(5)]
        (replica,) = await world.add()
        await replica.until_calls(2)
        for incoming in replica.calls:
            incoming.reply(bytes(incoming.body))
        replica.handle = echo
        assert [await call.outcome() for call in calls] == [b"0", b"1", b"2", b"3", b"4"]
        assert replica.most <= 2

    in_world(test, tmp_path, limit=2)


def test_a_full_queue_refuses_and_says_what_the_limit_is(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        calls = [world.ask(b"%d" % i) for i in range(3)]
        error = await world.ask().outcome()
        assert isinstance(error, BackPressureError)
        assert "max_queued_requests is 2" in str(error)
        (await replica.until_calls(1))[0].reply(b"first")
        replica.handle = echo
        assert [await call.outcome() for call in calls] == [b"first", b"1", b"2"]

    in_world(test, tmp_path, limit=1, max_queued=2)


def test_the_limit_holds_over_several_routers_and_all_are_served(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replicas = await world.add(2)
        loop = asyncio.get_running_loop()
        for replica in replicas:
            replica.handle = lambda incoming: loop.call_soon(echo, incoming)  # type: ignore[assignment,misc]
        routers = [Router(loop, f"test#{i}") for i in range(1, 4)]
        for router in routers:
            world.publish(router=router)
        calls = [world.ask(b"%d" % i, routers[i % 3]) for i in range(150)]
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(150)]
        assert max(replica.most for replica in replicas) <= 3
        for router in routers:
            await router.close()

    in_world(test, tmp_path, limit=3)


def test_a_router_that_does_not_answer_offers_delays_nobody(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        loop = asyncio.get_running_loop()
        stopped = Router(loop, "stopped#0")
        world.publish(router=stopped)
        first = world.ask(b"first")
        await replica.until_calls(1)
        stuck = world.ask(b"stuck", stopped)
        await until(lambda: len(replica.server.links) == 2)
        (pool,) = stopped._pools.values()
        for known in pool.balancer.replicas.values():
            await until(lambda: pool.balancer.queued)
            loop.remove_reader(known.link.sock.fileno())
        mine = [world.ask(b"%d" % i) for i in range(5)]
        replica.handle = echo
        replica.calls[0].reply(b"first")
        assert await first.outcome() == b"first"
        assert [await call.outcome() for call in mine] == [b"0", b"1", b"2", b"3", b"4"]
        known.link.start()
        assert await stuck.outcome() == b"stuck"
        await stopped.close()

    in_world(test, tmp_path, limit=1)


@pytest.mark.parametrize("size", [0, 1, 60_000, 70_000, 3_000_000])
def test_bodies_and_results_of_every_size(tmp_path: Path, size: int) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        body = os.urandom(size)
        assert await world.ask(body, whole=True).outcome() == body
        parts = world.ask(body)
        parts.on_data = lambda payload, more: (  # type: ignore[method-assign,assignment]
            Asked.on_data(parts, payload, more),
            world.router.consumed(parts, len(payload)),
        )
        assert await parts.outcome() == body

    in_world(test, tmp_path)


def test_large_buffers_arrive_unchanged_and_read_only(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        seen: list[Any] = []

        def swap(incoming: Incoming) -> None:
            seen.extend(incoming.buffers)
            incoming.answer(Payload(bytes(incoming.body), [memoryview(bytes(b)[::-1]) for b in incoming.buffers]))

        replica.handle = swap
        for _ in range(5):
            seen.clear()
            buffers = [memoryview(os.urandom(1_000_000)), memoryview(os.urandom(300_000))]
            call = world.ask(b"data", buffers=list(buffers), whole=True)
            assert await call.outcome() == b"data"
            assert [bytes(b) for b in seen] == [bytes(b) for b in buffers]
            assert all(b.readonly for b in seen)
            assert [bytes(b) for b in call.buffers] == [bytes(b)[::-1] for b in buffers]

    in_world(test, tmp_path)


def test_buffers_that_nobody_reads_are_free_again(tmp_path: Path) -> None:
    """Calls that are refused, cancelled in work, or cancelled while their result is on its way leave nothing behind."""

    async def test(world: World) -> None:
        (replica,) = await world.add()
        held: list[Incoming] = []
        buffer = memoryview(bytes(300_000))

        async def arrived(count: int) -> None:
            await until(lambda: len(held) == count)

        replica.handle = held.append
        cancelled = [world.ask(b"data", buffers=[buffer], whole=True) for _ in range(3)]
        await arrived(3)
        for call in cancelled:
            world.router.cancel(call)
        await until(lambda: all(incoming.cancelled for incoming in held))
        while held:
            held.pop().answer(Payload(b"late", [buffer]))

        answered = world.ask(b"data", buffers=[buffer], whole=True)
        await arrived(1)
        held.pop().answer(Payload(b"in time", [buffer]))
        world.router.cancel(answered)

        await until(lambda: replica.server.ongoing == 0)
        last = world.ask(b"data", buffers=[buffer], whole=True)
        await arrived(1)
        held.pop().answer(Payload(bytes(200_000), [buffer]))
        assert await last.outcome() == bytes(200_000)
        last.buffers = ()
        await until(lambda: taken_bytes(world) == 0)

    in_world(test, tmp_path)


def test_buffers_of_what_is_cancelled_on_its_way_are_free_again(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        held: list[Incoming] = []
        replica.handle = held.append
        buffer = memoryview(bytes(300_000))

        coming = world.ask(bytes(20_000_000), buffers=[buffer], whole=True)
        await until(lambda: replica.server.ongoing == 1)
        assert not held
        world.router.cancel(coming)
        await until(lambda: replica.server.ongoing == 0)
        assert not held

        going = world.ask(b"data", buffers=[buffer], whole=True)
        await until(lambda: held)
        held.pop().answer(Payload(bytes(20_000_000), [buffer]))
        await until(lambda: going.parts is not None)
        world.router.cancel(going)
        await until(lambda: taken_bytes(world) == 0)

    in_world(test, tmp_path)


def test_buffers_of_a_refused_call_are_free_again(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        held: list[Incoming] = []
        replica.handle = held.append
        other = Router(asyncio.get_running_loop(), "other#0")
        world.publish(router=other)
        routers = [world.router, other]
        calls = [world.ask(b"data", router=r, buffers=[memoryview(bytes(300_000))], whole=True) for r in routers * 5]
        for _ in calls:
            await until(lambda: held)
            held.pop().answer(Payload(b"done", []))
        for call in calls:
            assert await call.outcome() == b"done"
        await until(lambda: taken_bytes(world, other) == 0)
        await other.close()

    in_world(test, tmp_path, limit=1)


def test_the_buffers_of_the_arguments_are_not_those_of_the_result(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        for size in (10, 200_000):  # a result in one frame, and in several
            replica.handle = lambda incoming, size=size: incoming.answer(Payload(bytes(size), []))
            call = world.ask(b"data", buffers=[memoryview(bytes(300_000))], whole=True)
            assert await call.outcome() == bytes(size)
            assert not call.buffers

    in_world(test, tmp_path)


def test_a_replica_that_cannot_be_reached_is_tried_once_for_all_that_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each that waits would be more for each the next time, without end."""

    async def test(world: World) -> None:
        world.publish()
        calls = [world.ask(b"%d" % i) for i in range(50)]
        (replica,) = await world.add()  # the calls are sent as it is published
        replica.handle = echo
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(50)]
        replica.server.close()
        replica.crash()
        await until(lambda: world.router.links == set())
        caplog.clear()
        calls = [world.ask(b"%d" % i) for i in range(50)]
        tried = "does not take connections"
        await until(lambda: tried in caplog.text)  # it is listed still, so it is tried again
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert caplog.text.count(tried) == 1
        (other,) = await world.add()
        other.handle = echo
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(50)]

    with caplog.at_level("INFO", "headrace.router"):
        in_world(test, tmp_path, limit=100)


def test_a_crash_repeats_what_was_in_work(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second = await world.add(2)
        calls = [world.ask(b"%d" % i, whole=True) for i in range(10)]
        await until(lambda: len(first.calls) + len(second.calls) == 10)
        second.handle = echo
        for incoming in second.calls:
            incoming.reply(bytes(incoming.body))
        first.crash()
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(10)]
        assert {call.attempt for call in calls} == {1, 2}

    in_world(test, tmp_path)


def test_one_poisonous_call_fails_alone(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        def handler(replica: Replica) -> Callable[[Incoming], None]:
            def handle(incoming: Incoming) -> None:
                if bytes(incoming.body) == b"poison":
                    replica.crash()
                    world.replicas.pop(replica.entry.id)
                    asyncio.get_running_loop().create_task(restart())
                else:
                    asyncio.get_running_loop().call_soon(echo, incoming)

            return handle

        async def restart() -> None:
            for replica in await world.add():
                replica.handle = handler(replica)

        for replica in await world.add(2):
            replica.handle = handler(replica)
        calls = [world.ask(b"%d" % i) for i in range(20)]
        poison = world.ask(b"poison")
        calls += [world.ask(b"%d" % i) for i in range(20, 40)]
        assert isinstance(await poison.outcome(), PoisonousRequestError)
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(40)]

    in_world(test, tmp_path, limit=50)


@pytest.mark.parametrize(("size", "survives"), [(900_000, True), (2_000_000, False)])
def test_a_streamed_body_is_repeated_when_it_is_small_enough_to_be_kept(
    tmp_path: Path, size: int, survives: bool
) -> None:
    async def test(world: World) -> None:
        first, second = await world.add(2)
        call = Asked(b"start", more=True, http=msgspec.Raw(b"\x90"))
        world.router.submit(call)
        await until(lambda: first.calls or second.calls)
        victim, other = (first, second) if first.calls else (second, first)
        (incoming,) = victim.calls
        sent, read = 5, 5
        async with asyncio.timeout(20):
            while sent < size:
                world.router.send_body(call, b"y" * 50_000, True)
                sent += 50_000
                read += len(await incoming.read())
        victim.crash()
        if not survives:
            assert isinstance(await call.outcome(), ReplicaDiedError)
            return
        await other.until_calls(1)
        world.router.send_body(call, b"end", False)
        (again,) = other.calls
        body = bytes(again.body)
        async with asyncio.timeout(20):
            while part := await again.read():
                body += part
        assert body == b"start" + b"y" * (sent - 5) + b"end"
        again.reply(b"ok")
        assert await call.outcome() == b"ok"
        assert call.attempt == 2

    in_world(test, tmp_path)


def test_arrays_up_to_a_limit_are_repeated_as_they_were(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second = await world.add(2)
        array = bytearray(b"a" * 500_000)
        call = world.ask(b"data", buffers=[memoryview(array)], whole=True)
        await until(lambda: first.calls or second.calls)
        array[:] = b"b" * 500_000
        victim, other = (first, second) if first.calls else (second, first)
        victim.crash()
        (again,) = await other.until_calls(1)
        assert bytes(again.buffers[0]) == b"a" * 500_000
        again.reply(b"ok")
        assert await call.outcome() == b"ok"

    in_world(test, tmp_path)


def test_a_raised_limit_lets_waiting_calls_go(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        calls = [world.ask(b"%d" % i) for i in range(3)]
        await replica.until_calls(1)
        replica.server.gate.limit = world.limit = 3
        world.publish()
        await replica.until_calls(3)
        for incoming in list(replica.calls):
            incoming.reply(bytes(incoming.body))
        assert [await call.outcome() for call in calls] == [b"0", b"1", b"2"]

    in_world(test, tmp_path, limit=1)


def test_what_may_not_run_twice_is_not_repeated(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = world.ask()
        await replica.until_calls(1)
        replica.crash()
        error = await call.outcome()
        assert isinstance(error, ReplicaDiedError)
        assert "not repeatable" in str(error)

    in_world(test, tmp_path, repeatable=False)


def test_a_draining_replica_finishes_and_new_calls_go_elsewhere(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        old, new = await world.add(2)
        before = [world.ask(b"%d" % i) for i in range(6)]
        await until(lambda: len(old.calls) + len(new.calls) == 6)
        old_calls = len(old.calls)
        old.server.drain()
        after = [world.ask(b"after%d" % i) for i in range(4)]
        await until(lambda: len(old.calls) + len(new.calls) == 10)
        assert len(old.calls) == old_calls
        for incoming in old.calls + new.calls:
            incoming.reply(bytes(incoming.body))
        for call in before + after:
            assert await call.outcome() == call.body
        await asyncio.wait_for(old.server.drained(), 20)
        await until(lambda: not old.server.links)

    in_world(test, tmp_path, limit=20)


def test_a_cancelled_call_keeps_its_slot_until_its_work_has_ended(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        first = world.ask(b"first")
        (incoming,) = await replica.until_calls(1)
        told: list[bool] = []
        incoming.on_cancel = lambda: told.append(True)
        world.router.cancel(first)
        await until(lambda: told)
        second = world.ask(b"second")
        assert replica.server.ongoing == 1
        incoming.reply(b"nobody hears this")
        await replica.until_calls(2)
        replica.calls[1].reply(b"2")
        assert await second.outcome() == b"2"
        assert not first.end.is_set()

    in_world(test, tmp_path, limit=1)


def test_a_call_cancelled_while_it_waits_never_starts(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        first, second, third = world.ask(b"1"), world.ask(b"2"), world.ask(b"3")
        world.router.cancel(second)
        await replica.until_calls(1)
        replica.handle = echo
        replica.calls[0].reply(b"1")
        assert await third.outcome() == b"3"
        assert await first.outcome() == b"1"
        assert not second.end.is_set()

    in_world(test, tmp_path, limit=1)


def test_a_deadline_ends_the_wait(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        call = world.ask(deadline=asyncio.get_running_loop().time() + 0.01, request_id="late")
        error = await call.outcome()
        assert isinstance(error, RequestTimeoutError)
        assert "late" in str(error)

    in_world(test, tmp_path)


def test_a_streamed_result_goes_at_its_readers_pace_and_holds_its_slot(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = world.ask()
        (incoming,) = await replica.until_calls(1)
        incoming.start_reply(b"head", b"", 0)
        sent = 0
        while incoming.write(b"x" * 50_000):
            sent += 50_000
        sent += 50_000
        await until(lambda: sum(map(len, call.data)) >= 256 * 1024)
        assert sum(map(len, call.data)) < sent
        assert replica.server.ongoing == 1
        world.router.consumed(call, sum(map(len, call.data)))
        await asyncio.wait_for(incoming.drained(), 20)
        assert incoming.write(b"end")
        incoming.end()
        assert await call.outcome() == b"head" + b"x" * sent + b"end"
        assert replica.server.ongoing == 0

    in_world(test, tmp_path, limit=1)


def test_a_broken_stream_is_told_and_not_repeated(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second = await world.add(2)
        call = world.ask()
        await until(lambda: first.calls or second.calls)
        replica = first if first.calls else second
        replica.calls[0].start_reply(b"head", b"", 0)
        await until(lambda: call.replies)
        replica.crash()
        async with asyncio.timeout(20):
            await call.end.wait()
        assert isinstance(call.errors[0], ReplicaDiedError)
        assert len(first.calls) + len(second.calls) == 1

    in_world(test, tmp_path)


def test_a_streamed_body_is_read_in_parts_and_holds_back_its_writer(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = Asked(b"start", more=True)
        call.http = msgspec.Raw(b"\x90")
        world.router.submit(call)
        (incoming,) = await replica.until_calls(1)
        sent = len(b"start")
        while world.router.send_body(call, b"y" * 60_000, True):
            sent += 60_000
        sent += 60_000
        read = [bytes(incoming.body)]
        async with asyncio.timeout(20):
            while sum(map(len, read)) < sent:
                read.append(await incoming.read())
            await call.writable.wait()
        assert world.router.send_body(call, b"!", False)
        async with asyncio.timeout(20):
            while part := await incoming.read():
                read.append(part)
        assert b"".join(read) == b"start" + b"y" * (sent - 5) + b"!"
        incoming.reply(b"thanks")
        assert await call.outcome() == b"thanks"

    in_world(test, tmp_path)


def test_a_refused_call_with_a_streamed_body_loses_nothing_of_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        other = Router(asyncio.get_running_loop(), "other#0")
        world.publish(router=other)
        blocking = world.ask(b"blocking", other)
        await replica.until_calls(1)
        call = Asked(b"a" * 100_000, more=True)
        call.http = msgspec.Raw(b"\x90")
        world.router.submit(call)
        world.router.send_body(call, b"b" * 10, True)
        await until(lambda: next(iter(world.router._pools.values())).balancer.queued)
        world.router.send_body(call, b"c" * 10, True)
        replica.calls[0].reply(b"")
        await blocking.outcome()
        await replica.until_calls(2)
        world.router.send_body(call, b"d", False)
        incoming = replica.calls[1]
        body = bytes(incoming.body)
        async with asyncio.timeout(20):
            while part := await incoming.read():
                body += part
        assert body == b"a" * 100_000 + b"b" * 10 + b"c" * 10 + b"d"
        incoming.reply(b"ok")
        assert await call.outcome() == b"ok"
        await other.close()

    in_world(test, tmp_path, limit=1)


def test_users_errors_come_as_they_were_sent(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = lambda incoming: incoming.fail(ErrorInfo("ValueError", "no", "Traceback", 500))  # type: ignore[assignment]
        error = await world.ask().outcome()
        assert isinstance(error, ErrorInfo)
        assert (error.type_name, error.message, error.traceback_text) == ("ValueError", "no", "Traceback")
        assert replica.server.ongoing == 0

    in_world(test, tmp_path)


def test_a_deployment_that_is_gone_sends_waiting_calls_to_the_next_revision(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        call = world.ask(b"wait")
        (replica,) = await world.add()
        replica.handle = echo
        assert await call.outcome() == b"wait"
        world.replicas.clear()
        world.publish()
        waiting = world.ask(b"next")
        old = world.snapshot
        entry = next(iter(old.deployments.values()))
        new = DeploymentEntry(
            key="app/Model@2",
            app="app",
            name="Model",
            max_ongoing_requests=1,
            max_queued_requests=10,
            replicas=(replica.entry,),
        )
        app = ApplicationEntry(
            name="app",
            route_prefix="/",
            ingress="Model",
            revisions=(RevisionEntry(number=2, weight=1.0, deployments={"Model": new.key}),),
        )
        assert entry.key not in {new.key}
        world.router.update(Snapshot(version=old.version + 1, applications={"app": app}, deployments={new.key: new}))
        assert await waiting.outcome() == b"next"
        assert waiting.revision == 2
        replica.server.close()

    in_world(test, tmp_path)


def test_a_router_among_many_keeps_connections_to_a_share_of_many_replicas(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replicas = await world.add(60)
        for replica in replicas:
            replica.handle = echo
        snapshot = world.snapshot
        (entry,) = snapshot.deployments.values()
        crowded = msgspec.structs.replace(entry, routers=100)
        world.router.update(
            msgspec.structs.replace(snapshot, version=snapshot.version + 1, deployments={entry.key: crowded})
        )
        for _ in range(400):
            assert await world.ask(b"x").outcome() == b"x"
        connected = [replica for replica in replicas if replica.server.links]
        assert 15 <= len(connected) <= 30

    in_world(test, tmp_path)


def test_a_caller_that_dies_amid_a_body_with_buffers_holds_no_slot(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        held: list[Incoming] = []
        replica.handle = held.append
        in_work = world.ask(b"in work")
        await until(lambda: held)
        world.ask(bytes(20_000_000), buffers=[memoryview(bytes(300_000))], whole=True)
        await until(lambda: replica.server.ongoing == 2)
        world.replicas.clear()
        world.publish()  # nothing that was lost comes again
        (link,) = world.router.links
        link.sock.shutdown(2)
        await until(lambda: held[0].cancelled)
        held[0].reply(b"")
        await until(lambda: replica.server.ongoing == 0)
        assert isinstance(await in_work.outcome(), ReplicaDiedError)
        replica.server.close()

    in_world(test, tmp_path, repeatable=False)


def test_a_body_that_refers_to_no_block_holds_no_slot(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        call = world.ask(b"fine")
        assert await call.outcome() == b"fine"
        call = world.ask(b"\x01\x00 no block", kind=ARENAS)
        assert isinstance(await call.outcome(), ReplicaDiedError)
        await until(lambda: replica.server.ongoing == 0)

    in_world(test, tmp_path, repeatable=False)


def test_a_head_of_a_reply_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = world.ask(b"")
        (incoming,) = await replica.until_calls(1)
        with pytest.raises(NotServableError, match="70000 bytes"):
            incoming.start_reply(b"body", bytes(70_000), 0)
        incoming.reply(b"body", bytes(70_000))
        outcome = await call.outcome()
        assert isinstance(outcome, ErrorInfo)
        assert "70000 bytes" in outcome.message
        assert replica.server.ongoing == 0

    in_world(test, tmp_path)
