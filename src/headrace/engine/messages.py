"""The keeper's protocol: what the controller's engine and the keeper say to each other over the private keeper socket.

Each message is `u32 length | msgpack`, a tagged union. Requests carry a number `n`, which their answer repeats. Exits
are pushed to the one connection that said Open last, and again to the next one until they are acknowledged.
"""

from __future__ import annotations

import msgspec

from headrace.core.resources import Resources
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.wire.prefixed import PrefixedBuffer, prefixed

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
_to_keeper: msgspec.msgpack.Decoder[ToKeeper] = msgspec.msgpack.Decoder(ToKeeper)
_from_keeper: msgspec.msgpack.Decoder[FromKeeper] = msgspec.msgpack.Decoder(FromKeeper)


def encode(message: ToKeeper | FromKeeper) -> bytes:
    """The message with its length before it."""
    return prefixed(_encoder.encode(message))


def to_keeper() -> PrefixedBuffer[ToKeeper]:
    """A buffer for what the keeper receives."""
    return PrefixedBuffer(_to_keeper.decode, _MAX_BYTES, "message to the keeper")


def from_keeper() -> PrefixedBuffer[FromKeeper]:
    """A buffer for what the keeper sends."""
    return PrefixedBuffer(_from_keeper.decode, _MAX_BYTES, "message of the keeper")
