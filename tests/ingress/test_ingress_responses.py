"""Responses: what the router's replies, streams and errors become, and how fast a client may be slow."""

from __future__ import annotations

import httpx
import pytest
from door_harness import HTTP, MORE, Bench, FakeRouter, keep, parse_responses, response_head, run, site
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.ingress.response import BadResponseError, prepare
from headrace.router import Call
from headrace.spec.errors import (
    ApplicationNotFound,
    BackPressureError,
    DeploymentUnavailableError,
    HeadraceError,
    PoisonousRequestError,
    ReplicaDiedError,
    RequestTimeoutError,
)
from headrace.wire.frames import OFFERED, ErrorInfo

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
OLD = b"GET /a HTTP/1.0\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n"


def asked(data: bytes = GET):
    """A request that is in work: its bench, call and transport."""
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(data)
    (call,) = bench.router.calls
    return bench, call, transport, connection


def test_user_code_says_status_and_headers_and_the_ingress_the_framing():
    _, call, transport, _ = asked()
    meta = response_head(
        201,
        (b"Content-Type", b"text/plain"),
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"999"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Server", b"mine"),
        (b"Date", b"never"),
        (b"x-request-id", b"other"),
    )
    call.on_reply(HTTP | OFFERED, meta, b"hello")
    raw = bytes(transport.written)
    (response,) = parse_responses(raw)
    assert raw.startswith(b"HTTP/1.1 201 Created\r\n")
    assert raw.count(b"set-cookie: ") == 2
    assert response.body == b"hello"
    assert response.headers["server"] == "headrace"
    assert response.headers["x-request-id"] == call.request_id
    assert "transfer-encoding" not in response.headers


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_have_none(status: int):
    _, call, transport, connection = asked()
    call.on_reply(HTTP, response_head(status), b"ignored")
    connection.data_received(GET)
    (response,) = parse_responses(bytes(transport.written))
    assert (response.status, response.body) == (status, b"")
    assert "content-length" not in response.headers


@pytest.mark.parametrize(
    "head",
    [
        (200, (b"x", b"a\r\nSet-Cookie: evil=1")),
        (200, (b"x", b"a\nb")),
        (200, (b"x", b"a\x00b")),
        (200, (b"x: y\r\nz", b"a")),
        (200, (b"", b"a")),
        (200, (b"a b", b"a")),
        (200, (b"content-length", b"1x")),
        (100,),
        (99,),
        (1000,),
        (-1,),
    ],
)
@pytest.mark.parametrize("flags", [HTTP, HTTP | MORE])
def test_a_response_head_that_must_not_go_out_is_a_500(head, flags: int):
    bench, call, transport, _ = asked()
    call.on_reply(flags, response_head(*head), b"body")
    (response,) = parse_responses(bytes(transport.written))
    assert response.status == 500
    assert b"evil" not in transport.written
    assert bench.router.cancelled == ([call] if flags & MORE else [])


def test_a_meta_that_is_no_response_head_and_a_reply_that_is_no_http_are_500():
    for flags, meta in ((HTTP, b"\x01"), (0, b"")):
        _, call, transport, _ = asked()
        call.on_reply(flags, meta, b"body")
        assert parse_responses(bytes(transport.written))[0].status == 500


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_prepared_heads_are_one_line_a_header(name: bytes, value: bytes):
    try:
        lines = prepare(response_head(200, (name, value))).lines
    except BadResponseError:
        return
    assert lines.count(b"\r\n") <= 2
    assert b"\n" not in lines.replace(b"\r\n", b"")
    assert b"\r" not in lines.replace(b"\r\n", b"")


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_of_unknown_length_goes_in_chunks():
    bench, call, transport, connection = asked()
    call.on_reply(HTTP | MORE, response_head(200, (b"content-type", b"text/plain")), b"one")
    assert b"3\r\none\r\n" in transport.written
    call.on_data(b"", True)
    call.on_data(b"two", True)
    call.on_data(b"three", False)
    connection.data_received(GET)
    bench.router.calls[1].on_reply(HTTP, b"", b"next")
    first, second = parse_responses(bytes(transport.written))
    assert (first.body, first.chunked, second.body) == (b"onetwothree", True, b"next")
    assert bench.router.credit == {id(call): 3}


