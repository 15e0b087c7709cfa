"""A controller that the processes of other nodes reach: through the relay of their node, over TCP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import trustme
from workshop import Workshop, application, deployment, run

from headrace.controller.api import ControlServer
from headrace.engine.directory import InstanceDirectory, read_node, read_snapshot
from headrace.engine.node_link import NodeLink
from headrace.engine.relay import Relay
from headrace.spec.application import Environment
from headrace.spec.errors import InstanceError, RevisionNotFound
from headrace.spec.snapshot import Snapshot
from headrace.wire.client import ControlClient
from headrace.wire.control import (
    CONTROL_PURPOSE,
    Answer,
    Deploy,
    Deployed,
    GetPack,
    GetStatus,
    Hello,
    Message,
    NodeReport,
    Operation,
    Pack,
    Request,
    Subscribe,
    encode,
)
from headrace.wire.doorkeeper import LIMIT_A_SOURCE
from headrace.wire.handshake import GREETING, NONCE_BYTES, Handshake
from headrace.wire.link import ControlLink
from headrace.wire.pack import name_of
from headrace.wire.tcp import parse_address
from headrace.wire.tls import TlsFiles

SECRET = b"s" * 32


class Node:
    """A node: its directory and its relay, and where that is told that the controller is."""

    def __init__(self, shop: Workshop, name: str, tls: TlsFiles | None) -> None:
        self.shop = shop
        self.name = name
        self.address = ""
        self.tls = tls
        self.directory = InstanceDirectory(shop.directory.path.parent / name)
        self.directory.create()
        self.relay = Relay(self.directory, SECRET, tls, lambda: self.address)
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self) -> None:
        """Have the present controller listen, at a port of its own, and know it."""
        self.address = await self.shop.controller.server.listen_tcp("127.0.0.1", None, SECRET, self.tls)

    def link(self, id: str, on_snapshot: Callable[[Snapshot], None] = lambda _: None) -> ControlLink:
        """A process of the node that routes."""
        hello = Hello(role="driver", id=id, pid=1, node=self.name)
        link = ControlLink(str(self.directory.control_socket), hello, on_snapshot=on_snapshot)
        self._tasks.append(asyncio.create_task(link.run()))
        return link

    def agent(self, **options: float) -> NodeLink:
        """What the node says by itself."""
        link = NodeLink(self.directory, self.name, "127.0.0.1", cut=self.relay.cut, **options)
        self._tasks.append(asyncio.create_task(link.run()))
        return link

    async def ask(self, operation: Operation) -> Answer:
        """As the command line does on this node."""
        client = ControlClient(str(self.directory.control_socket))
        try:
            return await asyncio.to_thread(client.request, operation, 20.0)
        finally:
            client.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.relay.close()


@contextlib.asynccontextmanager
async def node(shop: Workshop, name: str = "n1", tls: TlsFiles | None = None) -> AsyncIterator[Node]:
    site = Node(shop, name, tls)
    await site.listen()
    await site.relay.start()
    try:
        yield site
    finally:
        await site.close()


class Recorder:
    """What is heard of nodes."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def connected(self, node_id: str, host: str, now: float) -> None:
        self.heard.append(("connected", node_id, host))

    def reported(self, node_id: str, now: float) -> None:
        self.heard.append(("reported", node_id))

    def lost(self, node_id: str, now: float) -> None:
        self.heard.append(("lost", node_id))

    def times(self, what: str) -> int:
        return sum(each[0] == what for each in self.heard)


