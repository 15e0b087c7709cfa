"""The Starlette Request that a handler gets, made for each call and parsed only as far as it is looked at.

In: a call of the server, whose metadata carries the HTTP head as the client sent it. Out: a Starlette Request in every
respect; its ASGI scope is built on first use, and a body that came whole is there without waiting.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

import msgspec
from starlette.requests import Request, empty_send

from headrace.spec.errors import PayloadError, RequestCancelledError
from headrace.wire.frames import MORE, HttpHead

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

    from headrace.replica.incoming import Incoming

_decode_head = msgspec.msgpack.Decoder(HttpHead).decode
_decode_json = msgspec.json.Decoder().decode


def scope_of(head: HttpHead) -> Scope:
    """The ASGI scope of an HTTP request. As in uvicorn, `path` is decoded and starts with `root_path`."""
    target, _, query = head.target.partition(b"?")
    if not target.startswith(b"/"):
        target = _path_of_absolute_form(target)
    path = unquote(target.decode("latin-1"))
    root_path = head.root_path
    if root_path and path != root_path and not path.startswith(root_path + "/"):
        # A proxy in front has taken the root path away.
        path, target = root_path + path, root_path.encode() + target
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": head.http_version,
        "method": head.method,
        "scheme": head.scheme,
        "path": path,
        "raw_path": target,
        "query_string": query,
        "root_path": root_path,
        "headers": head.headers,
        "client": head.client,
        "server": head.server,
        "state": {},
    }


def _path_of_absolute_form(target: bytes) -> bytes:
    """The path of `http://host/path` (which a client may send to a proxy), or `*` as it is."""
    _, separator, rest = target.partition(b"://")
    if not separator:
        return target
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"


class _LazyScope:
    """Builds the scope when it is first looked at, and then stands aside: the instance's own attribute comes first."""

    def __get__(self, request: HttpRequest | None, owner: type | None = None) -> Any:
        if request is None:
            return self
        scope = scope_of(_decode_head(request._incoming.meta.http))
        request.__dict__["scope"] = scope
        return scope


class HttpRequest(Request):
    """The HTTP request of one call. It cannot leave its replica: pass on what is needed of it."""

    scope = _LazyScope()  # an instance attribute in Starlette

    # What Starlette's constructor would store, without calling it.
    _stream_consumed = False
    _is_disconnected = False
    _form = None
    _send = staticmethod(empty_send)
    _delivered = False  # receive() has given the body's first part
    _more = False  # and more of it will come
    _gone: asyncio.Event | None = None  # set when the client leaves; there once somebody waits for that

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        if incoming.flags & MORE:
            self._more = True
        else:
            self._body = incoming.body  # type: ignore[assignment]  # only a payload can be a memoryview

    async def json(self) -> Any:
        """The body parsed as JSON, as `json.loads` does it. Raises json.JSONDecodeError (a ValueError)."""
        try:
            return self._json
        except AttributeError:
            body = await self.body()
        try:
            self._json = _decode_json(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # What json.loads takes besides (NaN, UTF-16, a lone surrogate), or its error.
            self._json = json.loads(body)
        return self._json

    async def _receive(self) -> Message:  # an instance attribute in Starlette
        incoming = self._incoming
        if not self._delivered:
            self._delivered = True
            return {"type": "http.request", "body": incoming.body, "more_body": self._more}
        if self._more:
            try:
                part = await incoming.read()
            except RequestCancelledError:
                return {"type": "http.disconnect"}
            self._more = bool(part)
            return {"type": "http.request", "body": part, "more_body": self._more}
        await self._disconnected()
        return {"type": "http.disconnect"}

    @property
    def receive(self) -> Receive:
        """The ASGI receive channel: the body, then `http.disconnect` when the client leaves."""
        return self._receive

    async def _disconnected(self) -> None:
        incoming = self._incoming
        if incoming.cancelled or incoming.expired:
            return
        gone = self._gone
        if gone is None:  # once: an application may ask again and again whether its client is still there
            gone = self._gone = asyncio.Event()
            before = incoming.on_cancel

            def on_cancel() -> None:
                gone.set()
                if before is not None:
                    before()

            incoming.on_cancel = on_cancel
        await gone.wait()

    async def is_disconnected(self) -> bool:
        """Whether the client has left. Takes nothing from the body, unlike Starlette's."""
        return self._incoming.cancelled

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PayloadError(
            "an HTTP request cannot be pickled or sent to another deployment: pass what is needed of it, "
            "e.g. `await request.body()` or `dict(request.headers)`"
        )
