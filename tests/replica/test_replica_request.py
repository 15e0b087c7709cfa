"""The Request that handlers get, beside Starlette's own on the same scope and body."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Any

import msgspec
import pytest
from fake_incoming import FakeIncoming, head, http_call, meta_of, run
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Address
from starlette.requests import ClientDisconnect, Request

from headrace.replica.request import HttpRequest, scope_of
from headrace.spec.errors import PayloadError
from headrace.wire.frames import HTTP, MORE, HttpHead

HEADERS = [
    (b"host", b"example.test:8000"),
    (b"cookie", b"a=1; b=two"),
    (b"cookie", b"c=3"),
    (b"accept", b"text/html"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
]
TARGETS = [b"/", b"/a/b%20c?x=1&x=2&y=%C3%A9", b"/%2Fslash", b"/%ff?%ff", b"//double?q", b"/?", b"/a?b?c", b"*"]


def request_of(http: HttpHead, body: bytes = b"") -> HttpRequest:
    return HttpRequest(http_call(body, http=http))  # type: ignore[arg-type]


def starlette_of(http: HttpHead, body: bytes = b"") -> Request:
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope_of(http), receive)


def seen(request: Request) -> dict[str, Any]:
    """All that can be looked at without waiting."""
    return {
        "method": request.method,
        "url": str(request.url),
        "base_url": str(request.base_url),
        "headers": request.headers.raw,
        "accept": request.headers.getlist("accept"),
        "query": request.query_params.multi_items(),
        "cookies": request.cookies,
        "client": request.client,
        "path_params": request.path_params,
        "keys": list(request),
        "type": request["type"],
        "length": len(request),
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("root_path", ["", "/app"])
def test_it_looks_like_starlette_s_own(target: bytes, root_path: str) -> None:
    http = head("PUT", root_path.encode() + target, HEADERS, root_path)
    assert seen(request_of(http)) == seen(starlette_of(http))


def test_the_scope_is_as_uvicorn_makes_it() -> None:
    http = head("GET", b"/app/a%20b?q=%20", HEADERS, "/app")
    assert request_of(http).scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/app/a b",
        "raw_path": b"/app/a%20b",
        "query_string": b"q=%20",
        "root_path": "/app",
        "headers": HEADERS,
        "client": ("10.0.0.1", 1234),
        "server": ("10.0.0.2", 8000),
        "state": {},
    }


@pytest.mark.parametrize(
    ("target", "root_path", "path", "raw_path"),
    [
        (b"/x", "/outer", "/outer/x", b"/outer/x"),  # a proxy has taken it away
        (b"/outer", "/outer", "/outer", b"/outer"),
        (b"/outerx", "/outer", "/outer/outerx", b"/outer/outerx"),
        (b"http://host/x?q", "", "/x", b"/x"),
        (b"http://host", "", "/", b"/"),
        (b"*", "", "*", b"*"),
    ],
)
def test_the_path_begins_with_the_root_path(target: bytes, root_path: str, path: str, raw_path: bytes) -> None:
    scope = scope_of(head("GET", target, HEADERS, root_path))
    assert (scope["path"], scope["raw_path"]) == (path, raw_path)


def test_the_scope_is_not_made_before_it_is_looked_at() -> None:
    request = request_of(head())
    assert run(request.body()) == b""
    assert "scope" not in request.__dict__
    assert request.scope is request.scope


def test_the_scope_may_be_replaced_and_changed() -> None:
    request = request_of(head())
    request.scope["path_params"] = {"id": 7}
    assert request.path_params == {"id": 7}
    request.scope = {"type": "http", "method": "PATCH"}
    assert request.method == "PATCH"


def test_there_may_be_no_client() -> None:
    assert request_of(head(client=None)).client is None
    assert request_of(head()).client == Address("10.0.0.1", 1234)


def test_state_is_the_request_s_own() -> None:
    one, other = request_of(head()), request_of(head())
    one.state.user = "ann"
    assert one.state.user == "ann"
    assert not hasattr(other.state, "user")


@pytest.mark.parametrize("what", ["session", "auth", "user"])
def test_what_needs_middleware_says_so_as_ever(what: str) -> None:
    with pytest.raises(AssertionError, match="Middleware must be installed"):
        getattr(request_of(head()), what)


def test_url_for_says_as_ever_that_it_needs_a_router() -> None:
    with pytest.raises(RuntimeError, match="url_for"):
        request_of(head()).url_for("x")


def test_requests_are_equal_only_to_themselves() -> None:
    one, other = request_of(head()), request_of(head())
    assert one == one
    assert one != other
    assert len({one, other}) == 2


# ---- the body


def test_a_whole_body_is_there_as_often_as_wanted() -> None:
    async def check() -> None:
        request = request_of(head(), b'{"a": [1, 2.5, null]}')
        assert await request.body() == b'{"a": [1, 2.5, null]}'
        assert await request.json() == {"a": [1, 2.5, None]}
        assert await request.json() is await request.json()
        assert [part async for part in request.stream()] == [b'{"a": [1, 2.5, null]}', b""]

    run(check())


def streamed(*parts: bytes) -> HttpRequest:
    return HttpRequest(http_call(parts[0], [*parts[1:], b""]))  # type: ignore[arg-type]


def test_a_body_in_parts_is_streamed_as_it_comes() -> None:
    async def check() -> None:
        assert [part async for part in streamed(b"ab", b"cd", b"e").stream()] == [b"ab", b"cd", b"e", b""]
        request = streamed(b"", b"xy", b"z")
        assert await request.body() == b"xyz"
        assert await request.body() == b"xyz"
        assert await streamed(b'{"a":', b"1}").json() == {"a": 1}

    run(check())


def test_a_streamed_body_is_consumed_once() -> None:
    async def check() -> None:
        request = streamed(b"ab", b"cd")
        assert [part async for part in request.stream()][:2] == [b"ab", b"cd"]
        with pytest.raises(RuntimeError, match="Stream consumed"):
            await request.body()

    run(check())


def test_a_client_that_leaves_during_the_body_breaks_the_stream() -> None:
    async def check() -> None:
        incoming = FakeIncoming(meta_of(http=head()), HTTP | MORE, b"ab")
        request = HttpRequest(incoming)  # type: ignore[arg-type]
        assert not await request.is_disconnected()
        parts = request.stream()
        assert await anext(parts) == b"ab"
        incoming.cancel()
        with pytest.raises(ClientDisconnect):
            await anext(parts)
        assert await request.is_disconnected()

    run(check())


def test_is_disconnected_takes_nothing_from_the_body() -> None:
    async def check() -> None:
        request = streamed(b"ab", b"cd")
        assert not await request.is_disconnected()
        assert await request.body() == b"abcd"

    run(check())


def test_the_receive_channel_brings_the_body_and_then_waits_for_the_client_to_leave() -> None:
    async def check() -> None:
        incoming = http_call(b"whole")
        before: list[bool] = []
        incoming.on_cancel = lambda: before.append(True)
        receive = HttpRequest(incoming).receive  # type: ignore[arg-type]
        assert await receive() == {"type": "http.request", "body": b"whole", "more_body": False}
        import asyncio

        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        incoming.cancel()
        assert await waiting == {"type": "http.disconnect"}
        assert before == [True]
        assert await receive() == {"type": "http.disconnect"}

    run(check())


def test_asking_often_whether_the_client_is_there_leaves_nothing_behind() -> None:
    async def check() -> None:
        incoming = http_call(b"")
        ends: list[bool] = []
        incoming.on_cancel = lambda: ends.append(True)
        receive = HttpRequest(incoming).receive
        await receive()
        for _ in range(5000):  # as Starlette's is_disconnected does it: wait, and stop waiting at once
            waiting = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            waiting.cancel()
        incoming.cancel()
        assert await receive() == {"type": "http.disconnect"}
        assert ends == [True]

    run(check())


def test_forms() -> None:
    async def check() -> None:
        http = head(headers=[(b"content-type", b"application/x-www-form-urlencoded")])
        form = await request_of(http, b"a=1&b=x+y").form()
        assert dict(form) == {"a": "1", "b": "x y"}

    run(check())


def test_an_http_request_does_not_pickle_and_says_what_to_do() -> None:
    request = request_of(head())
    with pytest.raises(PayloadError, match="pass what is needed of it"):
        pickle.dumps(request)
    with pytest.raises(PayloadError):
        copy.copy(request)


# ---- JSON, as json.loads has it


def parsed(body: bytes) -> Any:
    async def outcome() -> Any:
        try:
            return await request_of(head(), body).json()
        except Exception as error:
            return type(error), str(error)

    return run(outcome())


def expected(body: bytes) -> Any:
    try:
        return json.loads(body)
    except Exception as error:
        return type(error), str(error)


def same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b)  # NaN is not equal to itself, and 1 is equal to True


STRANGE = [
    b"",
    b"{",
    b"nul",
    b"[1,]",
    b"NaN",
    b"[-Infinity, Infinity]",
    b"1e400",
    b"-0",
    b"-0.0",
    b"1" * 40,
    b"1" * 5000,
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"\xff"',
    b'"\x01"',
    b'{"a": 1, "a": 2}',
    b"\xef\xbb\xbf1",
    b"{'a': 1}",
    '["é"]'.encode("utf-16"),
    '["é"]'.encode("utf-32-le"),
    b" [1] \n",
    b"1 2",
    b"01",
    b"[1.]",
    b"12345678901234567890.5",
    b"5e-324",
]


@pytest.mark.parametrize("body", STRANGE)
def test_json_is_what_json_loads_gives_or_raises(body: bytes) -> None:
    assert same(parsed(body), expected(body))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_any_value_comes_as_json_loads_has_it(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert same(parsed(body), expected(body))


@given(st.binary(max_size=12) | st.text(alphabet='{}[]",:0123456789eE+-. tfn\\u', max_size=12).map(str.encode))
def test_any_bytes_are_taken_or_refused_as_by_json_loads(body: bytes) -> None:
    assert same(parsed(body), expected(body))


def test_json_errors_are_value_errors() -> None:
    with pytest.raises(json.JSONDecodeError):
        run(request_of(head(), b"{").json())
    assert issubclass(msgspec.DecodeError, ValueError)
