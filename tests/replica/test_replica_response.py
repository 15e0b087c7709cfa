"""What handlers return, as HTTP responses; Starlette's own responses beside what Starlette sends."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pydantic
import pytest
from fake_incoming import FakeIncoming, head, http_call, invoker_of, run, served
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from headrace.spec.errors import InputError

JSON = [(b"content-type", b"application/json")]
TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
BYTES = [(b"content-type", b"application/octet-stream")]


class Returns:
    """Returns the same for every request, from a coroutine."""

    def __init__(self, value: Any) -> None:
        self.value = value

    async def __call__(self, request: Any) -> Any:
        return self.value


class ReturnsFromThread(Returns):
    def __call__(self, request: Any) -> Any:  # type: ignore[override]
        return self.value


def answer(value: Any, kind: type[Returns] = Returns, **request: Any) -> FakeIncoming:
    async def check() -> FakeIncoming:
        call = http_call(**request)
        await served(kind(value), call)
        return call

    return run(check())


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Pair(NamedTuple):
    a: int
    b: str


class Struct(msgspec.Struct):
    name: str
    score: float = 0.5


class Model(pydantic.BaseModel):
    when: datetime.date
    tags: list[str] = []


class Root(pydantic.RootModel[list[int]]):
    pass


class Color(enum.Enum):
    RED = "red"


class Level(enum.StrEnum):
    HIGH = "high"


class Name(str):
    pass


class Count(int):
    pass


NOW = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
SOME_ID = uuid.UUID("12345678-1234-5678-1234-567812345678")

AS_JSON: list[tuple[Any, Any]] = [
    ({"a": 1, "b": [1, 2.5, None, True]}, {"a": 1, "b": [1, 2.5, None, True]}),
    ([1, "é"], [1, "é"]),
    ((1, 2), [1, 2]),
    ({1}, [1]),
    (frozenset([2]), [2]),
    (None, None),
    (True, True),
    (3, 3),
    (2.5, 2.5),
    (2**70, 2**70),
    (Point(1, 2.0), {"x": 1, "y": 2.0}),
    ([Point(1, 2.0)], [{"x": 1, "y": 2.0}]),
    (Pair(1, "x"), [1, "x"]),
    (Struct("n"), {"name": "n", "score": 0.5}),
    (Model(when=datetime.date(2024, 1, 2), tags=["t"]), {"when": "2024-01-02", "tags": ["t"]}),
    ({"m": Model(when=datetime.date(2024, 1, 2))}, {"m": {"when": "2024-01-02", "tags": []}}),
    (Root([1, 2]), [1, 2]),
    ({"now": NOW}, {"now": "2024-05-06T07:08:09Z"}),
    (SOME_ID, str(SOME_ID)),
    ({"d": decimal.Decimal("1.10")}, {"d": "1.10"}),
    (Color.RED, "red"),
    ({"level": Level.HIGH}, {"level": "high"}),
    ({"raw": b"x"}, {"raw": "eA=="}),
    ({"name": Name("n"), "count": Count(3)}, {"name": "n", "count": 3}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (collections.deque([1, 2]), [1, 2]),
    (range(3), [0, 1, 2]),
    ({"keys": {"a": 1}.keys()}, {"keys": ["a"]}),
    ({"path": Path("/a/b")}, {"path": "/a/b"}),
    # keys as json.dumps writes them
    ({1: "a", 2.5: "b"}, {"1": "a", "2.5": "b"}),
    ({True: "a", None: "b"}, {"true": "a", "null": "b"}),
    ([{None: [{False: 1}]}], [{"null": [{"false": 1}]}]),
    ({Count(1): 1}, {"1": 1}),
    ({SOME_ID: 1, None: 2}, {str(SOME_ID): 1, "null": 2}),
    # numpy
    (np.float64(1.5), 1.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.float32(0.5), 0.5),
    ({"probabilities": np.array([0.25, 0.75], dtype=np.float32)}, {"probabilities": [0.25, 0.75]}),
    (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    (np.array(7), 7),
    (np.array([], dtype=np.int64), []),
    (np.array(["a", "b"]), ["a", "b"]),
    (np.array([1, "x", None], dtype=object), [1, "x", None]),
    (np.datetime64("2024-01-02"), "2024-01-02"),
    ({np.int64(1): np.int64(2), np.str_("k"): 1}, {"1": 2, "k": 1}),
    # a float that JSON has no word for
    ({"x": float("nan"), "y": float("inf"), "z": np.array([np.nan])}, {"x": None, "y": None, "z": [None]}),
]


@pytest.mark.parametrize(("value", "expected"), AS_JSON, ids=repr)
@pytest.mark.parametrize("kind", [Returns, ReturnsFromThread])
def test_json_like_values(value: Any, expected: Any, kind: type[Returns]) -> None:
    call = answer(value, kind)
    assert json.loads(call.payload) == expected
    assert call.replies[0][1] == b""  # 200 application/json, in its short form
    assert call.head.headers == JSON


AS_OTHER: list[tuple[Any, bytes, list[tuple[bytes, bytes]]]] = [
    ("héllo", "héllo".encode(), TEXT),
    ("", b"", TEXT),
    (Name("n"), b"n", TEXT),
    (np.str_("n"), b"n", TEXT),
    (b"\x00\xff", b"\x00\xff", BYTES),
    (bytearray(b"ab"), b"ab", BYTES),
    (memoryview(b"abcd")[::2], b"ac", BYTES),
]


@pytest.mark.parametrize(("value", "body", "headers"), AS_OTHER, ids=repr)
@pytest.mark.parametrize("kind", [Returns, ReturnsFromThread])
def test_text_and_bytes(value: Any, body: bytes, headers: Any, kind: type[Returns]) -> None:
    call = answer(value, kind)
    assert (call.payload, call.head.status, call.head.headers) == (body, 200, headers)


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: Any = {None: 1}
for _ in range(500):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "a value of type object is not JSON-like"),
        ({"a": [object()]}, "object is not JSON-like: return a dict"),
        ({"c": 1 + 2j}, "complex"),
        (np.array([1j]), "complex"),
        ({(1, 2): 3}, "a value of type tuple cannot be a key"),
        ("\ud800", "surrogates"),
        ({"t": "\ud800"}, "surrogates"),
        (LOOP, "RecursionError"),
        (DEEP, "nested more than 200 deep"),
        (np.zeros(1, dtype=[("a", "i4")])[0], "numpy.void"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("kind", [Returns, ReturnsFromThread])
def test_what_is_no_response_is_a_500_that_names_it(
    value: Any, message: str, kind: type[Returns], caplog: pytest.LogCaptureFixture
) -> None:
    call = answer(value, kind)
    assert call.error is not None
    assert call.error.status == 500
    assert call.error.type_name == "headrace.spec.errors.NotServableError"
    assert message in call.error.message
    assert "r-1" in caplog.text
    assert message in caplog.text


def test_a_coroutine_that_was_not_awaited_is_named() -> None:
    class Forgets:
        async def __call__(self, request: Any) -> Any:
            self.forgotten = request.body()
            return self.forgotten

    async def check() -> FakeIncoming:
        call, replica = http_call(), Forgets()
        await served(replica, call)
        replica.forgotten.close()
        return call

    call = run(check())
    assert call.error is not None
    assert "it is to be awaited" in call.error.message


# ---- Starlette's responses


async def sent_by_starlette(response: Response, method: str = "GET") -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """What the response sends to any ASGI server."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": method, "headers": [], "asgi": {"spec_version": "2.4"}}
    await response(scope, receive, send)
    body = b"".join(m.get("body", b"") for m in messages[1:])
    return messages[0]["status"], messages[0]["headers"], body


