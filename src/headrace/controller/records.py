"""What is kept of the controller's records, as bytes: the same for every store.

In: records as the controller has them. Out: msgpack, and the records again. A record that another version made may be
none: decoders raise MsgspecError.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from headrace.core.analysis import Evidence
from headrace.core.attribution import Weights
from headrace.core.fleet import Application
from headrace.core.rollout import Rollout
from headrace.spec.application import ApplicationSpec
from headrace.spec.config import HTTPOptions
from headrace.spec.grpc import GrpcService
from headrace.spec.rollout import ShadowTraffic
from headrace.spec.status import HistoryEvent, RevisionRecord
from headrace.spec.sticky import Sticky


class Traffic(msgspec.Struct, kw_only=True):
    """What is kept of how an application's traffic is shared, under the names that the record has."""

    newest: int = 0
    weights: dict[int, float] = {}
    former: dict[int, float] = {}
    rollout: Rollout | None = None
    ended: Rollout | None = None
    split: dict[int, float] = {}
    fallback: dict[int, float] = {}
    shadows: dict[int, ShadowTraffic] = {}
    sticky: Sticky | None = None
    keyless: bool = False
    evidence: Evidence = msgspec.field(default_factory=Evidence)
    rolled_back: bool = False

    @classmethod
    def of(cls, app: Application) -> Traffic:
        """That of the application."""
        return cls(**{field: getattr(app, field) for field in cls.__struct_fields__})

    def give(self, app: Application) -> None:
        """Have the application share its traffic so."""
        for field in self.__struct_fields__:
            setattr(app, field, getattr(self, field))


encode = msgspec.msgpack.Encoder().encode
decode_traffic = msgspec.msgpack.Decoder(Traffic).decode
decode_spec = msgspec.msgpack.Decoder(ApplicationSpec).decode
decode_record = msgspec.msgpack.Decoder(RevisionRecord).decode
decode_event = msgspec.msgpack.Decoder(HistoryEvent).decode
decode_weights = msgspec.msgpack.Decoder(Weights).decode
decode_http = msgspec.msgpack.Decoder(HTTPOptions).decode
decode_grpc = msgspec.msgpack.Decoder(GrpcService | None).decode


def lacking(apps: Iterable[Application]) -> str:
    """The name of an application that lacks a revision that it runs; "": there is none."""
    for app in apps:
        if app.target not in app.revisions or (app.current and app.current not in app.revisions):
            return app.name
    return ""
