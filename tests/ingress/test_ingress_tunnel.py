"""A request to open a WebSocket, at a door whose router the test answers for: what passes, comes back and ends."""

from __future__ import annotations

import pytest
from door_harness import (
    HTTP,
    MORE,
    Bench,
    FakeRouter,
    Transport,
    application,
    head_of,
    keep,
    parse_responses,
    response_head,
    snapshot,
)

from headrace.ingress.connection import LINGER_S, ClientConnection
from headrace.router import Call
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import ReplicaDiedError
from headrace.wire.frames import STREAM

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
UPGRADE = (
    b"GET /ws?x=1 HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)
OPEN = UPGRADE % b""
SWITCH = response_head(101, (b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", b"yes"))
LIMITS = HTTPOptions(keep_alive_timeout_s=10, header_timeout_s=5, body_timeout_s=7, request_timeout_s=30)


def bench_of(options: HTTPOptions | None = None, **router: object) -> Bench:
    return Bench(
        router=FakeRouter(**({"handler": keep, "eager": True} | router)),  # type: ignore[arg-type]
        options=options or HTTPOptions(),
    )


def opened(bench: Bench) -> tuple[ClientConnection, Transport, Call]:
    """A connection whose WebSocket the replica has opened."""
    connection, transport = bench.connect()
    connection.data_received(OPEN)
    call = bench.router.calls[-1]
    call.on_reply(HTTP | MORE, SWITCH, b"")
    assert transport.take().startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    return connection, transport, call


def sent(bench: Bench, call: Call) -> bytes:
    return bench.router.body(call)


def test_it_goes_as_a_call_of_its_own_kind_that_is_not_whole():
    bench = bench_of()
    connection, _ = bench.connect()
    connection.data_received(UPGRADE % b"X-Session-Id: s\r\nX-Request-Priority: 3\r\n")
    (call,) = bench.router.calls
    head = head_of(call)
    assert (call.kind, call.more, call.sticky, call.priority) == (HTTP | STREAM, True, "s", 3)
    assert (head.method, head.target, head.scheme) == ("GET", b"/ws?x=1", "ws")
    assert (b"upgrade", b"websocket") in head.headers


def test_bytes_go_both_ways_as_they_are():
    bench = bench_of()
    connection, transport, call = opened(bench)
    connection.data_received(b"\x81\x85abcd")
    connection.data_received(GET)  # is no request any more
    assert sent(bench, call) == b"\x81\x85abcd" + GET
    call.on_data(b"\x81\x05hello", True)
    call.on_data(b"\x88\x00", True)
    assert transport.take() == b"\x81\x05hello\x88\x00"
    assert bench.router.credit[id(call)] == 9
    assert len(bench.router.calls) == 1


def test_the_answer_has_the_replicas_headers_and_ours_and_no_length():
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(UPGRADE % b"X-Request-Id: r-1\r\n")
    bench.router.calls[0].on_reply(
        HTTP | MORE, response_head(101, (b"Upgrade", b"websocket"), (b"X-A", b"b"), (b"Content-Length", b"0")), b"first"
    )
    head, _, rest = transport.take().partition(b"\r\n\r\n")
    assert rest == b"first"
    lines = head.split(b"\r\n")
    assert {b"upgrade: websocket", b"x-a: b", b"server: headrace", b"x-request-id: r-1"} <= set(lines)
    assert not any(line.startswith((b"content-length", b"transfer-encoding", b"connection: close")) for line in lines)


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_bytes_that_follow_the_head_at_once_are_not_lost(piece: int):
    bench = bench_of()
    connection, _ = bench.connect()
    data = OPEN + b"\x81\x85" + b"x" * 5000
    for at in range(0, len(data), piece):
        connection.data_received(data[at : at + piece])
    (call,) = bench.router.calls
    assert sent(bench, call) == data[len(OPEN) :]


def test_a_refusal_is_an_ordinary_response_and_the_last():
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(OPEN + b"more")
    bench.router.calls[0].on_reply(HTTP, response_head(403, (b"content-type", b"text/plain")), b"no")
    (response,) = parse_responses(bytes(transport.written))
    assert (response.status, response.body, response.headers["connection"]) == (403, b"no", "close")
    assert transport.ended
    connection.data_received(GET)
    assert len(bench.router.calls) == 1
    bench.pass_time(LINGER_S + 1)
    assert transport.aborted


def test_a_refusal_in_parts_streams():
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(OPEN)
    (call,) = bench.router.calls
    call.on_reply(HTTP | MORE, response_head(401), b"no ")
    call.on_data(b"entry", False)
    (response,) = parse_responses(bytes(transport.written))
    assert (response.status, response.body, response.chunked) == (401, b"no entry", True)


def test_nobody_else_can_switch_protocols():
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(GET)
    bench.router.calls[0].on_reply(HTTP | MORE, SWITCH, b"")
    (response,) = parse_responses(bytes(transport.written))
    assert response.status == 500
    assert bench.router.cancelled == bench.router.calls


@pytest.mark.parametrize(("flags", "meta"), [(HTTP, SWITCH), (HTTP | MORE, response_head(102)), (HTTP | MORE, b"\xc1")])
def test_a_reply_that_is_none_is_a_500(flags: int, meta: bytes):
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(OPEN)
    bench.router.calls[0].on_reply(flags, meta, b"")
    (response,) = parse_responses(bytes(transport.written))
    assert response.status == 500


@pytest.mark.parametrize(
    ("head", "version"),
    [
        (b"Upgrade: websocket\r\n", b"1.1"),  # without Connection
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"1.1"),
        (b"Connection: Upgrade\r\nUpgrade: websocket2\r\n", b"1.1"),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"1.0"),
    ],
)
def test_what_offers_something_else_is_served_as_it_is(head: bytes, version: bytes):
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(b"GET /a HTTP/" + version + b"\r\nHost: h\r\n" + head + b"\r\n")
    (call,) = bench.router.calls
    assert (call.kind, head_of(call).scheme) == (HTTP, "http")
    call.on_reply(HTTP, b"", b"{}")
    assert parse_responses(transport.take())[0].status == 200


def test_an_offer_in_a_post_is_passed_over():
    bench = bench_of()
    connection, _ = bench.connect()
    connection.data_received(OPEN.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nok"))
    (call,) = bench.router.calls
    assert (call.kind, head_of(call).scheme, call.body) == (HTTP, "http", b"ok")


def test_who_speaks_another_version_is_told_which_to_upgrade_to():
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(OPEN.replace(b"Version: 13", b"Version: 8"))
    (response,) = parse_responses(transport.take())
    assert response.status == 426
    assert response.headers["sec-websocket-version"] == "13"
    assert response.headers["upgrade"] == "websocket"
    assert not bench.router.calls


def test_paths_without_an_application_and_our_own_are_answered_as_ever():
    bench = bench_of()
    bench.door.update(snapshot(application("only", "/only"), version=2))
    for path, status in ((b"/ws", 404), (b"/-/healthz", 200)):
        connection, transport = bench.connect()
        connection.data_received(OPEN.replace(b"/ws?x=1", path))
        assert parse_responses(bytes(transport.written))[0].status == status
    assert not bench.router.calls


def test_it_waits_for_the_requests_before_it_and_its_bytes_with_it():
    bench = bench_of()
    connection, transport = bench.connect()
    connection.data_received(GET + OPEN + b"early")
    first = bench.router.calls[0]
    assert len(bench.router.calls) == 1
    assert not transport.reading
    first.on_reply(HTTP, b"", b"{}")
    _, call = bench.router.calls
    assert call.kind == HTTP | STREAM
    assert transport.reading
    call.on_reply(HTTP | MORE, SWITCH, b"")
    connection.data_received(b" and late")
    assert sent(bench, call) == b"early and late"


def test_a_replica_that_does_not_keep_up_holds_back_the_client():
    bench = bench_of(room=1000)
    connection, transport, call = opened(bench)
    connection.data_received(b"x" * 1000)
    assert not transport.reading
    connection.data_received(b"y" * 10)  # had been read before
    assert sent(bench, call) == b"x" * 1000
    bench.router.read(call)
    assert transport.reading
    assert sent(bench, call) == b"x" * 1000 + b"y" * 10


def test_a_client_that_does_not_read_holds_back_the_replica():
    bench = bench_of()
    connection, transport, call = opened(bench)
    transport.unsent = 5000
    connection.pause_writing()
    call.on_data(b"x" * 5000, True)
    assert id(call) not in bench.router.credit
    connection.data_received(b"but it sends")
    assert sent(bench, call) == b"but it sends"
    bench.pass_time(1000)
    assert not transport.closed
    connection.resume_writing()
    assert bench.router.credit[id(call)] == 5000


def test_no_limit_in_time_holds_for_one_that_is_open():
    bench = bench_of(LIMITS)
    connection, transport, call = opened(bench)
    assert call.deadline is None
    bench.pass_time(3600)
    assert not transport.closed
    connection.data_received(b"still here")
    assert sent(bench, call) == b"still here"


@pytest.mark.parametrize("header", [b"", b"X-Request-Timeout-Seconds: 2\r\n"])
def test_the_handshake_has_the_time_of_a_request(header: bytes):
    bench = bench_of(LIMITS)
    connection, transport = bench.connect()
    connection.data_received(UPGRADE % header)
    (call,) = bench.router.calls
    assert call.deadline is None
    limit = 2 if header else 30
    bench.loop.pass_to(1000 + limit - 0.01)
    assert not transport.written
    bench.loop.pass_to(1000 + limit)
    assert parse_responses(bytes(transport.written))[0].status == 408
    assert bench.router.cancelled == [call]


def test_the_replica_ends_it():
    bench = bench_of()
    connection, transport, call = opened(bench)
    call.on_data(b"\x88\x02\x03\xe8", False)
    assert transport.take() == b"\x88\x02\x03\xe8"
    assert transport.ended
    assert not transport.closed  # the client's own end may still come, and a reset would take ours from it
    connection.data_received(b"x")
    bench.pass_time(LINGER_S + 1)
    assert transport.aborted
    connection.connection_lost(None)
    assert not bench.router.cancelled
    assert call.more  # nothing was sent to who has ended


def test_a_replica_that_dies_breaks_it_off():
    bench = bench_of()
    _, transport, call = opened(bench)
    call.on_error(ReplicaDiedError("it died"))
    assert transport.aborted
    assert not transport.written


def test_a_client_that_leaves_ends_the_input_and_nothing_is_lost():
    bench = bench_of()
    connection, transport, call = opened(bench)
    connection.data_received(b"last words")
    transport.unsent = 100
    connection.pause_writing()
    call.on_data(b"x" * 100, True)
    connection.connection_lost(None)
    assert sent(bench, call) == b"last words"
    assert not call.more
    assert not bench.router.cancelled  # the replica reads to the end, and ends the call itself
    assert bench.router.credit[id(call)] == 100
    call.on_data(b"y" * 50, True)
    assert bench.router.credit[id(call)] == 150
    call.on_data(b"", False)
    assert not transport.written[100:]


def test_a_client_that_leaves_before_the_answer_cancels_it():
    bench = bench_of()
    connection, _ = bench.connect()
    connection.data_received(OPEN)
    connection.connection_lost(None)
    assert bench.router.cancelled == bench.router.calls


def test_a_client_that_only_ends_its_own_side_still_gets_the_last_bytes():
    bench = bench_of()
    connection, transport, call = opened(bench)
    connection.data_received(b"\x88\x80abcd")
    assert connection.eof_received()
    assert not call.more
    call.on_data(b"\x88\x00", False)
    assert transport.take() == b"\x88\x00"
    assert transport.closed
    connection.connection_lost(None)


def test_a_drain_ends_the_input_of_those_that_are_open_and_of_those_that_open():
    bench = bench_of()
    first, transport, call = opened(bench)
    later, later_transport = bench.connect()
    later.data_received(OPEN)
    waiting = bench.router.calls[-1]
    bench.door.draining = True
    first.drain()
    later.drain()
    assert not call.more
    assert waiting.more
    first.data_received(b"unheard")
    assert sent(bench, call) == b""
    call.on_data(b"\x88\x02\x03\xf4", False)
    assert transport.take() == b"\x88\x02\x03\xf4"
    waiting.on_reply(HTTP | MORE, SWITCH, b"")
    assert not waiting.more
    assert later_transport.take().startswith(b"HTTP/1.1 101")


def test_requests_of_other_connections_are_remembered_as_ever():
    bench = Bench()
    connection, transport = bench.connect()
    for _ in range(3):
        connection.data_received(GET)
    assert len(parse_responses(transport.take())) == 3
    assert connection._memo_size == len(GET)
