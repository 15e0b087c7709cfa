"""One call to one deployment, from `Router.submit` to its end. Ingress and handles subclass it; pools move it."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from headrace.core.buckets import BOUNDS
from headrace.router.asked import text_of
from headrace.spec.errors import HeadraceError
from headrace.spec.hedging import HedgingConfig
from headrace.wire.frames import FAULT, ErrorInfo
from headrace.wire.items import RecordReader

if TYPE_CHECKING:
    from headrace.core.hedging import Line
    from headrace.observe.tally import Tally
    from headrace.router.approach import Approach
    from headrace.router.hedges import HedgeCopy
    from headrace.router.link import Link
    from headrace.router.mirror import Watch
    from headrace.router.pool import Pool
    from headrace.router.reservation import Reservation
    from headrace.wire.connection import Outflow
    from headrace.wire.payload import Payload

# What an item is (wire.items.PLAIN or STATUS), its bytes, its external buffers, what it cost of the window.
Item = tuple[int, bytes, Sequence[memoryview], int]

NO_HTTP = msgspec.Raw(b"\xc0")
KEPT_BYTES = 1024 * 1024  # a body up to this size is kept for a repeat


class Call:
    """Set what is needed, submit it, and be told by the `on_*` methods, all on the thread of the router's loop.

    Exactly one of `on_reply`, `on_items` and `on_error` comes first. A call whose `kind` has STREAM gets its result by
    `on_items`, until `more` is False or `on_error` comes. When the flags of `on_reply` have MORE, `on_data` brings the
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
    key: str | None = None  # by which it keeps to a revision; None: its session (`sticky`), else its id
    model_id: str | None = None
    trace: str | None = None
    priority = 0  # of calls that wait, the higher first
    kind = 0  # flags of the CALL frame that say what kind it is: HTTP, with STREAM a WebSocket; GRPC; STREAM
    http: msgspec.Raw = NO_HTTP
    body: bytes = b""
    more = False  # the rest of the body follows by Router.send_body
    buffers: Sequence[memoryview | bytes] = ()  # external buffers of the payload; after on_reply, those of the result
    near = True  # its answer is worth waiting for awake, when it is the only one
    whole = False  # join the parts of the result before on_reply
    hedge: HedgingConfig | bool | None = None  # None: as the deployment says; False: never
    target: str | None = None  # the one replica that it is for
    slot: Reservation | None = None  # that is kept for it there
    mirrored = False  # nobody gets its answer: it takes only what others leave (router/mirror.py)
    about: Payload | None = None  # the arguments that it is about, where its body does not say
    reader: RecordReader | None = None  # set where `kind` has STREAM and not HTTP: the result comes by on_items

    counts = True  # it is a request, and does not only keep a slot for one

    # What the router keeps.
    pool: Pool | None = None
    watch: Watch | None = None  # it is to be mirrored
    tally: Tally | None = None  # that counts its end; None: none does, or it has counted a failure
    came_at = 0.0  # on time.perf_counter: the loop's own clock may stand still for a millisecond
    counted = False  # of streams of items: the first of them
    link: Link | Approach | None = None
    stream = 0
    drawn = False  # the router chose the revision, and may choose again while the call has not started
    held = False  # its result streams, and it keeps its slot meanwhile
    answered = False  # on_reply has been called: there is no going back
    suspect = False  # it was in work when a replica died, and `kind` says so wherever it goes
    started = False  # the replica has said so; of suspects alone
    queued_since: float | None = None
    observed = False  # how long it takes is of interest: it has a deadline, or may be hedged
    reservation = 0  # the stream on its link that keeps a slot for it
    sent_at = 0.0  # of observed calls alone
    line: Line[Call] | None = None  # where it waits for its copy; None: it has none any more, or never
    copy: HedgeCopy | None = None  # is under way beside it
    departed = False  # it has left once, which its hedger has counted
    expiry: asyncio.TimerHandle | None = None
    outflow: Outflow | None = None
    streamed = False  # its body was not whole when it was sent
    kept: list[bytes] | None = None  # what has left of a streamed body since, as long as it can be repeated
    kept_bytes = 0
    paused = False  # send_body said no while there was no replica yet
    parts: list[bytes] | None = None  # of a result that is joined before it is handed on
    reply_flags = 0
    reply_meta = b""

    def __init__(self, app: str, deployment: str, method: str = "__call__") -> None:
        self.app = app
        self.deployment = deployment
        self.method = method

    def count(self, flags: int) -> None:
        """Its answer has come, or the first part of it. Called once, when it is `answered`, and before `on_reply`."""
        tally = self.tally
        if tally is None:
            return
        if flags & FAULT:
            tally.failed(500)
            self.tally = None
        else:
            tally.requests += 1
            tally.latency[bisect_right(BOUNDS, perf_counter() - self.came_at)] += 1

    def count_failure(self, status: int) -> None:
        """It fails with this status, maybe after the first part of its answer. What was counted as a failure stays."""
        tally, self.tally = self.tally, None
        if tally is None:
            return
        if self.answered and (self.counted or self.reader is None):
            tally.broke(status)
        else:
            tally.failed(status)

    def fail(self, error: HeadraceError | ErrorInfo) -> None:
        """It ends with this error, which is counted and told to it."""
        if self.tally is not None:
            self.count_failure(error.status)
        self.on_error(error)

    def unstarted(self) -> bool:
        """The replica cannot have begun with it: it waits for its body, or for its turn among suspects."""
        return (self.outflow is not None and not self.outflow.granted) or (self.suspect and not self.started)

    def keep(self, data: bytes, more: bool) -> None:
        """A part of a streamed body leaves: keep it for a repeat, as long as the whole is small enough."""
        self.more = more
        if self.kept is not None:
            self.kept.append(data)
            self.kept_bytes += len(data)
            assert self.outflow is not None
            if self.kept_bytes > KEPT_BYTES and self.outflow.granted:
                self.kept = None

    def take_back_body(self, started: bool) -> bool:
        """Make the body such that it can be sent again from its start. False: it cannot, or is too large to repeat."""
        outflow, self.outflow = self.outflow, None
        if outflow is not None and self.streamed:
            if self.kept is None:
                return False
            self.body += b"".join(self.kept)
            self.kept = []
            self.paused = self.paused or outflow.starved
        if not all(isinstance(buffer, bytes) or type(buffer.obj) is bytes for buffer in self.buffers):
            return False  # they are the caller's own, and may have changed
        return not started or len(self.body) + sum(map(len, self.buffers)) <= KEPT_BYTES

    def text(self) -> str:
        """The text that it is about, for those who choose a replica by it; "" for none. Costs a decode."""
        return text_of(self)

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """The result, or its first part."""
        raise NotImplementedError

    def on_data(self, payload: bytes, more: bool) -> None:
        """The next part of the result; `Router.consumed` lets the writer go on."""
        raise NotImplementedError

    def on_items(self, items: list[Item], more: bool) -> None:
        """The next items, as they came; `Router.consumed` by the cost of each lets the maker go on."""
        raise NotImplementedError

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        """The call failed: an ErrorInfo is what user code raised, a HeadraceError what kept it from running."""
        raise NotImplementedError

    def on_writable(self) -> None:
        """The streamed body may go on."""
