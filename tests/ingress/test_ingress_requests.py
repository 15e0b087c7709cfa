"""Requests as clients send them: framing, keep-alive, pipelining, the paths of the ingress's own, request ids."""

from __future__ import annotations

import uuid

import httpx
import pytest
from door_harness import (
    HTTP,
    Bench,
    FakeRouter,
    application,
    head_of,
    keep,
    parse_responses,
    run,
    site,
    snapshot,
)

from headrace.spec.config import HTTPOptions

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


def post(body: bytes, *headers: bytes, target: bytes = b"/a") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b" % (target, lines, len(body), body)


def exchange(data: bytes, bench: Bench | None = None, heads: tuple[bool, ...] = ()):
    """Everything that one connection answers to `data`, and its transport."""
    connection, transport = (bench or Bench()).connect()
    connection.data_received(data)
    return parse_responses(bytes(transport.written), heads), transport


def test_a_request_reaches_the_router_with_its_head_and_body_and_its_answer_the_client():
    bench = Bench()
    (response,), transport = exchange(post(b"hello", b"X-A: 1", target=b"/a%20b?q=1"), bench)
    assert (response.status, response.body) == (200, b"POST /a%20b?q=1|hello")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["server"] == "headrace"
    assert response.headers["date"].endswith(" GMT")
    (call,) = bench.router.calls
    assert (call.app, call.deployment, call.method, call.more) == ("default", "Model", "__call__", False)
    head = head_of(call)
    assert head.headers == [(b"host", b"h"), (b"x-a", b"1"), (b"content-length", b"5")]
    assert (head.method, head.http_version, head.scheme, head.root_path) == ("POST", "1.1", "http", "")
    assert (head.client, head.server) == (("127.0.0.1", 1000), ("127.0.0.1", 8000))
    assert not transport.closed


def test_a_client_that_repeats_its_head_gets_the_answer_to_each_body():
    bench = Bench()
    connection, transport = bench.connect()
    for body in (b"one", b"two", b"six", b"longer", b"", b"one"):
        connection.data_received(post(body))
    answers = [response.body for response in parse_responses(bytes(transport.written))]
    assert answers == [b"POST /a|" + body for body in (b"one", b"two", b"six", b"longer", b"", b"one")]
    assert len({call.request_id for call in bench.router.calls}) == 6


def test_what_follows_a_head_that_repeats_is_read_as_what_it_is():
    bench = Bench()
    connection, transport = bench.connect()
    first = post(b"abc")
    connection.data_received(first)
    # The same head, but its body comes later; and then half a method name before the same head once more.
    connection.data_received(first[:-3])
    connection.data_received(b"xyz")
    connection.data_received(first + b"PO")
    assert [r.body for r in parse_responses(transport.take())] == [b"POST /a|abc", b"POST /a|xyz", b"POST /a|abc"]
    connection.data_received(first)
    (refused,) = parse_responses(transport.take())
    assert refused.status == 400


def test_bytes_after_a_request_do_not_become_part_of_the_head_that_is_remembered():
    bench = Bench()
    connection, transport = bench.connect()
    connection.data_received(post(b"ab") + b"\r\n")
    connection.data_received(post(b"ab") + b"\r\n")
    connection.data_received(post(b"ab"))
    assert [r.body for r in parse_responses(bytes(transport.written))] == [b"POST /a|ab"] * 3


def test_changed_routes_hold_for_a_head_that_repeats():
    bench = Bench()
    connection, transport = bench.connect()
    connection.data_received(GET)
    bench.door.update(snapshot(application("other", "/a"), version=2))
    connection.data_received(GET)
    bench.door.update(snapshot(version=3))
    connection.data_received(GET)
    assert [call.app for call in bench.router.calls] == ["default", "other"]
    assert [r.status for r in parse_responses(bytes(transport.written))] == [200, 200, 404]


def test_pipelined_requests_are_answered_in_their_order_one_at_a_time():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(b"".join(post(b"%d" % i) for i in range(5)))
    for i in range(5):
        assert len(bench.router.calls) == i + 1
        bench.router.calls[i].on_reply(HTTP, b"", b"%d" % i)
    assert [r.body for r in parse_responses(bytes(transport.written))] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_flood_of_pipelined_requests_is_held_back_and_all_are_answered():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    n = 3000
    flood = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % i for i in range(n))
    connection.data_received(flood)
    assert not transport.reading
    assert connection.held_bytes <= len(flood)
    assert len(connection._waiting) < 200
    bench.router.handler = lambda router, call: call.on_reply(HTTP, b"", head_of(call).target)
    bench.router.handler(bench.router, bench.router.calls[0])
    assert [r.body for r in parse_responses(bytes(transport.written))] == [b"/%d" % i for i in range(n)]
    assert transport.reading