class Valve:
    """A connection to `address` for each to its own, until it is shut: then it takes all, and gives nothing on."""

    def __init__(self, address: str) -> None:
        self._to = parse_address(address)
        self.open = asyncio.Event()
        self.open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"tcp:{host}:{port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.open.wait()
        back, there = await asyncio.open_connection(*self._to)
        pumps = self._pump(reader, there), self._pump(back, writer)
        self._tasks |= {asyncio.create_task(pump) for pump in pumps}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self.open.wait()
                writer.write(data)
        writer.close()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def test_a_process_of_a_node_has_all_that_one_beside_the_controller_has() -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            agent = site.agent()
            seen: list[Snapshot] = []
            site.link("router", seen.append)
            assert isinstance(await site.ask(Deploy(application(deployment("D")))), Deployed)
            assert seen[-1].applications["app"].revisions[0].weight == 1.0  # before it was told to be done
            await shop.until(lambda: read_snapshot(site.directory) == shop.snapshot)
            assert agent.snapshot == shop.snapshot
            assert read_node(site.directory) == "n1"
            assert "connected" in repr(agent)

    run(body)


def test_a_controller_that_is_back_elsewhere_is_found_by_all() -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            await shop.deploy(application(deployment("D")))
            links = [site.link(f"router-{number}") for number in range(200)]
            agent = site.agent()
            for life in range(2):
                if life:
                    await shop.kill()
                    await shop.until(lambda: not any(link.connected for link in links))
                    with pytest.raises(InstanceError):
                        await site.ask(GetStatus())
                    await shop.begin()
                    await site.listen()
                await shop.until(lambda: agent.connected and all(link.connected for link in links))
                await shop.deploy(
                    application(deployment("D", num_replicas=life + 1), deployment("E", digest=str(life)))
                )
                await shop.until(lambda: all(link.snapshot == shop.snapshot for link in links))
            await shop.until(lambda: read_snapshot(site.directory) == shop.snapshot)

    run(body)


def test_a_large_message_goes_both_ways() -> None:
    data = bytes(range(256)) * 65536  # 16 MiB
    spec = application(deployment("D"))

    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            named = msgspec.structs.replace(spec, environment=Environment(pack=name_of(data)))
            assert isinstance(await site.ask(Deploy(named, packs={name_of(data): data})), Deployed)
            assert await site.ask(GetPack(name_of(data))) == Pack(data)

    run(body)


@pytest.mark.parametrize("name", ["", "0" * 64, "../state.db", "/etc/passwd", "A" * 64, "0" * 63 + "\n"])
def test_a_pack_that_is_none_is_not_found(name: str) -> None:
    async def body(shop: Workshop) -> None:
        with pytest.raises(RevisionNotFound):
            await shop.ask(GetPack(name))

    run(body)


# --- what the controller hears of nodes -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def heard_of(shop: Workshop) -> AsyncIterator[tuple[ControlServer, Recorder, Path]]:
    """A second door of the controller, whose news of nodes are recorded."""
    whole = shop.controller
    recorder = Recorder()
    path = shop.directory.path / "second.sock"
    door = ControlServer(path, whole.reconciler, whole.operations, whole.ledger, recorder)
    await door.listen()
    try:
        yield door, recorder, path
    finally:
        await door.close()


def test_a_node_is_heard_until_its_agent_is_gone() -> None:
    async def body(shop: Workshop) -> None:
        async with heard_of(shop) as (door, recorder, _), node(shop) as site:
            site.address = await door.listen_tcp("127.0.0.1", None, SECRET, None)
            site.agent(report_s=0.001)
            await shop.until(lambda: recorder.times("reported") > 20)  # each is answered, or it would cut itself off
            assert recorder.heard[0] == ("connected", "n1", "127.0.0.1")
            assert recorder.times("connected") == 1
            site.relay.cut()
            await shop.until(lambda: recorder.times("connected") == 2)
            await shop.until(lambda: recorder.times("lost") == 1)
            await site.close()
            await shop.until(lambda: recorder.times("lost") == 2)

    run(body)


def test_a_node_that_is_cut_off_has_no_connection_left() -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop, "n1") as one, node(shop, "n2") as two:
            links = [one.link("one"), two.link("two")]
            await shop.until(lambda: all(link.connected for link in links))
            first = links[1]._channel
            shop.controller.server.cut("n1")
            await shop.until(lambda: not links[0].connected)
            await shop.until(lambda: links[0].connected)  # it may come back
            assert links[1]._channel is first

    run(body)


