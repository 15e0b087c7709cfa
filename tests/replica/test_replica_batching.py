"""Batches in a replica: calls that go into them as they are, what splits them, what their functions know."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from batched_replica import call, ended, outcomes, replica_of, stream, turns
from fake_incoming import http_call, run
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, StreamingResponse

from headrace import serve
from headrace.spec.errors import (
    GeneratorError,
    HeadraceError,
    MethodNotFound,
)


class Plain:
    @serve.batch(max_batch_size=4)
    async def double(self, items: list[Any]) -> list[Any]:
        return [(item * 2, len(items)) for item in items]

    @serve.batch(max_batch_size=4)
    def triple(self, items: list[Any]) -> list[Any]:
        assert threading.current_thread().name.startswith("headrace-batch")
        return [(item * 3, len(items)) for item in items]

    @serve.batch(max_batch_size=4)
    async def __call__(self, requests: list[Any]) -> list[Any]:
        bodies = await asyncio.gather(*[request.body() for request in requests])
        return [self.answer(body.decode()) for body in bodies]

    def answer(self, kind: str) -> Any:
        async def awaited() -> Any:
            return {"awaited": True}

        async def parts() -> Any:
            yield "one"
            yield "two"

        return {
            "dict": {"a": 1},
            "text": "text",
            "bytes": b"raw",
            "array": np.arange(3),
            "response": PlainTextResponse("made", 201),
            "streaming": StreamingResponse(iter(["a", "b"]), 202),
            "awaited": awaited() if kind == "awaited" else None,
            "generator": parts(),
            "error": KeyError("of the slot"),
            "http": HTTPException(418, "a teapot"),
            "object": object(),
        }[kind]

    @serve.batch
    async def items(self, counts: list[int]) -> Any:
        for i in range(max(counts)):
            yield [i if i < count else StopIteration for count in counts]

    @serve.batch
    def items_in_thread(self, counts: list[int]) -> Any:
        for i in range(max(counts)):
            yield [i if i < count else StopIteration for count in counts]

    @serve.batch
    async def hidden_generator(self, items: list[Any]) -> list[Any]:
        return [self.items(item) for item in items]

    async def calls_it(self, item: Any) -> Any:
        return await self.double(item)

    def calls_it_in_a_thread(self, item: Any) -> Any:
        return self.triple(item)

    def iterates_in_a_thread(self, count: int) -> Any:
        return list(self.items(count)), list(self.items_in_thread(count))

    @serve.batch
    async def weigh(self, items: list[int], factors: list[int]) -> list[int]:
        return [item * factor for item, factor in zip(items, factors, strict=True)]


@pytest.mark.parametrize("method", ["double", "triple", "calls_it", "calls_it_in_a_thread"])
def test_calls_by_handles_share_batches(method: str) -> None:
    factor = 2 if method in ("double", "calls_it") else 3
    got = outcomes(Plain(), *[call(method, i) for i in range(8)])
    assert [value for value, _ in got] == [i * factor for i in range(8)]
    assert max(size for _, size in got) > 1


def test_a_batch_gathers_what_comes_within_a_tick() -> None:
    assert outcomes(Plain(), *[call("double", i) for i in range(6)]) == [
        *((i * 2, 4) for i in range(4)),
        *((i * 2, 2) for i in range(4, 6)),
    ]


def test_many_arguments_by_handle() -> None:
    assert outcomes(Plain(), call("weigh", 2, 3), call("weigh", 4, 5)) == [6, 20]
    wrong, right = outcomes(Plain(), call("weigh", 1, 2, 3), call("weigh", 2, 3))
    assert isinstance(wrong, TypeError)
    assert "Plain.weigh: too many positional arguments" in str(wrong)
    assert right == 6


def test_plain_code_waits_for_batches_in_its_thread() -> None:
    assert outcomes(Plain(), call("iterates_in_a_thread", 3)) == [([0, 1, 2], [0, 1, 2])]


def test_a_deployed_function() -> None:
    @serve.batch
    def function(items: list[Any]) -> list[Any]:
        return [(item, len(items)) for item in items]

    assert outcomes(function, call("__call__", 1), call("__call__", 2)) == [(1, 2), (2, 2)]
    missing = outcomes(function, call("other", 1))[0]
    assert isinstance(missing, MethodNotFound)


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("dict", 200, b'{"a":1}'),
        ("text", 200, b"text"),
        ("bytes", 200, b"raw"),
        ("array", 200, b"[0,1,2]"),
        ("response", 201, b"made"),
        ("streaming", 202, b"ab"),
        ("awaited", 200, b'{"awaited":true}'),
        ("generator", 200, b"onetwo"),
        ("http", 418, b"a teapot"),
    ],
)
def test_http_requests_are_batched_and_answered_as_ever(kind: str, status: int, body: bytes) -> None:
    calls = [http_call(kind.encode()), http_call(b"text"), http_call(kind.encode())]
    outcomes(Plain(), *calls)
    assert [one.payload for one in calls] == [body, b"text", body]
    assert calls[0].head.status == status


@pytest.mark.parametrize(("kind", "error"), [("error", KeyError), ("object", HeadraceError)])
def test_an_http_request_whose_slot_is_wrong_fails_alone(kind: str, error: type[Exception]) -> None:
    calls = [http_call(kind.encode()), http_call(b"text")]
    outcomes(Plain(), *calls)
    assert isinstance(calls[0].raised, error)
    assert calls[1].payload == b"text"


def test_a_body_that_comes_in_parts_is_read_within_the_batch() -> None:
    async def check() -> None:
        invoker = replica_of(Plain())
        slow = http_call(b"te", parts=[])
        invoker.start(slow)
        await turns()
        slow.feed(b"xt")
        slow.feed(b"")
        await ended(slow)
        assert slow.payload == b"text"

    run(check())


@pytest.mark.parametrize("method", ["items", "items_in_thread"])
def test_streams_by_handle(method: str) -> None:
    calls = [stream(method, count) for count in (1, 3, 2)]
    outcomes(Plain(), *calls)
    assert [one.items for one in calls] == [[0], [0, 1, 2], [0, 1]]
    assert all(one.stream_is_whole for one in calls)


@pytest.mark.parametrize("method", ["items", "items_in_thread", "hidden_generator"])
def test_a_stream_where_one_result_was_asked_for(method: str) -> None:
    error = outcomes(Plain(), call(method, 3))[0]
    assert isinstance(error, GeneratorError)
    assert "handle.options(stream=True)" in str(error)


def test_a_slot_may_hold_a_generator_for_a_call_that_streams() -> None:
    calls = [stream("hidden_generator", count) for count in (2, 1)]
    outcomes(Plain(), *calls)
    assert [one.items for one in calls] == [[0, 1], [0]]


def test_generators_over_http() -> None:
    class Lines:
        @serve.batch
        async def __call__(self, requests: list[Any]) -> Any:
            for i in range(2):
                yield [f"{request.url.path}{i}" for request in requests]

    calls = [http_call(), http_call()]
    outcomes(Lines(), *calls)
    assert [one.payload for one in calls] == [b"/0/1", b"/0/1"]


# ---- what a batch is split by, and what its function knows of it


class Knows:
    def __init__(self) -> None:
        self.batches: list[Any] = []

    @serve.batch
    async def ask(self, items: list[Any]) -> list[Any]:
        return self._answer(items)

    @serve.batch
    def ask_in_thread(self, items: list[Any]) -> list[Any]:
        return self._answer(items)

    @serve.batch
    async def ask_stream(self, items: list[Any]) -> Any:
        yield self._answer(items)

    def _answer(self, items: list[Any]) -> list[Any]:
        request = serve.get_request_context()
        self.batches.append(items)
        model = serve.get_multiplexed_model_id()
        replica = serve.get_replica_context().replica_id
        return [(request.request_id, request.priority, request.remaining_s, model, request.revision, replica)] * len(
            items
        )


@pytest.mark.parametrize("method", ["ask", "ask_in_thread"])
def test_the_function_works_for_the_request_of_its_batch(method: str) -> None:
    first, second = outcomes(
        Knows(),
        call(method, 1, request_id="a", remaining_s=5.0, priority=-1),
        call(method, 2, request_id="b", remaining_s=500.0, priority=3),
    )
    assert first == second
    request_id, priority, remaining_s, model, revision, replica = first
    assert (request_id, priority, model, revision, replica) == ("b", 3, "", 3, "M#0"), "the first is the most urgent"
    assert 400 < remaining_s <= 500, "the latest of them"
    [without] = outcomes(Knows(), call(method, 1))
    assert without[2] is None


@pytest.mark.parametrize("method", ["ask", "ask_in_thread", "ask_stream"])
def test_batches_are_split_by_model(method: str) -> None:
    knows = Knows()
    calls = [(stream if method == "ask_stream" else call)(method, i, model_id=f"m{i % 2}") for i in range(4)]
    found = outcomes(knows, *calls)
    if method == "ask_stream":
        found = [one.items[0] for one in calls]
    assert [model for _, _, _, model, _, _ in found] == ["m0", "m1", "m0", "m1"]
    assert knows.batches == [[0, 2], [1, 3]]


@pytest.mark.parametrize("holds_handles", [False, True])
def test_batches_are_split_by_revision_where_handles_are_held(holds_handles: bool) -> None:
    knows = Knows()

    async def check() -> None:
        invoker = replica_of(knows)
        invoker.replica.holds_handles = holds_handles
        calls = [call("ask", i, revision=7 + i % 2) for i in range(4)]
        for one in calls:
            invoker.start(one)
        await ended(*calls)

    run(check())
    assert knows.batches == ([[0, 2], [1, 3]] if holds_handles else [[0, 1, 2, 3]])


def test_a_request_that_waits_in_a_thread_knows_itself_again() -> None:
    class Asks(Knows):
        def blocks(self, item: Any) -> Any:
            self.ask_in_thread(item)
            return serve.get_request_context().request_id

        async def awaits(self, item: Any) -> Any:
            await self.ask(item)
            return serve.get_request_context().request_id

    ids = [f"r-{i}" for i in range(4)]
    for method in ("blocks", "awaits"):
        assert outcomes(Asks(), *[call(method, i, request_id=name) for i, name in enumerate(ids)]) == ids


def test_a_batch_function_that_calls_itself_is_told_so() -> None:
    class Recurses:
        @serve.batch
        def again(self, items: list[int]) -> list[int]:
            return [self.again(item - 1) if item else 0 for item in items]

        @serve.batch
        async def awaits(self, items: list[int]) -> list[int]:
            return [await self.awaits(item - 1) if item else 0 for item in items]

        @serve.batch
        async def gathers(self, items: list[int]) -> list[int]:
            return await asyncio.gather(*[self.gathers(item - 1) for item in items if item]) or [0]

        @serve.batch
        async def streams(self, items: list[int]) -> Any:
            yield [[part async for part in self.streams(item - 1)] if item else 0 for item in items]

        @serve.batch
        async def later(self, items: list[int]) -> list[Any]:
            async def once_more() -> int:
                await ended_first.wait()
                return await self.later(0)

            ended_first = asyncio.Event()
            return [(asyncio.create_task(once_more()), ended_first) if item else 0 for item in items]

        async def starts_it(self, item: int) -> int:
            task, ended_first = await self.later(item)
            ended_first.set()
            return await task

        @serve.batch(max_concurrent_batches=2)
        def twice(self, items: list[int]) -> list[int]:
            return [self.twice(item - 1) if item else 0 for item in items]

    for method in ("again", "awaits", "gathers"):
        [error] = outcomes(Recurses(), call(method, 1))
        assert isinstance(error, HeadraceError)
        assert "wait for itself" in str(error)
        assert outcomes(Recurses(), call(method, 0)) == [0]
    [error] = outcomes(Recurses(), stream("streams", 1))
    assert "wait for itself" in str(error)
    assert outcomes(Recurses(), call("starts_it", 1)) == [0]
    assert outcomes(Recurses(), call("twice", 1)) == [0]
