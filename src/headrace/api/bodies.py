"""What requests to the API hold and what it answers with, where no other part of Headrace has a struct for it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headrace.api.desk import Standing
from headrace.spec.rollout import Command, Strategy

Reason = Annotated[str, msgspec.Meta(max_length=2000)]
Revision = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]  # of a revision that is named
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
StrategyName = Literal["rolling_update", "canary", "blue_green", "shadow"]
MOST_SIGNALS = 10_000


class RolloutCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rollout is told. `revision` guards against another one's rollout (0: whichever is under way)."""

    command: Command
    reason: Reason = ""
    revision: Revision = 0


class RollbackOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to go back to (`revision` 0: the last one that was promoted before the present one), and how."""

    revision: Revision = 0
    reason: Reason = ""
    rollout: Strategy | StrategyName | None = None


class Traffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of revisions, which add up to 1. `sticky` is "header:NAME", "cookie:NAME" or "query:NAME"; null does away
    with it, and left out it stays as it is.
    """

    weights: dict[Number, Share]
    sticky: str | msgspec.UnsetType | None = msgspec.UNSET


class Compared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How answers are compared: "exact" (bytes), or "numeric" (JSON, numbers within `atol + rtol × primary's`)."""

    kind: Literal["exact", "numeric"] = "exact"
    rtol: float = 0.0
    atol: float = 0.0


class MirroredShare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The share of the requests that is mirrored to a revision."""

    fraction: Share
    compare: Compared = Compared()


class Shadows(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Revision -> what is mirrored to it; to no other is anything mirrored."""

    shadows: dict[Number, MirroredShare]


class Reported(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value that is reported of a request (`request_id`), or of all requests of a sticky `key`.

    `at` is when the request was made, in seconds since the epoch (null: as its id says, else now). `revision` is given
    where it is known (0: it is found out).
    """

    name: Name
    value: float
    request_id: Annotated[str, msgspec.Meta(max_length=200)] = ""
    key: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    at: float | None = None
    revision: Revision = 0


class ReportedSignals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values that are reported together."""

    signals: Annotated[list[Reported], msgspec.Meta(min_length=1, max_length=MOST_SIGNALS)]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """How many signals were handed over."""

    signals: int


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """Where the declared applications are, and which ones are deleted because they were not declared."""

    applications: dict[str, Standing] = {}
    deleted: tuple[str, ...] = ()


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """Which applications are being deleted, or are gone where that was waited for."""

    deleted: tuple[str, ...] = ()


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """`version` is that of the API, `headrace_version` that of the program, `instance` the name of its instance."""

    version: str
    headrace_version: str
    instance: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The API answers. Of the instance it says nothing."""

    status: str = "ok"
