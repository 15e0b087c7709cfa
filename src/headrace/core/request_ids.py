"""Ids of requests that know when they were made: UUIDs of version 7 (RFC 9562, section 5.7).

In: the time, random bytes. Out: the parts of an id; from an id, whoever made it, its time.
"""

from __future__ import annotations

import re

_VERSION_7 = re.compile(
    r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
).fullmatch


def start_of(now_s: float, random: bytes) -> str:
    """The first three quarters of an id, up to its last dash: the time in ms, the version, and 26 of 4 bytes' bits."""
    ms = f"{int(now_s * 1000) & 0xFFFFFFFFFFFF:012x}"
    bits = random.hex()
    return f"{ms[:8]}-{ms[8:]}-7{bits[:3]}-{'89ab'[random[1] & 3]}{bits[5:8]}-"


def new_id(now_s: float, random: bytes) -> str:
    """An id of this time (in seconds since the epoch), with 74 of the bits of `random`, which are 10 bytes."""
    return start_of(now_s, random[:4]) + random[4:10].hex()


def time_of(request_id: str) -> float | None:
    """When the id was made, in seconds since the epoch, to within two seconds of those that are made here; None for
    one that does not tell.
    """
    parts = _VERSION_7(request_id)
    return None if parts is None else int(parts[1] + parts[2], 16) / 1000
