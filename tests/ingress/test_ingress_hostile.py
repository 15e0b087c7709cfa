"""Hostile input: a refusal in 4xx or 501, once, and nothing of what follows is served; and fuzz of the same."""

from __future__ import annotations

import pytest
from door_harness import Bench, FakeRouter, head_of, keep, parse_responses, run, site
from hostile_requests import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.ingress.request import Refusal
from headrace.spec.config import HTTPOptions

GET = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"
VALID: list[tuple[bytes, bytes]] = [
    (b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /1|"),
    (b"\r\nGET /2?a=b HTTP/1.1\r\nHost: h\r\nX-Request-Id: 2\r\n\r\n", b"GET /2?a=b|"),
    (b"POST /3 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", b"POST /3|hello"),
    (b"POST /3 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nworld", b"POST /3|world"),
    (
        b"PUT /4 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2;x=y\r\nab\r\n00003\r\ncde\r\n0\r\nT: v\r\n\r\n",
        b"PUT /4|abcde",
    ),
    (b"POST /5 HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n" + b"z" * 70000, b"POST /5|" + b"z" * 70000),
    (
        b"POST /6 HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /6|abc",
    ),
    (
        b"POST /7 HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\nGET /x HTTP/1.1\r\nHost: h",
        b"POST /7|GET /x HTTP/1.1\r\nHost: h",
    ),
]


# Whole, in pieces, and byte by byte where that does not take long.
PIECES = [
    (name, piece) for name in HOSTILE for piece in (1_000_000, 1000, 1) if piece > 1 or len(HOSTILE[name][0]) < 3000
]


@pytest.mark.parametrize(("name", "piece"), PIECES)
def test_hostile_requests_are_refused_and_nothing_after_them_is_served(name: str, piece: int):
    data, status = HOSTILE[name]
    bench = Bench()
    connection, transport = bench.connect()
    stream = data + GET
    for at in range(0, len(stream), piece):
        connection.data_received(stream[at : at + piece])
    (response,) = parse_responses(bytes(transport.written))
    assert response.status == status
    assert response.headers["connection"] == "close"
    assert response.headers["x-request-id"]
    assert transport.ended
    assert [call for call in bench.router.calls if head_of(call).target == b"/after"] == []
    assert connection.held_bytes < 100_000


def test_a_refusal_waits_for_the_answers_before_it():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(GET + b"nonsense\r\n\r\n")
    assert not transport.written
    bench.router.calls[0].on_reply(2, b"", b"first")
    first, refused = parse_responses(bytes(transport.written))
    assert (first.body, refused.status) == (b"first", 400)


def test_nothing_is_served_after_a_refusal_not_even_what_was_served_before():
    bench = Bench()
    connection, transport = bench.connect()
    connection.data_received(GET)
    connection._refuse(Refusal(408, "enough"))
    connection.data_received(GET)
    assert [r.status for r in parse_responses(bytes(transport.written))] == [200, 408]
    assert len(bench.router.calls) == 1


def test_a_bad_chunk_in_a_body_that_streams_cancels_the_call():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.data_received(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")
    (call,) = bench.router.calls
    connection.data_received(b"bad\x00")
    assert bench.router.cancelled == [call]
    assert [r.status for r in parse_responses(bytes(transport.written))] == [400]


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_over_the_limit_is_refused_as_soon_as_that_is_known(framing: str):
    bench = Bench(options=HTTPOptions(max_body_bytes=100_000), router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(b"POST /a HTTP/1.1\r\nHost: h\r\n")
    if framing == "length":
        connection.data_received(b"Content-Length: 100001\r\n\r\n")
        assert not bench.router.calls
    else:
        connection.data_received(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            assert not transport.written
            connection.data_received(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert bench.router.cancelled == bench.router.calls
    assert [r.status for r in parse_responses(bytes(transport.written))] == [413]


def test_a_head_of_just_the_limit_is_served():
    options = HTTPOptions(max_header_bytes=8000)
    for extra, status in ((0, 200), (1, 431)):
        bench = Bench(options=options)
        connection, transport = bench.connect()
        connection.data_received(GET * 3)
        transport.take()
        start = b"GET / HTTP/1.1\r\nHost: h\r\nA: "
        connection.data_received(start + b"a" * (8000 - len(start) - 4 + extra) + b"\r\n\r\n")
        assert [r.status for r in parse_responses(bytes(transport.written))] == [status], extra


def test_the_refusal_can_be_read_by_a_client_that_is_still_sending():
    async def main():
        async with site(options=HTTPOptions(max_body_bytes=1000)) as s:
            client = await s.connect()
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
            for _ in range(500):
                await client.send(b"x" * 100_000)
            response = await client.response()
            assert response.status == 413
            assert await client.rest() == b""
            client.writer.close()
            await s.until(lambda: not s.door.connections)

    run(main())


def test_too_many_connections_are_told():
    async def main():
        async with site(options=HTTPOptions(max_connections=2)) as s:
            first, second = await s.connect(), await s.connect()
            await s.until(lambda: len(s.door.connections) == 2)
            third = await s.connect()
            response = await third.response()
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            third.writer.close()
            first.writer.close()
            await s.until(lambda: len(s.door.connections) == 1)
            fourth = await s.connect()
            await fourth.send(GET)
            assert (await fourth.response()).status == 200
            second.writer.close()

    run(main())


# --- fuzz ----------------------------------------------------------------------------------------------------------

splits = st.lists(st.integers(1, 200_000), max_size=12)
streams = st.lists(st.sampled_from(VALID), min_size=1, max_size=6)


def feed(bench: Bench, data: bytes, sizes: list[int]):
    connection, transport = bench.connect()
    at = 0
    for size in sizes:
        connection.data_received(data[at : at + size]) if at < len(data) else None
        at += size
    if at < len(data):
        connection.data_received(data[at:])
    return connection, transport


@settings(max_examples=150, deadline=None)
@given(streams, st.data())
def test_however_the_bytes_are_split_the_requests_are_the_same(chosen, data):
    stream = b"".join(request for request, _ in chosen)
    # Mostly small pieces, where the boundaries are; then all the rest.
    sizes = data.draw(st.lists(st.integers(1, 40), max_size=60) | splits)
    connection, transport = feed(Bench(), stream, sizes)
    answers = parse_responses(bytes(transport.written))
    assert [answer.body for answer in answers] == [expected for _, expected in chosen]
    assert not transport.ended
    assert connection.idle
    assert transport.reading


@settings(max_examples=400, deadline=None)
@given(streams, st.data())
def test_mutated_requests_get_their_own_answer_or_a_refusal_and_then_nothing(chosen, data):
    stream = bytearray(b"".join(request for request, _ in chosen if len(request) < 1000))
    if not stream:
        return
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream)))
        match data.draw(st.sampled_from(["replace", "insert", "delete", "repeat"])):
            case "replace" if at < len(stream):
                stream[at] = data.draw(st.integers(0, 255) | st.sampled_from(b"\r\n: \x00"))
            case "insert":
                stream[at:at] = data.draw(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"\n", b"\r\n\r\n", b" "]))
            case "delete":
                del stream[at : at + data.draw(st.integers(1, 20))]
            case _:
                stream[at:at] = stream[at : at + data.draw(st.integers(1, 40))]
    sizes = data.draw(splits | st.lists(st.integers(1, 40), max_size=40))
    bench = Bench()
    _, transport = feed(bench, bytes(stream), sizes)
    answers = [a for a in parse_responses(bytes(transport.written), _heads(bench)) if a.status != 100]
    served = [
        answer for answer in answers if answer.status == 200 and answer.headers["content-type"] == "application/json"
    ]
    refused = [answer for answer in answers if answer not in served]
    # Each answer is that of the call in its place, and a refusal is the end.
    assert [a.headers["x-request-id"] for a in served] == [call.request_id for call in bench.router.calls]
    for answer, call in zip(served, bench.router.calls, strict=True):
        head = head_of(call)
        assert answer.body in (b"", b"%b %b|%b" % (head.method.encode(), head.target, bench.router.body(call)))
    assert all(answer.status in (400, 405, 408, 413, 417, 431, 501) for answer in refused)
    assert len(refused) <= 1
    if refused:
        assert answers[-1] is refused[0]
        assert transport.ended
    # The same bytes in one piece are understood the same.
    again = Bench()
    feed(again, bytes(stream), [])
    assert [(head_of(c).target, again.router.body(c)) for c in again.router.calls] == [
        (head_of(c).target, bench.router.body(c)) for c in bench.router.calls
    ]
    # And whatever is left half said is given up in time.
    bench.pass_time(200)
    assert transport.ended


def _heads(bench: Bench) -> tuple[bool, ...]:
    return tuple(head_of(call).method == "HEAD" for call in bench.router.calls)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), splits)
def test_noise_is_refused_or_waited_for(noise: bytes, sizes: list[int]):
    bench = Bench()
    _, transport = feed(bench, noise, sizes)
    bench.pass_time(200)
    assert transport.ended
    assert all(400 <= answer.status < 600 for answer in parse_responses(bytes(transport.written)))
    assert not bench.router.calls
