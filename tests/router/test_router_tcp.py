"""A router and replicas of another node, over TCP and TLS: as over Unix sockets, whatever breaks and whoever knocks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trustme
from certificates import node_files
from test_router import Asked, Replica, World, echo, until

from headrace.replica.incoming import Incoming
from headrace.router import Router
from headrace.spec.errors import HeadraceError, ReplicaDiedError
from headrace.spec.snapshot import ReplicaEntry
from headrace.wire.doorkeeper import LIMIT_A_SOURCE
from headrace.wire.handshake import GREETING, NONCE_BYTES, Handshake
from headrace.wire.payload import Payload
from headrace.wire.tcp import Credentials, replica_purpose

SECRET = bytes(range(32))
LARGE = os.urandom(1 << 20) * 10


class Distant(Replica):
    """A replica of another node."""

    def __init__(self, directory: Path, number: int, limit: int, credentials: Credentials) -> None:
        super().__init__(directory, number, limit)
        purpose = replica_purpose("app", self.entry.id)
        address = self.server.listen_tcp("127.0.0.1", None, credentials, purpose)
        self.entry = ReplicaEntry(self.entry.id, address, "there")
        self.listening = self.port

    @property
    def port(self) -> int:
        return int(self.entry.address.rpartition(":")[2])


class Cluster(World):
    """Replicas of one node, a router on another."""

    def __init__(self, directory: Path, credentials: Credentials, limit: int = 10, repeatable: bool = True) -> None:
        super().__init__(directory, limit, 100, repeatable)
        self.credentials = credentials
        loop = asyncio.get_running_loop()
        self.router = Router(loop, "test#0", node="here", read_credentials=lambda: credentials)

    async def add_distant(self, handle: Callable[[Incoming], None] | None = echo, count: int = 1) -> list[Distant]:
        added = []
        for _ in range(count):
            self.started += 1
            replica = Distant(self.directory, self.started, self.limit, self.credentials)
            if handle is not None:
                replica.handle = handle
            self.replicas[replica.entry.id] = replica
            added.append(replica)
        self.publish()
        return added


def in_cluster(
    test: Callable[[Cluster], Awaitable[None]],
    directory: Path,
    credentials: Credentials | None = None,
    repeatable: bool = True,
) -> None:
    async def run() -> None:
        cluster = Cluster(directory, credentials or Credentials(SECRET), repeatable=repeatable)
        try:
            async with asyncio.timeout(60):
                await test(cluster)
        finally:
            await cluster.close()

    asyncio.run(run())


@pytest.fixture(params=["tcp", "tls"])
def credentials(request: pytest.FixtureRequest, tmp_path: Path) -> Credentials:
    return Credentials(SECRET, node_files(tmp_path) if request.param == "tls" else None)


def same(first: bytes | memoryview, second: bytes) -> bool:
    """Whether they are equal: a test that fails is not to print them."""
    return first == second


# --- calls ---------------------------------------------------------------------------------------------------------


def test_calls_are_answered_each_with_its_own(tmp_path: Path, credentials: Credentials) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.add_distant(count=3)
        calls = [cluster.ask(b"%d" % i) for i in range(60)]
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(60)]
        assert len(cluster.router.links) == 3

    in_cluster(test, tmp_path, credentials)


def test_the_near_one_is_reached_by_its_unix_socket(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (replica,) = await cluster.add_distant()
        near = f"unix:{tmp_path}/near.sock"
        await replica.server.listen(near)
        replica.entry = ReplicaEntry(replica.entry.id, replica.entry.address, "here", near)
        cluster.replicas.clear()
        cluster.publish()
        cluster.replicas[replica.entry.id] = replica
        cluster.publish()
        assert await cluster.ask(b"x").outcome() == b"x"
        assert [link.sock.family for link in cluster.router.links] == [socket.AF_UNIX]

    in_cluster(test, tmp_path)


def test_arrays_go_both_ways_and_arrive_read_only(tmp_path: Path, credentials: Credentials) -> None:
    numpy = pytest.importorskip("numpy")

    def answer(incoming: Incoming) -> None:
        incoming.answer(Payload(b"answer to " + bytes(incoming.body), list(incoming.buffers)))

    async def test(cluster: Cluster) -> None:
        await cluster.add_distant(answer)
        source = bytearray(LARGE)
        small = bytes(300_000) + b"end"
        call = Asked(b"question", buffers=[memoryview(source), memoryview(small)], whole=True)
        cluster.router.submit(call)
        await until(lambda: call.link is not None)
        source[:] = bytes(len(source))  # it was submitted: what the caller does with its own now is not our business
        assert await call.outcome() == b"answer to question"
        first, second = call.buffers
        assert same(first, LARGE)
        assert same(second, small)
        assert first.readonly
        array = numpy.frombuffer(first, "f8")
        assert array.flags.aligned
        assert not array.flags.writeable

    in_cluster(test, tmp_path, credentials)


def test_a_large_body_does_not_hold_up_a_small_call(tmp_path: Path, credentials: Credentials) -> None:
    async def test(cluster: Cluster) -> None:
        order: list[bytes] = []

        def answer(incoming: Incoming) -> None:
            order.append(bytes(incoming.body))
            incoming.reply(b"")

        await cluster.add_distant(answer)
        await cluster.ask(b"first").outcome()
        large = cluster.ask(b"large", buffers=[LARGE, LARGE, LARGE])
        small = cluster.ask(b"small")
        await small.outcome()
        await large.outcome()
        assert order == [b"first", b"small", b"large"]

    in_cluster(test, tmp_path, credentials)


def test_results_and_bodies_stream(tmp_path: Path, credentials: Credentials) -> None:
    async def stream(incoming: Incoming) -> None:
        incoming.start_reply(bytes(incoming.body), b"", 0)
        while part := await incoming.read():
            if not incoming.write(part):
                await incoming.drained()
        incoming.end()

    tasks: set[asyncio.Task[None]] = set()

    def start(incoming: Incoming) -> None:
        tasks.add(asyncio.ensure_future(stream(incoming)))

    async def test(cluster: Cluster) -> None:
        await cluster.add_distant(start)
        call = Asked(b"", more=True, http=msgspec.Raw(b"\x90"))
        call.on_data = lambda payload, more: received(call, payload, more)  # type: ignore[method-assign]

        def received(call: Asked, payload: bytes, more: bool) -> None:
            Asked.on_data(call, payload, more)
            cluster.router.consumed(call, len(payload))

        cluster.router.submit(call)
        parts = [bytes([i]) * 100_000 for i in range(30)]
        for part in parts:
            if not cluster.router.send_body(call, part, True):
                await call.writable.wait()
                call.writable.clear()
        cluster.router.send_body(call, b"", False)
        await call.end.wait()
        assert same(call.replies[0][2] + b"".join(call.data), b"".join(parts))

    in_cluster(test, tmp_path, credentials)


def test_an_array_that_nobody_waits_for_any_more_leaves_the_connection_in_order(tmp_path: Path) -> None:
    def answer(incoming: Incoming) -> None:
        incoming.answer(Payload(b"x", [memoryview(LARGE)]) if incoming.body == b"large" else Payload(b"small"))

    async def test(cluster: Cluster) -> None:
        (replica,) = await cluster.add_distant(answer)
        for i in range(10):
            call = cluster.ask(b"large", buffers=[LARGE] if i % 2 else [])
            await until(lambda: call.parts is not None or call.outflow is not None)  # noqa: B023
            for _ in range(i * 5):
                await asyncio.sleep(0)
            cluster.router.cancel(call)
            assert await cluster.ask(b"s").outcome() == b"small"
        await until(lambda: not replica.server.ongoing)
        (link,) = cluster.router.links
        await until(lambda: not link.calls)
        assert not link.landings
        assert not [landing for callee in replica.server.links for landing in callee.landings]

    in_cluster(test, tmp_path)


# --- what breaks ---------------------------------------------------------------------------------------------------


def test_calls_wait_while_the_connection_is_made_and_go_elsewhere_when_it_cannot_be(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (gone,) = await cluster.add_distant()
        gone.server.close()
        call = cluster.ask(b"x")
        await asyncio.sleep(0)
        assert not call.errors
        await cluster.add_distant()
        outcome = await call.outcome()
        assert outcome == b"x", outcome

    in_cluster(test, tmp_path)


def test_a_silent_replica_holds_up_no_call_that_another_can_take(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            (mute,) = await cluster.add_distant()
            mute.entry = ReplicaEntry("Model#0", f"tcp:127.0.0.1:{silent.getsockname()[1]}", "there")
            await cluster.add_distant()
            calls = [cluster.ask(b"x") for _ in range(30)]
            assert [await call.outcome() for call in calls] == [b"x"] * 30

    in_cluster(test, tmp_path)


def test_a_call_for_one_replica_waits_for_its_connection(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        first, second = await cluster.add_distant(count=2)
        calls = [cluster.ask(b"x", target=second.entry.id) for _ in range(5)]
        assert [await call.outcome() for call in calls] == [b"x"] * 5
        first.server.close()
        lost = cluster.ask(b"x", target=first.entry.id)
        assert isinstance(await lost.outcome(), ReplicaDiedError)

    in_cluster(test, tmp_path)


def test_calls_in_work_at_a_crash_are_repeated_elsewhere(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (first,) = await cluster.add_distant(None)
        calls = [cluster.ask(b"%d" % i) for i in range(5)]
        await first.until_calls(5)
        await cluster.add_distant()
        first.crash()
        assert [await call.outcome() for call in calls] == [b"%d" % i for i in range(5)]

    in_cluster(test, tmp_path)


def test_another_process_at_the_port_is_not_taken_for_the_replica(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        first, second = await cluster.add_distant(count=2)
        first.entry = ReplicaEntry(first.entry.id, second.entry.address, "there")
        cluster.replicas = {first.entry.id: first}
        cluster.publish()
        call = cluster.ask(b"x")
        await until(lambda: second.server._door is not None and second.server._door.door._told)
        assert not call.replies
        assert not second.server.links
        cluster.router.cancel(call)

    in_cluster(test, tmp_path)


def test_the_router_closes_while_it_connects(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.add_distant()
        call = cluster.ask(b"x")
        await asyncio.sleep(0)
        await cluster.router.close()
        assert isinstance(await call.outcome(), HeadraceError)
        assert not cluster.router.links

    in_cluster(test, tmp_path)


# --- who knocks ----------------------------------------------------------------------------------------------------


def knock(port: int, *messages: bytes) -> bytes:
    """Say these, each after an answer, and give what came until the other end closed."""
    answers = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock, contextlib.suppress(OSError):
        for message in messages:
            sock.sendall(message)
            if message is not messages[-1]:
                answers += sock.recv(4096)
        while data := sock.recv(4096):
            answers += data
    return answers


def impostor(port: int, secret: bytes) -> bytes:
    """An initiator with another secret, which believes whatever the acceptor says."""
    handshake = Handshake(secret, initiator=True)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(handshake.begin())
        answer = sock.recv(4096)
        handshake._theirs = answer[len(GREETING) : len(GREETING) + NONCE_BYTES]
        with contextlib.suppress(OSError):
            sock.sendall(handshake._mac(b"initiator") + b"and a frame")
            return sock.recv(4096)
    return b""


def reflect(port: int) -> bytes:
    """Give the acceptor its own proof back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(GREETING + os.urandom(NONCE_BYTES))
        answer = sock.recv(4096)
        with contextlib.suppress(OSError):
            sock.sendall(answer[-32:])
            return sock.recv(4096)
    return b""


