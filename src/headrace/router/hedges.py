"""The copies of slow calls of one deployment: when one leaves, and whose answer counts.

In, from the pool: calls that came, were sent, answered, cancelled, refused, or lost with their replica. Out: copies to
other replicas, and the first answer to the call. Whether a copy may leave is `core.hedging`'s to say.

A copy is a call of its own on its link, and the call hears nothing of it before it wins. Then, or when it is all that
is left (the first replica has died, or had no slot), the call takes its place: its link, its stream, and what has come
of its result. So whatever is done with a call finds it where its answer is made.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from headrace.core.hedging import Hedger, Line, Refusal
from headrace.router.call import KEPT_BYTES, Call
from headrace.router.link import NONE_WAITS
from headrace.spec.errors import HeadraceError, OptionError
from headrace.spec.hedging import HedgingConfig
from headrace.wire.frames import GRPC, HTTP, ErrorInfo

if TYPE_CHECKING:
    from headrace.core.balance import Replica
    from headrace.router.pool import Pool

DEFAULT = HedgingConfig()
MOST_CONFIGS = 16  # that handles may have of their own, of one deployment: the eldest is forgotten, with its budget
_KINDS = frozenset((0, HTTP, GRPC))  # those with one answer, and no flag that says more
_now = time.monotonic  # the clock of every event loop on Linux; those of loops stand still for a turn


class HedgeCopy(Call):
    """A second copy of a call, for another replica. What it is told first is told to the call in its place."""

    near = False

    def __init__(self, hedges: Hedges, call: Call) -> None:
        super().__init__(call.app, call.deployment, call.method)
        self.revision = call.revision
        self.request_id = call.request_id
        self.deadline = call.deadline
        self.sticky = call.sticky
        self.model_id = call.model_id
        self.trace = call.trace
        self.priority = call.priority
        self.kind = call.kind
        self.http = call.http
        self.body = call.body
        self.buffers = call.buffers  # bytes by now: the link keeps its own of those that can be repeated
        self.whole = call.whole
        self.pool = call.pool
        self.line = call.line
        self.queued_since = call.sent_at  # it has waited at the first replica, and shall not wait for a batch again
        self.call = call
        self._hedges = hedges

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        self._hedges.win(self)
        self.call.count(flags)
        self.call.on_reply(flags, meta, payload)

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        if isinstance(error, ErrorInfo):
            self._hedges.win(self)
            self.call.fail(error)
        else:  # this connection was closed, and so will be that of the first: the call is told there
            self.call.copy = None

    def on_writable(self) -> None:
        pass  # its body is whole


class Hedges:
    """The hedged calls of one pool. All on the router's loop.

    `on`: the deployment, or one of its methods, says that its calls are hedged. Counts: `sent` copies, `won` by them,
    `took_over` for a replica that was lost, and how often a call that was due had none (`refused`, once for each look).
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._hedgers: dict[HedgingConfig, Hedger[Call]] = {}
        self._lines: dict[str, Line[Call] | None] = {}  # of the methods, as the deployment says
        self.on = False
        self.sent_count = 0
        self.won_count = 0
        self.took_over_count = 0
        self.refused = dict.fromkeys(Refusal, 0)
        self.update()

    def __repr__(self) -> str:
        return f"<Hedges sent={self.sent_count} won={self.won_count} {list(self._hedgers.values())}>"

    def update(self) -> None:
        """The pool's entry has changed."""
        entry = self._pool.entry
        self._lines.clear()
        self.on = entry.hedge is not None or any(entry.hedged_methods.values())

    # --- what the pool tells ---------------------------------------------------------------------------------------

    def came(self, call: Call) -> bool:
        """A call was submitted that may be hedged: by its own `hedge`, or its deployment's. False: it was answered,
        with an error, because it asks for what cannot be.
        """
        try:
            line = self._lines[call.method] if call.hedge is None else self._line(call)
        except KeyError:
            line = self._lines[call.method] = self._line(call)
        except OptionError as error:
            call.fail(error)
            return False
        if line is not None and _can_be_copied(call):
            call.line = line
            call.observed = True
        else:
            call.line = None
        return True

    def _line(self, call: Call) -> Line[Call] | None:
        """That of the call's method; None: it is not hedged. Raises OptionError."""
        config = self._config_of(call)
        return None if config is None else self._hedger(config).line(call.method)

    def _config_of(self, call: Call) -> HedgingConfig | None:
        """How the call is hedged; None: it is not. Raises OptionError."""
        entry, asked = self._pool.entry, call.hedge
        if asked is False:
            return None
        said = entry.hedged_methods.get(call.method, entry.hedge)
        if not self._pool.repeatable(call):
            if asked:
                raise OptionError(
                    f"hedge={asked!r} of a call of {entry.name}.{call.method}: a hedged call may run twice, which this "
                    "one must not (repeatable=False): leave hedge out"
                )
            return None
        if isinstance(asked, HedgingConfig):
            return asked
        return said or entry.hedge or DEFAULT if asked else said

    def _hedger(self, config: HedgingConfig) -> Hedger[Call]:
        hedger = self._hedgers.get(config)
        if hedger is None:
            if len(self._hedgers) >= MOST_CONFIGS:
                del self._hedgers[next(iter(self._hedgers))]
            hedger = self._hedgers[config] = Hedger(config)
        return hedger

    def sent(self, call: Call) -> None:
        """A call with a line has left for a replica: maybe for the second time, when the first had no slot or died."""
        line = call.line
        assert line is not None
        if call.suspect:
            call.line = None  # it may be the cause of a crash: one replica at a time
            return
        now = _now()
        line.sent(call, now, again=call.departed)
        call.departed = True
        call.sent_at = now
        if line.timer is None:
            self._look_later(line, now)

    def answered(self, call: Call, failed: bool = False) -> None:
        """The answer of a call with a line has come, or the first part, and is about to be told to it."""
        line, call.line = call.line, None
        assert line is not None
        if failed:
            line.taken_back(call)
        else:
            now = _now()
            line.answered(call, now - call.sent_at, now)
        self._drop_copy(call)

    def dropped(self, call: Call) -> None:
        """A call with a line was cancelled: so is its copy."""
        line, call.line = call.line, None
        assert line is not None
        if call.link is None:
            line.taken_back(call)  # it waits
        else:
            now = _now()
            line.given_up(call, now - call.sent_at, now)
        self._drop_copy(call)

    def survives(self, call: Call) -> bool:
        """The replica of a call with a line died, or had no slot. True: there is no more to be done, for the call goes
        on in the other replica, be it that of the copy or, where the copy itself was lost, the first.
        """
        if isinstance(call, HedgeCopy):
            call.call.copy = None
            return True
        assert call.line is not None
        call.line.taken_back(call)
        copy = call.copy
        if copy is None:
            return False
        call.line = None
        self.took_over_count += 1
        _take_over(copy)
        return True

    # --- copies ----------------------------------------------------------------------------------------------------

    def _look_later(self, line: Line[Call], now: float) -> None:
        when = line.look_at(now)
        line.timer = None if when is None else self._pool.loop.call_at(when, self._look, line)

    def _look(self, line: Line[Call]) -> None:
        """Send copies of the calls that are due, as far as they may have one."""
        if self._pool.router.closed:
            return
        now = _now()
        for call in line.due(now):
            refusal = line.refusal(self._pool.balancer.queued)
            if refusal is None and not self._send_copy(line, call):
                refusal = Refusal.NO_REPLICA
            if refusal is not None:
                self.refused[refusal] += 1
                if refusal is not Refusal.NO_REPLICA:
                    break
                line.passed_over(call)
        self._look_later(line, now)

    def _send_copy(self, line: Line[Call], call: Call) -> bool:
        pool = self._pool
        if call.link is None or (call.deadline is not None and call.deadline <= pool.loop.time()):
            return False  # the copy before this one found a replica gone, and this call's with it; or nobody waits
        replica: Replica | None = pool.balancer.choose_beside(call.link.replica, pool.key_of(call))
        link = None if replica is None else pool.link_to(replica)
        if link is None:
            return False
        copy = call.copy = HedgeCopy(self, call)
        line.copied(call)
        self.sent_count += 1
        link.call(copy, pool.router.snapshot.version, 0, NONE_WAITS)
        copy.observed = False  # what is learned of it is learned of the call
        copy.sent_at = _now()
        return True

    def win(self, copy: HedgeCopy) -> None:
        """The copy has the first answer. The call takes its place before it is told."""
        call, now = copy.call, _now()
        line, call.line = call.line, None
        assert line is not None
        self.won_count += 1
        line.answered(call, now - call.sent_at, now)
        line.won(now - copy.sent_at)
        self._pool.served(call)
        assert call.link is not None
        call.link.cancel(call)
        call.buffers = copy.buffers
        _take_over(copy)

    def _drop_copy(self, call: Call) -> None:
        copy, call.copy = call.copy, None
        if copy is not None and copy.link is not None:
            copy.link.cancel(copy)


def _take_over(copy: HedgeCopy) -> None:
    """From now on the call is where its copy was."""
    call, link = copy.call, copy.link
    assert link is not None
    call.copy = None
    call.link, call.stream = link, copy.stream
    if link.calls.get(copy.stream) is copy:  # else its answer is whole
        link.calls[copy.stream] = call
    call.sent_at = copy.sent_at
    call.outflow = copy.outflow
    call.held, call.answered = copy.held, copy.answered
    call.parts, call.reply_flags, call.reply_meta = copy.parts, copy.reply_flags, copy.reply_meta


def _can_be_copied(call: Call) -> bool:
    """Whether the call has one answer, and all of it is here to be sent twice."""
    return (
        call.kind in _KINDS
        and not call.more
        and call.target is None
        and call.attempt == 1
        and len(call.body) + (sum(map(len, call.buffers)) if call.buffers else 0) <= KEPT_BYTES
    )
