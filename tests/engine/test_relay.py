"""headrace.engine.relay: bytes both ways as they are, ends as they are, and nothing that waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme
import uvloop

from headrace.engine.directory import InstanceDirectory
from headrace.engine.relay import UNREAD_BYTES, Relay
from headrace.wire.control import CONTROL_PURPOSE
from headrace.wire.handshake import Handshake
from headrace.wire.meeting import Reception
from headrace.wire.tcp import Credentials, format_address, listen
from headrace.wire.tls import TlsFiles

SECRET = b"s" * 32
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Test = Callable[["Site"], Awaitable[None]]
FACTORIES = [asyncio.new_event_loop, uvloop.new_event_loop]


class Site:
    """A relay, and what stands where the controller should: streams of whoever proved who they are."""

    def __init__(self, path: Path, tls: TlsFiles | None, connect_s: float) -> None:
        self.directory = InstanceDirectory(path)
        self.tls = tls
        self.address = ""
        self.met: asyncio.Queue[Streams] = asyncio.Queue()
        self.relay = Relay(self.directory, SECRET, tls, lambda: self.address, connect_s=connect_s)
        self.reception: Reception | None = None

    async def open(self, secret: bytes = SECRET, purpose: str = CONTROL_PURPOSE) -> None:
        """Have a controller, at a port of its own."""
        sock = listen("127.0.0.1")

        def protocol() -> asyncio.Protocol:
            reader = asyncio.StreamReader(limit=2**16)
            return asyncio.StreamReaderProtocol(reader, lambda *streams: self.met.put_nowait(streams))

        self.reception = Reception(sock, Credentials(secret, self.tls), purpose, protocol, what="a test")
        self.reception.start()
        self.address = format_address(*sock.getsockname())

    async def shut(self) -> None:
        assert self.reception is not None
        await self.reception.close()

    async def connect(self) -> Streams:
        return await asyncio.open_unix_connection(str(self.directory.control_socket))

    async def pair(self) -> tuple[Streams, Streams]:
        """Both ends of a carried connection."""
        near = await self.connect()
        return near, await self.met.get()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.001)


def run(
    test: Test,
    tls: TlsFiles | None = None,
    loop: Callable[[], asyncio.AbstractEventLoop] = FACTORIES[0],
    connect_s: float = 10.0,
) -> None:
    path = Path(tempfile.mkdtemp(prefix="hr"))  # short: socket paths have a limit

    async def body() -> None:
        site = Site(path, tls, connect_s)
        async with asyncio.timeout(20):
            await site.open()
            await site.relay.start()
            try:
                await test(site)
            finally:
                await site.relay.close()
                await site.shut()

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(body())
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A certificate of a node, and its authority."""
    path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    node = authority.issue_cert("node")
    for name, pem in (("cert", node.cert_chain_pems[0]), ("key", node.private_key_pem), ("ca", authority.cert_pem)):
        pem.write_to_path(str(path / name))
    return TlsFiles(*(str(path / name) for name in ("cert", "key", "ca")))


