"""What processes count of requests, by application, revision and deployment: how it travels to the controller.

Counts are of the caller's side and cumulative since the process began, so a report that is lost loses nothing. Buckets
of latencies are those of `core.buckets`.
"""

from __future__ import annotations

import msgspec


class Moments(msgspec.Struct, array_like=True):
    """Of reported values: how many, their sum, and the sum of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One mirrored request whose answers differ: who it was, and what each said (shortened text)."""

    request_id: str
    primary: str
    shadow: str
    reason: str = ""


class Mirrored(msgspec.Struct, kw_only=True):
    """What became of the requests that were mirrored to a revision: `skipped` for want of spare capacity, `differed` or
    not when compared (`compared` counts both). `failed`: in the shadow, though not in the primary (these have differed,
    too), or when they were to be compared.
    """

    sent: int = 0
    skipped: int = 0
    failed: int = 0
    compared: int = 0
    differed: int = 0
    examples: tuple[Example, ...] = ()


class Counted(msgspec.Struct, kw_only=True):
    """What one process counted of one deployment of one revision: requests that ended, those that failed (status 500
    and above), latencies by bucket. `mirrored` is of the deployment at the door alone.
    """

    app: str
    revision: int
    deployment: str
    requests: int = 0
    errors: int = 0
    latency: dict[int, int] = {}
    mirrored: Mirrored | None = None


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """A value that somebody reports of a request, or of all requests of a key, maybe hours later.

    `at` is when the request was made, in seconds since the epoch (None: as its id says, else now). `revision` is set
    where it is known.
    """

    app: str
    name: str
    value: float
    request_id: str = ""
    key: str = ""
    at: float | None = None
    revision: int = 0
