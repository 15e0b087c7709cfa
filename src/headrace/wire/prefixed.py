"""Messages with their length before them, as both private sockets have them: the controller's and the keeper's.

In: bytes as they arrive, or a message. Out: whole messages, or bytes. What is said in them is `control`'s and the
keeper's own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Generic, TypeVar

from headrace.spec.errors import ProtocolError
from headrace.wire.frames import BROKEN

MessageT = TypeVar("MessageT")

_LENGTH = struct.Struct("<I")


def prefixed(body: bytes) -> bytes:
    """The encoded message with its length before it."""
    return _LENGTH.pack(len(body)) + body


class PrefixedBuffer(Generic[MessageT]):
    """Bytes in, whole messages out. `what` names their kind in errors."""

    def __init__(self, decode: Callable[[memoryview], MessageT], limit_bytes: int, what: str) -> None:
        self._decode = decode
        self._limit_bytes = limit_bytes
        self._what = what
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[MessageT]:
        """The messages that `data` completes, in order. Raises ProtocolError for what is too long or no message."""
        rest = self._rest
        rest += data
        messages: list[MessageT] = []
        at = 0
        while len(rest) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(rest, at)
            if length > self._limit_bytes:
                raise ProtocolError(f"a {self._what} of {length} bytes is over the limit of {self._limit_bytes}")
            if len(rest) - at - _LENGTH.size < length:
                break
            start = at + _LENGTH.size
            try:
                with memoryview(rest) as view, view[start : start + length] as body:
                    messages.append(self._decode(body))
            except (*BROKEN, TypeError) as error:  # TypeError: keys that cannot be keys
                raise ProtocolError(f"not a {self._what}: {error}") from error
            at = start + length
        del rest[:at]
        return messages