def test_a_stream_whose_length_is_known_is_not_chunked():
    _, call, transport, _ = asked()
    call.on_reply(HTTP | MORE, response_head(200, (b"content-length", b"6")), b"")
    call.on_data(b"abc", True)
    call.on_data(b"def", False)
    (response,) = parse_responses(bytes(transport.written))
    assert (response.body, response.chunked) == (b"abcdef", False)
    assert not transport.closed


@pytest.mark.parametrize("parts", [[b"abcdefg"], [b"abc"], [b"abc", b"defg"], []])
def test_a_stream_that_is_not_as_long_as_it_said_ends_the_connection(parts: list[bytes]):
    _, call, transport, _ = asked()
    call.on_reply(HTTP | MORE, response_head(200, (b"content-length", b"6")), b"")
    for i, part in enumerate(parts):
        call.on_data(part, i + 1 < len(parts))
    if not parts:
        call.on_data(b"", False)
    assert transport.closed
    body = bytes(transport.written).partition(b"\r\n\r\n")[2]
    assert b"abcdefg".startswith(body)
    assert len(body) <= 6


def test_to_http_1_0_a_stream_ends_with_the_connection():
    _, call, transport, _ = asked(OLD)
    call.on_reply(HTTP | MORE, response_head(200), b"one")
    assert not transport.closed
    call.on_data(b"two", False)
    (response,) = parse_responses(bytes(transport.written))
    assert (response.body, transport.closed, transport.aborted) == (b"onetwo", True, False)


@pytest.mark.parametrize("data", [GET, OLD])
def test_a_stream_that_breaks_does_not_look_whole(data: bytes):
    _, call, transport, _ = asked(data)
    call.on_reply(HTTP | MORE, response_head(200), b"one")
    call.on_error(ReplicaDiedError("gone"))
    assert transport.closed
    if data == GET:
        assert not bytes(transport.written).endswith(b"0\r\n\r\n")
    else:
        assert transport.aborted


def test_a_client_of_http_1_0_sees_a_reset_when_a_stream_breaks():
    async def main():
        router = FakeRouter(handler=keep)
        async with site(router) as s:
            client = await s.connect()
            await client.send(OLD)
            await s.until(lambda: len(router.calls) == 1)
            router.calls[0].on_reply(HTTP | MORE, b"", b"half")
            await client.reader.readuntil(b"half")
            router.calls[0].on_error(ReplicaDiedError("gone"))
            with pytest.raises(ConnectionResetError):
                await client.rest()

    run(main())


def test_head_of_a_stream_is_its_head_and_the_stream_is_cancelled():
    bench, call, transport, connection = asked(HEAD)
    call.on_reply(HTTP | MORE, response_head(200, (b"content-length", b"600")), b"one")
    assert bench.router.cancelled == [call]
    connection.data_received(GET)
    bench.router.calls[1].on_reply(HTTP, b"", b"next")
    first, second = parse_responses(bytes(transport.written), (True, False))
    assert (first.headers["content-length"], second.body) == ("600", b"next")


def test_head_keeps_the_length_that_user_code_gave():
    _, call, transport, _ = asked(HEAD)
    call.on_reply(HTTP, response_head(200, (b"content-length", b"77")), b"")
    (response,) = parse_responses(bytes(transport.written), (True,))
    assert response.headers["content-length"] == "77"


def test_user_code_may_close_the_connection():
    _, call, transport, _ = asked()
    call.on_reply(HTTP, response_head(200, (b"Connection", b"Close")), b"bye")
    (response,) = parse_responses(bytes(transport.written))
    assert (response.headers["connection"], transport.closed) == ("close", True)


def test_credit_comes_when_the_client_has_read():
    bench, call, transport, connection = asked()
    call.on_reply(HTTP | MORE, response_head(200), b"x" * 10)
    connection.pause_writing()
    for _ in range(5):
        call.on_data(b"y" * 100, True)
    assert bench.router.credit == {}
    connection.resume_writing()
    assert bench.router.credit == {id(call): 500}
    call.on_data(b"z" * 7, True)
    assert bench.router.credit == {id(call): 507}
    call.on_data(b"", False)
    assert len(parse_responses(bytes(transport.written))[0].body) == 517


