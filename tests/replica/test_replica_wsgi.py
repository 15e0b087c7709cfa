"""A class whose HTTP requests a WSGI application answers: Flask's, and any callable of PEP 3333."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from fake_incoming import FakeIncoming, run
from flask import Flask, Response, jsonify, request, stream_with_context
from web_replica import headers_of, replica_of

from headrace import serve
from headrace.context import current_replica, current_request
from headrace.spec.errors import HeadraceError, RequestCancelledError

Start = Callable[..., Callable[[bytes], object]]
Environ = dict[str, Any]


def served(app: Any) -> type:
    return serve.ingress(app)(type("Web", (), {}))


flask = Flask("shop")
AFTER: list[str] = []


@flask.get("/hello/<name>")
def hello(name: str) -> Any:
    return jsonify(name=name, q=request.args.get("q"), url=request.url, root=request.script_root)


@flask.post("/echo")
def echo() -> Any:
    return request.get_data(), 201, {"x-type": request.content_type or "", "x-length": str(request.content_length)}


@flask.post("/form")
def form() -> Any:
    return {"text": request.form["text"], "file": request.files["file"].read().decode()}


@flask.get("/me")
def me() -> Any:
    replica, context = current_replica(), current_request()
    assert replica is not None
    assert context is not None
    return [type(replica.servable_object).__name__, context.request_id, threading.current_thread().name.split("-")[0]]


@flask.get("/stream")
def stream() -> Any:
    def parts() -> Iterator[str]:
        for n in range(3):
            yield f"{request.args['word']} {n};"

    return Response(stream_with_context(parts()), mimetype="text/plain")


@flask.get("/bug")
def bug() -> Any:
    raise LookupError("a bug of the user")


@flask.get("/afterwards")
def afterwards() -> Any:
    response = Response("now")
    response.call_on_close(lambda: AFTER.append("later"))
    return response


def test_flask_as_it_is() -> None:
    async def check() -> None:
        async with replica_of(served(flask), root_path="/api") as web:
            hi = await web.get("/api/hello/caf%C3%A9?q=a+b")
            assert hi.payload.decode() == (
                '{"name":"caf\\u00e9","q":"a b","root":"/api","url":"http://a.test/api/hello/caf\\u00e9?q=a+b"}\n'
            )
            assert not hi.streamed
            posted = await web.request("POST", "/api/echo", b"body", headers=[(b"content-type", b"text/x")])
            assert (posted.head.status, posted.payload) == (201, b"body")
            assert headers_of(posted)["x-type"] == "text/x"
            assert (await web.get("/api/me")).payload == b'["Web","r-1","headrace"]\n'
            assert (await web.get("/api/nowhere")).head.status == 404
            assert (await web.request("HEAD", "/api/hello/x")).payload == b""
            bug = await web.get("/api/bug")
            assert bug.head.status == 500

    run(check())


def test_forms_and_bodies_in_parts() -> None:
    boundary = b"--B\r\ncontent-disposition: form-data; name="
    whole = boundary + b'"text"\r\n\r\nwords\r\n' + boundary + b'"file"; filename="f"\r\n\r\ncontent\r\n--B--\r\n'
    kind = (b"content-type", b"multipart/form-data; boundary=B")

    async def check() -> None:
        async with replica_of(served(flask)) as web:
            cut = len(whole) // 3
            parts = [whole[cut : 2 * cut], whole[2 * cut :], b""]
            for more in ({}, {"parts": parts}):
                first = whole[:cut] if more else whole
                form = await web.request("POST", "/form", first, headers=[kind], **more)
                assert form.payload == b'{"file":"content","text":"words"}\n', form.payload
            chunked = await web.request("POST", "/echo", b"ab", headers=[kind], parts=[b"cd", b"e", b""])
            assert chunked.payload == b"abcde"

    run(check())


def test_streams_leave_part_by_part() -> None:
    release = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"first"
        release.wait(30)
        yield b"second"

    async def check() -> None:
        async with replica_of(served(flask)) as web:
            stream = await web.get("/stream?word=w")
            assert stream.payload == b"w 0;w 1;w 2;"
            assert stream.stream_is_whole
        async with replica_of(served(app)) as web:
            call = web.start("GET", "/")
            await call.started.wait()
            assert call.streamed == [b"first"]
            release.set()
            await call.ended.wait()
            assert call.payload == b"firstsecond"

    run(check())


def test_what_runs_on_close_comes_after_the_response() -> None:
    release = threading.Event()

    class Closing:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"done"])

        def close(self) -> None:
            release.wait(30)
            AFTER.append("closed")

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [("Content-Length", "4")])
        return Closing()

    async def check() -> None:
        AFTER.clear()
        async with replica_of(served(flask)) as web:
            assert (await web.get("/afterwards")).payload == b"now"
            await web.invoker.rested()
            assert AFTER == ["later"]
        async with replica_of(served(app)) as web:
            assert (await web.get("/")).payload == b"done"
            assert AFTER == ["later"]
            release.set()
            await web.invoker.rested()
            assert AFTER == ["later", "closed"]

    run(check())


def test_as_many_calls_run_at_once_as_the_replica_takes() -> None:
    together = threading.Barrier(20)

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [])
        return [b"%d" % together.wait(30)]

    async def check() -> None:
        async with replica_of(served(app), limit=20) as web:
            calls = [web.start("GET", "/") for _ in range(20)]
            for call in calls:
                await call.ended.wait()
            assert sorted(int(call.payload) for call in calls) == list(range(20))

    run(check())


def test_a_slow_reader_holds_back_the_application_and_one_that_leaves_ends_it() -> None:
    made: list[int] = []
    ends: list[str] = []

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            for n in range(10_000):
                made.append(n)
                yield b"x" * 4096
        finally:
            ends.append("closed")

    async def check() -> None:
        async with replica_of(served(app)) as web:
            call = web.start("GET", "/")
            call.window = 10_000
            await call.started.wait()
            while len(call.streamed) < 3:
                await asyncio.sleep(0.001)
            assert await stays_below(made, 200)
            call.cancel()
            await call.ended.wait()
            assert ends == ["closed"]
            assert len(made) < 200

    run(check())


async def stays_below(made: list[int], most: int) -> bool:
    """Whether it comes to rest below that many."""
    before = -1
    while before != len(made) < most:
        before = len(made)
        await asyncio.sleep(0.05)
    return len(made) < most


def test_a_call_that_is_cancelled_holds_its_slot_until_its_thread_has_returned() -> None:
    begun, release = threading.Event(), threading.Event()
    cancelled: list[bool] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        begun.set()
        release.wait(30)
        context = current_request()
        assert context is not None
        cancelled.append(context.cancelled)
        start_response("200 OK", [])
        return [b"late"]

    async def check() -> None:
        async with replica_of(served(app)) as web:
            call = web.start("GET", "/")
            await asyncio.to_thread(begun.wait, 30)
            call.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not call.ended.is_set()
            release.set()
            await call.ended.wait()
            assert cancelled == [True]

    run(check())


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_end_of_the_body() -> None:
    seen: list[Any] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            seen.append(environ["wsgi.input"].read())
        except OSError as error:
            seen.append(error)
            raise
        start_response("200 OK", [])
        return [b"whole"]

    async def check() -> None:
        async with replica_of(served(app)) as web:
            call = web.start("POST", "/", b"begin", parts=[b"more"])
            await asyncio.sleep(0)
            call.cancel()
            await call.ended.wait()
            assert isinstance(seen[0], OSError)
            assert isinstance(call.raised, RequestCancelledError)

    run(check())


# ---- the protocol


def environ_for(path: str, headers: list[tuple[bytes, bytes]], root: str = "", body: bytes = b"") -> Environ:
    seen: list[Environ] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        seen.append(environ | {"body": environ["wsgi.input"].read()})
        start_response("204 No Content", [])
        return []

    async def check() -> None:
        async with replica_of(served(app), root_path=root) as web:
            done = await web.request("PUT", path, body, headers=headers)
            assert done.head.status == 204

    run(check())
    return seen[0]


def test_the_environ() -> None:
    headers = [(b"x-a", b"1"), (b"x-a", b"2"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x_b", b"spoofed")]
    environ = environ_for("/root/%ff%2F%C3%A9?a=%20b", headers, "/root", b"{}")
    expected = {
        "REQUEST_METHOD": "PUT",
        "SCRIPT_NAME": "/root",
        "PATH_INFO": "/\xff/\xc3\xa9",
        "QUERY_STRING": "a=%20b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "10.0.0.2",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "10.0.0.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "2",
        "HTTP_HOST": "a.test",
        "HTTP_X_A": "1,2",
        "HTTP_COOKIE": "a=1; b=2",
        "wsgi.url_scheme": "http",
        "body": b"{}",
    }
    assert expected.items() <= environ.items()
    assert "HTTP_X_B" not in environ


def test_write_and_a_late_error_page() -> None:
    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/write":
            write = start_response("200 OK", [])
            write(b"by ")
            write(b"write ")
            return [b"and by return"]
        start_response("200 OK", [("x-first", "1")])
        try:
            raise ValueError("found out late")
        except ValueError as error:
            start_response("500 Oh", [("x-second", "1")], (ValueError, error, error.__traceback__))
        return [b"error page"]

    async def check() -> None:
        async with replica_of(served(app)) as web:
            assert (await web.get("/write")).payload == b"by write and by return"
            late = await web.get("/late")
            assert (late.head.status, late.payload) == (500, b"error page")
            assert list(headers_of(late)) == ["x-second"]

    run(check())


def test_an_error_after_the_start_of_the_stream_breaks_it() -> None:
    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        raise RuntimeError("broke")

    async def check() -> None:
        async with replica_of(served(app)) as web:
            call = await web.get("/")
            assert call.streamed == [b"begun"]
            assert not call.stream_is_whole
            assert isinstance(call.raised, RuntimeError)

    run(check())


def no_start(environ: Environ, start_response: Start) -> list[bytes]:
    return [b"body"]


def no_start_stream(environ: Environ, start_response: Start) -> Iterator[bytes]:
    yield b"body"


def two_starts(environ: Environ, start_response: Start) -> list[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def not_iterable(environ: Environ, start_response: Start) -> Any:
    start_response("200 OK", [])


def bad_status(environ: Environ, start_response: Start) -> list[bytes]:
    start_response("fine", [])
    return []


def leaves(environ: Environ, start_response: Start) -> list[bytes]:
    raise SystemExit(3)


@pytest.mark.parametrize("app", [no_start, no_start_stream, two_starts, not_iterable, bad_status, leaves])
def test_applications_that_break_the_rules_fail_their_own_request(app: Any) -> None:
    async def check() -> None:
        async with replica_of(served(app)) as web:
            for _ in range(2):
                call = await web.get("/")
                assert call.error is not None
                assert not call.replies

    run(check())


def test_text_where_bytes_belong_is_told() -> None:
    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])
        return ["text"]

    async def check() -> None:
        async with replica_of(served(app)) as web:
            call = await web.get("/")
            assert isinstance(call.raised, HeadraceError)
            assert "must yield bytes, not str" in str(call.raised)

    run(check())


def test_a_body_is_a_file_in_every_way() -> None:
    lines: list[Any] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        body = environ["wsgi.input"]
        lines.extend([body.readline(), body.read(2), *body, body.read()])
        start_response("200 OK", [])
        return []

    async def check(parts: list[bytes] | None, first: bytes) -> None:
        lines.clear()
        async with replica_of(served(app)) as web:
            await web.request("POST", "/", first, parts=parts)

    whole = b"one\ntwo\nthree\nfour"
    file = io.BytesIO(whole)
    expected = [file.readline(), file.read(2), *file, file.read()]
    run(check(None, whole))
    assert lines == expected
    run(check([b"e\nt", b"wo\nthr", b"ee\nfour", b""], b"on"))
    assert lines == expected


def test_a_websocket_is_refused() -> None:
    from headrace.replica.threads import ThreadPool
    from headrace.replica.wsgi import WsgiAdapter

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def check() -> None:
        adapter = WsgiAdapter(flask, ThreadPool(asyncio.get_running_loop(), 1))
        await adapter({"type": "websocket"}, None, send)  # type: ignore[arg-type]

    run(check())
    assert sent == [{"type": "websocket.close", "code": 1000}]


def test_an_adapter_of_somebody_else_s_is_an_asgi_application() -> None:
    from a2wsgi import WSGIMiddleware

    async def check() -> None:
        async with replica_of(served(WSGIMiddleware(flask))) as web:
            call: FakeIncoming = await web.get("/hello/x")
            assert call.payload.startswith(b'{"name":"x"')

    run(check())
