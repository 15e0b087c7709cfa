"""One call to one deployment, from `Router.submit` to its end. Ingress and handles subclass it; pools move it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from headrace.spec.errors import HeadraceError
from headrace.wire.frames import ErrorInfo

if TYPE_CHECKING:
    from headrace.router.link import Link
    from headrace.router.pool import Pool
    from headrace.wire.connection import Outflow

NO_HTTP = msgspec.Raw(b"\xc0")


class Call:
    """Set what is needed, submit it, and be told by the `on_*` methods, all on the thread of the router's loop.

    Exactly one of `on_reply` and `on_error` comes first. When the flags of `on_reply` have MORE, `on_data` brings the
    rest (or `on_error`, when the stream breaks), unless `whole` asks for the parts to be joined. After `Router.cancel`
    nothing comes any more. What most calls leave alone is a class attribute: only what differs is stored.
    """

    # What the maker sets.
    app: str
    deployment: str
    method = "__call__"
    revision = 0  # 0: the router draws one from the weights of now
    request_id = ""
    deadline: float | None = None  # seconds on the clock of the router's loop
    attempt = 1
    sticky: str | None = None
    model_id: str | None = None
    trace: str | None = None
    http: msgspec.Raw = NO_HTTP
    body: bytes = b""
    more = False  # the rest of the body follows by Router.send_body
    buffers: Sequence[memoryview | bytes] = ()  # external buffers of the payload; after on_reply, those of the result
    whole = False  # join the parts of the result before on_reply

    # What the router keeps.
    pool: Pool | None = None
    link: Link | None = None
    stream = 0
    drawn = False  # the router chose the revision, and may choose again while the call has not started
    held = False  # its result streams, and it keeps its slot meanwhile
    answered = False  # on_reply has been called: there is no going back
    suspect = False  # it was in work when a replica died
    started = False  # the replica has said so; of suspects alone
    queued_since: float | None = None
    expiry: asyncio.TimerHandle | None = None
    outflow: Outflow | None = None
    first_bytes = 0  # how much of the body went with the CALL frame
    paused = False  # send_body said no while there was no replica yet
    parts: list[bytes] | None = None  # of a result that is joined before it is handed on
    reply_flags = 0

    def __init__(self, app: str, deployment: str, method: str = "__call__") -> None:
        self.app = app
        self.deployment = deployment
        self.method = method

    def unstarted(self) -> bool:
        """The replica cannot have begun with it: it waits for its body, or for its turn among suspects."""
        return (self.outflow is not None and not self.outflow.granted) or (self.suspect and not self.started)

    def take_back_body(self) -> bool:
        """Make the body whole again when the replica has taken none of it. False: too late, a part has left."""
        outflow = self.outflow
        if outflow is None:
            return True
        if outflow.granted:
            return False
        if not self.buffers:
            self.body = self.body[: self.first_bytes] + outflow.take_back()
            self.more = not outflow.ended
            self.paused = self.paused or outflow.starved
        self.outflow = None
        return True

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """The result, or its first part."""
        raise NotImplementedError

    def on_data(self, payload: bytes, more: bool) -> None:
        """The next part of the result; `Router.consumed` lets the writer go on."""
        raise NotImplementedError

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        """The call failed: an ErrorInfo is what user code raised, a HeadraceError what kept it from running."""
        raise NotImplementedError

    def on_writable(self) -> None:
        """The streamed body may go on."""
