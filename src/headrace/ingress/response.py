"""Heads of HTTP responses: what user code says of its response, checked, with what the ingress adds to every one.

In: the msgpack ResponseHead of a reply. Out: bytes. Framing (length, encoding, connection) is the ingress's, as are
`date`, `server` and `x-request-id`: what user code says of them is dropped, except a length for a streamed body.
"""

from __future__ import annotations

import re
import time
from http import HTTPStatus

import msgspec

from headrace.wire.frames import ResponseHead

SERVER = b"headrace"
CACHED_HEADS = 512
CACHED_HEAD_BYTES = 1024

_decode = msgspec.msgpack.Decoder(ResponseHead).decode
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_NUMBER = re.compile(rb"[0-9]{1,18}").fullmatch
_OURS = frozenset({b"date", b"server", b"x-request-id", b"transfer-encoding", b"keep-alive", b"upgrade", b"trailer"})
_NOT_SWITCHING = _OURS - {b"upgrade"} | {b"content-length"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}


class BadResponseError(Exception):
    """User code's response head cannot be sent: the client gets a 500, the log the reason."""


class Prepared(msgspec.Struct, gc=False):
    """The head of a response as far as it does not depend on the request: status line and headers, as bytes.

    `length` is what user code said of the body's length; `bodyless`: the status has no body (204, 304); `close`: user
    code wants the connection closed; `simple`: none of that is so.
    """

    status: int
    lines: bytes
    length: int | None = None
    bodyless: bool = False
    close: bool = False
    simple: bool = True


OK_JSON = Prepared(200, _STATUS_LINES[200] + b"content-type: application/json\r\n")


def status_line(status: int) -> bytes:
    """The status line with its CRLF; a code without a registered phrase has none."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def phrase(status: int) -> str:
    """The registered phrase of the status, for a person to read."""
    return HTTPStatus(status).phrase if status in _STATUS_LINES else "Error"


def prepare(meta: bytes) -> Prepared:
    """The checked head of user code's response. Raises BadResponseError for what must not go on the wire."""
    try:
        head = _decode(meta)
    except msgspec.MsgspecError as error:
        raise BadResponseError(f"not a response head: {error}") from error
    if not 200 <= head.status <= 999:
        raise BadResponseError(f"a response has a status from 200 to 999, not {head.status}")
    lines = [status_line(head.status)]
    length: int | None = None
    close = False
    for name, value in head.headers:
        name = name.lower()
        check_header(name, value)
        if name == b"content-length":
            if not _NUMBER(value) or (length is not None and length != int(value)):
                raise BadResponseError(f"content-length {value[:80]!r} is not one number of bytes")
            length = int(value)
        elif name == b"connection":
            close = close or b"close" in value.lower()
        elif name not in _OURS:
            lines.append(b"%b: %b\r\n" % (name, value))
    bodyless = head.status == 204 or head.status == 304
    simple = not bodyless and not close
    return Prepared(head.status, b"".join(lines), length, bodyless, close, simple)


def switching(meta: bytes) -> bytes | None:
    """Status line and headers of the answer that opens a WebSocket; None for one that is an ordinary response.

    Raises BadResponseError for what must not go on the wire.
    """
    try:
        head = _decode(meta)
    except msgspec.MsgspecError as error:
        raise BadResponseError(f"not a response head: {error}") from error
    if head.status != 101:
        return None
    lines = [status_line(101)]
    for name, value in head.headers:
        name = name.lower()
        check_header(name, value)
        if name not in _NOT_SWITCHING:
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def check_header(name: bytes, value: bytes) -> None:
    """Raises BadResponseError for a header whose name or value is more than one."""
    if not _TOKEN(name) or _UNSAFE(value):
        raise BadResponseError(f"the header {name[:80]!r}: {value[:80]!r} has characters that are not allowed")


class ResponseHeads:
    """Heads as of this second; `date()` renews them. `common` and `ok_json` end where the request id goes."""

    __slots__ = ("_cache", "_second", "common", "ok_json")

    def __init__(self) -> None:
        self._cache: dict[bytes, Prepared] = {}
        self._second = -1
        self.common = b""
        self.ok_json = b""

    def date(self, now: float) -> None:
        """Renew the date header; `now` in seconds since the epoch."""
        second = int(now)
        if second == self._second:
            return
        self._second = second
        t = time.gmtime(second)
        stamp = (
            f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon]} {t.tm_year} "
            f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
        )
        self.common = b"server: %b\r\ndate: %b\r\nx-request-id: " % (SERVER, stamp.encode())
        self.ok_json = OK_JSON.lines + self.common

    def prepared(self, meta: bytes) -> Prepared:
        """`prepare(meta)`, remembered: most responses of an application have one of a few heads."""
        known = self._cache.get(meta)
        if known is not None:
            return known
        fresh = prepare(meta)
        if len(meta) <= CACHED_HEAD_BYTES:
            if len(self._cache) >= CACHED_HEADS:
                self._cache.clear()
            self._cache[meta] = fresh
        return fresh

    def own(
        self,
        status: int,
        text: str,
        request_id: str,
        *,
        headers: bytes = b"",
        json: bytes = b"",
        close: bool = False,
        keep_alive: bool = False,
        without_body: bool = False,
    ) -> bytes:
        """A whole response of the ingress's own: `text`, or `json` where given. `headers` are lines with their CRLF.

        An error's text is followed by the request id, so that whoever sees it can say which request it was.
        """
        if not json and status >= 400:
            text = f"{text}\nrequest id: {request_id}\n"
        body = json or text.encode()
        content_type = b"application/json" if json else b"text/plain; charset=utf-8"
        if close:
            headers += b"connection: close\r\n"
        elif keep_alive:
            headers += b"connection: keep-alive\r\n"
        return b"%b%b%b\r\n%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            status_line(status),
            self.common,
            request_id.encode("ascii"),
            headers,
            content_type,
            len(body),
            b"" if without_body else body,
        )