def replay(port: int, recorded: list[bytes]) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock, contextlib.suppress(OSError):
        sock.sendall(recorded[0])
        sock.recv(4096)
        sock.sendall(recorded[1])
        return sock.recv(4096)
    return b""


def test_who_does_not_hold_the_secret_gets_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever they say: not one becomes a link, the source is logged once, and a good peer gets in."""
    caplog.set_level(logging.WARNING)

    async def test(cluster: Cluster) -> None:
        (replica,) = await cluster.add_distant()
        port, threads = replica.port, threading.active_count()
        initiator = Handshake(SECRET, initiator=True, purpose=replica_purpose("app", replica.entry.id))
        acceptor = Handshake(SECRET, initiator=False, purpose=replica_purpose("app", replica.entry.id))
        opening = initiator.begin()
        recorded = [opening, initiator.feed(acceptor.feed(opening))]
        hostile: list[tuple[Callable[..., bytes], tuple[object, ...]]] = [
            (impostor, (port, bytes(32))),
            (reflect, (port,)),
            (replay, (port, recorded)),
            (knock, (port, b"GET / HTTP/1.1\r\n\r\n")),
            (knock, (port, b"\x16\x03\x01" + os.urandom(500))),
            (knock, (port, b"\x00" + os.urandom(100_000))),
            (knock, (port, opening + b"too much" * 4)),
            (knock, (port, opening, bytes(31) + b"x")),
        ]
        for attack, arguments in hostile:
            answer = await asyncio.to_thread(attack, *arguments)
            assert len(answer) in (0, len(GREETING) + NONCE_BYTES + 32)
        await until(lambda: replica.server._door is not None and not len(replica.server._door.door))
        assert not replica.server.links
        assert not replica.calls
        assert threading.active_count() <= threads + 5  # asyncio.to_thread's own
        assert await cluster.ask(b"good").outcome() == b"good"

    in_cluster(test, tmp_path)
    told = [record for record in caplog.records if "refused a connection from 127.0.0.1" in record.message]
    assert len(told) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_flood_of_silent_connections_keeps_nobody_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(cluster: Cluster) -> None:
        (replica,) = await cluster.add_distant()
        assert replica.server._door is not None
        door, before = replica.server._door.door, len(asyncio.all_tasks())
        silent: list[socket.socket] = []
        try:
            for i in range(300):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", replica.port))
                silent.append(sock)
                if i % 100 == 99:
                    await until(lambda: len(door) == LIMIT_A_SOURCE)
                    assert await cluster.ask(b"good").outcome() == b"good"
                    for link in list(cluster.router.links):
                        link._lose(None)  # so that the next has to get in anew
                    for sock in silent[:-LIMIT_A_SOURCE]:
                        sock.close()
            await until(lambda: len(asyncio.all_tasks()) <= before + LIMIT_A_SOURCE + 3)
            assert len(door) <= LIMIT_A_SOURCE
        finally:
            for sock in silent:
                sock.close()

    in_cluster(test, tmp_path)
    assert len([record for record in caplog.records if "refused a connection" in record.message]) == 1


def test_two_thousand_connections_in_a_row_leave_nothing(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (replica,) = await cluster.add_distant()
        assert replica.server._door is not None
        door = replica.server._door.door

        def flood() -> None:
            for i in range(2000):
                with socket.create_connection(("127.0.0.1", replica.port), timeout=20) as sock:
                    sock.sendall((b"", b"garbage", GREETING)[i % 3])

        flooding = asyncio.create_task(asyncio.to_thread(flood))
        while not flooding.done():
            assert await cluster.ask(b"good").outcome() == b"good"
            await asyncio.sleep(0)
        await flooding
        await until(lambda: not len(door))
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert len(replica.server.links) == 1
        assert not door._waiting

    in_cluster(test, tmp_path)


def test_without_a_certificate_of_the_authority_nobody_gets_to_the_handshake(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        (replica,) = await cluster.add_distant()
        loop = asyncio.get_running_loop()
        for wrong in (Credentials(SECRET), Credentials(SECRET, node_files(tmp_path, name="stranger"))):
            stranger = Router(loop, "stranger#0", node="here", read_credentials=lambda: wrong)  # noqa: B023
            cluster.publish(router=stranger)
            call = cluster.ask(b"x", router=stranger)
            (pool,) = stranger._pools.values()
            await until(lambda: pool.connections._dialing._warned)  # noqa: B023
            assert not call.replies
            await stranger.close()
        assert not replica.server.links
        assert await cluster.ask(b"good").outcome() == b"good"

    authority = trustme.CA()
    in_cluster(test, tmp_path, Credentials(SECRET, node_files(tmp_path, authority)))
