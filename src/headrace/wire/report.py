"""What the builder process tells the command that started it, on its standard output among whatever else is printed.

In: an event. Out: one line that begins with a mark no text has, and back. Both ends are of one installation.
"""

from __future__ import annotations

import msgspec

from headrace.wire.frames import BROKEN

MARK = "\x1e"  # ASCII's record separator


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


Event = Line | Ready | Failure

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


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
