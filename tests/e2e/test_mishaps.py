"""Real instances when it goes wrong in the middle: a full queue loses its keeper, clients vanish, code does not end.

Nobody hangs, nobody is told what is not so, and slots, places, tasks and descriptors come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.instance import Instance, wait_for
from headrace import runtime as runtimes
from headrace import serve
from headrace.handle import DeploymentHandle
from headrace.spec.errors import BackPressureError, HeadraceError, RequestCancelledError, RequestTimeoutError

HERE = Path(__file__).parent
RESET = struct.pack("ii", 1, 0)
SLOTS, PLACES = 2, 20
FLOOD = 60


@contextlib.contextmanager
def running(folder: Path, target: str) -> Iterator[Instance]:
    instance = Instance(folder / "home", f"mishap_apps:{target}", HERE, "--ingress-workers", "2")
    instance.env["MISHAP_FOLDER"] = str(folder)
    with pytest.MonkeyPatch.context() as patch, instance:
        instance.ready()
        patch.setenv("HEADRACE_HOME", instance.env["HEADRACE_HOME"])
        patch.setenv("HEADRACE_INSTANCE", instance.name)
        yield instance
        runtimes.close_own()


def in_work() -> int:
    """How many calls are in work anywhere."""
    return sum(
        replica.ongoing
        for deployment in serve.status().applications["default"].deployments.values()
        for replica in deployment.replicas
    )


def at_rest() -> bool:
    """No call is in work anywhere."""
    return in_work() == 0


def begin(port: int, path: str) -> socket.socket:
    """A client that has asked, and has the response's head."""
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    return client


