"""Patterns at the door: what becomes of HTTP requests of all kinds, and patterns within patterns."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from puppets import Puppet, bound, run, until
from starlette.exceptions import HTTPException
from starlette.requests import Request

from headrace import patterns
from headrace.serve.testing import TestInstance
from headrace.spec.errors import BackPressureError, InputError, OptionError


@pytest.mark.parametrize("body", [{"a": [1, None]}, [1.5], "text", 7, None, {"": {}}])
def test_the_body_is_json_and_the_one_argument(body: Any) -> None:
    async def test(instance: TestInstance) -> None:
        model = Puppet(lambda x: {"got": x})
        await instance.run(patterns.pipeline(bound("Model", model)))
        async with instance.http_client() as client:
            answer = await client.post("/any/path?a=1", content=json.dumps(body))
        assert answer.json() == {"got": body}
        assert answer.headers["content-type"] == "application/json"

    run(test)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\xfa", b"nonsense", b"[" * 100_000, b'{"a": 1} x'])
def test_a_body_that_is_no_json_is_answered_400_and_not_logged(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def test(instance: TestInstance) -> None:
        model = Puppet()
        await instance.run(patterns.ensemble([bound("Model", model)]))
        async with instance.http_client() as client:
            answer = await client.post("/", content=body)
        assert answer.status_code == 400
        assert answer.text.startswith("Ensemble takes a body of JSON: ")
        assert model.began == []

    caplog.set_level(logging.WARNING, "headrace.replica")
    run(test)
    assert "raised" not in caplog.text


async def length(request: Request) -> dict[str, Any]:
    if request.headers["content-type"] != "image/png":
        raise HTTPException(415, "only PNG")
    if "kind" not in request.query_params:
        raise InputError("what kind?")
    return {"length": len(await request.body()), "kind": request.query_params["kind"]}


def test_a_function_of_ones_own_makes_the_input_of_a_request() -> None:
    async def test(instance: TestInstance) -> None:
        app = patterns.switch("kind", {"cats": bound("Cats", Puppet(lambda x: x))}, parse=length)
        handle = await instance.run(app)
        async with instance.http_client() as client:
            headers = {"content-type": "image/png"}
            answer = await client.post("/?kind=cats", content=b"x" * 200_000, headers=headers)
            assert answer.json() == {"length": 200_000, "kind": "cats"}
            answer = await client.post("/?kind=cats", content=b"x", headers={"content-type": "image/gif"})
            assert (answer.status_code, answer.text) == (415, "only PNG")
            answer = await client.post("/", content=b"x", headers=headers)
            assert (answer.status_code, answer.text) == (400, "what kind?")
        assert await handle.remote({"kind": "cats"}) == {"kind": "cats"}

    run(test)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (LookupError("secret"), 500, "Internal Server Error"),
        (BackPressureError("full", 7), 503, "Service Unavailable"),
        (InputError("the image is too small"), 400, "the image is too small"),
        (OptionError("a bug"), 500, "Internal Server Error"),
        (HTTPException(422, "no cat in it"), 422, "no cat in it"),
    ],
)
def test_an_error_of_a_member_has_its_status(error: Exception, status: int, text: str) -> None:
    async def test(instance: TestInstance) -> None:
        model = patterns.pipeline(bound("Model", Puppet(error=error)))
        await instance.run(patterns.ensemble([model], combine=dict.popitem))
        async with instance.http_client() as client:
            answer = await client.post("/", json=1)
        assert (answer.status_code, answer.text.partition("\n")[0]) == (status, text)
        assert answer.headers.get("retry-after") == ("7" if status == 503 else None)

    run(test)


def test_the_client_s_own_limit_of_time_counts() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = Puppet(held=True)
        model = bound("Model", hanging)
        await instance.run(patterns.fallback(model, {"label": None}, margin_s=1), request_timeout_s=60)
        async with instance.http_client() as client:
            answer = await client.post("/", json=1, headers={"x-request-timeout-seconds": "1"})
        assert (answer.status_code, answer.json()) == (200, {"label": None})
        await until(lambda: hanging.cancelled == [1])

    run(test)


def test_patterns_within_patterns() -> None:
    """Tokens, then two ensembles to choose from, one of which has a cascade in it; a default behind it all."""

    async def test(instance: TestInstance) -> None:
        broken = Puppet(error=ConnectionError("gone"))
        cheap = Puppet(lambda words: {"mood": 0.0, "sure": 0.2 if "not" in words else 1.0})
        dear = Puppet(lambda words: {"mood": -1.0, "sure": 1.0})
        cascade = patterns.cascade([bound("Cheap", cheap), bound("Dear", dear)], 0.9, confidence="sure")
        english = patterns.ensemble(
            [
                patterns.pipeline(cascade, lambda answer: answer["mood"]),
                bound("Other", Puppet(1.0)),
                bound("Broken", broken),
            ],
            least=2,
        )
        other = patterns.fallback(bound("Unknown", broken), 0.5)
        by_language = patterns.switch(lambda words: "en" if "the" in words else "?", {"en": english}, default=other)
        app = patterns.pipeline(bound("Words", Puppet(str.split)), by_language, lambda mood: {"mood": mood})
        handle = await instance.run(app)
        assert await handle.remote("the day is good") == {"mood": 0.5}
        assert await handle.remote("the day is not good") == {"mood": 0.0}
        assert await handle.remote("ein guter Tag") == {"mood": 0.5}
        assert len(dear.began) == 1
        async with instance.http_client() as client:
            assert (await client.post("/", json="the day")).json() == {"mood": 0.5}

    run(test)


def test_a_client_that_leaves_is_felt_at_the_bottom() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = Puppet(held=True)
        model = bound("Model", hanging)
        app = patterns.pipeline(patterns.fallback(patterns.ensemble([patterns.cascade([model, model], 0.9)]), 0))
        handle = await instance.run(app)
        response = handle.remote("x")
        await until(lambda: hanging.began)
        response.cancel()
        await until(lambda: hanging.cancelled == ["x"])
        assert hanging.began == ["x"]

    run(test)