def test_a_flood_of_requests_that_the_ingress_answers_itself():
    responses, transport = exchange(b"GET /-/healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 5000)
    assert [r.status for r in responses] == [200] * 5000
    assert transport.reading


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 300_000])
@pytest.mark.parametrize("chunk", [None, 1000, 70_000])
def test_bodies_of_every_size_arrive_whole(size: int, chunk: int | None):
    bench = Bench()
    body = bytes(i % 251 for i in range(size))
    if chunk is None:
        data = post(body)
    else:
        parts = [body[at : at + chunk] for at in range(0, size, chunk)]
        data = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
        data += b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nX-Trailer: ignored\r\n\r\n"
    (response, after), _ = exchange(data + GET, bench)
    assert response.body == b"POST /a|" + body
    assert after.body == b"GET /a|"
    assert all(name != b"x-trailer" for name, _ in head_of(bench.router.calls[0]).headers)
    assert bool(bench.router.uploads) == (size > 65536)


def test_http_1_0_closes_unless_asked_to_stay():
    (response,), transport = exchange(b"GET /a HTTP/1.0\r\n\r\n")
    assert (response.status, response.headers["connection"], transport.closed) == (200, "close", True)
    (response,), transport = exchange(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (response.status, response.headers["connection"], transport.closed) == (200, "keep-alive", False)


def test_connection_close_is_kept_and_what_follows_is_not_read():
    bench = Bench()
    (response,), transport = exchange(b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET, bench)
    assert response.headers["connection"] == "close"
    assert transport.closed
    assert len(bench.router.calls) == 1


def test_head_gets_the_headers_of_get_and_no_body():
    (response, after), _ = exchange(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n" + GET, heads=(True, False))
    assert response.headers["content-length"] == str(len(b"HEAD /a|"))
    assert after.body == b"GET /a|"
    (missing,), _ = exchange(
        b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n", Bench(snapshot=snapshot(application("a", "/a"))), heads=(True,)
    )
    assert missing.status == 404
    assert int(missing.headers["content-length"]) > 0


def test_a_body_is_invited_when_it_is_wanted_and_has_not_come():
    bench = Bench()
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
    connection, transport = bench.connect()
    connection.data_received(head)
    assert transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(b"hi")
    assert parse_responses(transport.take())[0].body == b"POST /a|hi"
    connection.data_received(head + b"ho")
    assert parse_responses(transport.take())[0].body == b"POST /a|ho"
    connection.data_received(head.replace(b"1.1\r\n", b"1.0\r\nConnection: keep-alive\r\n"))
    assert transport.take() == b""


def test_a_body_is_invited_in_its_turn():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(GET + b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert transport.take() == b""
    bench.router.calls[0].on_reply(HTTP, b"", b"first")
    first, interim = parse_responses(transport.take())
    assert (first.body, interim.status) == (b"first", 100)
    connection.data_received(b"hi")
    assert bench.router.calls[1].body == b"hi"


@pytest.mark.parametrize("target", [b"/missing", b"/broken", b"/starting"])
def test_a_body_is_not_invited_when_nobody_would_take_it(target: bytes):
    known = snapshot(
        application("a", "/a"), application("b", "/broken", failed="boom"), application("c", "/starting", ready=False)
    )
    bench = Bench(snapshot=known)
    data = b"POST %b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n" % target
    (response,), transport = exchange(data, bench)
    assert response.status == (404 if target == b"/missing" else 503)
    assert response.headers["connection"] == "close"
    assert transport.ended
    assert not bench.router.calls


def test_no_route_and_no_revision_are_told_apart_and_the_connection_goes_on():
    known = snapshot(
        application("a", "/a"), application("b", "/broken", failed="boom: secret"), application("c", "/c", ready=False)
    )
    bench = Bench(snapshot=known)
    data = b"".join(post(b"x", target=target) for target in (b"/nowhere", b"/broken/x", b"/c", b"/a/x"))
    (missing, broken, starting, fine), _ = exchange(data, bench)
    assert missing.status == 404
    assert b"/nowhere" in missing.body
    assert b"routes: /a, /broken (see" in missing.body  # /c is not ready
    assert (broken.status, starting.status) == (503, 503)
    assert b"'b' failed to deploy" in broken.body
    assert b"secret" not in broken.body
    assert starting.headers["retry-after"] == "1"
    assert fine.body == b"POST /a/x|x"
    assert broken.headers["x-request-id"].encode() in broken.body


def test_healthz_and_routes():
    bench = Bench(snapshot=snapshot(version=0))
    connection, transport = bench.connect()
    ask = b"GET /-/healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /-/routes HTTP/1.1\r\nHost: h\r\n\r\n"

    def answers():
        connection.data_received(ask)
        return [(r.status, r.body) for r in parse_responses(transport.take())]

    before = answers()
    assert before[0][0] == 503
    assert before[1] == (200, b"{}")
    connection.data_received(GET)
    assert parse_responses(transport.take())[0].status == 503
    bench.door.update(snapshot(application("default", "/"), application("b", "/b/"), application("no", None)))
    assert answers() == [(200, b"success"), (200, b'{"/":"default","/b":"b"}')]
    bench.door.update(snapshot(version=2))
    assert answers() == [(200, b"success"), (200, b"{}")]
    connection.data_received(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
    assert parse_responses(transport.take())[0].status == 200


def test_root_path_is_taken_off_for_the_route_and_kept_for_the_handler():
    bench = Bench(options=HTTPOptions(root_path="/api"), snapshot=snapshot(application("d", "/d")))
    for target in (b"/api/d/x?q", b"/d/x?q"):  # as it is, and as a proxy that takes the root path off sends it
        exchange(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target, bench)
    first, second = (head_of(call) for call in bench.router.calls)
    assert first.target == second.target == b"/api/d/x?q"
    assert first.root_path == second.root_path == "/api/d"
    (health,), _ = exchange(b"GET /api/-/healthz HTTP/1.1\r\nHost: h\r\n\r\n", bench)
    assert health.status == 200


def test_an_absolute_target_is_read_as_its_path_and_its_host_counts():
    bench = Bench()
    exchange(b"GET http://real.example:80/x?y HTTP/1.1\r\nHost: other\r\n\r\n", bench)
    exchange(b"GET http://real.example?y HTTP/1.1\r\nHost: other\r\n\r\n", bench)
    first, second = (head_of(call) for call in bench.router.calls)
    assert (first.target, first.headers) == (b"/x?y", [(b"host", b"real.example:80")])
    assert (second.target, second.headers) == (b"/?y", [(b"host", b"real.example")])


def test_an_offer_to_upgrade_is_passed_over_with_the_body_intact():
    bench = Bench()
    data = post(b"hello", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    (first, second), transport = exchange(data + GET, bench)
    assert (first.body, second.body) == (b"POST /a|hello", b"GET /a|")
    assert all(name != b"upgrade" for name, _ in head_of(bench.router.calls[0]).headers)
    assert not transport.closed


@pytest.mark.parametrize(
    ("given", "echoed"),
    [
        (b"abc-123", True),
        (b"with a space", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"\xc3\xa9", False),
        (b"tab\tinside", False),
        (b"", False),
        (None, False),
    ],
)
def test_request_ids_are_echoed_when_sane_and_made_otherwise(given: bytes | None, echoed: bool):
    bench = Bench()
    headers = () if given is None else (b"X-Request-ID: " + given,)
    (response,), _ = exchange(post(b"", *headers), bench)
    answered = response.headers["x-request-id"]
    assert bench.router.calls[0].request_id == answered
    if echoed:
        assert answered == given.decode()
    else:
        assert uuid.UUID(answered).version == 7


def test_made_request_ids_differ():
    benches = [Bench(), Bench()]
    for bench in benches:
        connection, _ = bench.connect()
        for _ in range(1000):
            connection.data_received(GET)
    assert len({call.request_id for bench in benches for call in bench.router.calls}) == 2000


def test_headers_that_concern_the_call_go_with_it():
    bench = Bench()
    exchange(
        post(
            b"",
            b"serve_multiplexed_model_id: m7",
            b"X-Session-Id: s1",
            b"traceparent: 00-aa-bb-01",
            b"X-Request-Timeout-Seconds: 2.5",
        ),
        bench,
    )
    (call,) = bench.router.calls
    assert (call.model_id, call.sticky, call.trace) == ("m7", "s1", "00-aa-bb-01")
    assert call.deadline == bench.loop.now + 2.5


def test_a_real_client_over_real_sockets():
    async def main():
        async with site() as s, httpx.AsyncClient(base_url=s.url) as client:
            response = await client.get("/x")
            assert (response.status_code, response.text) == (200, "GET /x|")
            for size in (10, 10, 70_000, 3_000_000):
                response = await client.post("/up", content=b"z" * size)
                assert response.content == b"POST /up|" + b"z" * size

            async def parts():
                for i in range(50):
                    yield b"%d" % i * 2000

            response = await client.put("/chunks", content=parts())
            assert response.content == b"PUT /chunks|" + b"".join([b"%d" % i * 2000 for i in range(50)])
            assert (await client.head("/x")).headers["content-length"] == "8"
            assert (await client.get("/-/routes")).json() == {"/": "default"}
            assert len(s.door.connections) == 1
        assert not s.door.connections

    run(main())


@pytest.mark.parametrize(("value", "priority"), [(b"7", 7), (b"-10", -10), (b" +3 ", 3), (b"0", 0)])
def test_a_priority_goes_with_the_call_and_is_remembered_with_the_head(value: bytes, priority: int):
    bench = Bench()
    connection, transport = bench.connect()
    for _ in range(3):
        connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-Priority: " + value + b"\r\n\r\n")
    assert [call.priority for call in bench.router.calls] == [priority] * 3
    assert len(parse_responses(transport.take())) == 3
    assert connection._memo_size > 0
