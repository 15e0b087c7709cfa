"""The key by which a request keeps to a revision: where it is found, what is none, and that nobody moves back."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import serve
from headrace.core.request_ids import time_of
from headrace.core.traffic import Split
from headrace.ingress.door import RequestIds
from headrace.ingress.sticky import LONGEST_KEY_BYTES, MOST_PARTS, key_of
from headrace.serve.testing import TestInstance
from headrace.spec.sticky import Sticky

HEADER, COOKIE, QUERY = (
    Sticky(of="header", name="X-User"),
    Sticky(of="cookie", name="uid"),
    Sticky(of="query", name="u"),
)


def key(sticky: Sticky, target: bytes = b"/", *headers: tuple[bytes, bytes]) -> str | None:
    return key_of(sticky, target, list(headers))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"ada", "ada"),
        (b" ada ", "ada"),
        ("zoë".encode(), "zoë"),
        (b"\xff\xfe", "ÿþ"),
        (b"", None),
        (b"  ", None),
        (b"x" * LONGEST_KEY_BYTES, "x" * LONGEST_KEY_BYTES),
        (b"x" * (LONGEST_KEY_BYTES + 1), None),
    ],
)
def test_a_header(value: bytes, found: str | None) -> None:
    assert key(HEADER, b"/", (b"x-user", value)) == found


def test_of_headers_of_one_name_the_last_counts() -> None:
    assert key(HEADER, b"/", (b"x-user", b"1"), (b"x-other", b"3"), (b"x-user", b"2")) == "2"
    assert key(HEADER, b"/?x-user=1", (b"cookie", b"x-user=1")) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"uid=7", "7"),
        (b"a=1; uid=7; b=2", "7"),
        (b"a=1;uid=7;b=2", "7"),
        (b'uid="7 8"', "7 8"),
        (b"uid=7=8", "7=8"),
        (b"uid=1; uid=2", "1"),
        (b"xuid=1; uidx=2", None),
        (b"uid", None),
        (b"uid=", None),
        (b"UID=7", None),
        (b'uid="', '"'),
        (b";;;=;", None),
        (b"a=1; " * (MOST_PARTS + 1) + b"uid=7", None),
    ],
)
def test_a_cookie(value: bytes, found: str | None) -> None:
    assert key(COOKIE, b"/", (b"cookie", value)) == found


def test_cookies_may_come_in_several_headers() -> None:
    assert key(COOKIE, b"/", (b"cookie", b"a=1"), (b"cookie", b"uid=7")) == "7"


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (b"/p?u=7", "7"),
        (b"/p?a=1&u=7&b=2", "7"),
        (b"/p?u=a+b%20c", "a b c"),
        (b"/p?%75=7", "7"),
        (b"/p?u=zo%C3%AB", "zoë"),
        (b"/p?u=%FF", "ÿ"),
        (b"/p?u=%2", "%2"),
        (b"/p?u=%zz", "%zz"),
        (b"/p?u=1&u=2", "1"),
        (b"/p?u=a=b?c", "a=b?c"),
        (b"/p?u", None),
        (b"/p?u=", None),
        (b"/p?xu=1", None),
        (b"/p", None),
        (b"/p?", None),
        (b"/p?u=" + b"%41" * LONGEST_KEY_BYTES, "A" * LONGEST_KEY_BYTES),
        (b"/p?u=" + b"%41" * (LONGEST_KEY_BYTES + 1), None),
        (b"/p?" + b"a=1&" * (MOST_PARTS + 1) + b"u=7", None),
    ],
)
def test_a_parameter_of_the_query(target: bytes, found: str | None) -> None:
    assert key(QUERY, target) == found


@given(st.binary(max_size=300), st.lists(st.tuples(st.sampled_from([b"cookie", b"x-user"]), st.binary(max_size=300))))
def test_whatever_comes_is_a_key_or_none(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    for sticky in (HEADER, COOKIE, QUERY):
        found = key_of(sticky, target, headers)
        assert found is None or 0 < len(found) <= LONGEST_KEY_BYTES
        if found is not None:
            found.encode()  # it goes over the wire


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_of_the_door_tell_when_it_looked_at_the_clock_last() -> None:
    ids = RequestIds(bytes(range(16)))
    ids.renew(1_700_000_000.25)
    made = [ids.next() for _ in range(100)]
    assert len(set(made)) == 100
    assert {time_of(each) for each in made} == {1_700_000_000.25}
    ids.renew(1_700_000_001.0)
    assert time_of(ids.next()) == 1_700_000_001.0
    assert uuid.UUID(ids.next_now()).version == 7
    now = time_of(ids.next_now())
    assert now is not None
    assert now > 1_700_000_001.0


# --- end to end -------------------------------------------------------------------------------------------------------

USERS = [f"user {i}" for i in range(60)]


@serve.deployment
class Model:
    def __init__(self, answer: int) -> None:
        self.answer = answer

    def __call__(self, request: Any) -> int:
        return self.answer


def asking(of: str, user: str) -> dict[str, Any]:
    """How a request with this key is made."""
    if of == "query":
        return {"params": {"user": user}}
    return {"headers": {"x-user": user} if of == "header" else {"cookie": f"theme=dark; user={user}"}}


async def ask_all(http: httpx.AsyncClient, of: str) -> list[int]:
    return [(await http.get("/", **asking(of, user))).json() for user in USERS]


@pytest.mark.parametrize("sticky", ["header:x-user", "cookie:user", "query:user"])
def test_more_weight_for_the_newer_revision_moves_nobody_back(sticky: str) -> None:
    of = sticky.partition(":")[0]

    async def test() -> None:
        async with TestInstance() as instance, instance.http_client() as http:
            await instance.run(Model.bind(1), "app")
            await instance.run(Model.bind(2), "app")
            before: list[int] = [1] * len(USERS)
            for share in (0.1, 0.2, 0.5, 1.0):
                weights = {1: 1 - share, 2: share} if share < 1 else {2: 1.0}
                await instance.call(serve.set_traffic, "app", weights, sticky=sticky)
                split = Split(weights.items(), "app")
                expected = [split.of(user) for user in USERS]
                async with asyncio.timeout(20):
                    while await ask_all(http, of) != expected:  # the ingress may learn of the weights a moment later
                        await asyncio.sleep(0.01)
                assert await ask_all(http, of) == expected
                assert all(now >= then for now, then in zip(expected, before, strict=True))
                before = expected
            assert before == [2] * len(USERS)

    asyncio.run(test())


def test_a_request_without_the_key_goes_by_its_id() -> None:
    async def test() -> None:
        async with TestInstance() as instance, instance.http_client() as http:
            await instance.run(Model.bind(1), "app")
            await instance.run(Model.bind(2), "app")
            weights = {1: 0.5, 2: 0.5}
            await instance.call(serve.set_traffic, "app", weights, sticky="cookie:user")
            split = Split(weights.items(), "app")
            for _ in range(40):
                response = await http.get("/")
                assert response.json() == split.of(response.headers["x-request-id"])

    asyncio.run(test())
