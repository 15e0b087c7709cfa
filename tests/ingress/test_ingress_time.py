"""Limits in time, on a clock that the test owns; and the end of an ingress, which loses no request."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from door_harness import HTTP, MORE, Bench, FakeRouter, application, keep, parse_responses, run, site, snapshot

from headrace.engine.directory import InstanceDirectory, write_snapshot
from headrace.ingress.door import TOLD_AT_ONCE
from headrace.spec.config import HTTPOptions
from headrace.wire.channel import ControlChannel
from headrace.wire.control import Hello, IngressReport, Message, SnapshotAck, SnapshotMessage, Subscribe

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
LIMITS = HTTPOptions(
    keep_alive_timeout_s=10, header_timeout_s=5, body_timeout_s=7, request_timeout_s=30, drain_timeout_s=20
)


def test_connections_beyond_the_limit_are_told_so_and_a_flood_of_them_is_cut():
    bench = Bench(options=HTTPOptions(max_connections=2))
    kept = [bench.connect() for _ in range(2)]
    told = [bench.connect()[1] for _ in range(TOLD_AT_ONCE)]
    for transport in told:
        (response,) = parse_responses(transport.take())
        assert (response.status, response.headers["retry-after"]) == (503, "1")
    connection, cut = bench.connect()
    assert cut.closed
    assert not cut.written
    connection.data_received(GET)
    assert not cut.written
    for connection, transport in kept:
        connection.data_received(GET)
        assert parse_responses(transport.take())[0].status == 200


@pytest.mark.parametrize(("limit", "room"), [(64, 24), (1024, 872), (4096, 3560), (12072, 10_000)])
def test_what_connections_may_take_of_the_files_leaves_some_for_replicas(limit: int, room: int):
    code = "from headrace.ingress.main import *; print(with_files_for(HTTPOptions()).max_connections)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 1000), limit)),
    )
    assert int(done.stdout) == room
    assert ("is more than the limit on open files" in done.stderr) == (room < 10_000)


def test_an_idle_connection_is_closed_without_a_word():
    bench = Bench(options=LIMITS)
    connection, transport = bench.connect()
    connection.data_received(GET)
    transport.take()
    bench.pass_time(9)
    assert not transport.closed
    connection.data_received(GET)
    bench.pass_time(9)
    assert not transport.closed
    transport.take()
    bench.pass_time(2)
    assert transport.closed
    assert not transport.written


def test_a_connection_that_never_asks_goes_sooner():
    bench = Bench(options=LIMITS)
    _, transport = bench.connect()
    bench.pass_time(4)
    assert not transport.closed
    bench.pass_time(2)
    assert transport.closed


def test_a_head_that_trickles_is_given_up():
    bench = Bench(options=LIMITS)
    connection, transport = bench.connect()
    for byte in GET[:-1]:
        connection.data_received(bytes([byte]))
        bench.pass_time(0.25)
        if transport.ended:
            break
    (response,) = parse_responses(bytes(transport.written))
    assert response.status == 408
    assert 1004.5 <= bench.loop.now <= 1006


@pytest.mark.parametrize("streams", [False, True])
def test_a_body_that_does_not_come_is_given_up(streams: bool):
    bench = Bench(options=LIMITS, router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    size = 500_000 if streams else 50_000
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(6):
        connection.data_received(b"x" * 2000)
        bench.pass_time(5)
    if streams:
        connection.data_received(b"x" * 100_000)
    assert not transport.ended
    # Single bytes are no progress.
    for _ in range(10):
        connection.data_received(b"x")
        bench.pass_time(1)
    (response,) = parse_responses(bytes(transport.written))
    assert (response.status, transport.ended) == (408, True)
    assert bench.router.cancelled == bench.router.calls
    assert len(bench.router.calls) == int(streams)
    bench.pass_time(6)
    assert transport.aborted


def test_a_request_that_takes_too_long_is_cancelled_and_the_connection_goes_on():
    bench = Bench(options=LIMITS, router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(GET + GET)
    bench.pass_time(29)
    assert not transport.written
    bench.pass_time(2)
    (response,) = parse_responses(transport.take())
    assert response.status == 408
    first, second = bench.router.calls
    assert bench.router.cancelled == [first]
    second.on_reply(HTTP, b"", b"in time")
    assert parse_responses(transport.take())[0].body == b"in time"


def test_a_head_that_repeats_has_its_deadline_too():
    bench = Bench(options=LIMITS, router=FakeRouter(handler=lambda r, call: call.on_reply(HTTP, b"", b"")))
    connection, _ = bench.connect()
    for _ in range(3):
        connection.data_received(GET)
        bench.loop.now += 1
    assert [call.deadline for call in bench.router.calls] == [1030, 1031, 1032]


def test_a_request_may_ask_for_a_shorter_time_and_not_for_a_longer_one():
    bench = Bench(options=LIMITS, router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-Timeout-Seconds: 0.5\r\n\r\n")
    bench.loop.pass_to(1000.499)
    assert not transport.written
    bench.loop.pass_to(1000.5)
    assert parse_responses(transport.take())[0].status == 408
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-Timeout-Seconds: 500\r\n\r\n")
    assert bench.router.calls[1].deadline == 1030.5
    bench.loop.pass_to(1030.499)
    assert not transport.written
    bench.loop.pass_to(1030.5)
    assert parse_responses(transport.take())[0].status == 408


def test_a_time_that_is_no_number_is_quoted():
    bench = Bench(options=LIMITS, router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-Timeout-Seconds: 5 min\r\n\r\n")
    (response,) = parse_responses(transport.take())
    assert response.status == 400
    assert b"x-request-timeout-seconds '5 min' must be a number of seconds, such as 2.5" in response.body
    assert not bench.router.calls


def test_the_shortest_of_three_times_counts():
    for instance, app, header, counts in (
        (30, None, None, 30),
        (None, 7, None, 7),
        (30, 7, None, 7),
        (5, 7, None, 5),
        (30, 7, 2, 2),
        (30, 7, 20, 7),
        (None, None, 20, 20),
        (None, 7, 20, 7),
    ):
        entry = msgspec.structs.replace(application("default", "/"), request_timeout_s=app)
        options = HTTPOptions(request_timeout_s=instance)
        bench = Bench(options=options, router=FakeRouter(handler=keep), snapshot=snapshot(entry))
        connection, _ = bench.connect()
        line = b"" if header is None else b"X-Request-Timeout-Seconds: %d\r\n" % header
        connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n")
        assert bench.router.calls[0].deadline == 1000 + counts, (instance, app, header)


def test_a_new_time_of_an_application_counts_from_the_next_request_on():
    bench = Bench(router=FakeRouter(handler=lambda r, call: call.on_reply(HTTP, b"", b"")))
    connection, _ = bench.connect()
    for version, timeout_s in ((2, None), (3, 4.0), (4, None)):
        entry = msgspec.structs.replace(application("default", "/"), request_timeout_s=timeout_s)
        bench.door.update(snapshot(entry, version=version))
        for _ in range(2):
            connection.data_received(GET)
    assert [call.deadline for call in bench.router.calls] == [None, None, 1004, 1004, None, None]


def test_one_timer_serves_all_requests_of_a_connection():
    bench = Bench(options=HTTPOptions(request_timeout_s=10), router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    for i in range(1000):
        connection.data_received(GET)
        bench.router.calls[i].on_reply(HTTP, b"", b"")
        bench.loop.pass_to(bench.loop.now + 0.001)
    assert bench.loop.set_timers == 1
    transport.take()
    connection.data_received(GET)
    # It rings in the time of the first, and is set anew for the last.
    bench.loop.pass_to(1010.999)
    assert not transport.written
    bench.loop.pass_to(1011)
    assert parse_responses(transport.take())[0].status == 408
    assert bench.loop.set_timers == 2
    connection.connection_lost(None)
    assert not bench.loop.timers


def test_a_request_with_less_time_than_the_one_before_rings_sooner():
    bench = Bench(options=HTTPOptions(request_timeout_s=10), router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(GET)
    bench.router.calls[0].on_reply(HTTP, b"", b"")
    transport.take()
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-Timeout-Seconds: 0.25\r\n\r\n")
    bench.loop.pass_to(1000.249)
    assert not transport.written
    bench.loop.pass_to(1000.25)
    assert parse_responses(transport.take())[0].status == 408


@pytest.mark.parametrize("timeout_s", [0.02, 0.5])
def test_a_deadline_does_not_pass_early_on_a_real_loop(timeout_s: float):
    async def main():
        async with site(FakeRouter(handler=keep), HTTPOptions(request_timeout_s=timeout_s)) as s:
            client = await s.connect()
            await client.send(GET)
            response = await client.response()
            assert response.status == 408
            (call,) = s.router.calls
            assert asyncio.get_running_loop().time() >= call.deadline - 0.002

    run(main())


# --- requests that outlive their clients ---------------------------------------------------------------------------

STAY = b"GET /a HTTP/1.1\r\nHost: h\r\nX-Request-Disconnect-Disabled: %b\r\n%b\r\n"


@pytest.mark.parametrize(
    ("value", "stays"), [(b"?1", True), (b"1", True), (b"True", True), (b"0", False), (b"", False)]
)
def test_a_client_may_leave_its_request_running(value: bytes, stays: bool):
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(STAY % (value, b""))
    (call,) = bench.router.calls
    connection.connection_lost(None)
    assert bench.router.cancelled == ([] if stays else [call])
    assert len(bench.door.orphans) == int(stays)
    if stays:
        call.on_reply(HTTP, b"", b"unheard")
        assert not bench.door.orphans
    assert not transport.written


def test_one_that_runs_on_ends_at_its_deadline():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, _ = bench.connect()
    connection.data_received(STAY % (b"?1", b"X-Request-Timeout-Seconds: 5\r\n"))
    (call,) = bench.router.calls
    connection.connection_lost(None)
    bench.loop.pass_to(1004.9)
    assert not bench.router.cancelled
    bench.loop.pass_to(1005)
    assert bench.router.cancelled == [call]
    assert bench.door.empty
    assert not bench.loop.timers


def test_one_that_streams_runs_on_and_holds_nobody_back():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(STAY % (b"?1", b""))
    (call,) = bench.router.calls
    call.on_reply(HTTP | MORE, b"", b"begun")
    transport.unsent = 5
    connection.pause_writing()
    call.on_data(b"x" * 10, True)
    connection.connection_lost(None)
    assert bench.router.credit[id(call)] == 10
    call.on_data(b"y" * 10, True)
    assert bench.router.credit[id(call)] == 20
    call.on_data(b"", False)
    assert bench.door.empty


def test_one_whose_body_was_not_whole_or_that_had_not_begun_ends_with_its_client():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, _ = bench.connect()
    upload = STAY.replace(b"GET", b"POST") % (b"?1", b"Content-Length: 1000000\r\n")
    connection.data_received(upload + b"x" * 100_000)
    connection.connection_lost(None)
    assert bench.router.cancelled == bench.router.calls
    connection, _ = bench.connect()
    connection.data_received(GET + STAY % (b"?1", b""))
    connection.connection_lost(None)
    assert len(bench.router.calls) == 2
    assert bench.door.empty


def test_no_more_run_on_than_there_may_be_connections():
    bench = Bench(router=FakeRouter(handler=keep), options=HTTPOptions(max_connections=2))
    for _ in range(3):
        connection, _ = bench.connect()
        connection.data_received(STAY % (b"?1", b""))
        connection.connection_lost(None)
    first, _, last = bench.router.calls
    assert len(bench.door.orphans) == 2
    assert bench.router.cancelled == [last]
    first.on_reply(HTTP, b"", b"")
    connection, _ = bench.connect()
    connection.data_received(STAY % (b"?1", b""))
    connection.connection_lost(None)
    assert bench.router.cancelled == [last]


def test_a_drain_waits_for_those_that_run_on_and_not_for_ever():
    async def main():
        async with site(FakeRouter(handler=keep)) as s:
            clients = [await s.connect() for _ in range(2)]
            for client in clients:
                await client.send(STAY % (b"?1", b""))
            await s.until(lambda: len(s.router.calls) == 2)
            for client in clients:
                client.writer.close()
            await s.until(lambda: len(s.door.orphans) == 2)
            draining = asyncio.ensure_future(s.door.drain(10))
            await s.until(lambda: s.door.draining)
            for call in s.router.calls:
                assert not draining.done()
                call.on_reply(HTTP, b"", b"")
            await draining
            assert not s.router.cancelled

    run(main())


def test_a_request_in_work_outlives_the_idle_limit():
    options = HTTPOptions(keep_alive_timeout_s=10)
    bench = Bench(options=options, router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(GET)
    bench.pass_time(1000)
    bench.router.calls[0].on_reply(HTTP, b"", b"late")
    bench.pass_time(5)
    assert not transport.closed
    bench.pass_time(7)
    assert transport.closed
    assert connection.idle


def test_a_client_that_does_not_read_is_given_up_and_one_that_reads_slowly_is_not():
    bench = Bench(options=LIMITS, router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(GET)
    bench.router.calls[0].on_reply(HTTP, b"", b"x" * 1000)
    transport.unsent = 1000
    connection.pause_writing()
    for _ in range(20):
        bench.pass_time(5)
        transport.unsent -= 1
    assert not transport.aborted
    bench.pass_time(10)
    assert transport.aborted


def test_the_sweep_looks_often_enough_for_the_shortest_limit():
    assert Bench().door.sweep_interval_s() == 1.0
    assert Bench(options=HTTPOptions(header_timeout_s=2)).door.sweep_interval_s() == 0.2
    assert Bench(options=HTTPOptions(body_timeout_s=0.01)).door.sweep_interval_s() == 0.05


def test_no_timer_runs_while_there_are_no_connections():
    async def main():
        async with site(options=HTTPOptions(header_timeout_s=0.5)) as s:
            assert s.door._timer is None
            client = await s.connect()
            await client.send(GET)
            await client.response()
            assert s.door._timer is not None
            client.writer.close()
            await s.until(lambda: s.door._timer is None)

    run(main())


# --- the end -------------------------------------------------------------------------------------------------------


def test_a_drain_answers_what_is_in_work_and_what_idle_clients_still_ask():
    async def main():
        router = FakeRouter(handler=keep)
        async with site(router, HTTPOptions(header_timeout_s=1)) as s:
            busy, idle, late = await s.connect(), await s.connect(), await s.connect()
            await busy.send(GET)
            await s.until(lambda: len(router.calls) == 1 and len(s.door.connections) == 3)
            draining = asyncio.ensure_future(s.door.drain(10))
            await s.until(lambda: s.door.draining)
            await late.send(GET)
            await s.until(lambda: len(router.calls) == 2)
            for call in router.calls:
                call.on_reply(HTTP, b"", b"done")
            for client in (busy, late):
                response = await client.response()
                assert (response.body, response.headers["connection"]) == (b"done", "close")
                assert await client.rest() == b""
            assert await idle.rest() == b""
            await draining
            for client in (busy, late, idle):
                client.writer.close()

    run(main())


def test_a_drain_that_takes_too_long_is_cut_off():
    async def main():
        router = FakeRouter(handler=keep)
        async with site(router) as s:
            client = await s.connect()
            await client.send(GET)
            await s.until(lambda: len(router.calls) == 1)
            await s.door.drain(0.05)
            assert router.cancelled == router.calls
            assert await client.rest() == b""
            client.writer.close()

    run(main())


def test_connections_that_wait_to_be_accepted_when_the_listener_leaves_are_served():
    async def main():
        async with site() as s:
            # Blocking, so that the loop accepts none of them before it leaves.
            waiting = [socket.create_connection(("127.0.0.1", s.listener.port)) for _ in range(20)]
            await s.listener.leave()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", s.listener.port))
            assert len(s.door.connections) == 20
            for sock in waiting:
                reader, writer = await asyncio.open_connection(sock=sock)
                writer.write(GET)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()

    run(main())


# --- the process ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Controller:
    """Takes one ingress's connection and notes what it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[Message] = []

    async def open(self) -> None:
        def received(channel: ControlChannel, message: Message) -> None:
            self.heard.append(message)
            if isinstance(message, Hello):
                channel.send(Hello(role="controller", id="controller", pid=os.getpid()))
            if isinstance(message, Subscribe):
                known = snapshot(application("default", "/"), application("second", "/second"), version=7)
                channel.send(SnapshotMessage(known))

        loop = asyncio.get_running_loop()
        self.server = await loop.create_unix_server(lambda: ControlChannel(received, lambda channel: None), self.path)

    def heard_all(self, *kinds: type) -> bool:
        return all(any(isinstance(message, kind) for message in self.heard) for kind in kinds)


