"""Where the items of a stream go: to a caller that asked for items, or into the body of an HTTP response.

In: what a generator yields. Out: items or parts of a body, through the call's Incoming, which says when there is room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from headrace.replica.response import BYTES_HEAD, TEXT_HEAD, json_body
from headrace.spec.errors import NotServableError
from headrace.wire import payload
from headrace.wire.frames import HTTP, ResponseHead
from headrace.wire.payload import Payload

if TYPE_CHECKING:
    from headrace.replica.incoming import Incoming

LINES_HEAD = msgspec.msgpack.encode(ResponseHead(200, [(b"content-type", b"application/x-ndjson")]))


class Outlet(Protocol):
    """Where the items of one call go. `encode` may be called in any thread; all else is the loop's."""

    def encode(self, item: Any) -> Payload | bytes:
        """The item as it is sent. Raises PayloadError or NotServableError for what cannot be."""

    def put(self, encoded: Payload | bytes) -> bool:
        """Send it. False: wait for `room` before the next."""

    async def room(self) -> None:
        """Until there is room. Raises RequestCancelledError or RequestTimeoutError when nobody waits any more."""

    def end(self) -> None:
        """There is no more: the call is done."""


class ItemOutlet:
    """Items to a caller that asked for items."""

    __slots__ = ("_incoming", "room")

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self.room = incoming.room
        incoming.open_items()

    def encode(self, item: Any) -> Payload:
        return payload.encode(item)

    def put(self, encoded: Payload | bytes) -> bool:
        return self._incoming.put_item(encoded)

    def end(self) -> None:
        self._incoming.end_items()


class BodyOutlet:
    """Items to an HTTP client: text and bytes as they are, all else as lines of JSON. The first one decides which."""

    __slots__ = ("_begun", "_head", "_incoming", "room")

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._head = b""
        self._begun = False
        self.room = incoming.drained

    def encode(self, item: Any) -> bytes:
        head, data = _as_part(item)
        if not self._head:
            self._head = head
        elif head != self._head:
            raise NotServableError(
                f"a generator over HTTP yields text, bytes or JSON, and not now one and now the other: {item!r:.100}"
            )
        return data

    def put(self, encoded: Payload | bytes) -> bool:
        assert isinstance(encoded, bytes)
        if self._begun:
            return self._incoming.write(encoded)
        self._begun = True
        self._incoming.start_reply(encoded, self._head, HTTP)
        return True

    def end(self) -> None:
        if self._begun:
            self._incoming.end()
        else:
            self._incoming.reply(b"", TEXT_HEAD, HTTP)


def _as_part(item: Any) -> tuple[bytes, bytes]:
    if isinstance(item, str):
        return TEXT_HEAD, item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return BYTES_HEAD, bytes(item)
    return LINES_HEAD, json_body(item) + b"\n"
