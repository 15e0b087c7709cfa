"""What the builder process tells the command that started it, on its standard output among whatever else is printed.

In: an event. Out: one line that begins with a mark no text has, and back. Both ends are of one installation.
"""

from __future__ import annotations

import msgspec

from headrace.spec.application import ApplicationSpec
from headrace.wire.frames import BROKEN

MARK = "\x1e"  # ASCII's record separator
NO_HTTP = 3  # the builder's exit code when it is not the application that is wrong


class Line(msgspec.Struct, frozen=True, tag=True):
    """What is going on."""

    text: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The application runs. `address` is `http://host:port`, or "" without HTTP."""

    app: str
    revision: int
    route_prefix: str | None
    address: str


class Failure(msgspec.Struct, frozen=True, tag=True):
    """It does not, and why: a message, or with `traceback` the user's own."""

    text: str
    traceback: bool = False


class Imported(msgspec.Struct, frozen=True, tag=True):
    """The files that the application's own modules were read from, as far as it was imported."""

    files: tuple[str, ...]


class Waiting(msgspec.Struct, frozen=True, tag=True):
    """The builder begins as soon as it gets SIGUSR1."""


Event = Line | Ready | Failure | Imported | Waiting


class Built(msgspec.Struct, frozen=True):
    """An application as another process deploys it, with its source packs. Written to a file of its own, as msgpack."""

    spec: ApplicationSpec
    packs: dict[str, bytes] = {}


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode_built(built: Built) -> bytes:
    """The application as bytes."""
    return msgspec.msgpack.encode(built)


def decode_built(data: bytes) -> Built | None:
    """The application, or None for bytes that are none."""
    try:
        return msgspec.msgpack.decode(data, type=Built)
    except BROKEN:
        return None


def written(event: Event) -> str:
    """The event as one line, without its end."""
    return MARK + _encoder.encode(event).decode()


def read(line: str) -> Event | None:
    """The event that the line is, or None for a line that somebody else printed."""
    if not line.startswith(MARK):
        return None
    try:
        return _decoder.decode(line[len(MARK) :])
    except (*BROKEN, UnicodeEncodeError):  # the last: what is no UTF-8 came as lone surrogates
        return None