@pytest.mark.parametrize(
    "messages",
    [
        [Hello(role="node", id="node-x", pid=1)],
        [Hello(role="node", id="node-x", pid=1, node="x"), NodeReport(id="y", host="h")],
        [Hello(role="driver", id="x", pid=1, node="x"), NodeReport(id="x", host="h")],
        [NodeReport(id="x", host="h")],
    ],
)
def test_who_speaks_for_another_node_is_sent_away(messages: list[Message], caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        async with heard_of(shop) as (_, recorder, path):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"".join(map(encode, messages)))
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
            assert "closing the control connection" in caplog.text
            assert recorder.heard == []

    run(body)


def test_a_way_that_goes_dead_is_noticed_and_taken_anew() -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            valve = Valve(site.address)
            site.address = await valve.start()
            agent = site.agent(report_s=0.02)
            link = site.link("router")
            await shop.until(lambda: agent.connected and link.connected)
            valve.open.clear()  # the kernel still says that all is well
            await shop.until(lambda: not agent.connected and not link.connected)
            valve.open.set()
            await shop.until(lambda: agent.connected and link.connected)
            await valve.close()

    run(body)


def test_a_full_disk_is_no_reason_to_leave(caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            site.directory.snapshot.mkdir()  # nothing can be put in place here
            agent = site.agent()
            await shop.deploy(application(deployment("D")))
            await shop.until(lambda: agent.snapshot == shop.snapshot)
            assert agent.connected
            assert "could not be kept on disk" in caplog.text

    run(body)


# --- the door ---------------------------------------------------------------------------------------------------------


class Stranger:
    """Somebody with a connection to the controller's port, from an address of his own."""

    def __init__(self, address: str, source: str = "127.0.0.2") -> None:
        self._where = parse_address(address)
        self._source = source

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._where, local_addr=(self._source, 0))

    async def say(self, data: bytes) -> bytes:
        """What is answered until the end."""
        reader, writer = await self.connect()
        writer.write(data)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(), 10)
        return b""


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + bytes(200),
        bytes(1_000_000),
        GREETING,
        GREETING + bytes(NONCE_BYTES) + bytes(32),
        GREETING + bytes(NONCE_BYTES) + bytes(100_000),
        encode(Hello(role="driver", id="d", pid=1)) + encode(Subscribe(0)) + encode(Request(1, GetStatus())),
    ],
)
def test_who_proves_nothing_gets_nowhere(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            connections = repr(shop.controller.server)
            for _ in range(20):
                answer = await Stranger(site.address).say(data)
                assert len(answer) <= len(GREETING) + NONCE_BYTES + 32  # a proof for a nonce of theirs, at most
            assert repr(shop.controller.server) == connections
            assert len(refusals(caplog)) == 1
            assert "127.0.0.2" in refusals(caplog)[0]
            await site.ask(GetStatus())

    run(body)


def test_however_many_are_silent_others_get_in(caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            writers = []
            for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                writers += [(await Stranger(site.address, source).connect())[1] for _ in range(100)]
            reception = shop.controller.server._reception
            assert reception is not None
            await shop.until(lambda: len(refusals(caplog)) == 3)  # each source is named, once
            await site.ask(GetStatus())
            assert len(reception.door) <= 3 * LIMIT_A_SOURCE
            await shop.until(lambda: len(reception._tasks) <= 3 * LIMIT_A_SOURCE)
            for writer in writers:
                writer.close()
            await shop.until(lambda: not len(reception.door) and not reception._tasks)
            assert len(refusals(caplog)) == 3

    run(body)


@pytest.mark.parametrize(("secret", "purpose"), [(b"t" * 32, CONTROL_PURPOSE), (SECRET, "a replica"), (SECRET, "")])
def test_another_secret_or_purpose_gets_nowhere(secret: bytes, purpose: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            for _ in range(5):
                reader, writer = await Stranger(site.address).connect()
                liar = Handshake(secret, initiator=True, purpose=purpose)
                writer.write(liar.begin())
                await reader.readexactly(len(GREETING) + NONCE_BYTES + 32)  # which shows it that it knows nothing
                writer.write(bytes(32) + encode(Hello(role="driver", id="d", pid=1)))
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
            assert len(refusals(caplog)) == 1

    run(body)


def test_what_was_recorded_proves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            heard: list[bytes] = []

            async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[bytes]) -> None:
                while data := await reader.read(100_000):
                    seen.append(data)
                    writer.write(data)
                writer.close()

            async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                back, there = await asyncio.open_connection(*parse_address(address))
                await asyncio.gather(pump(reader, there, heard), pump(back, writer, []))

            listening = await asyncio.start_server(tap, "127.0.0.1", 0)
            address = site.address
            host, port = listening.sockets[0].getsockname()
            site.address = f"tcp:{host}:{port}"
            link = site.link("router")
            await shop.until(lambda: link.connected)
            await site.close()
            listening.close()
            await shop.until(lambda: "0 connections" in repr(shop.controller.server))
            answer = await Stranger(address).say(b"".join(heard))
            assert len(answer) <= len(GREETING) + NONCE_BYTES + 32
            assert "0 connections" in repr(shop.controller.server)
            assert len(refusals(caplog)) == 1

    run(body)


def test_what_is_reflected_proves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    size = len(GREETING) + NONCE_BYTES

    async def body(shop: Workshop) -> None:
        async with node(shop) as site:
            stranger = Stranger(site.address)
            one, to_one = await stranger.connect()
            two, to_two = await stranger.connect()
            to_one.write(GREETING + b"n" * NONCE_BYTES)
            proof_of_one = await one.readexactly(size + 32)
            to_two.write(proof_of_one[:size])  # with the nonce of the first
            proof_of_two = await two.readexactly(size + 32)
            to_one.write(proof_of_two[size:])  # the proof over it
            to_two.write(proof_of_one[size:])
            for reader, writer in ((one, to_one), (two, to_two)):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
            assert len(refusals(caplog)) == 1

    run(body)


def test_a_port_of_the_range_is_taken_or_it_is_told() -> None:
    async def body(shop: Workshop) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match=f"no port .*{port}.* is free"):
                await shop.controller.server.listen_tcp("127.0.0.1", (port, port), SECRET, None)
        address = await shop.controller.server.listen_tcp("127.0.0.1", (port, port), SECRET, None)
        assert address == f"tcp:127.0.0.1:{port}"

    run(body)


# --- TLS --------------------------------------------------------------------------------------------------------------


def certificate(path: Path, authority: trustme.CA, trusted: trustme.CA) -> TlsFiles:
    path.mkdir()
    node = authority.issue_cert("node")
    for name, pem in (("cert", node.cert_chain_pems[0]), ("key", node.private_key_pem), ("ca", trusted.cert_pem)):
        pem.write_to_path(str(path / name))
    return TlsFiles(*(str(path / name) for name in ("cert", "key", "ca")))


def test_under_tls_a_node_needs_a_certificate_of_the_authority_and_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, another = trustme.CA(), trustme.CA()
    files = certificate(tmp_path / "node", authority, authority)
    strangers = certificate(tmp_path / "stranger", another, authority)

    async def body(shop: Workshop) -> None:
        async with node(shop, tls=files) as site:
            site.agent()
            await site.ask(Deploy(application(deployment("D"))))
            await shop.until(lambda: read_snapshot(site.directory) == shop.snapshot)
            for secret, tls in ((SECRET, None), (SECRET, strangers), (b"t" * 32, files)):
                directory = InstanceDirectory(site.directory.path.parent / "stranger")
                directory.create()
                relay = Relay(directory, secret, tls, lambda: site.address, connect_s=1.0)
                await relay.start()
                with pytest.raises(InstanceError):
                    await asyncio.to_thread(ControlClient(str(directory.control_socket)).connect)
                await relay.close()
            assert len(refusals(caplog)) == 1
            await site.ask(GetStatus())

    run(body)
