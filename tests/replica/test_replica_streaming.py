"""Generators that answer HTTP requests and handles: what is sent, when they wait, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fake_incoming import FakeIncoming, handle_call, http_call, invoker_of, run, served

from headrace import serve
from headrace.replica.streaming import ThreadedItems, put_all
from headrace.spec.errors import NotServableError, RequestCancelledError, RequestTimeoutError
from headrace.wire.frames import STREAM


class Lines:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.go_on = threading.Event()

    async def text(self, request: object) -> AsyncIterator[str]:
        for word in ("one", "two", "thréé"):
            yield word

    def plain_text(self, request: object) -> Iterator[str]:
        yield from ("one", "two", "thréé")

    async def raw(self, request: object) -> AsyncIterator[bytes]:
        yield b"\x00"
        yield bytearray(b"\x01")

    def records(self, request: object) -> Iterator[dict[str, int]]:
        for i in range(3):
            yield {"i": i}

    async def returned(self, request: object) -> Any:
        return self.text(request)

    def returned_plain(self, request: object) -> Any:
        return self.plain_text(request)

    async def nothing(self, request: object) -> AsyncIterator[str]:
        return
        yield ""

    async def mixed(self, request: object) -> AsyncIterator[Any]:
        yield "text"
        yield {"not": "text"}

    async def breaks_at_once(self, request: object) -> AsyncIterator[str]:
        raise KeyError("at once")
        yield ""

    def endless(self) -> Iterator[int]:
        try:
            while True:
                self.events.append("made")
                yield 1
        finally:
            self.events.append("closed")

    async def endless_async(self) -> AsyncIterator[int]:
        try:
            while True:
                self.events.append("made")
                yield 1
                await asyncio.sleep(0)
        finally:
            self.events.append("closed")

    def loops(self) -> str:
        """A plain method that looks whether anybody still waits."""
        self.events.append("began")
        while True:
            serve.get_request_context().check()

    async def asks(self) -> tuple[Any, ...]:
        request = serve.get_request_context()
        return request.request_id, request.attempt, request.cancelled, request.remaining_s, request.priority


def answered(method: str) -> FakeIncoming:
    call = http_call()
    call.meta.method = method
    run(served(Lines(), call))
    return call


@pytest.mark.parametrize(
    ("method", "body", "content_type"),
    [
        ("text", "onetwothréé".encode(), b"text/plain; charset=utf-8"),
        ("plain_text", "onetwothréé".encode(), b"text/plain; charset=utf-8"),
        ("returned", "onetwothréé".encode(), b"text/plain; charset=utf-8"),
        ("returned_plain", "onetwothréé".encode(), b"text/plain; charset=utf-8"),
        ("raw", b"\x00\x01", b"application/octet-stream"),
        ("records", b'{"i":0}\n{"i":1}\n{"i":2}\n', b"application/x-ndjson"),
        ("nothing", b"", b"text/plain; charset=utf-8"),
    ],
)
def test_a_generator_is_a_streamed_response(method: str, body: bytes, content_type: bytes) -> None:
    call = answered(method)
    assert call.payload == body
    assert call.head.status == 200
    assert call.head.headers == [(b"content-type", content_type)]


def test_items_of_two_kinds_are_an_error_and_the_stream_breaks() -> None:
    call = answered("mixed")
    assert call.streamed == [b"text"]
    assert isinstance(call.raised, NotServableError)
    assert "now one and now the other" in str(call.raised)


def test_an_error_before_the_first_item_is_an_error_response() -> None:
    call = answered("breaks_at_once")
    assert not call.replies
    assert isinstance(call.raised, KeyError)


def stream_call(method: str, **fields: Any) -> FakeIncoming:
    call = handle_call(method, **fields)
    call.flags = STREAM
    return call


@pytest.mark.parametrize("method", ["endless", "endless_async"])
@pytest.mark.parametrize("way", ["cancel", "expire"])
@pytest.mark.parametrize("window", [3, 1 << 30])
def test_a_stream_that_nobody_waits_for_is_closed(method: str, way: str, window: int) -> None:
    async def check() -> None:
        lines = Lines()
        call = stream_call(method, remaining_s=1000.0)
        call.window = window
        invoker_of(lines).start(call)
        await call.started.wait()
        getattr(call, way)()
        await call.ended.wait()
        assert lines.events[-1] == "closed"
        assert isinstance(call.raised, RequestCancelledError if way == "cancel" else RequestTimeoutError)

    run(check())


@pytest.mark.parametrize("way", ["cancel", "expire"])
def test_a_plain_method_ends_at_its_next_look(way: str) -> None:
    async def check() -> None:
        lines = Lines()
        call = handle_call("loops", remaining_s=1000.0)
        invoker_of(lines).start(call)
        while not lines.events:
            await asyncio.sleep(0)
        getattr(call, way)()
        await call.ended.wait()
        assert isinstance(call.raised, RequestCancelledError if way == "cancel" else RequestTimeoutError)

    run(check())


def test_code_can_ask_what_its_request_is() -> None:
    call = handle_call("asks", remaining_s=1000.0)
    run(served(Lines(), call))
    request_id, attempt, cancelled, remaining_s, priority = call.result
    assert (request_id, attempt, cancelled, priority) == ("r-1", 1, False, 0)
    assert 900 < remaining_s <= 1000


def test_outside_of_a_request_there_is_none_to_ask() -> None:
    with pytest.raises(serve.exceptions.RayServeException, match="outside of a request"):
        serve.get_request_context()


class Stubborn(Lines):
    """Code that does not end when it is told to, or goes on elsewhere."""

    async def goes_on(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    self.events.append("swallowed")
        finally:
            self.events.append("closed")

    def gives_what_never_ends(self, *request: object) -> Any:
        self.events.append("began")
        while not serve.get_request_context().cancelled:
            pass
        return asyncio.Event().wait()


@pytest.mark.parametrize("window", [3, 1 << 30])
def test_a_stream_whose_code_swallows_the_cancellation_is_closed_at_its_next_item(window: int) -> None:
    async def check() -> None:
        lines = Stubborn()
        call = stream_call("goes_on")
        call.window = window
        invoker_of(lines).start(call)
        await call.started.wait()
        call.cancel()
        await call.ended.wait()
        assert lines.events[-1] == "closed"

    run(check())


@pytest.mark.parametrize("flags", [STREAM, 0])
def test_what_a_thread_gave_to_wait_for_is_not_waited_for_when_the_caller_has_left(flags: int) -> None:
    async def check() -> None:
        lines = Stubborn()
        call = handle_call("gives_what_never_ends")
        call.flags = flags
        invoker_of(lines).start(call)
        while not lines.events:
            await asyncio.sleep(0)
        call.cancel()
        await call.ended.wait()
        assert isinstance(call.raised, RequestCancelledError)

    run(check())


class Leaving(FakeIncoming):
    """Its caller leaves right after the first look whether it has."""

    told_whom: Any = None

    @property
    def cancelled(self) -> bool:
        if self.told_whom is None:
            self.told_whom = self.on_cancel or "nobody"
            return False
        return True

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        pass


def test_a_caller_that_leaves_when_a_thread_begins_is_noticed() -> None:
    async def check() -> None:
        call = Leaving(handle_call("loops").meta, 0, b"")
        with contextlib.suppress(RequestCancelledError, RequestTimeoutError):
            invoker_of(Lines()).enter_thread(call, None)  # type: ignore[arg-type]
        assert call.told_whom != "nobody"

    run(check())


class Breaks:
    """An outlet that cannot send what it was given."""

    def encode(self, item: Any) -> bytes:
        return bytes(item)

    def put(self, encoded: Any) -> bool:
        return False

    async def room(self) -> None:
        raise NotServableError("too large a head")

    def end(self) -> None:
        pass


def test_a_thread_learns_why_its_items_cannot_be_sent() -> None:
    async def check() -> None:
        way = ThreadedItems(asyncio.get_running_loop(), Breaks())

        def endless() -> Iterator[bytes]:
            while True:
                yield bytes(10_000)

        with pytest.raises(NotServableError):
            await asyncio.to_thread(put_all, way, endless())
        ended = asyncio.Event()
        way.finish(ended.set)
        await ended.wait()

    run(check())