def start_process(directory: InstanceDirectory, number: int = 0, **options: object) -> tuple[subprocess.Popen, int]:
    """An ingress process with these HTTP options, and the write end of its lifeline."""
    read_end, write_end = os.pipe()
    environment = os.environ | {
        "HEADRACE_PROCESS_ID": f"ingress#{number}",
        "HEADRACE_RUNTIME_DIR": str(directory.path),
        "HEADRACE_INSTANCE": "default",
        "HEADRACE_LIFELINE_FD": str(read_end),
        "HEADRACE_HTTP_OPTIONS": msgspec.json.encode(options).decode(),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.ingress"],
        env=environment,
        pass_fds=(read_end,),
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(read_end)
    return process, write_end


async def answered(client: httpx.AsyncClient, path: str, **expected: object) -> httpx.Response:
    while True:
        try:
            response = await client.get(path)
        except httpx.TransportError:
            await asyncio.sleep(0.01)
            continue
        if all(getattr(response, name) == value for name, value in expected.items()):
            return response
        await asyncio.sleep(0.01)


def test_the_process_serves_from_the_snapshot_on_disk_reports_to_a_controller_and_drains(tmp_path: Path):
    async def main():
        directory = InstanceDirectory(tmp_path / "i")
        directory.create()
        write_snapshot(directory, snapshot(application("default", "/")))
        port = free_port()
        process, lifeline = start_process(directory, port=port)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                await answered(client, "/-/healthz", text="success")
                assert (await client.get("/-/routes")).json() == {"/": "default"}
                controller = Controller(directory.control_socket)
                await controller.open()
                await answered(client, "/-/routes", text='{"/":"default","/second":"second"}')
                while not controller.heard_all(Subscribe, SnapshotAck, IngressReport):
                    await asyncio.sleep(0.01)
                reports = [m for m in controller.heard if isinstance(m, IngressReport)]
                assert reports == [
                    IngressReport(ingress_id="ingress#0", pid=process.pid, host="127.0.0.1", port=port, draining=False)
                ]
                assert [m.version for m in controller.heard if isinstance(m, SnapshotAck)] == [7]
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 15) == 0
                assert [m.draining for m in controller.heard if isinstance(m, IngressReport)] == [False, True]
                controller.server.close()
            assert process.stderr.read() == ""
        finally:
            process.kill()
            os.close(lifeline)

    run(main())


def test_two_processes_share_the_port_and_end_with_their_keeper(tmp_path: Path):
    async def main():
        directory = InstanceDirectory(tmp_path / "i")
        directory.create()
        write_snapshot(directory, snapshot(application("default", "/")))
        port = free_port()
        started = [start_process(directory, number, port=port) for number in range(2)]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                await answered(client, "/-/healthz", text="success")
            for _, lifeline in started:
                os.close(lifeline)
            for process, _ in started:
                assert await asyncio.to_thread(process.wait, 10) == 0
        finally:
            for process, _ in started:
                process.kill()

    run(main())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prt": 1}, "did you mean 'port'"),
        ({"host": "no.such.host.invalid"}, "no.such.host.invalid"),
        ({"port": -1}, "port=-1"),
    ],
)
def test_a_process_that_cannot_start_says_why_in_one_line(tmp_path: Path, options: dict[str, object], told: str):
    process, lifeline = start_process(InstanceDirectory(tmp_path), **options)
    os.close(lifeline)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert told in error
    assert "Traceback" not in error
