"""Answers of requests that are mirrored, as a router keeps them: what they are, and how two of them differ.

In: replies and errors as they come, whole or in parts. Out: the same with its status read, texts for people, and what a
replica is asked to compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.core.compare import LONGEST_TEXT, difference, first_difference, shortened
from headrace.spec.errors import HeadraceError, InstanceError, NoSpareCapacityError
from headrace.wire.compare import Side, head_of, is_json
from headrace.wire.frames import BROKEN, GRPC, HTTP, ErrorInfo, GrpcStatus

JSON_SHOWN_BYTES = 64 * 1024  # JSON up to this size is read to say where two answers differ

_NO_SPARE = f"{NoSpareCapacityError.__module__}.{NoSpareCapacityError.__qualname__}"
_json = msgspec.json.Decoder().decode
_status = msgspec.msgpack.Decoder(GrpcStatus).decode


class Answer(msgspec.Struct):
    """What a call was answered. `error`: why it failed, "" when it did not; then `status` may be known nevertheless."""

    kind: int = 0  # HTTP, GRPC, or 0 for a handle's
    status: int = 0
    content_type: str | None = None
    body: bytes = b""
    buffers: Sequence[memoryview | bytes] = ()
    error: str = ""
    refused: bool = False  # for want of spare capacity, or because this process ends

    @property
    def size(self) -> int:
        return size_of(self.body, self.buffers)

    def same_as(self, other: Answer) -> bool:
        """Whether both are the very same bytes."""
        return self.body == other.body and list(map(bytes, self.buffers)) == list(map(bytes, other.buffers))

    def text(self) -> str:
        """For a person to read."""
        if self.error:
            return shortened(self.error)
        if self.kind == HTTP:
            words = self.body[: 4 * LONGEST_TEXT].decode(errors="replace")
            return shortened(words if self.status == 200 else f"{self.status} {words}")
        return f"<{self.size} bytes>" if not self.status else f"status {self.status}, <{self.size} bytes>"


def answer_of(kind: int, meta: bytes, body: bytes, buffers: Sequence[memoryview | bytes]) -> Answer:
    """The reply as it came, its status read."""
    if kind == HTTP:
        status, content_type = head_of(meta)
        error = (
            f"status {status}: {body[:LONGEST_TEXT].decode(errors='replace')}" if status >= 500 or not status else ""
        )
        return Answer(kind, status, content_type, body, buffers, error)
    if kind == GRPC and meta:
        try:
            status = _status(meta).code
        except BROKEN:
            return Answer(kind, 0, None, body, buffers, "a status that cannot be read")
        return Answer(kind, status, None, body, buffers)
    return Answer(kind, 0, None, body, buffers)


class Gathered:
    """A reply as its parts come. `size` grows with them."""

    __slots__ = ("buffers", "meta", "parts", "size")

    def __init__(self, meta: bytes, payload: bytes, buffers: Sequence[memoryview | bytes]) -> None:
        self.meta = meta
        self.parts = [payload]
        self.buffers = buffers
        self.size = size_of(payload, buffers)

    def add(self, payload: bytes) -> None:
        self.parts.append(payload)
        self.size += len(payload)

    def answer(self, kind: int) -> Answer:
        body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        return answer_of(kind, self.meta, body, self.buffers)


def size_of(body: bytes, buffers: Sequence[memoryview | bytes]) -> int:
    return len(body) + sum(map(len, buffers)) if buffers else len(body)


def failure_of(error: HeadraceError | ErrorInfo) -> Answer:
    if isinstance(error, ErrorInfo):
        kind, message = error.type_name, error.message
        refused = kind == _NO_SPARE
    else:
        kind, message = type(error).__name__, str(error)
        refused = isinstance(error, NoSpareCapacityError | InstanceError)
    return Answer(status=error.status, error=f"{kind.removeprefix('builtins.')}: {message}", refused=refused)


def side_of(answer: Answer) -> Side:
    content_type = None if not answer.kind else answer.content_type or ""
    return Side(answer.body, content_type, tuple(map(bytes, answer.buffers)))


def kind_of_error(error: str) -> str:
    return error.partition(":")[0]


def difference_of(primary: Answer, shadow: Answer) -> str:
    """Where and how two answers differ, of which it is known that they do."""
    if primary.error and shadow.error:
        return f"the primary failed ({primary.error}), and so did the shadow, otherwise: {shadow.error}"
    if primary.error:
        return f"the primary failed, the shadow did not: {primary.error}"
    if primary.status != shadow.status:
        return f"status {primary.status} against {shadow.status}"
    one, other = primary.body, shadow.body
    if is_json(primary.content_type) and is_json(shadow.content_type) and max(len(one), len(other)) <= JSON_SHOWN_BYTES:
        try:
            return difference(_json(one), _json(other)) or "the same values, written otherwise"
        except BROKEN:
            pass  # one of them is none: then by bytes
    return f"they differ from byte {first_difference(one, other)} on, of {len(one)} against {len(other)}"
