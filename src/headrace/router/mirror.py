"""Shadow traffic: copies of requests, sent to a revision whose answers nobody gets, to see whether they are the same.

In, from the router: calls that it has drawn a revision for. Out: copies of some of them, to spare replicas of the
shadow, after their answers have left; what became of those, in counts with a few examples.

A request that is mirrored pays for it nothing but a random number when it comes, and a look at its answer when that has
been handed on. All else comes after: the copy is made and sent in a later turn of the loop, a few in each, by slots
that nothing waits for (`router/spare.py`), never hedged nor repeated. What is kept of requests and answers meanwhile is
bounded; beyond that, and where there is no slot, requests are not mirrored, which is counted as skipped. Not mirrored
are WebSockets, streams of items and of RPCs, calls for one replica, requests and answers of more than 1 MiB, and those
that had no answer: refused for load, late, cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from headrace.core.compare import shortened
from headrace.router.answer import Answer, Gathered, difference_of, failure_of, kind_of_error, side_of, size_of
from headrace.router.call import Call
from headrace.router.spare import SpareCall, send_spare
from headrace.spec.counts import Example, Mirrored
from headrace.spec.errors import HeadraceError, RequestTimeoutError
from headrace.spec.rollout import ShadowTraffic
from headrace.spec.snapshot import ApplicationEntry, RevisionEntry, Snapshot
from headrace.wire.compare import COMPARE, Compared, Pair, decode_compared, encode, is_json
from headrace.wire.frames import BROKEN, MORE, STREAM, SUSPECT, ErrorInfo

if TYPE_CHECKING:
    from headrace.router.pool import Pool
    from headrace.router.router import Router

MOST_BYTES = 1024 * 1024  # of a request or an answer that is kept
MOST_OUTSTANDING = 64  # requests of one router whose answers are being had or compared
MOST_KEPT_BYTES = 16 * 1024 * 1024  # of all of them
SENT_AT_ONCE = 4  # copies in one turn of the loop
TIMEOUT_S = 60.0  # of a copy, where the application has no limit of its own
COMPARE_TIMEOUT_S = 30.0
MOST_EXAMPLES = 10
PASSED_OVER = frozenset({408, 429, 499, 502, 503, 504})  # errors that say something about load or time, not of the code


class Watch:
    """A request that is to be mirrored, until its answer has left."""

    __slots__ = ("_arguments", "_body", "_call", "_chosen", "_gathered", "_kind", "_mirrors")

    def __init__(self, mirrors: Mirrors, call: Call, chosen: list[Mirror]) -> None:
        self._mirrors = mirrors
        self._call = call
        self._chosen = chosen
        self._kind = call.kind
        self._body = b""
        self._arguments: Sequence[memoryview | bytes] = ()
        self._gathered: Gathered | None = None
        if call.buffers:  # what the link does before it sends them; after the answer they are gone
            self._arguments = call.buffers = [bytes(buffer) for buffer in call.buffers]
        # The call itself is told through these: no other call pays for it.
        call.watch = self
        call.on_reply = self.on_reply  # type: ignore[method-assign]
        call.on_data = self.on_data  # type: ignore[method-assign]
        call.on_error = self.on_error  # type: ignore[method-assign]

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """The call is answered: hand that on first."""
        call = self._call
        buffers = call.buffers
        self._body = call.body
        type(call).on_reply(call, flags, meta, payload)
        if call.watch is not self:
            return  # it was dropped on the way
        self._gathered = gathered = Gathered(meta, payload, buffers)
        if gathered.size > MOST_BYTES or not self._mirrors.hold(gathered.size):
            gathered.size = 0
            self._skip()
        elif not flags & MORE:
            self._complete()

    def on_data(self, payload: bytes, more: bool) -> None:
        """The next part of the answer."""
        call = self._call
        type(call).on_data(call, payload, more)
        gathered = self._gathered
        if call.watch is not self or gathered is None:
            return
        if gathered.size + len(payload) > MOST_BYTES or not self._mirrors.hold(len(payload)):
            self._skip()
            return
        gathered.add(payload)
        if not more:
            self._complete()

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        """The call failed, or its answer broke off: only what its code raised is worth a copy."""
        call = self._call
        self._body = call.body
        type(call).on_error(call, error)
        if call.watch is not self:
            return
        if isinstance(error, ErrorInfo) and error.status not in PASSED_OVER and self._gathered is None:
            body, self._body = self._whole_body(), b""
            self._let_go()
            self._mirrors.mirror(self._request(body), failure_of(error), self._chosen)
        else:
            self.dropped()

    def dropped(self) -> None:
        """Nobody waits for the answer any more, or there will be none."""
        if self._gathered is not None:
            self._mirrors.release(self._gathered.size)
        self._let_go()

    def _skip(self) -> None:
        for mirror in self._chosen:
            mirror.skipped()
        self.dropped()

    def _complete(self) -> None:
        gathered = self._gathered
        assert gathered is not None
        body = self._whole_body()
        self._mirrors.release(gathered.size)
        self._let_go()
        self._mirrors.mirror(self._request(body), gathered.answer(self._kind & ~SUSPECT), self._chosen)

    def _whole_body(self) -> bytes | None:
        """The body of the request; None: it is not whole, or more than is kept."""
        call = self._call
        if call.more or (call.streamed and call.kept is None):
            return None
        return b"".join((self._body, *call.kept)) if call.streamed and call.kept else self._body

    def _request(self, body: bytes | None) -> Request | None:
        if body is None or size_of(body, self._arguments) > MOST_BYTES:
            return None
        return Request(self._call, self._kind & ~SUSPECT, body, self._arguments)

    def _let_go(self) -> None:
        """From now on the call is as any other; what it holds is not held by this."""
        call = self._call
        call.watch = None
        for name in ("on_reply", "on_data", "on_error"):
            del vars(call)[name]


class Request:
    """What is kept of a request: enough to make it again."""

    __slots__ = (
        "app",
        "body",
        "buffers",
        "deployment",
        "http",
        "id",
        "kind",
        "method",
        "model_id",
        "revision",
        "size",
        "sticky",
        "trace",
    )

    def __init__(self, call: Call, kind: int, body: bytes, buffers: Sequence[memoryview | bytes]) -> None:
        self.app = call.app
        self.deployment = call.deployment
        self.method = call.method
        self.revision = call.revision
        self.id = call.request_id
        self.sticky = call.sticky
        self.model_id = call.model_id
        self.trace = call.trace
        self.kind = kind
        self.http = call.http
        self.body = body
        self.buffers = buffers
        self.size = size_of(body, buffers)


class Copy(SpareCall):
    """A mirrored request in work at the shadow. Its answer is told once, to its mirror."""

    def __init__(self, mirror: Mirror, request: Request, primary: Answer, deployment: str) -> None:
        super().__init__(request.app, deployment, request.method)
        self.revision = mirror.number
        self.request_id = request.id
        self.sticky = request.sticky
        self.model_id = request.model_id
        self.trace = request.trace
        self.kind = request.kind
        self.http = request.http
        self.body = request.body
        if request.buffers:
            self.buffers = request.buffers
        self.mirror = mirror
        self.primary = primary
        self.size = request.size + primary.size
        self.timer: asyncio.TimerHandle | None = None
        self.gathered: Gathered | None = None

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        self.gathered = Gathered(meta, payload, self.buffers)
        if self._fits(self.gathered.size) and not flags & MORE:
            self._end(self.gathered.answer(self.primary.kind or self.kind))

    def on_data(self, payload: bytes, more: bool) -> None:
        gathered = self.gathered
        if gathered is None or not self._fits(gathered.size + len(payload)):
            return
        gathered.add(payload)
        if more:
            self.mirror.mirrors.router.consumed(self, len(payload))
        else:
            self._end(gathered.answer(self.primary.kind or self.kind))

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self._end(failure_of(error))

    def on_writable(self) -> None:
        pass  # its body is whole

    def expire(self) -> None:
        """Its time is up: the shadow may stop."""
        self.mirror.mirrors.router.cancel(self)
        self.fail(RequestTimeoutError("no answer in time"))

    def _fits(self, size: int) -> bool:
        """Whether so much of an answer is kept; else it has ended, and the rest of it is not wanted."""
        if size <= MOST_BYTES:
            return True
        self.gathered = None
        self.mirror.mirrors.router.cancel(self)
        self._end(Answer(self.kind, error=f"its answer is longer than {MOST_BYTES} bytes"))
        return False

    def _end(self, answer: Answer) -> None:
        mirror = self.mirror
        if self.timer is None:
            return  # it has ended before
        self.timer.cancel()
        self.timer = None
        mirror.answered(self, answer)


class Question(SpareCall):
    """Two answers, on their way to a replica of the shadow that compares them."""

    whole = True

    def __init__(self, copy: Copy, answer: Answer) -> None:
        super().__init__(copy.app, copy.deployment, COMPARE)
        self.revision = copy.revision
        self.request_id = copy.request_id
        self.asked_for = copy
        self.answer = answer
        self.body = encode(Pair(copy.mirror.shadow.compare, side_of(copy.primary), side_of(answer)))
        self.timer: asyncio.TimerHandle | None = None

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        try:
            self._end(decode_compared(payload))
        except BROKEN as error:
            self._end(Answer(error=f"what it says cannot be read: {error}"))

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self._end(failure_of(error))

    def on_writable(self) -> None:
        pass  # its body is whole

    def expire(self) -> None:
        """The comparison takes too long."""
        self.asked_for.mirror.mirrors.router.cancel(self)
        self._end(Answer(error=f"it did not end in {COMPARE_TIMEOUT_S:g} s"))

    def _end(self, said: Compared | Answer) -> None:
        if self.timer is not None:  # else it has ended before
            self.timer.cancel()
            self.timer = None
            self.asked_for.mirror.compared(self.asked_for, self.answer, said)


class Mirror:
    """The shadow traffic of one revision of an application, and what came of it. `counts` only grow."""

    def __init__(self, mirrors: Mirrors, app: str, number: int, shadow: ShadowTraffic) -> None:
        self.mirrors = mirrors
        self.app = app
        self.number = number
        self.shadow = shadow
        self.counts = Mirrored()
        self._shown = 0  # answers that might have been an example

    def __repr__(self) -> str:
        return f"<Mirror {self.app} {self.number} {self.shadow.fraction:g} {self.counts}>"

    def skipped(self) -> None:
        """A request that was drawn is not mirrored after all."""
        self.counts.skipped += 1

    def send(self, request: Request, primary: Answer) -> None:
        """Send a copy, if there is a slot to spare."""
        mirrors = self.mirrors
        router = mirrors.router
        found = router.shadow_of(request.app, request.deployment, self.number)
        if found is not None:
            pool, tally, timeout_s = found
            copy = Copy(self, request, primary, pool.entry.name)
            now = router.loop.time()
            copy.deadline = now + (TIMEOUT_S if timeout_s is None else timeout_s)
            copy.timer = router.loop.call_at(copy.deadline, copy.expire)
            copy.tally, copy.came_at = tally, perf_counter()
            if send_spare(pool, copy):
                self.counts.sent += 1
                return
            copy.timer.cancel()
        self.skipped()
        mirrors.ended(request.size + primary.size)

    def answered(self, copy: Copy, answer: Answer) -> None:
        """The shadow has answered, or failed: compare, here or there."""
        primary = copy.primary
        if answer.refused:
            self.skipped()
        elif answer.error and not primary.error:
            self.counts.failed += 1
            self.counts.compared += 1  # no answer is not the primary's
            self.counts.differed += 1
            self._show(copy, answer, f"the shadow failed: {answer.error}")
        elif primary.error or primary.status != answer.status:
            same = primary.status == answer.status and kind_of_error(primary.error) == kind_of_error(answer.error)
            self._judge(copy, answer, not same)
        elif primary.same_as(answer):
            self._judge(copy, answer, False)
        elif self._takes_a_replica(primary, answer):
            self._ask(copy, answer)
            return
        else:
            self._judge(copy, answer, True)
        self.mirrors.ended(copy.size)

    def _takes_a_replica(self, primary: Answer, shadow: Answer) -> bool:
        """Whether it takes Python code, or values, to say if the two are the same, which differ in their bytes."""
        kind = self.shadow.compare.kind
        if not primary.kind or kind == "user":
            return True
        return kind == "numeric" and is_json(primary.content_type) and is_json(shadow.content_type)

    def _ask(self, copy: Copy, answer: Answer) -> None:
        """Have a replica of the shadow compare the two: its code, and what it imports, are there."""
        router = self.mirrors.router
        found = router.shadow_of(copy.app, copy.deployment, self.number)
        if found is not None:
            question = Question(copy, answer)
            question.deadline = router.loop.time() + COMPARE_TIMEOUT_S
            question.timer = router.loop.call_at(question.deadline, question.expire)
            if send_spare(found[0], question):
                return
            question.timer.cancel()
        self.skipped()
        self.mirrors.ended(copy.size)

    def compared(self, copy: Copy, answer: Answer, said: Compared | Answer) -> None:
        """A replica has compared the two, or failed to."""
        if isinstance(said, Compared):
            self._judge(copy, answer, bool(said.reason), said)
        elif said.refused:
            self.skipped()
        else:
            self.counts.failed += 1
            self._show(copy, answer, f"the comparison failed: {said.error}")
        self.mirrors.ended(copy.size)

    def _judge(self, copy: Copy, answer: Answer, differed: bool, said: Compared | None = None) -> None:
        self.counts.compared += 1
        if differed:
            self.counts.differed += 1
            self._show(copy, answer, "" if said is None else said.reason, said)

    def _show(self, copy: Copy, answer: Answer, reason: str, said: Compared | None = None) -> None:
        """Keep it as an example, or not: of all that there were, each is one of those kept with the same chance
        (reservoir sampling: Vitter, Random Sampling with a Reservoir, 1985, algorithm R).
        """
        self._shown += 1
        counts, place = self.counts, self._shown - 1
        if place >= MOST_EXAMPLES:
            place = int(self.mirrors.random() * self._shown)
            if place >= MOST_EXAMPLES:
                return
        example = Example(
            request_id=shortened(copy.request_id),
            primary=shortened(said.primary) if said is not None else copy.primary.text(),
            shadow=shortened(said.shadow) if said is not None else answer.text(),
            reason=shortened(reason or difference_of(copy.primary, answer)),
        )
        counts.examples = (*counts.examples[:place], example, *counts.examples[place + 1 :])


class Mirrors:
    """All shadow traffic that one router sends, and what it keeps for it. All on the router's loop."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.random = router.rng.random
        self.outstanding = 0  # requests that are to be sent, in work at a shadow, or being compared
        self.kept_bytes = 0
        self._mirrors: dict[tuple[str, int], Mirror] = {}
        self._pending: deque[tuple[Mirror, Request, Answer]] = deque()

    def __repr__(self) -> str:
        return f"<Mirrors outstanding={self.outstanding} kept_bytes={self.kept_bytes} {list(self._mirrors.values())}>"

    # --- snapshots -------------------------------------------------------------------------------------------------

    def of(self, entry: ApplicationEntry) -> tuple[Mirror, ...] | None:
        """Where requests of the application are mirrored to; None: nowhere."""
        return tuple(self._mirror(entry, each) for each in entry.revisions if each.shadow is not None) or None

    def _mirror(self, entry: ApplicationEntry, revision: RevisionEntry) -> Mirror:
        assert revision.shadow is not None
        key = entry.name, revision.number
        mirror = self._mirrors.get(key)
        if mirror is None:
            mirror = self._mirrors[key] = Mirror(self, *key, revision.shadow)
        mirror.shadow = revision.shadow
        tally = self.router.tallies.of(entry.name, revision.number, revision.ingress or entry.ingress)
        tally.mirrored = mirror.counts
        return mirror

    def adopt(self, snapshot: Snapshot, pools: dict[str, Pool]) -> None:
        """Note which pools are shadows' alone, and forget the counts of revisions that are gone."""
        alone: set[str] = set()
        shared: set[str] = set()
        living: set[tuple[str, int]] = set()
        for name, entry in snapshot.applications.items():
            for revision in entry.revisions:
                living.add((name, revision.number))
                only_mirrored = revision.shadow is not None and not revision.weight
                (alone if only_mirrored else shared).update(revision.deployments.values())
        for key, pool in pools.items():
            pool.serving = key in shared or key not in alone
        for gone in self._mirrors.keys() - living:
            del self._mirrors[gone]

    # --- requests --------------------------------------------------------------------------------------------------

    def look(self, mirrors: tuple[Mirror, ...], call: Call) -> None:
        """A call was drawn a revision for: watch it, if it is to be mirrored."""
        if call.mirrored or call.watch is not None:
            return
        revision = call.revision
        chosen = [each for each in mirrors if each.number != revision and self.random() < each.shadow.fraction]
        if not chosen:
            return
        if call.kind & STREAM or call.target is not None or size_of(call.body, call.buffers) > MOST_BYTES:
            for mirror in chosen:
                mirror.skipped()
        elif call.counts:  # else it only keeps a slot for a call to come
            Watch(self, call, chosen)

    def mirror(self, request: Request | None, primary: Answer, chosen: list[Mirror]) -> None:
        """The request has been answered, and is mirrored now, or soon. None: it cannot be."""
        for mirror in chosen:
            size = 0 if request is None else request.size + primary.size
            if (
                request is None
                or request.revision == mirror.number
                or self.outstanding >= MOST_OUTSTANDING
                or not self.hold(size)
            ):
                mirror.skipped()
                continue
            self.outstanding += 1
            if not self._pending:
                self.router.loop.call_soon(self._send_some)
            self._pending.append((mirror, request, primary))

    def _send_some(self) -> None:
        for _ in range(min(SENT_AT_ONCE, len(self._pending))):
            mirror, request, primary = self._pending.popleft()
            mirror.send(request, primary)
        if self._pending:
            self.router.loop.call_soon(self._send_some)

    def ended(self, size: int) -> None:
        """A request that was mirrored is done with."""
        self.outstanding -= 1
        self.kept_bytes -= size

    def hold(self, size: int) -> bool:
        """Whether so many bytes more may be kept; they are, then."""
        if self.kept_bytes + size > MOST_KEPT_BYTES:
            return False
        self.kept_bytes += size
        return True

    def release(self, size: int) -> None:
        """They are not kept any more."""
        self.kept_bytes -= size
