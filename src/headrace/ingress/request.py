"""The head of an HTTP request: what the parser found, checked, and turned into what a call needs.

In: method, target and headers from the parser of a connection. Out: a RequestHead, or a Refusal: what is ambiguous or
malformed is refused here, so that nobody behind the ingress can read it differently than the ingress did. The parser
(llhttp, strict) has refused before: bare LF, folded lines, NUL, both lengths, two lengths, what is no number.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING

import msgspec

from headrace.ingress.sticky import key_of
from headrace.spec.errors import OptionError
from headrace.spec.priority import priority_of_text
from headrace.wire.frames import MAX_META_BYTES

if TYPE_CHECKING:
    from headrace.ingress.routes import Route, RouteTable

HEALTHZ = b"/-/healthz"
ROUTES = b"/-/routes"
REMEMBERED = 1024  # targets, and hosts, that need not be looked up again
REMEMBERED_BYTES = 256
META_RESERVE_BYTES = 4 * 1024  # what else a call's metadata carries beside the head

_SPECIAL = frozenset(
    {
        b"content-length",
        b"expect",
        b"host",
        b"serve_multiplexed_model_id",
        b"traceparent",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-disconnect-disabled",
        b"x-request-id",
        b"x-request-priority",
        b"x-request-timeout-seconds",
        b"x-session-id",
    }
)
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_SANE_ID = re.compile(rb"[\x20-\x7e]{1,128}").fullmatch
_SANE_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*").fullmatch
_SANE_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?").fullmatch
_TRUE = frozenset({b"?1", b"1", b"true", b"yes", b"on"})  # `?1` is how RFC 8941 writes it
_VERSION_13 = b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
_encode = msgspec.msgpack.Encoder().encode
_NIL = msgspec.Raw(b"\xc0")


class Refusal(Exception):
    """The request is answered with `status` and `text` by the ingress itself, and nobody else sees it.

    `fatal`: where the request ends is in doubt or of no interest, so the connection closes after the answer.
    """

    def __init__(self, status: int, text: str, *, fatal: bool = True, headers: bytes = b"") -> None:
        super().__init__(status, text)
        self.head = UNREADABLE
        self.status = status
        self.text = text
        self.fatal = fatal
        self.headers = headers


class RequestHead:
    """All that the head of a request says; shared by the requests of a connection whose heads are the same bytes.

    What most requests do not have is a class attribute: only what differs is stored.
    """

    content_length = 0  # -1 for a chunked body
    expect = False  # the client waits to be invited to send the body
    upgrade = False  # it offers another protocol
    websocket = False  # it is to become a WebSocket, and is valid as such
    outlives = False  # the request runs on when its client leaves
    marked = False  # a priority, a session, a key, a model or a trace is named
    repeatable = False  # the next request with these very bytes as its head can be known without reading it
    request_id = ""  # "": the ingress makes one
    timeout_s: float | None = None
    priority = 0
    sticky: str | None = None
    key: str | None = None
    model_id: str | None = None
    trace: str | None = None
    route: Route | None = None
    refusal: Refusal | None = None  # the answer, when the request is well formed and no application takes it
    local = b""  # a path that the ingress answers itself
    http = _NIL

    def __init__(self, is_head: bool = False, version_1_0: bool = False, keep_alive: bool = False) -> None:
        self.is_head = is_head
        self.version_1_0 = version_1_0
        self.keep_alive = keep_alive
        # The answer needs nothing special: its head can be written from a template.
        self.plain = keep_alive and not is_head and not version_1_0


UNREADABLE = RequestHead()  # stands for the head of a request that could not be read


class Place(msgspec.Struct, frozen=True, gc=False):
    """What a path leads to: an application, an answer of the ingress's own, or a refusal.

    `missing` is what a proxy took off the front of the path and handlers expect there.
    """

    route: Route | None = None
    root_path: str = ""
    local: bytes = b""
    refusal: Refusal | None = None
    missing: bytes = b""


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The request id that the client gave, or "" for none or one that is not printable ASCII of at most 128 bytes."""
    for name, value in headers:
        if name == b"x-request-id" and _SANE_ID(value):
            return value.decode("ascii")
    return ""