def test_a_client_that_asks_and_does_not_read_is_not_served_more():
    bench, call, transport, connection = asked()
    connection.pause_writing()
    call.on_reply(HTTP, b"", b"first")
    connection.data_received(GET)
    assert len(bench.router.calls) == 1
    assert not transport.reading
    connection.resume_writing()
    assert len(bench.router.calls) == 2
    assert transport.reading


def test_pipelined_requests_wait_while_the_client_does_not_read():
    bench = Bench()
    connection, transport = bench.connect()
    write = transport.write

    def write_and_stall(data: bytes) -> None:
        write(data)
        if not connection.writing_paused:
            connection.pause_writing()

    transport.write = write_and_stall
    connection.data_received(GET * 5)
    for served in range(1, 6):
        assert len(bench.router.calls) == served
        connection.resume_writing()
    assert len(parse_responses(bytes(transport.written))) == 5


def test_after_the_last_response_nothing_that_waited_is_started():
    bench, call, transport, connection = asked(GET + GET)
    connection.pause_writing()
    call.on_reply(HTTP, response_head(200, (b"connection", b"close")), b"bye")
    connection.resume_writing()
    assert len(bench.router.calls) == 1
    assert transport.closed


def test_a_slow_reader_holds_back_the_replica_and_memory_stays_bounded():
    total, part = 20_000_000, 64 * 1024

    class Streamer(FakeRouter):
        """Streams within a window of credit, as a replica does."""

        sent = 0
        outstanding = 0
        most_outstanding = 0

        def submit(self, call: Call) -> None:
            call.on_reply(HTTP | MORE, b"", b"")
            self.pump(call)

        def consumed(self, call: Call, n: int) -> None:
            self.outstanding -= n
            self.loop.call_soon(self.pump, call)

        def pump(self, call: Call) -> None:
            while self.sent < total and self.outstanding + part <= 256 * 1024:
                self.sent += part
                self.outstanding += part
                self.most_outstanding = max(self.most_outstanding, self.outstanding)
                call.on_data(b"s" * part, self.sent < total)

    async def main():
        router = Streamer()
        async with site(router) as s:
            router.loop = s.door.loop
            client = await s.connect(limit=4096)
            await client.send(GET)
            await client.reader.readuntil(b"\r\n\r\n")
            (connection,) = s.door.connections
            await s.until(lambda: connection.writing_paused)
            stuck_at = router.sent
            assert stuck_at < total / 2
            held = connection.transport.get_write_buffer_size()
            assert held <= 256 * 1024 + 64 * 1024
            received = 0
            while received < total:
                received += len(await client.reader.read(1 << 20))
            assert router.most_outstanding <= 256 * 1024
            client.writer.close()

    run(main())


# --- uploads -------------------------------------------------------------------------------------------------------