def vanish(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def answered(clients: list[socket.socket]) -> list[socket.socket]:
    """Those who have something to read."""
    return select.select(clients, [], [], 0)[0]


# --- a queue and its keeper ----------------------------------------------------------------------------------------


class Flood:
    """Requests over two ingress processes and calls by a handle, all at once, that last until there is a file."""

    def __init__(self, instance: Instance, folder: Path, name: str) -> None:
        self.file = folder / name
        self.answers: list[int] = []
        self.handle = serve.get_deployment_handle("Narrow", "default")
        self.calls = [self.handle.hold.remote(name) for _ in range(FLOOD // 3)]
        self.threads = [threading.Thread(target=self._ask, args=(instance.port,)) for _ in range(FLOOD * 2 // 3)]
        self.threads += [threading.Thread(target=self._wait, args=(call,)) for call in self.calls]
        for thread in self.threads:
            thread.start()

    def _ask(self, port: int) -> None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            client.request("GET", f"/?until={self.file.name}")
            self.answers.append(client.getresponse().status)
        except OSError:
            self.answers.append(0)
        client.close()

    def _wait(self, call: Any) -> None:
        try:
            call.result(timeout_s=30)
            self.answers.append(200)
        except BackPressureError as error:
            self.answers.append(error.status)
        except HeadraceError:
            self.answers.append(0)

    @property
    def refused(self) -> int:
        return self.answers.count(503)

    def end(self) -> list[int]:
        """Let them run. What became of each."""
        self.file.touch()
        for thread in self.threads:
            thread.join(40)
        assert not any(thread.is_alive() for thread in self.threads), "somebody hangs"
        return sorted(self.answers)


def bound_holds(instance: Instance, folder: Path, attempt: list[int]) -> bool:
    """Whether a flood is refused but for those that run and those that may wait, and not one more or less."""
    attempt[0] += 1
    flood = Flood(instance, folder, f"attempt-{attempt[0]}")
    # All of it has to come before it ends: who comes later finds slots.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: flood.refused >= FLOOD - SLOTS - PLACES, "all others are refused", 3)
    answers = flood.end()
    assert set(answers) == {200, 503}, answers
    return answers.count(200) == SLOTS + PLACES


def keeper_of(instance: Instance) -> int:
    """The pid of the replica that keeps the places."""
    found = wait_for(lambda: (r := instance.replicas(deployment="Narrow")) and len(r) == 2 and r, "two replicas run")
    return int(found[min(found, key=lambda name: int(name.rpartition("#")[2]))])


def test_a_keeper_of_places_that_dies_or_stops_under_a_full_queue(tmp_path: Path) -> None:
    with running(tmp_path, "narrow") as instance:
        attempt = [0]
        keeper = keeper_of(instance)
        wait_for(lambda: bound_holds(instance, tmp_path, attempt), "the bound holds")

        flood = Flood(instance, tmp_path, "killed")
        wait_for(lambda: flood.refused >= FLOOD - SLOTS - PLACES, "the queue is full")
        os.kill(keeper, signal.SIGKILL)
        wait_for(lambda: keeper not in instance.replicas(deployment="Narrow").values(), "it is known to be gone")
        answers = flood.end()
        assert set(answers) == {200, 503}
        assert answers.count(200) <= SLOTS + PLACES
        keeper = keeper_of(instance)
        wait_for(lambda: bound_holds(instance, tmp_path, attempt), "the bound is back")

        os.kill(keeper, signal.SIGSTOP)
        try:
            flood = Flood(instance, tmp_path, "stopped")
            # Each caller has its share when the keeper does not answer; with those it sent to the stopped one as well.
            wait_for(lambda: flood.refused >= FLOOD - 2 * (SLOTS + PLACES), "callers refuse by themselves")
            flood.file.touch()
            wait_for(lambda: flood.answers.count(200) > 0, "the other replica works")
        finally:
            os.kill(keeper, signal.SIGCONT)
        assert set(flood.end()) == {200, 503}
        wait_for(lambda: bound_holds(instance, tmp_path, attempt), "the bound is back")


def test_clients_that_leave_while_they_wait_give_their_places_back(tmp_path: Path) -> None:
    with running(tmp_path, "narrow") as instance:
        keeper_of(instance)
        narrow = serve.get_deployment_handle("Narrow", "default")
        holders = [narrow.hold.remote("go", f"holder{n}") for n in range(SLOTS)]
        wait_for(lambda: len(list(tmp_path.glob("began-holder*"))) == SLOTS, "all slots are taken")
        for _ in range(3):
            clients = [begin(instance.port, "/?until=go&who=left") for _ in range(2 * PLACES)]
            # Whoever was answered was refused. The others wait: those of the round before gave their places back.
            wait_for(lambda c=clients: len(answered(c)) >= PLACES, "as many are refused as find no place")
            waiting = [client for client in clients if client not in answered(clients)]
            assert 0 < len(waiting) <= PLACES
            for client in answered(clients):
                assert client.recv(12) == b"HTTP/1.1 503"
            for client in clients:
                vanish(client)
        (tmp_path / "go").touch()
        assert [holder.result(timeout_s=30)["pid"] > 0 for holder in holders] == [True] * SLOTS
        wait_for(at_rest, "no call is in work")
        assert not (tmp_path / "began-left").exists()


# --- code and clients that behave badly ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd")


@pytest.fixture(scope="module")
def instance(folder: Path) -> Iterator[Instance]:
    with running(folder, "odd") as instance:
        yield instance


@pytest.fixture
def odd(instance: Instance) -> DeploymentHandle:
    return serve.get_deployment_handle("Odd", "default")


def counted(odd: DeploymentHandle, name: str) -> int:
    return int(odd.count.remote().result(timeout_s=30)[0].get(name, 0))


def files_of(pids: list[int]) -> int:
    """How many descriptors these processes have; one that has ended has none."""
    found = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            found += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return found


def test_a_thousand_clients_begin_a_stream_and_vanish(instance: Instance, odd: DeploymentHandle) -> None:
    pids = [pid for name, pid in instance.children().items() if "#" in name]
    replicas = instance.replicas(deployment="Odd")
    begun, ended, files = counted(odd, "began"), counted(odd, "ended"), files_of(pids)
    for _ in range(10):
        clients = [begin(instance.port, "/numbers") for _ in range(100)]
        for client in clients[:50]:
            assert client.recv(12).startswith(b"HTTP/1.1 200")
        for client in clients:
            vanish(client)
    wait_for(at_rest, "no call is in work")
    assert counted(odd, "began") - begun == counted(odd, "ended") - ended >= 500
    wait_for(lambda: files_of(pids) <= files + 4, "the descriptors are closed")
    assert instance.replicas(deployment="Odd") == replicas


@pytest.mark.parametrize("path", ["swallows", "raises_at_the_end"])
def test_a_generator_that_does_not_end_well_gives_its_slot_back(
    path: str, instance: Instance, odd: DeploymentHandle
) -> None:
    for _ in range(5):
        client = begin(instance.port, f"/{path}")
        assert client.recv(12).startswith(b"HTTP/1.1 200")
        vanish(client)
        items = getattr(odd.options(stream=True), path).remote()
        assert next(items) == b"x"
        items.cancel()
    wait_for(at_rest, "no call is in work")
    assert odd.count.remote().result(timeout_s=30)[1] < 20


def test_a_handler_that_raises_while_it_cleans_up(instance: Instance, odd: DeploymentHandle) -> None:
    before = counted(odd, "raises began")
    calls = [odd.raises_when_cancelled.remote() for _ in range(10)]
    wait_for(lambda: counted(odd, "raises began") - before == 10, "all are in work")
    for call in calls:
        call.cancel()
    for call in calls:
        with pytest.raises(RequestCancelledError):
            call.result(timeout_s=30)
    wait_for(at_rest, "no call is in work")


def test_a_plain_generator_that_is_deaf_keeps_its_slot_until_it_ends(
    instance: Instance, odd: DeploymentHandle, folder: Path
) -> None:
    items = odd.options(stream=True, timeout_s=0.3).deaf.remote()
    client = begin(instance.port, "/deaf")
    wait_for(lambda: counted(odd, "deaf began") == 2, "both are in work")
    with pytest.raises(RequestTimeoutError):
        next(items)
    vanish(client)
    for _ in range(20):  # the server takes its time to hear of it
        assert in_work() == 2
        time.sleep(0.02)
    (folder / "heard").touch()
    wait_for(at_rest, "no call is in work")
    assert counted(odd, "deaf ended") == 2


def test_ten_thousand_calls_are_cancelled(instance: Instance, odd: DeploymentHandle) -> None:
    async def storm() -> None:
        for _ in range(5):
            calls = [odd.forever.remote() for _ in range(2000)]
            for at, call in enumerate(calls):
                if at % 500 == 0:
                    await asyncio.sleep(0)  # some are on their way, some in work, some have not left
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {RequestCancelledError, asyncio.CancelledError}

    asyncio.run(storm())
    wait_for(at_rest, "no call is in work")
    counts, tasks = odd.count.remote().result(timeout_s=30)
    assert counts["began"] == counts["ended"]
    assert tasks < 20


def test_thousands_with_a_millisecond_are_answered_in_time_or_refused_and_none_begins_late(
    instance: Instance, odd: DeploymentHandle
) -> None:
    async def hurry() -> list[Any]:
        calls = [odd.options(timeout_s=0.001).late.remote() for _ in range(3000)]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(hurry())
    assert {type(each) for each in outcomes} <= {str, RequestTimeoutError, BackPressureError}
    client = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=30)
    for _ in range(500):
        client.request("GET", "/late", headers={"x-request-timeout-seconds": "0.001"})
        answer = client.getresponse()
        answer.read()
        assert answer.status in (200, 408, 503)
    client.close()
    assert counted(odd, "late") == 0
    wait_for(at_rest, "no call is in work")


def test_a_replica_killed_in_the_middle_of_uploads_and_streams(
    instance: Instance, odd: DeploymentHandle, folder: Path
) -> None:
    stream = begin(instance.port, "/numbers")
    assert stream.recv(12).startswith(b"HTTP/1.1 200")
    items = odd.options(stream=True).numbers.remote()
    pid = int(next(items))
    upload = socket.create_connection(("127.0.0.1", instance.port), timeout=30)
    upload.sendall(b"POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n" + bytes(2_000_000))
    wait_for(lambda: list(folder.glob("uploading-*")), "the replica has read more than is kept")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(HeadraceError, match="died"):
        for _ in items:
            pass
    assert upload.recv(4096).startswith(b"HTTP/1.1 502")
    last = b""
    while part := stream.recv(1 << 16):
        last = part
    assert not last.endswith(b"0\r\n\r\n")  # it breaks off, and does not end
    upload.close()
    stream.close()
    wait_for(lambda: len(instance.replicas(deployment="Odd")) == 1 and at_rest(), "another runs, at rest")


def test_a_deploy_ends_streams_at_the_drain_s_deadline(instance: Instance, odd: DeploymentHandle) -> None:
    client = begin(instance.port, "/numbers")
    assert client.recv(12).startswith(b"HTTP/1.1 200")
    items = odd.options(stream=True).numbers.remote()
    assert int(next(items)) > 0
    old = next(iter(instance.replicas(deployment="Odd").values()))
    code = "from headrace import serve; import mishap_apps; serve.run(mishap_apps.odd_again())"
    environment = instance.env | {"HEADRACE_INSTANCE": instance.name, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert instance.ask("/label")[1] == b"second"
    with pytest.raises(HeadraceError):
        for _ in items:
            pass
    last = b""
    while part := client.recv(1 << 16):
        last = part
    assert not last.endswith(b"0\r\n\r\n")
    client.close()
    wait_for(lambda: old not in instance.children().values(), "the old replica is gone")
    wait_for(at_rest, "no call is in work")