def wants_websocket(head: RequestHead, method: str, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether the request asks to become a WebSocket; otherwise what it offers is not taken up, and it is served as it
    is (RFC 9110 section 7.8).
    """
    return (
        method == "GET"
        and not head.version_1_0
        and b"websocket" in _tokens(headers, b"upgrade")
        and b"upgrade" in _tokens(headers, b"connection")
    )


def check_websocket(head: RequestHead, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises Refusal for what RFC 6455 section 4.2.1 does not take for the request to open a WebSocket."""
    if head.content_length:
        raise Refusal(400, "a request to open a WebSocket has no body")
    if [value for name, value in headers if name == b"sec-websocket-version"] != [b"13"]:
        raise Refusal(426, "WebSockets of version 13 are served", headers=_VERSION_13)
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    try:
        sizes = [len(binascii.a2b_base64(key, strict_mode=True)) for key in keys]
    except binascii.Error:
        sizes = []
    if sizes != [16]:
        raise Refusal(400, "a request to open a WebSocket has one Sec-WebSocket-Key, the base64 of 16 bytes")


def _tokens(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [token.strip().lower() for name, value in headers if name == wanted for token in value.split(b",")]


def _other_method(method: bytes) -> str:
    if method == b"CONNECT":
        raise Refusal(405, "CONNECT is not served", headers=b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n")
    return method.decode("ascii")


class HeadReader:
    """Reads heads against one route table and one set of limits; one per process and table."""

    __slots__ = ("_hosts", "_max_body_bytes", "_places", "_scheme", "_timeout_s", "_websocket_scheme", "table")

    def __init__(self, table: RouteTable, max_body_bytes: int, timeout_s: float | None, secure: bool = False) -> None:
        self.table = table
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._scheme = "https" if secure else "http"
        self._websocket_scheme = "wss" if secure else "ws"
        self._places: dict[bytes, Place] = {}
        self._hosts: dict[bytes, bool] = {}

    def read(
        self,
        method: bytes,
        target: bytes,
        version: str,
        headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
    ) -> RequestHead:
        """The head of one request; `headers` with names in lower case. Raises Refusal for what must not be served."""
        version_1_0 = version == "1.0"
        if not version_1_0 and version != "1.1":
            raise Refusal(400, f"HTTP/{version} is not spoken here: send HTTP/1.1")
        head = RequestHead(method == b"HEAD", version_1_0, keep_alive)
        if self._timeout_s is not None:
            head.timeout_s = self._timeout_s
        hosts = 0
        for name, value in headers:
            if name in _SPECIAL:
                if name == b"host":
                    hosts += 1
                    if value not in self._hosts:
                        self._learn_host(value)
                else:
                    self._read_special(head, name, value)
        if hosts != 1 and (hosts or not version_1_0):
            raise Refusal(400, f"a request has one Host header, not {hosts}")
        known_method = _METHODS.get(method) or _other_method(method)
        if not target.startswith(b"/"):
            target = self._origin_form(method, target, headers)
        place = self._places.get(target) or self._find(target)
        if place.missing:
            target = place.missing + target
        route = place.route
        if route is not None:
            head.route = route
            timeout_s = route.timeout_s
            if timeout_s is not None and (head.timeout_s is None or timeout_s < head.timeout_s):
                head.timeout_s = timeout_s
            if route.sticky is not None:
                head.key = key_of(route.sticky, target, headers)
                head.marked = head.marked or head.key is not None
        if place.local:
            head.local = place.local
        if place.refusal is not None:
            head.refusal = place.refusal
        scheme = self._scheme
        if head.upgrade and not place.local and wants_websocket(head, known_method, headers):
            check_websocket(head, headers)
            head.websocket, head.expect, scheme = True, False, self._websocket_scheme
        # An HttpHead, as its tuple: the struct would be made only to be encoded.
        http = _encode((known_method, target, place.root_path, headers, version, scheme, client, server))
        if len(http) > MAX_META_BYTES - META_RESERVE_BYTES:
            raise Refusal(431, "the request's head has too many headers")
        head.http = msgspec.Raw(http)
        # A client that names its requests names each one differently.
        if head.plain and head.content_length >= 0 and place.refusal is None and not head.request_id:
            head.repeatable = route is not None and not (head.expect or head.upgrade or head.trace)
        return head

    def _learn_host(self, value: bytes) -> None:
        """Check a Host header, and remember a good one."""
        if not _SANE_HOST(value):
            raise Refusal(400, "the Host header is not a host")
        if len(self._hosts) >= REMEMBERED:
            self._hosts.clear()
        if len(value) <= REMEMBERED_BYTES:
            self._hosts[value] = True

    def _read_special(self, head: RequestHead, name: bytes, value: bytes) -> None:
        """Take note of a header that concerns the ingress. Of repeated ones the last counts; lengths never repeat."""
        if name == b"content-length":
            length = int(value)
            if length > self._max_body_bytes:
                raise Refusal(413, f"the body is longer than the {self._max_body_bytes} bytes that are allowed")
            head.content_length = length
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Refusal(501, "no transfer encoding but chunked is served")
            if head.version_1_0:
                raise Refusal(400, "HTTP/1.0 has no transfer encodings")
            head.content_length = -1
        elif name == b"x-request-id":
            head.request_id = str(value, "ascii") if _SANE_ID(value) else ""
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise Refusal(417, "no expectation but 100-continue is met")
            head.expect = not head.version_1_0
        elif name == b"upgrade":
            head.upgrade = True
        elif name == b"x-request-timeout-seconds":
            if not _SANE_SECONDS(value):
                written = str(value[:40], "latin-1")
                raise Refusal(400, f"x-request-timeout-seconds {written!r} must be a number of seconds, such as 2.5")
            # The instance's own limit stays one, and so does the application's.
            asked_s = float(value)
            head.timeout_s = asked_s if self._timeout_s is None else min(asked_s, self._timeout_s)
        elif name == b"x-request-priority":
            try:
                head.priority = priority_of_text(value)
            except OptionError as error:
                raise Refusal(400, f"x-request-priority: {error}") from error
            head.marked = True
        elif name == b"x-request-disconnect-disabled":
            head.outlives = value.lower() in _TRUE
        elif _SANE_ID(value):
            text = value.decode("ascii")
            head.marked = True
            if name == b"serve_multiplexed_model_id":
                head.model_id = text
            elif name == b"traceparent":
                head.trace = text
            else:
                head.sticky = text

    def _origin_form(self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The path of an absolute-form target (RFC 9112 section 3.2.2), whose host then counts and not the header's."""
        if target == b"*" and method == b"OPTIONS":
            return target
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise Refusal(400, "the request target must be a path, such as /predict")
        end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        host, path = rest[:end], rest[end:]
        if not host or not _SANE_HOST(host):
            raise Refusal(400, "the request target has no host, or one that is none")
        headers[:] = [(name, host if name == b"host" else value) for name, value in headers]
        return path if path.startswith(b"/") else b"/" + path

    def _find(self, target: bytes) -> Place:
        """What the target leads to, remembered."""
        if b"#" in target:
            raise Refusal(400, "a request target has no fragment (#)")
        place = self._look_up(target.partition(b"?")[0])
        if len(self._places) >= REMEMBERED:
            self._places.clear()
        if len(target) <= REMEMBERED_BYTES:
            self._places[target] = place
        return place

    def _look_up(self, path: bytes) -> Place:
        table = self.table
        outer = table.root_path
        missing = b""
        if outer:
            if path == outer or path.startswith(outer + b"/"):
                path = path[len(outer) :] or b"/"
            else:
                missing = outer
        if path in (HEALTHZ, ROUTES, b"*"):
            return Place(local=path)
        route = table.find(path)
        if route is not None and not route.unavailable:
            return Place(route, route.root_path, missing=missing)
        if route is not None:
            text = f"application {route.app!r} {route.unavailable}"
        elif not table.known:
            text = "starting: no routes yet"
        else:
            shown = path[:200].decode("latin-1")
            known = ", ".join(sorted(table.prefixes)) or "none yet"
            text = f"no application serves {shown}; routes: {known} (see /-/routes)"
            return Place(refusal=Refusal(404, text, fatal=False))
        return Place(refusal=Refusal(503, text, fatal=False, headers=b"retry-after: 1\r\n"))