async def numbers() -> AsyncIterator[bytes]:
    for n in range(3):
        yield b"%d," % n


def words() -> Iterator[str]:
    yield "alpha"
    yield "béta"


def with_cookies() -> Response:
    response = JSONResponse({"ok": True}, status_code=201, headers={"x-one": "1"})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    return response


MAKERS: dict[str, Any] = {
    "plain": lambda: PlainTextResponse("text", status_code=404),
    "html": lambda: HTMLResponse("<p>é</p>"),
    "json": lambda: JSONResponse({"a": [1]}, headers={"cache-control": "no-store"}),
    "cookies": with_cookies,
    "redirect": lambda: RedirectResponse("/elsewhere"),
    "empty": lambda: Response(status_code=204),
    "bytes": lambda: Response(b"\x00" * 10, media_type="image/png"),
    "async stream": lambda: StreamingResponse(numbers(), media_type="text/event-stream"),
    "plain stream": lambda: StreamingResponse(words(), status_code=202),
    "empty stream": lambda: StreamingResponse(iter(())),
    "file": lambda: FileResponse(__file__, filename="me.py"),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", [Returns, ReturnsFromThread])
def test_starlette_s_responses_are_sent_as_starlette_sends_them(name: str, kind: type[Returns]) -> None:
    call = answer(MAKERS[name](), kind, http=head("GET"))
    status, headers, body = run(sent_by_starlette(MAKERS[name]()))
    assert call.error is None
    assert (call.head.status, call.payload) == (status, body)
    # The length of a whole body is the ingress's to tell.
    whole = bool(body) and not call.started.is_set()
    assert call.head.headers == [h for h in headers if not (whole and h[0] == b"content-length")]
    assert call.stream_is_whole == call.started.is_set()


def test_head_of_a_file_tells_its_length_without_a_body() -> None:
    call = answer(FileResponse(__file__), http=head("HEAD"))
    assert call.payload == b""
    assert (b"content-length", str(Path(__file__).stat().st_size).encode()) in call.head.headers


def test_a_range_of_a_file() -> None:
    call = answer(FileResponse(__file__), http=head("GET", headers=[(b"range", b"bytes=3-9")]))
    assert call.head.status == 206
    assert call.payload == Path(__file__).read_bytes()[3:10]


def test_an_http_exception_is_its_response() -> None:
    class Refuses:
        async def __call__(self, request: Any) -> Any:
            raise HTTPException(status_code=418, detail="short and stout", headers={"x-pot": "1"})

    class RefusesInThread:
        def __call__(self, request: Any) -> Any:
            raise HTTPException(status_code=204)

    async def check() -> tuple[FakeIncoming, FakeIncoming]:
        one, other = http_call(), http_call()
        await served(Refuses(), one)
        await served(RefusesInThread(), other)
        return one, other

    one, other = run(check())
    assert (one.head.status, one.payload) == (418, b"short and stout")
    assert (b"x-pot", b"1") in one.head.headers
    assert (other.head.status, other.payload) == (204, b"")


def test_an_input_error_is_a_bad_request_that_says_why() -> None:
    class Picky:
        async def __call__(self, request: Any) -> Any:
            raise InputError("the image is too small")

    class PickyInThread:
        def __call__(self, request: Any) -> Any:
            raise InputError("the image is too small")

    async def check() -> list[FakeIncoming]:
        calls = [http_call(), http_call()]
        await served(Picky(), calls[0])
        await served(PickyInThread(), calls[1])
        return calls

    assert [(call.head.status, call.payload) for call in run(check())] == [(400, b"the image is too small")] * 2


# ---- streams, readers and background tasks


def test_a_stream_waits_for_its_reader() -> None:
    async def check() -> None:
        made: list[int] = []

        async def parts() -> AsyncIterator[bytes]:
            for n in range(5):
                made.append(n)
                yield b"x" * 10

        call = http_call()
        call.window = 25
        invoker_of(Returns(StreamingResponse(parts()))).start(call)
        await call.started.wait()
        while len(call.streamed) < 3:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert made == [0, 1, 2]
        assert not call.ended.is_set()
        call.let_drain()
        await call.ended.wait()
        assert call.payload == b"x" * 50
        assert call.stream_is_whole

    run(check())


def test_a_stream_that_breaks_is_an_error_after_its_start(caplog: pytest.LogCaptureFixture) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"begun"
        raise ValueError("in the middle")

    call = answer(StreamingResponse(parts()))
    assert call.streamed == [b"begun"]
    assert isinstance(call.raised, ValueError)
    assert "in the middle" in caplog.text


def test_a_background_task_runs_when_the_client_has_its_answer() -> None:
    async def check() -> None:
        release, done = asyncio.Event(), asyncio.Event()

        async def later() -> None:
            await release.wait()
            done.set()

        call = http_call()
        invoker = invoker_of(Returns(JSONResponse({"ok": 1}, background=BackgroundTask(later))))
        invoker.start(call)
        await call.ended.wait()
        assert call.payload == b'{"ok":1}'
        rested = asyncio.ensure_future(invoker.rested())
        await asyncio.sleep(0)
        assert not rested.done()
        release.set()
        await rested
        assert done.is_set()

    run(check())


def test_a_background_task_that_fails_is_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise KeyError("too late")

    call = answer(StreamingResponse(numbers(), background=BackgroundTask(fails)))
    assert call.error is None
    assert call.payload == b"0,1,2,"
    assert "too late" in caplog.text


class Custom(Response):
    """A response that sends what it likes."""

    messages: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for message in self.messages:
            await send(message)


START = {"type": "http.response.start", "status": 200, "headers": []}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST = {"type": "http.response.body", "body": b"last"}


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "without its last part"),
        ([START], "without its last part"),
        ([START, PART], "without its last part"),
        ([PART], "out of turn"),
        ([START, START], "out of turn"),
        ([START, {"type": "http.response.push"}], "out of turn"),
    ],
)
def test_asgi_messages_that_are_no_response_are_an_error(messages: list[dict[str, Any]], error: str) -> None:
    response = Custom()
    response.messages = messages
    call = answer(response)
    assert call.error is not None
    assert error in call.error.message


def test_a_message_after_the_end_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    response = Custom()
    response.messages = [START, LAST, LAST]
    call = answer(response)
    assert call.payload == b"last"
    assert "after the end of the response" in caplog.text


def test_headers_and_bodies_may_be_any_buffers() -> None:
    response = Custom()
    response.messages = [
        {"type": "http.response.start", "status": 200, "headers": [[bytearray(b"x-a"), memoryview(b"1")]]},
        {"type": "http.response.body", "body": memoryview(b"ab"), "more_body": True},
        {"type": "http.response.body", "body": bytearray(b"cd"), "more_body": False},
    ]
    call = answer(response)
    assert call.payload == b"abcd"
    assert call.head.headers == [(b"x-a", b"1")]
