"""The key by which a request keeps to a revision, where its application names one: of a header, a cookie, or the query.

In: the head of a request as it came, from whoever sent it. Out: the key as text, or None where there is none: then the
request is drawn as one without a key. What is too long or empty is none, and nothing is ever refused for its key.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from headrace.spec.sticky import Sticky

LONGEST_KEY_BYTES = 1024  # of a key, decoded
MOST_PARTS = 256  # cookies, or parameters, that are looked through


def key_of(sticky: Sticky, target: bytes, headers: list[tuple[bytes, bytes]]) -> str | None:
    """The request's key. Of headers of one name the last counts, of cookies and parameters the first."""
    name = sticky.name.encode()
    if sticky.of == "header":
        found = next((value for each, value in reversed(headers) if each == name), b"")
    elif sticky.of == "cookie":
        found = _cookie(name, headers)
    else:
        found = _parameter(name, target)
    return text_of_key(found.strip())


def text_of_key(key: bytes) -> str | None:
    """The key as text; None where it is empty or too long. Bytes that are no UTF-8 are taken for Latin-1."""
    if not 0 < len(key) <= LONGEST_KEY_BYTES:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.decode("latin-1")


def _cookie(name: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """RFC 6265, section 4.2.1. Values may stand in quotes; how else they are encoded is the application's own."""
    for header, value in headers:
        if header != b"cookie":
            continue
        for pair in value.split(b";", MOST_PARTS)[:MOST_PARTS]:
            each, equals, given = pair.partition(b"=")
            if equals and each.strip() == name:
                given = given.strip()
                quoted = len(given) >= 2 and given[:1] == given[-1:] == b'"'
                return given[1:-1] if quoted else given
    return b""


def _parameter(name: bytes, target: bytes) -> bytes:
    """Of the query as forms write it: `+` for a space, and percent signs."""
    query = target.partition(b"?")[2]
    for pair in query.split(b"&", MOST_PARTS)[:MOST_PARTS]:
        each, _, given = pair.partition(b"=")
        if _decoded(each) == name:
            return _decoded(given)
    return b""


def _decoded(part: bytes) -> bytes:
    part = part.replace(b"+", b" ")
    return unquote_to_bytes(part) if b"%" in part else part
