"""Routes: the longest prefix, by whole segments, at a cost that does not grow with the path."""

from __future__ import annotations

import pytest
from door_harness import application, snapshot
from hypothesis import given
from hypothesis import strategies as st

from headrace.ingress.routes import RouteTable

PREFIXES = ("/", "/a", "/a/b", "/long/route/", "/ü")


def table(*prefixes: str) -> RouteTable:
    return RouteTable(snapshot(*(application(prefix, prefix) for prefix in prefixes)))


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        (b"/", "/"),
        (b"/a", "/a"),
        (b"/a/", "/a"),
        (b"/ab", "/"),
        (b"/a/b", "/a/b"),
        (b"/a/bc", "/a"),
        (b"/a/b/c/d", "/a/b"),
        (b"/long/route", "/long/route"),
        (b"/long/route/x", "/long/route"),
        (b"/long/routes", "/"),
        (b"/%61/x", "/a"),
        (b"/%C3%BC/x", "/ü"),
        (b"//a", "/"),
    ],
)
def test_the_longest_prefix_wins(path: bytes, prefix: str):
    route = table(*PREFIXES).find(path)
    assert route is not None
    assert route.prefix == prefix


def test_without_a_root_route_what_matches_nothing_has_no_route():
    assert table("/a").find(b"/") is None
    assert table("/a").find(b"/ab") is None
    assert table().find(b"/") is None


paths = st.lists(st.sampled_from(["a", "b", "ab", ""]), max_size=5).map(lambda parts: "/" + "/".join(parts))


@given(st.sets(paths.map(lambda path: path.rstrip("/") or "/"), max_size=6), paths)
def test_it_is_what_trying_each_prefix_would_find(prefixes: set[str], path: str):
    matching = [p for p in prefixes if p == "/" or path == p or path.startswith(p + "/")]
    found = table(*prefixes).find(path.encode())
    assert (found.prefix if found else None) == max(matching, key=len, default=None)