@contextlib.asynccontextmanager
async def server(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of one who does as `talk` says."""
    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield format_address(*listening.sockets[0].getsockname())
    finally:
        listening.close()


@pytest.mark.parametrize("loop", FACTORIES)
@pytest.mark.parametrize("under_tls", [False, True])
def test_bytes_go_both_ways_as_they_are(
    under_tls: bool, loop: Callable[[], asyncio.AbstractEventLoop], tls: TlsFiles
) -> None:
    there = random.Random(1).randbytes(16_000_000)
    back = there[::-1]

    async def body(site: Site) -> None:
        (near, to_near), (far, to_far) = await site.pair()

        async def say(writer: asyncio.StreamWriter, data: bytes) -> None:
            for at in range(0, len(data), 100_000):
                writer.write(data[at : at + 100_000])
                await writer.drain()

        _, _, at_far, at_near = await asyncio.gather(
            say(to_near, there), say(to_far, back), far.readexactly(len(there)), near.readexactly(len(back))
        )
        assert at_far == there
        assert at_near == back
        to_near.close()
        assert await far.read() == b""
        to_far.close()
        await site.until(lambda: "0 carried" in repr(site.relay))

    run(body, tls if under_tls else None, loop)


@pytest.mark.parametrize("loop", FACTORIES)
def test_what_was_said_at_once_after_connecting_arrives(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(site: Site) -> None:
        _, writer = await site.connect()
        writer.write(b"hello")
        writer.close()  # before anybody was reached
        reader, other = await site.met.get()
        assert await reader.read() == b"hello"
        other.close()

    run(body, loop=loop)


@pytest.mark.parametrize("loop", FACTORIES)
@pytest.mark.parametrize("from_near", [True, False])
def test_one_who_does_not_read_holds_back_the_other(
    from_near: bool, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    size = 64 * 1024 * 1024
    chunk = b"x" * 65536

    async def body(site: Site) -> None:
        near, far = await site.pair()
        (_, writer), (reader, _) = (near, far) if from_near else (far, near)
        said = 0
        with contextlib.suppress(TimeoutError):
            while said < size:
                writer.write(chunk)
                said += len(chunk)
                async with asyncio.timeout(0.3):
                    await writer.drain()
        assert said < size // 2  # the kernel's buffers, and ours
        for side in [each for carried in site.relay._carried for each in (carried.near, carried.far)]:
            assert side.transport is not None
            assert side.transport.get_write_buffer_size() <= UNREAD_BYTES + 256 * 1024
        writer.write_eof()
        assert len(await reader.read()) == said

    run(body, loop=loop)


@pytest.mark.parametrize("loop", FACTORIES)
def test_who_has_said_all_still_hears_the_answer(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def body(site: Site) -> None:
        for asks_near in (True, False):
            near, far = await site.pair()
            (reader, writer), (asked, answering) = (near, far) if asks_near else (far, near)
            writer.write(b"how many?")
            writer.write_eof()
            assert await asked.read() == b"how many?"
            answering.write(b"seven")
            answering.close()
            assert await reader.read() == b"seven"
            writer.close()
        await site.until(lambda: "0 carried" in repr(site.relay))

    run(body, loop=loop)


@pytest.mark.parametrize("end", ["near", "far"])
def test_an_abrupt_end_is_one_at_the_other_side(end: str) -> None:
    async def body(site: Site) -> None:
        near, far = await site.pair()
        (_, ending), (reader, writer) = (near, far) if end == "near" else (far, near)
        if end == "far":
            sock = ending.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, and no orderly end
        ending.transport.abort()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await site.until(lambda: "0 carried" in repr(site.relay))

    run(body)


def test_the_socket_is_ours_alone_and_replaces_one_that_was_left() -> None:
    async def body(site: Site) -> None:
        path = site.directory.control_socket
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        another = Relay(site.directory, SECRET, None, lambda: site.address)  # of an agent that was started anew
        await another.start()
        near, _ = await site.pair()
        near[1].close()
        assert "1 carried" in repr(another)
        await another.close()

    run(body)


def test_closed_it_leaves_nothing() -> None:
    async def body(site: Site) -> None:
        (reader, writer), _ = await site.pair()
        assert "1 carried" in repr(site.relay)
        site.address = ""  # and one that waits to be connected
        await site.connect()
        await site.relay.close()
        assert await reader.read() == b""
        assert not site.directory.control_socket.exists()
        assert "nowhere, 0 carried" in repr(site.relay)
        await site.relay.close()
        writer.close()

    run(body)


def test_a_controller_that_moved_is_found_at_the_next_connection() -> None:
    async def body(site: Site) -> None:
        near, _ = await site.pair()
        await site.shut()
        await site.open()
        again, _ = await site.pair()
        for _, writer in (near, again):
            writer.close()

    run(body)


# --- what cannot be reached -------------------------------------------------------------------------------------------


async def closed_soon(site: Site) -> None:
    reader, writer = await site.connect()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    await site.until(lambda: "0 carried" in repr(site.relay))


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass
    writer.close()


async def reflect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n" * 1000)
    await reader.read()
    writer.close()


async def know_another_secret(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    handshake = Handshake(b"t" * 32, initiator=False, purpose=CONTROL_PURPOSE)
    while data := await reader.read(1000):
        writer.write(handshake.feed(data))
    writer.close()


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (swallow, "no answer within 0.3 s"),
        (reflect, "no answer within 0.3 s"),
        (babble, "does not begin as a handshake"),
        (know_another_secret, "another secret"),
    ],
)
def test_who_does_not_prove_to_be_the_controller_hears_nothing(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body(site: Site) -> None:
        heard = []

        async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            feed = reader.feed_data
            reader.feed_data = lambda data: (heard.append(bytes(data)), feed(data))[1]  # type: ignore[method-assign]
            await talk(reader, writer)

        async with server(listener) as site.address:
            reader, writer = await site.connect()
            writer.write(b"confidential")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            await closed_soon(site)
        assert b"confidential" not in b"".join(heard)
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1, told  # once, however often it is tried
        assert said in told[0]

    run(body, connect_s=0.3 if talk in (swallow, reflect) else 10.0)


def test_that_the_controller_is_back_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def body(site: Site) -> None:
        address, site.address = site.address, ""
        await closed_soon(site)
        site.address = address
        for _ in range(2):
            near, _ = await site.pair()
            near[1].close()
        assert [record.getMessage() for record in caplog.records] == [
            "the controller cannot be reached: nobody knows where it is",
            f"the controller is reached again, at {address}",
        ]

    run(body, connect_s=1.0)


def test_who_comes_before_the_controller_is_known_waits_for_it() -> None:
    async def body(site: Site) -> None:
        address, site.address = site.address, ""
        early = [await site.connect() for _ in range(3)]
        await site.until(lambda: "3 carried" in repr(site.relay))
        site.relay.told()  # not that it is known
        site.address = address
        site.relay.told()
        for _, writer in early:
            await site.met.get()
            writer.close()

    run(body)


@pytest.mark.parametrize("where", ["", "tcp:127.0.0.1:1", "unix:/tmp/x", "nonsense", "tcp:192.0.2.1:5"])
def test_where_nobody_is_reached_the_connection_is_closed_soon(where: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body(site: Site) -> None:
        site.address = where
        await closed_soon(site)
        await closed_soon(site)
        assert len(caplog.records) == 1

    run(body, connect_s=0.3)


def test_one_that_asks_where_in_vain_does_not_end_the_relay(caplog: pytest.LogCaptureFixture) -> None:
    async def body(site: Site) -> None:
        failing = Relay(site.directory, SECRET, None, lambda: os.environ["NOWHERE_AT_ALL"])
        await failing.start()
        await closed_soon(site)
        assert "KeyError" in caplog.text
        await failing.close()

    run(body)


def test_many_that_come_at_once_into_a_black_hole_are_closed_together() -> None:
    async def body(site: Site) -> None:
        async with server(swallow) as site.address:
            await asyncio.gather(*(closed_soon(site) for _ in range(100)))  # not one after the other

    run(body, connect_s=0.5)


def test_cut_ends_what_is_carried_and_no_more() -> None:
    async def body(site: Site) -> None:
        pairs = [await site.pair() for _ in range(3)]
        site.relay.cut()
        for near, far in pairs:
            for reader, writer in (near, far):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        near, _ = await site.pair()
        near[1].close()

    run(body)


def test_another_purpose_is_another_door(caplog: pytest.LogCaptureFixture) -> None:
    async def body(site: Site) -> None:
        await site.shut()
        await site.open(purpose="a replica")
        await closed_soon(site)
        assert site.met.empty()

    run(body)
