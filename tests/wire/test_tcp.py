"""Addresses between hosts, ports, and a connection that is opened or is not."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tls import node_files

from headrace.wire import tcp
from headrace.wire.tcp import Credentials, Listener, format_address, listen, open_connection, parse_address

SECRET = bytes(range(32))


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("tcp:10.0.0.1:7000", ("10.0.0.1", 7000)),
        ("tcp:node-3.cluster.local:65535", ("node-3.cluster.local", 65535)),
        ("tcp:[::1]:1", ("::1", 1)),
        ("tcp:[fe80::1%eth0]:7000", ("fe80::1%eth0", 7000)),
    ],
)
def test_an_address_is_read_and_written(address: str, parsed: tuple[str, int]):
    assert parse_address(address) == parsed
    assert format_address(*parsed) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "tcp:",
        "tcp:host",
        "tcp::7000",
        "tcp:host:",
        "tcp:host:0",
        "tcp:host:65536",
        "tcp:host:-1",
        "tcp:host:٣",
        "tcp:::1:7000",
        "tcp:[]:7000",
        "unix:/tmp/a.sock",
    ],
)
def test_what_is_no_address_is_said_to_be_none(address: str):
    with pytest.raises(OSError, match="tcp:HOST:PORT"):
        parse_address(address)


@given(st.text(max_size=30))
def test_garbage_is_no_address(text: str):
    try:
        host, port = parse_address(text)
    except OSError:
        return
    assert host
    assert 0 < port < 65536


def test_listening_keeps_to_the_range_and_says_when_it_is_full():
    first = listen("127.0.0.1", None)
    port = first.getsockname()[1]
    with first, pytest.raises(OSError, match=f"{port}"):
        listen("127.0.0.1", (port, port))
    again = listen("127.0.0.1", (port, port))
    with again:
        assert again.getsockname() == ("127.0.0.1", port)


def test_an_address_that_only_others_know_this_machine_by_is_listened_at_all_the_same():
    with listen("192.0.2.1", None) as sock:  # TEST-NET-1: of no machine
        assert sock.getsockname()[0] == "0.0.0.0"


def test_a_peer_that_is_cut_off_is_noticed_by_the_kernel():
    with listen("127.0.0.1") as sock, socket.create_connection(sock.getsockname()) as peer:
        tcp.tune(peer)
        option = lambda name: peer.getsockopt(socket.IPPROTO_TCP, name)  # noqa: E731
        assert option(socket.TCP_NODELAY)
        assert option(socket.TCP_USER_TIMEOUT) == tcp.CUT_OFF_S * 1000
        probes = option(socket.TCP_KEEPIDLE) + option(socket.TCP_KEEPINTVL) * option(socket.TCP_KEEPCNT)
        assert probes == tcp.CUT_OFF_S
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def meet_at(host: str, secret: bytes = SECRET) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        admitted: list[socket.socket] = []
        sock = listen(host)
        listener = Listener(loop, sock, Credentials(SECRET), admitted.append, purpose="test")
        listener.start()
        try:
            address = format_address(host, sock.getsockname()[1])
            with await open_connection(loop, address, Credentials(secret), "test") as mine:
                while not admitted:
                    await asyncio.sleep(0)
                with admitted[0] as theirs:
                    await loop.sock_sendall(mine, b"hello")
                    assert await loop.sock_recv(theirs, 100) == b"hello"
        finally:
            listener.close()

    asyncio.run(asyncio.wait_for(test(), 20))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_two_that_hold_the_secret_meet(host: str):
    if host == "::1":
        try:
            listen(host).close()
        except OSError:
            host = "127.0.0.1"  # a machine without IPv6
    meet_at(host)


def test_who_holds_another_secret_is_told_apart_before_anything_is_said():
    with pytest.raises(tcp.ProtocolError, match="another secret"):
        meet_at("127.0.0.1", os.urandom(32))


def test_nobody_there_is_an_error_that_names_the_address():
    async def test() -> None:
        with listen("127.0.0.1") as sock:
            port = sock.getsockname()[1]
        with pytest.raises(OSError, match=f"ECONNREFUSED at tcp:127.0.0.1:{port}"):
            await open_connection(asyncio.get_running_loop(), f"tcp:127.0.0.1:{port}", Credentials(SECRET))

    asyncio.run(test())


def test_an_opening_that_is_cancelled_leaves_nothing():
    async def test() -> None:
        loop = asyncio.get_running_loop()
        with listen("127.0.0.1") as silent:
            before = open_files()
            address = format_address("127.0.0.1", silent.getsockname()[1])
            task = loop.create_task(open_connection(loop, address, Credentials(SECRET)))
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert open_files() == before

    asyncio.run(test())


def test_renewed_certificates_are_read_again(tmp_path: Path):
    files = node_files(tmp_path)
    credentials = Credentials(SECRET, files)
    first = credentials.context(server=True)
    assert credentials.context(server=True) is first
    os.utime(files.certfile, (1, 1))
    assert credentials.context(server=True) is not first
