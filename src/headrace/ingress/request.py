"""The head of an HTTP request: what the parser found, checked, and turned into what a call needs.

In: method, target and headers from the parser of a connection. Out: a RequestHead, or a Refusal: what is ambiguous or
malformed is refused here, so that nobody behind the ingress can read it differently than the ingress did. The parser
(llhttp, strict) has refused before: bare LF, folded lines, NUL, both lengths, two lengths, what is no number.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

from headrace.wire.frames import MAX_META_BYTES

if TYPE_CHECKING:
    from headrace.ingress.routes import Route, RouteTable

HEALTHZ = b"/-/healthz"
ROUTES = b"/-/routes"
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
        b"x-request-id",
        b"x-request-timeout-seconds",
        b"x-session-id",
    }
)
_SANE_ID = re.compile(rb"[\x20-\x7e]{1,128}").fullmatch
_SANE_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*").fullmatch
_SANE_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?").fullmatch
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

    `content_length` is -1 for a chunked body. `request_id` "" means that the ingress makes one. `refusal` is the answer
    to a request that is well formed but that no application takes; `local` is a path that the ingress answers.
    `repeatable`: the next request with these very bytes as its head can be known without reading it.
    """

    __slots__ = (
        "content_length",
        "expect",
        "http",
        "is_head",
        "keep_alive",
        "local",
        "model_id",
        "plain",
        "refusal",
        "repeatable",
        "request_id",
        "route",
        "sticky",
        "timeout_s",
        "trace",
        "upgrade",
        "version_1_0",
    )

    def __init__(
        self, *, is_head: bool = False, version_1_0: bool = False, keep_alive: bool = False, request_id: str = ""
    ) -> None:
        self.is_head = is_head
        self.version_1_0 = version_1_0
        self.keep_alive = keep_alive
        # The answer needs nothing special: its head can be written from a template.
        self.plain = keep_alive and not is_head and not version_1_0
        self.content_length = 0
        self.expect = False
        self.upgrade = False
        self.repeatable = False
        self.request_id = request_id
        self.timeout_s: float | None = None
        self.sticky: str | None = None
        self.model_id: str | None = None
        self.trace: str | None = None
        self.route: Route | None = None
        self.refusal: Refusal | None = None
        self.local = b""
        self.http = _NIL


UNREADABLE = RequestHead()  # stands for the head of a request that could not be read


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The request id that the client gave, or "" for none or one that is not printable ASCII of at most 128 bytes."""
    for name, value in headers:
        if name == b"x-request-id" and _SANE_ID(value):
            return value.decode("ascii")
    return ""


class HeadReader:
    """Reads heads against one route table and one set of limits; one per process and table."""

    __slots__ = ("_max_body_bytes", "_timeout_s", "table")

    def __init__(self, table: RouteTable, max_body_bytes: int, timeout_s: float | None) -> None:
        self.table = table
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    def read(
        self,
        method: str,
        target: bytes,
        version: str,
        headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
    ) -> RequestHead:
        """The head of one request; `headers` with names in lower case. Raises Refusal for what must not be served."""
        if version != "1.1" and version != "1.0":
            raise Refusal(400, f"HTTP/{version} is not spoken here: send HTTP/1.1")
        if method == "CONNECT":
            raise Refusal(
                405, "CONNECT is not served", headers=b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
            )
        head = RequestHead(is_head=method == "HEAD", version_1_0=version == "1.0", keep_alive=keep_alive)
        head.timeout_s = self._timeout_s
        hosts = 0
        for name, value in headers:
            if name in _SPECIAL:
                if name == b"host":
                    hosts += 1
                    if not _SANE_HOST(value):
                        raise Refusal(400, "the Host header is not a host")
                else:
                    self._read_special(head, name, value)
        if hosts != 1 and (hosts or not head.version_1_0):
            raise Refusal(400, "a request has one Host header, not " + str(hosts))
        if not target.startswith(b"/"):
            target = self._origin_form(method, target, headers)
        if b"#" in target:
            raise Refusal(400, "a request target has no fragment (#)")
        target, root_path = self._find(head, target)
        # An HttpHead, as its tuple: the struct would be made only to be encoded.
        http = _encode((method, target, root_path, headers, version, "http", client, server))
        if len(http) > MAX_META_BYTES - META_RESERVE_BYTES:
            raise Refusal(431, "the request's head has too many headers")
        head.http = msgspec.Raw(http)
        head.repeatable = head.plain and head.route is not None and head.refusal is None and not head.upgrade
        head.repeatable = head.repeatable and not head.expect and head.content_length >= 0
        return head

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
            head.request_id = value.decode("ascii") if _SANE_ID(value) else ""
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise Refusal(417, "no expectation but 100-continue is met")
            head.expect = not head.version_1_0
        elif name == b"upgrade":
            if value.lower() == b"websocket":
                raise Refusal(501, "WebSockets are not served yet")
            head.upgrade = True
        elif name == b"x-request-timeout-seconds":
            if not _SANE_SECONDS(value):
                raise Refusal(400, "x-request-timeout-seconds must be a number of seconds, such as 2.5")
            # The instance's own limit stays one.
            head.timeout_s = min(float(value), self._timeout_s or math.inf)
        elif _SANE_ID(value):
            text = value.decode("ascii")
            if name == b"serve_multiplexed_model_id":
                head.model_id = text
            elif name == b"traceparent":
                head.trace = text
            else:
                head.sticky = text

    def _origin_form(self, method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The path of an absolute-form target (RFC 9112 section 3.2.2), whose host then counts and not the header's."""
        if target == b"*" and method == "OPTIONS":
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

    def _find(self, head: RequestHead, target: bytes) -> tuple[bytes, str]:
        """Set who answers; return the target below the instance's root path, whether a proxy took that away or not."""
        table = self.table
        path = target.partition(b"?")[0]
        outer = table.root_path
        if outer:
            if path == outer or path.startswith(outer + b"/"):
                path = path[len(outer) :] or b"/"
            else:
                target = outer + target
        if path in (HEALTHZ, ROUTES, b"*"):
            head.local = path
            return target, ""
        route = head.route = table.find(path)
        if route is None and not table.known:
            head.refusal = Refusal(503, "starting: no routes yet", fatal=False, headers=b"retry-after: 1\r\n")
            return target, ""
        if route is None:
            shown = path[:200].decode("latin-1")
            known = ", ".join(sorted(table.prefixes)) or "none yet"
            head.refusal = Refusal(404, f"no application serves {shown}; routes: {known} (see /-/routes)", fatal=False)
            return target, ""
        if route.unavailable:
            head.refusal = Refusal(
                503, f"application {route.app!r} {route.unavailable}", fatal=False, headers=b"retry-after: 1\r\n"
            )
        return target, route.root_path
