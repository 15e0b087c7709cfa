"""The data plane's frames: header, kinds, flags, and the metadata of a call. Bytes in and out; no socket here.

A frame is `u32 length | u32 stream | u16 meta | u16 load | u8 kind | u8 flags`, little endian, then `length` bytes of
which the first `meta` are metadata (msgpack) and the rest payload. `stream` numbers the call on its connection, chosen
by the caller, never reused; 0 is the connection itself. Replies carry the replica's `load`, its calls in work.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

PROTOCOL_VERSION = 5
HEADER = struct.Struct("<IIHHBB")
HEADER_BYTES = HEADER.size
MAX_FRAME_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = MAX_FRAME_BYTES - HEADER_BYTES
MAX_META_BYTES = 48 * 1024
WINDOW_BYTES = 256 * 1024  # what a stream may send before it needs credit
U32 = struct.Struct("<I")
WAITING_COUNTS = struct.Struct("<II")  # calls that wait, the age in ms of the most urgent plus its head start
PLACES_COUNTS = struct.Struct("<III")  # number of the question, places needed in all, places held (core.places)
GRANT_COUNTS = struct.Struct("<II")  # number of the last question, places that may be held in all

HELLO, CALL, DATA, REPLY, ERROR, CANCEL, CREDIT, REJECT = 1, 2, 3, 4, 5, 6, 7, 8
WAITING, WITHDRAW, OFFER, DECLINE, ITEM, ARENA, RELEASE, GOAWAY, FREED = 9, 10, 11, 12, 13, 14, 15, 16, 17
STARTED = 18  # the call, a SUSPECT, has started
PLACES, GRANT = 19, 20  # places for calls that wait: how many the caller needs, how many it may hold (MORE may come)
MODELS = 21  # to a router: a ModelsInfo, what has changed of the models that the replica has loaded
LOAD = 22  # to a replica: load the model whose id is the payload, as soon as it may, for calls to come
LAST_KIND = LOAD

# What msgspec raises of bytes that are not the message they should be.
BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# Flags of CALL, DATA, ITEM and REPLY.
MORE = 1  # DATA (or ITEM) frames follow on this stream
HTTP = 2  # CALL: meta has an HTTP head; REPLY: payload is an HTTP body, meta its msgpack ResponseHead (empty: 200 JSON)
LEASED = 4  # CALL: uses the slot that was offered
FAULT = 4  # REPLY: the answer says that the server failed (HTTP status 500 and above, or what is that in gRPC)
STREAM = 8  # CALL: the result is wanted as items; with HTTP: the request is to become a WebSocket
OFFERED = 16  # REPLY, ERROR, FREED: the slot that this frees is offered to the same caller
RESERVED = 16  # CALL: it is no call, but keeps a slot for one; or, with meta.reservation, that one
ARENAS = 32  # payload refers to blocks of arenas
HELD = 128  # REPLY with MORE: the call keeps its slot while it streams, until FREED
GRPC = 128  # CALL: meta.http is a GrpcHead and the body protobuf; so is the result, whose meta is a GrpcStatus
SUSPECT = 64  # CALL: it was in flight when a replica died, and runs beside no other such call


# The codes of gRPC that say that the server failed: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
GRPC_FAULTS = frozenset((2, 4, 13, 14, 15))


class CallMeta(msgspec.Struct, array_like=True, gc=False):
    """What every call carries. `remaining_s` is how long its answer still matters, no clock time (-1: no deadline).

    `http` is the msgpack of an HttpHead, or of a GrpcHead where the flag GRPC is set, decoded only when asked for (nil:
    the call was made by a handle). Of calls that wait, those of higher `priority` go first. `waited_s` is how long it
    had waited for a replica when it was sent, `reservation` the stream that keeps its slot (0: none does), `mirrored`
    says that nobody gets the answer of the request that it belongs to: most calls are sent without these three.
    """

    request_id: str
    app: str
    revision: int
    snapshot: int
    key: str
    method: str
    remaining_s: float = -1.0
    attempt: int = 1
    sticky: str | None = None
    model_id: str | None = None
    trace: str | None = None
    priority: int = 0
    http: msgspec.Raw = msgspec.Raw(b"\xc0")
    waited_s: float = 0.0
    reservation: int = 0
    mirrored: bool = False


class HttpHead(msgspec.Struct, array_like=True, gc=False):
    """The head of an HTTP request as it came: `target` is the raw path with its query; names in lower case."""

    method: str
    target: bytes
    root_path: str
    headers: list[tuple[bytes, bytes]]
    http_version: str
    scheme: str
    client: tuple[str, int] | None
    server: tuple[str, int] | None


class ResponseHead(msgspec.Struct, array_like=True, gc=False):
    """The head of an HTTP response, without framing headers (length, encoding, connection): those are the ingress's."""

    status: int
    headers: list[tuple[bytes, bytes]]


class GrpcHead(msgspec.Struct, array_like=True, gc=False):
    """What a gRPC call brings beside its messages: `method` is `/package.Service/Method`, `metadata` as in grpcio
    (values are str, or bytes for keys that end in `-bin`).

    `kind` says which sides stream: "unary_unary", "unary_stream", "stream_unary" or "stream_stream". `servicer` is the
    import path of the function that knows the method's messages. `auth` and `identity` (the name of the property in
    `auth` that identifies the peer) are there where clients show certificates.
    """

    method: str
    kind: str
    metadata: list[tuple[str, Any]]
    peer: str = ""
    servicer: str = ""
    auth: dict[str, list[bytes]] = {}
    identity: str = ""


class GrpcStatus(msgspec.Struct, array_like=True, gc=False):
    """How a gRPC call ended: a status code (0: OK), details, and what user code added to the metadata.

    Among the items of a stream it may also come before the first message: then `initial` and `compression` count.
    """

    code: int = 0
    details: str = ""
    initial: list[tuple[str, Any]] = []
    trailing: list[tuple[str, Any]] = []
    compression: int = 0  # as in grpc.Compression; 0: none was chosen


class ErrorInfo(msgspec.Struct, array_like=True, gc=False):
    """An error on its way to the caller. `pickled` is the exception itself (empty where it could not be pickled)."""

    type_name: str
    message: str
    traceback_text: str
    status: int
    pickled: bytes = b""
    retry_after_s: float = 0.0


class HelloInfo(msgspec.Struct, array_like=True, gc=False):
    """The first frame each way."""

    version: int
    role: str
    id: str
    limit: int = 0  # from a replica: its max_ongoing_requests


class ModelsInfo(msgspec.Struct, array_like=True, gc=False):
    """What has changed of the models in a replica: those `ready` now, those being loaded now, and those not any more.

    The first after the HELLO names all that there are.
    """

    ready: list[str] = []
    loading: list[str] = []
    gone: list[str] = []