def test_an_upload_of_100_mb_streams_at_the_pace_of_the_replica():
    total = 100_000_000

    async def main():
        router = FakeRouter(handler=lambda r, call: call.on_reply(HTTP, b"", b"%d" % got), room=256 * 1024)
        got = 0
        most_held = 0
        async with site(router) as s:

            async def read_as_a_replica():
                nonlocal got, most_held
                await s.until(lambda: bool(router.calls))
                call = router.calls[0]
                got = len(call.body)
                while got < total:
                    await s.until(lambda: router.unread >= router.room or not call.more)
                    (connection,) = s.door.connections
                    most_held = max(most_held, connection.held_bytes)
                    router.uploads[id(call)].clear()
                    got += router.read(call)
                    if not call.more:
                        break

            # The answer needs the whole count, so it is given when the reader has finished.
            router.handler = keep
            client = await s.connect()
            reading = s.door.loop.create_task(read_as_a_replica())
            await client.send(b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % total)
            block = b"u" * 1_000_000
            for _ in range(total // len(block)):
                await client.send(block)
            await reading
            router.calls[0].on_reply(HTTP, b"", b"%d" % got)
            assert (await client.response()).body == b"%d" % total
            # What the replica has not read: its window and one read of the socket.
            assert router.most_unread <= 256 * 1024 + 512 * 1024
            assert most_held <= 512 * 1024
            assert len(router.calls[0].body) <= 512 * 1024
            client.writer.close()

    run(main())


def test_an_upload_pauses_when_the_replica_does_not_keep_up():
    bench = Bench(router=FakeRouter(handler=keep, room=100_000))
    connection, transport = bench.connect()
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\n" + b"x" * 70_000)
    (call,) = bench.router.calls
    assert call.more
    connection.data_received(b"x" * 50_000)
    assert transport.reading
    connection.data_received(b"x" * 100_000)
    assert not transport.reading
    bench.pass_time(300)
    assert not transport.ended, "it is the replica that is slow"
    bench.router.read(call)
    assert transport.reading
    connection.data_received(b"x" * 180_000)
    assert transport.reading
    assert not call.more
    assert len(bench.router.body(call)) == 400_000


def test_an_upload_behind_another_request_waits_for_its_turn():
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    connection.data_received(GET + b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
    assert len(bench.router.calls) == 1
    assert not transport.reading
    bench.router.calls[0].on_reply(HTTP, b"", b"")
    upload = bench.router.calls[1]
    assert (len(upload.body), upload.more, transport.reading) == (100_000, True, True)
    connection.data_received(b"y" * 100_000)
    assert not upload.more
    assert bench.router.body(upload) == b"x" * 100_000 + b"y" * 100_000


def test_an_answer_before_the_body_has_come_closes_the_connection_once_it_can_be_read():
    bench, call, transport, connection = asked(
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\n" + b"x" * 70_000
    )
    call.on_reply(HTTP, b"", b"enough")
    (response,) = parse_responses(bytes(transport.written))
    assert (response.body, response.headers["connection"]) == (b"enough", "close")
    assert transport.ended
    assert not transport.closed
    connection.data_received(b"x" * 100_000)
    assert sum(map(len, bench.router.uploads[id(call)])) == 0
    bench.pass_time(6)
    assert transport.aborted


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ErrorInfo("ValueError", "secret", "Traceback: secret", 500), 500, b"Internal Server Error"),
        (ErrorInfo("KeyError", "secret", "Traceback: secret", 404), 500, b"Internal Server Error"),
        (ErrorInfo("BackPressureError", "secret", "", 503, b"", 2.5), 503, b"Service Unavailable"),
        (BackPressureError("the queue of Model is full", 2.5), 503, b"the queue of Model is full"),
        (
            BackPressureError("the queue of Model is full", 2.5, 429),
            429,
            b"Too Many Requests: the queue of Model is full",
        ),
        (ErrorInfo("BackPressureError", "secret", "", 429, b"", 2.5), 429, b"Too Many Requests"),
        (DeploymentUnavailableError("Traceback: secret"), 503, b"Service Unavailable"),
        (ReplicaDiedError("secret"), 502, b"Bad Gateway"),
        (PoisonousRequestError("secret"), 500, b"Internal Server Error"),
        (RequestTimeoutError("too late"), 408, b"too late"),
        (ApplicationNotFound("no application a"), 404, b"no application a"),
        (HeadraceError("secret"), 500, b"Internal Server Error"),
    ],
)
def test_errors_become_a_status_a_text_and_the_request_id_and_no_traceback(error, status: int, text: bytes):
    _, call, transport, connection = asked()
    call.on_error(error)
    connection.data_received(b"GET /-/healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    response, after = parse_responses(bytes(transport.written))
    assert response.status == status
    assert text in response.body
    assert call.request_id.encode() in response.body
    assert b"secret" not in transport.written
    assert after.status == 200
    if status in (429, 503):
        assert response.headers["retry-after"] == ("3" if getattr(error, "retry_after_s", 0) else "1")


def test_when_all_requests_fail_the_log_says_so_without_a_line_for_each(caplog: pytest.LogCaptureFixture):
    bench = Bench(router=FakeRouter(handler=lambda r, call: call.on_error(PoisonousRequestError("boom"))))
    connection, _ = bench.connect()
    for _ in range(1000):
        connection.data_received(GET)
    bench.pass_time(1)
    assert 10 < len(caplog.records) < 30
    assert caplog.records[-1].getMessage() == "980 more requests failed"
    assert "to Model of default: PoisonousRequestError: boom" in caplog.records[0].getMessage()


# --- clients that leave --------------------------------------------------------------------------------------------


def test_a_client_that_leaves_cancels_its_request():
    async def main():
        router = FakeRouter(handler=keep)
        async with site(router) as s:
            client = await s.connect()
            await client.send(GET * 3)
            await s.until(lambda: len(router.calls) == 1)
            client.writer.close()
            await s.until(lambda: not s.door.connections)
            assert router.cancelled == router.calls
            assert len(router.calls) == 1

    run(main())


def test_a_client_that_leaves_in_the_middle_of_its_upload_cancels_it():
    for data in (b"x" * 10, b"x" * 70_000):
        bench = Bench(router=FakeRouter(handler=keep))
        connection, _ = bench.connect()
        connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\n" + data)
        connection.connection_lost(None)
        assert bench.router.cancelled == bench.router.calls
        assert len(bench.router.calls) == (len(data) > 65536)
        assert connection.held_bytes == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["ask", "big", "answer", "stream", "data", "end", "error", "pause", "resume"]), max_size=30
    )
)
def test_whatever_happens_each_request_is_answered_once_in_order_or_cancelled(events: list[str]):
    bench = Bench(router=FakeRouter(handler=keep))
    connection, transport = bench.connect()
    streaming: set[int] = set()
    answered = asked_for = 0
    paused = False
    for event in [*events, "resume", *["answer"] * 40]:
        current = bench.router.calls[-1] if len(bench.router.calls) > answered else None
        match event:
            case "ask" | "big" if not transport.ended and transport.reading:
                body = b"" if event == "ask" else b"b" * 100_000
                connection.data_received(
                    b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (asked_for, len(body), body)
                )
                asked_for += 1
            case "pause" if not paused and not transport.ended:
                connection.pause_writing()
                paused = True
            case "resume" if paused:
                paused = False
                connection.resume_writing()
            case "stream" if current is not None and id(current) not in streaming:
                streaming.add(id(current))
                current.on_reply(HTTP | MORE, b"", b"s")
            case "data" if current is not None and id(current) in streaming:
                current.on_data(b"d", True)
            case "answer" | "end" | "error" if current is not None:
                answered += 1
                if event == "error":
                    current.on_error(ReplicaDiedError("gone"))
                elif id(current) in streaming:
                    current.on_data(b"e", False)
                else:
                    current.on_reply(HTTP, b"", b"whole")
        if transport.ended:
            break
    if transport.closed:
        connection.connection_lost(None)
    else:
        responses = parse_responses(bytes(transport.written))
        assert len(responses) == asked_for == len(bench.router.calls)
        ids = [response.headers["x-request-id"] for response in responses]
        assert ids == [call.request_id for call in bench.router.calls]
        assert connection.idle
        assert transport.reading


def test_a_real_client_reads_streams_and_errors():
    def handler(router: FakeRouter, call: Call) -> None:
        call.on_reply(HTTP | MORE, response_head(200, (b"content-type", b"text/event-stream")), b"data: 0\n")
        for i in range(1, 1000):
            call.on_data(b"data: %d\n" % i, i < 999)

    async def main():
        async with site(FakeRouter(handler=handler)) as s, httpx.AsyncClient(base_url=s.url) as client:
            for _ in range(3):
                response = await client.get("/")
                assert response.text.splitlines() == [f"data: {i}" for i in range(1000)]
            s.router.handler = lambda r, call: call.on_error(ErrorInfo("E", "m", "t", 500))
            response = await client.get("/", headers={"x-request-id": "my id"})
            assert response.status_code == 500
            assert response.text == "Internal Server Error\nrequest id: my id\n"

    run(main())
