"""Who may ask: Host, Origin, token, and that the body is JSON."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.api.errors import HostRefused, NotJson, OriginRefused, Unauthorized
from headrace.api.guard import Guard, check_json

TOKEN = "s3cret-" + "a" * 36
GUARD = Guard(TOKEN, ("api.example", "2001:db8::1"))


def headers(**named: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in named.items()]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8265",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.9.9.9",
        "[::1]",
        "[::1]:8265",
        "api.example",
        "API.example:443",
        "[2001:db8::1]:80",
    ],
)
def test_names_that_it_may_be_called_by(host: str) -> None:
    GUARD.check_sender(headers(host=host))


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:127.0.0.1",
        "127.0.0.1@evil.example",
        "0.0.0.0",
        "10.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::]",
        "[::ffff:10.0.0.1]",
        "localhost:port",
        "localhost:999999",
        "local host",
        "api.example.evil",
        "sub.api.example",
        "localhost/",
        "localhost,evil.example",
    ],
)
def test_names_that_it_may_not_be_called_by(host: str) -> None:
    with pytest.raises(HostRefused, match="--allow-host"):
        GUARD.check_sender(headers(host=host))


def test_none_and_two_hosts_are_refused() -> None:
    with pytest.raises(HostRefused, match="0 Host headers"):
        GUARD.check_sender([])
    with pytest.raises(HostRefused, match="2 Host headers"):
        GUARD.check_sender(headers(host="localhost") * 2)


@given(st.text(st.characters(max_codepoint=255), max_size=30))
def test_no_other_text_is_a_host_of_ours(text: str) -> None:
    try:
        GUARD.check_sender([(b"host", text.encode("latin-1"))])
    except HostRefused:
        return
    assert text.strip().lower().startswith(("localhost", "127.", "[::1", "[2001:db8::1]", "api.example"))


@pytest.mark.parametrize(
    ("origin", "host"),
    [("http://localhost:8265", "localhost:8265"), ("http://127.0.0.1", "127.0.0.1"), ("HTTP://LocalHost", "localhost")],
)
def test_its_own_pages_may_call(origin: str, host: str) -> None:
    GUARD.check_sender(headers(host=host, origin=origin))


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://localhost:8265",  # another scheme is another origin
        "http://localhost:3000",  # another port is another origin
        "http://localhost:8265.evil.example",
        "http://localhost:8265/",
        "file://",
        "chrome-extension://abc",
    ],
)
def test_no_other_page_may_call(origin: str) -> None:
    with pytest.raises(OriginRefused):
        GUARD.check_sender(headers(host="localhost:8265", origin=origin))


def test_a_second_origin_is_looked_at_too() -> None:
    both = [*headers(host="localhost", origin="http://localhost"), (b"origin", b"http://evil.example")]
    with pytest.raises(OriginRefused):
        GUARD.check_sender(both)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_what_a_browser_says_comes_from_another_site_is_refused(site: str) -> None:
    with pytest.raises(OriginRefused):
        GUARD.check_sender(headers(host="localhost", sec_fetch_site=site))


def test_what_a_person_typed_is_not() -> None:
    GUARD.check_sender(headers(host="localhost", sec_fetch_site="none"))


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
def test_the_token_is_known(given: str) -> None:
    GUARD.check_token(headers(authorization=given))


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ÿ"]
)
def test_nothing_else_is_the_token(given: str) -> None:
    with pytest.raises(Unauthorized):
        GUARD.check_token(headers(authorization=given))


def test_two_tokens_are_none() -> None:
    with pytest.raises(Unauthorized):
        GUARD.check_token(headers(authorization=f"Bearer {TOKEN}") * 2)


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_text_is_the_token(text: str) -> None:
    if text.strip() != TOKEN:
        with pytest.raises(Unauthorized):
            GUARD.check_token([(b"authorization", b"Bearer " + text.encode("latin-1"))])


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"'])
def test_json_is_taken(kind: str) -> None:
    check_json(headers(content_type=kind))


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; application/json",
        "application/json, text/plain",
        "application/json; charset=utf-16",
        "application/jsonp",
    ],
)
def test_nothing_else_is(kind: str) -> None:
    with pytest.raises(NotJson):
        check_json(headers(content_type=kind))


def test_nor_is_json_that_is_compressed() -> None:
    with pytest.raises(NotJson, match="gzip"):
        check_json(headers(content_type="application/json", content_encoding="gzip"))
