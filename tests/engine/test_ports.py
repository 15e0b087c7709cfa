"""headrace.engine.ports: a port is one instance's, and holding it takes no connection from who listens on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace.engine import linux
from headrace.engine.ports import HeldPorts, PortLock, lock_port
from headrace.spec.errors import InstanceError, OptionError, PortBusyError


@pytest.fixture
def held() -> Iterator[PortLock]:
    lock = lock_port("127.0.0.1", 0)
    yield lock
    lock.close()


def listener(port: int, *, backlog: int = 200) -> socket.socket:
    """As an ingress listens."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(("127.0.0.1", port))
    opened.listen(backlog)
    return opened


def accept_all(*listeners: socket.socket) -> list[socket.socket]:
    accepted = []
    for opened in listeners:
        opened.setblocking(False)
        while True:
            try:
                accepted.append(opened.accept()[0])
            except BlockingIOError:
                break
    return accepted


def test_every_connection_reaches_a_listener_none_the_holder(held: PortLock) -> None:
    first, second = listener(held.port), listener(held.port)
    clients = [socket.create_connection(("127.0.0.1", held.port), 5) for _ in range(100)]
    served = accept_all(first, second)
    assert len(served) == 100
    for opened in (*clients, *served, first, second):
        opened.close()


def test_without_a_listener_connections_are_refused(held: PortLock) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held.port), 5)


def test_a_second_instance_is_refused_though_it_could_share_the_port(held: PortLock) -> None:
    with pytest.raises(PortBusyError, match=rf"port {held.port} is taken by process {os.getpid()} \(.*\): stop it, or"):
        lock_port("127.0.0.1", held.port)
    with pytest.raises(PortBusyError):
        lock_port("0.0.0.0", held.port)


def test_of_two_processes_that_want_a_port_one_gets_it() -> None:
    free = lock_port("127.0.0.1", 0)
    port = free.port
    free.close()
    code = f"""
import sys
from headrace.engine.ports import lock_port
from headrace.spec.errors import PortBusyError
try:
    lock = lock_port("127.0.0.1", {port})
except PortBusyError:
    print("busy", flush=True)
else:
    print("got", flush=True)
sys.stdin.read()
"""
    rivals = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        said = [rival.stdout.readline().strip() for rival in rivals if rival.stdout is not None]
        assert sorted(said) == ["busy", "busy", "busy", "got"]
        winner = rivals[said.index("got")]
        winner.kill()  # the kernel gives the port back
        winner.communicate()
        lock_port("127.0.0.1", port).close()
    finally:
        for rival in rivals:
            rival.kill()
            rival.communicate()


def test_a_server_of_any_kind_keeps_its_port(held: PortLock) -> None:
    port = held.port
    opened = listener(port)
    held.close()
    with pytest.raises(PortBusyError, match=rf"port {port} is taken by process {os.getpid()} "):
        lock_port("127.0.0.1", port)
    opened.close()


def test_connections_of_an_ended_server_do_not_keep_the_port(held: PortLock) -> None:
    port = held.port
    opened = listener(port)
    client = socket.create_connection(("127.0.0.1", port), 5)
    (served,) = accept_all(opened)
    served.close()  # the server closes first: its end lingers in TIME_WAIT
    client.close()
    opened.close()
    held.close()
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    lock_port("127.0.0.1", port).close()


def test_closing_gives_the_port_back(held: PortLock) -> None:
    held.close()
    held.close()
    assert repr(held) == f"PortLock(127.0.0.1:{held.port}, closed)"
    lock_port("127.0.0.1", held.port).close()


def test_any_free_port_is_another_each_time() -> None:
    locks = [lock_port("localhost", 0) for _ in range(20)]
    assert len({lock.port for lock in locks}) == 20
    for lock in locks:
        lock.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "8.8.8.8", "999.1.1.1", "x" * 300, "a..b"])
def test_a_host_that_is_not_of_this_machine_is_refused_by_name(host: str) -> None:
    with pytest.raises(OptionError, match=r"host='[^']*' is (not the name of an address|no address of this machine)"):
        lock_port(host, 0)


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(OptionError, match=rf"port={port} is no port: 0 to 65535 are allowed"):
        lock_port("127.0.0.1", port)


def test_a_port_that_needs_privileges_is_refused_with_the_reason() -> None:
    code = """
import encodings.idna, os  # what an import finds as root, nobody may not read
from headrace.engine.ports import lock_port
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    lock_port("127.0.0.1", 7)
except Exception as error:
    print(type(error).__name__, error)
else:
    print("allowed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "allowed" in done.stdout:
        pytest.skip("unprivileged ports begin below 7 here")
    assert done.stdout.strip() == (
        "InstanceError port 7 needs privileges that you do not have: choose one of 1024 and above"
    ), done.stderr


def test_another_user_cannot_take_a_held_port(held: PortLock) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    code = f"""
import os, socket
os.setgid(65534); os.setuid(65534)
with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        s.bind(("127.0.0.1", {held.port}))
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Address already in use"


def test_who_listens_is_found() -> None:
    assert linux.port_holder(1) is None
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        assert linux.port_holder(opened.getsockname()[1]) == os.getpid()


def test_errors_of_other_kinds_are_instance_errors() -> None:
    assert issubclass(PortBusyError, InstanceError)


def test_a_port_that_cannot_be_had_leaves_what_was_held() -> None:
    ports = HeldPorts()
    port = ports.reserve("http", "127.0.0.1", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortBusyError):
            ports.reserve("http", "127.0.0.1", taken.getsockname()[1])
    assert ports.reserve("http", "127.0.0.1", 0) == port
    with pytest.raises(PortBusyError):
        lock_port("127.0.0.1", port)
    ports.close()
    lock_port("127.0.0.1", port).close()


def test_kin_shares_a_port_for_as_long_as_one_has_it_and_others_get_none() -> None:
    first = lock_port("127.0.0.1", 0, "kin")
    port = first.port
    second = lock_port("127.0.0.1", port, "kin")
    for stranger in ("", "others"):
        with pytest.raises(PortBusyError, match=f"port {port} is taken by process {os.getpid()}"):
            lock_port("127.0.0.1", port, stranger)
    first.close()
    with pytest.raises(PortBusyError):
        lock_port("127.0.0.1", port, "others")
    third = lock_port("127.0.0.1", port, "kin")
    second.close()
    third.close()
    lock_port("127.0.0.1", port, "others").close()


def test_kin_that_comes_at_one_time_all_gets_the_port() -> None:
    free = lock_port("127.0.0.1", 0)
    port = free.port
    free.close()
    with ThreadPoolExecutor(8) as threads:
        locks = list(threads.map(lambda _: lock_port("127.0.0.1", port, "kin"), range(8)))
    for lock in locks:
        lock.close()


def test_kin_shares_no_port_with_a_server(held: PortLock) -> None:
    port = held.port
    opened = listener(port)
    held.close()
    with pytest.raises(PortBusyError, match=rf"port {port} is taken by process {os.getpid()} "):
        lock_port("127.0.0.1", port, "kin")
    opened.close()


def test_holders_of_one_kin_share_what_they_hold() -> None:
    first, second = HeldPorts("kin"), HeldPorts("kin")
    port = first.reserve("http", "127.0.0.1", 0)
    assert second.reserve("http", "127.0.0.1", port) == port
    first.close()
    second.close()
    lock_port("127.0.0.1", port).close()
