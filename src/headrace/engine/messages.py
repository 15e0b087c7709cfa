"""The keeper's protocol: what the controller's engine and the keeper say to each other over the private keeper socket.

Each message is `u32 length | msgpack`, a tagged union. Requests carry a number `n`, which their answer repeats. Exits
are pushed to the one connection that said Open last, and again to the next one until they are acknowledged.
"""

from __future__ import annotations

import struct

import msgspec

from headrace.core.resources import Resources
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.spec.errors import ProtocolError

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 16 * 1024 * 1024


class Open(msgspec.Struct, frozen=True, tag=True):
    """I am the controller: tell me of exits. Answered by Opened, then the exits that nobody acknowledged."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    keeper_pid: int
    capacity: Resources


class Start(msgspec.Struct, frozen=True, tag=True):
    """Answered by Started or Refused."""

    n: int
    request: ProcessRequest


class Started(msgspec.Struct, frozen=True, tag=True):
    n: int
    info: ProcessInfo


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Not answered: an Exited follows when the process lives."""

    id: str
    grace_s: float


class ListProcesses(msgspec.Struct, frozen=True, tag=True):
    """Answered by Listed."""

    n: int


class Listed(msgspec.Struct, frozen=True, tag=True):
    n: int
    processes: tuple[ProcessInfo, ...]


class ReservePort(msgspec.Struct, frozen=True, tag=True):
    """Answered by PortReserved or Refused."""

    n: int
    name: str
    host: str
    port: int


class PortReserved(msgspec.Struct, frozen=True, tag=True):
    n: int
    port: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """`error` names a class of `headrace.spec.errors`, `message` is its message."""

    n: int
    error: str
    message: str


class Exited(msgspec.Struct, frozen=True, tag=True):
    number: int
    event: ProcessExited


class Acknowledge(msgspec.Struct, frozen=True, tag=True):
    """The exit of this number was handled."""

    number: int


class EndInstance(msgspec.Struct, frozen=True, tag=True):
    """Stop everything; the controller has `grace_s` from now to drain. Not answered."""

    grace_s: float


ToKeeper = Open | Start | Stop | ListProcesses | ReservePort | Acknowledge | EndInstance
FromKeeper = Opened | Started | Listed | PortReserved | Refused | Exited

_encoder = msgspec.msgpack.Encoder()
to_keeper: msgspec.msgpack.Decoder[ToKeeper] = msgspec.msgpack.Decoder(ToKeeper)
from_keeper: msgspec.msgpack.Decoder[FromKeeper] = msgspec.msgpack.Decoder(FromKeeper)


def encode(message: ToKeeper | FromKeeper) -> bytes:
    """The message with its length before it."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Bytes in, whole frames out. Raises ProtocolError for one that is too long."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, in order, without their lengths."""
        rest = self._rest
        rest += data
        frames: list[bytes] = []
        at = 0
        while len(rest) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(rest, at)
            if length > _MAX_BYTES:
                raise ProtocolError(f"a message of {length} bytes to the keeper is over the limit of {_MAX_BYTES}")
            end = at + _LENGTH.size + length
            if len(rest) < end:
                break
            frames.append(bytes(rest[at + _LENGTH.size : end]))
            at = end
        del rest[:at]
        return frames
