"""Two answers to be compared by a replica of the shadow, and what it says of them: bytes in and out.

In, at the router: the answers of the primary and of the shadow, as they came. Out, at the replica: the same; and back.
"""

from __future__ import annotations

import msgspec

from headrace.spec.rollout import Comparison
from headrace.wire.frames import BROKEN, ResponseHead

COMPARE = "__headrace_compare__"  # the method that is no method of the user's: a replica answers it itself

_head = msgspec.msgpack.Decoder(ResponseHead).decode


class Side(msgspec.Struct, array_like=True):
    """One answer. `content_type` is that of an HTTP response; None: the result of a call by a handle, as `wire.payload`
    encoded it, with its external buffers.
    """

    body: bytes
    content_type: str | None = None
    buffers: tuple[bytes, ...] = ()


class Pair(msgspec.Struct, array_like=True):
    """What is to be compared, and how."""

    comparison: Comparison
    primary: Side
    shadow: Side


class Compared(msgspec.Struct, array_like=True):
    """`reason` is where and how the two differ, "" when they do not. The texts show both, shortened."""

    reason: str = ""
    primary: str = ""
    shadow: str = ""


encode = msgspec.msgpack.Encoder().encode
decode_pair = msgspec.msgpack.Decoder(Pair).decode
decode_compared = msgspec.msgpack.Decoder(Compared).decode


def head_of(meta: bytes) -> tuple[int, str]:
    """The status and the content type of an HTTP reply, by the metadata of its frame; (0, "") where that is none."""
    if not meta:
        return 200, "application/json"
    try:
        head = _head(meta)
    except BROKEN:
        return 0, ""
    for name, value in head.headers:
        if name.lower() == b"content-type":
            return head.status, value.decode("latin-1")
    return head.status, ""


def is_json(content_type: str | None) -> bool:
    """Whether the content type says JSON (`application/json`, `application/problem+json`)."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind.endswith(("/json", "+json"))
