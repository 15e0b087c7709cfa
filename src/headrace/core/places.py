"""Places for calls that wait: `max_queued_requests` of a deployment, shared by all routers that queue calls for it.

One replica is the *keeper of places* and holds the ledger. A router asks it for as many places as it needs, fills them
without asking, and gives back what it has not needed for a while; an empty queue costs no message. In, on both sides:
what the other said, with `now`. Out: what to say to it.

A router that cannot have what it needs is not told so before the others have said what they need of what they hold:
a place that nobody uses is of no use to anybody.

A router numbers what it says (`Question`), and a `Grant` names the last question that the ledger had seen. A grant for
any but the newest question is ignored: the two have crossed, and the answer to the newest is on its way. So the ledger
never believes that a router holds fewer places than it does, and then

- the places that routers hold are never more than there are in all, unless
- there were more before (the maximum was lowered): they fall to it as queues get shorter; or
- the ledger was lost (the keeper left, its connection broke): a router keeps what it holds and reports it to the next
  keeper, which may meanwhile have granted as many again. So they are twice the maximum, at most; or
- a router cannot reach a keeper, or got no answer in PATIENCE_S: it takes its share, the maximum over the routers.

Calls for which an answer is awaited wait beside these, for PATIENCE_S at most.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

PATIENCE_S = 0.25  # how long calls wait for a place: several turns of a busy machine
RETRY_S = 0.1  # a router that has refused calls asks again so soon
KEEP_S = 1.0  # places that were not needed for so long are given back
TENURE_S = 0.2  # where there are fewer places than routers, one has one for so long, and then the next
STALE_S = PATIENCE_S  # so long a wish lasts: the calls that it was for are refused by then
TICK_S = 0.05
EXTRA = 8  # places granted beside those that are needed, while there are plenty; or as many as are needed, if more

CallerT = TypeVar("CallerT", bound=Hashable)


class Question(NamedTuple):
    """What a router tells the keeper: it needs so many places in all, and holds so many."""

    number: int
    needs: int
    holds: int


class Grant(NamedTuple, Generic[CallerT]):
    """What the keeper tells a router: it may hold so many in all. `more`: others were asked to give some to it; said to
    one that has asked for nothing, another lacks some, and it should give back what it does not need.
    """

    caller: CallerT
    number: int
    places: int
    more: bool


class _Record(Generic[CallerT]):
    """What the ledger knows of one router."""

    __slots__ = ("asked_at", "caller", "granted", "hopes", "needs", "number", "probed_at", "served", "since", "told")

    def __init__(self, caller: CallerT) -> None:
        self.caller = caller
        self.number = 0
        self.needs = 0
        self.granted = 0  # it holds no more than that
        self.told: int | None = None  # what it was told last, if anything since its last question
        self.asked_at = 0.0
        self.since = 0.0  # when it got its first place
        self.served = 0  # when it last got one, as a number that grows
        self.hopes = False  # its calls wait for what others give back
        self.probed_at: float | None = None  # it was asked what it needs, and has not said it yet

    def wish(self, now: float) -> int:
        return self.needs if now - self.asked_at < STALE_S else min(self.needs, self.granted)

    def is_probed(self, now: float) -> bool:
        return self.probed_at is not None and now - self.probed_at < PATIENCE_S


class PlaceLedger(Generic[CallerT]):
    """The keeper's side. `total` places in all (negative: any number), of which `granted` are with callers."""

    __slots__ = ("_records", "_served", "granted", "total")

    def __init__(self, total: int = -1) -> None:
        self.total = total
        self.granted = 0
        self._records: dict[CallerT, _Record[CallerT]] = {}
        self._served = 0

    def __repr__(self) -> str:
        return f"<PlaceLedger {self.granted} of {self.total} with {len(self._records)}>"

    def granted_to(self, caller: CallerT) -> int:
        """What the caller holds, or may come to hold by what it was told."""
        record = self._records.get(caller)
        return 0 if record is None else record.granted

    def ask(self, caller: CallerT, question: Question, now: float) -> list[Grant[CallerT]]:
        """The caller has said this. What to tell to whom; the caller gets an answer, unless it has left with all."""
        record = self._records.get(caller)
        if record is None:
            record = self._records[caller] = _Record(caller)
        record.number, record.needs, holds = question
        record.asked_at = now
        record.told = record.probed_at = None
        record.hopes = record.needs > holds
        self.granted += holds - record.granted
        record.granted = holds
        if not record.needs and not holds:
            del self._records[caller]
        return self._settle(now, record if record.needs > holds else None)

    def disconnect(self, caller: CallerT, now: float) -> list[Grant[CallerT]]:
        """The caller's connection is gone, and its places are free. What to tell to whom."""
        record = self._records.pop(caller, None)
        if record is None:
            return []
        self.granted -= record.granted
        return self._settle(now)

    def resize(self, total: int, now: float) -> list[Grant[CallerT]]:
        """There are `total` places from now on. What to tell to whom."""
        self.total = total
        return self._settle(now)

    def _settle(self, now: float, growing: _Record[CallerT] | None = None) -> list[Grant[CallerT]]:
        """Give free places to those that lack some; where too few are free, call back those beyond others' shares.

        `growing` has just asked for more: it may get some beside.
        """
        records = list(self._records.values())
        shares = self._shares(records, now)
        for record in sorted(records, key=lambda record: record.served):
            self._give(record, shares[record.caller] - record.granted, now)
        short = [record for record in records if record.granted < shares[record.caller]]
        contended = bool(short) or 0 <= self.total < self.granted
        if growing is not None and not contended:
            self._give(growing, self._extra(growing), now)
        unmet = growing is not None and growing.granted < growing.needs
        grants = self._probe(records, shares, growing, now) if unmet else []
        coming = any(record.granted > shares[record.caller] for record in records)
        probing = any(record.is_probed(now) for record in records)
        for record in records:
            share = shares[record.caller]
            places = share if contended and record.granted > share else record.granted
            may_come = (record.hopes and probing) or (coming and record.granted < share)
            more = may_come and record.granted < record.needs
            if record.told != places or (record.hopes and not more):
                record.told = places
                grants.append(Grant(record.caller, record.number, places, more))
            if not more:
                record.hopes = False
                record.needs = min(record.needs, record.granted)  # the others of its calls are refused
        return grants

    def _probe(
        self, records: list[_Record[CallerT]], shares: dict[CallerT, int], growing: _Record[CallerT] | None, now: float
    ) -> list[Grant[CallerT]]:
        """Ask all others that hold some, and are called back by nothing else, what they need of it now."""
        grants = []
        for record in records:
            if record is growing or record.probed_at is not None or not 0 < record.granted <= shares[record.caller]:
                continue
            if record.hopes and now - record.asked_at < PATIENCE_S:
                continue  # it needs more than it holds
            record.probed_at = now
            grants.append(Grant(record.caller, record.number, record.granted, True))
        return grants

    def _give(self, record: _Record[CallerT], wanted: int, now: float) -> None:
        given = wanted if self.total < 0 else min(wanted, self.total - self.granted)
        if given <= 0:
            return
        if not record.granted:
            record.since = now
        self._served += 1
        record.served = self._served
        record.granted += given
        self.granted += given

    def _extra(self, record: _Record[CallerT]) -> int:
        """Some beside those that it needs, so that a queue that grows asks seldom."""
        extra = max(EXTRA, record.needs)
        return extra if self.total < 0 else min(extra, (self.total - self.granted) // 2)

    def _shares(self, records: list[_Record[CallerT]], now: float) -> dict[CallerT, int]:
        """What each is to hold: what it wishes, or when that is too much in all, a fair part ('max-min').

        Where there are fewer places than callers that want one, those that had none for longest come first.
        """
        shares = {record.caller: record.wish(now) for record in records}
        if self.total < 0 or sum(shares.values()) <= self.total:
            return shares
        wishing = [record for record in records if shares[record.caller]]
        if self.total < len(wishing):
            wishing.sort(key=lambda record: (not record.granted or now - record.since >= TENURE_S, record.served))
            for place, record in enumerate(wishing):
                shares[record.caller] = int(place < self.total)
            return shares
        left = self.total
        wishing.sort(key=lambda record: (shares[record.caller], record.granted))
        for place, record in enumerate(wishing):
            share = min(shares[record.caller], left // (len(wishing) - place))
            shares[record.caller] = share
            left -= share
        return shares


class Allowance:
    """The router's side: how many calls may wait in one router's queue now (`limit`; negative: any number).

    `maximum` is that of all routers together, `share` this router's part where no keeper can be asked. Questions that
    the methods give are to be sent to the keeper, in their order; after each method, `excess` calls are to be refused.
    `waiting` is always the number of calls that wait. Between calls that find no place, `tick` is due every TICK_S,
    unless `idle`.
    """

    __slots__ = (
        "_alone_since",
        "_asked_at",
        "_expected",
        "_needs",
        "_peak",
        "_refused_at",
        "_target",
        "_told",
        "_window_from",
        "held",
        "maximum",
        "number",
        "share",
    )

    def __init__(self, maximum: int, share: int) -> None:
        self.maximum = maximum
        self.share = share
        self.held = 0
        self.number = 0  # of the last question
        self._needs = 0  # by the last question
        self._told = False  # the keeper of now knows what is held
        self._asked_at: float | None = None  # an answer is awaited since then
        self._expected = -1  # of an answer that promised more: so many calls wait for it (-1: there is none yet)
        self._target: int | None = None  # no more than that is to be held, as soon as the queue lets it
        self._refused_at: float | None = None  # when the keeper last had too few places
        self._alone_since: float | None = None  # there is no keeper to ask, or it did not answer
        self._peak = 0  # the most that waited since, as far as was seen
        self._window_from = 0.0

    def __repr__(self) -> str:
        state = "alone" if self._alone_since is not None else "asking" if self._asked_at is not None else "at rest"
        return f"<Allowance holds {self.held} of {self.maximum}, limit {self.limit}, {state}>"

    @property
    def limit(self) -> int:
        """How many calls may wait. While an answer is awaited, so many as wait for it; then some may be `excess`."""
        if self.maximum < 0:
            return -1
        if self._asked_at is not None:
            return self.maximum if self._expected < 0 else min(self._expected, self.maximum)
        if self._alone_since is not None:
            return min(max(self.held, self.share), self.maximum)
        return min(self.held if self._target is None else self._target, self.maximum)

    @property
    def idle(self) -> bool:
        """Nothing is held and nothing is awaited."""
        return self.maximum < 0 or (not self.held and self._asked_at is None and self._alone_since is None)

    def excess(self, waiting: int) -> int:
        """How many of the calls that wait have no place and none to hope for."""
        if self.maximum < 0 or self._asked_at is not None:
            return 0
        return max(0, waiting - max(self.held, self.share if self._alone_since is not None else 0))

    def resize(self, maximum: int, share: int, waiting: int) -> None:
        """The deployment's maximum has changed, or its number of routers."""
        if self.maximum < 0 <= maximum:
            self.held = min(waiting, maximum)  # there was no limit to them when they came
        elif maximum < 0:
            self.held = 0
            self._stop_asking()
        self.maximum = maximum
        self.share = share

    def want(self, waiting: int, now: float, reachable: bool) -> Question | None:
        """A call has come, and so many wait that the limit is reached, or more, for some have come back. It may wait if
        the limit is higher after this.

        `reachable`: there is a keeper to ask.
        """
        if self._asked_at is not None or not (0 <= waiting < self.maximum or self.held < self.maximum <= waiting):
            return None
        if not reachable:
            self._stand_alone(now)
            return None
        if self._alone_since is not None and self._told and now - self._alone_since < KEEP_S:
            return None  # it does not answer
        if self._refused_at is not None and now - self._refused_at < RETRY_S:
            return None
        return self._ask(waiting + 1, now)

    def grant(self, number: int, places: int, more: bool, waiting: int, now: float) -> Question | None:
        """The keeper says that so many may be held; `more`: and perhaps more, soon."""
        if number != self.number or self.maximum < 0:
            return None  # it has crossed a newer question, whose answer will come
        asked = self._asked_at is not None
        self._alone_since = None
        self._stop_asking()
        if places < self.held:
            self._target = places
            return self._give_back(waiting)
        self.held = places
        self._target = None
        if more and not asked:
            self.held = min(places, waiting)
            return self._say(self.held)
        if waiting <= places:
            self._refused_at = None
        elif places >= self._needs < min(waiting, self.maximum):
            return self._ask(waiting, now)  # it needs more by now
        else:
            self._refused_at = now
            if asked and more:
                self._asked_at, self._expected = now, waiting
        return None

    def lost(self, waiting: int, now: float) -> None:
        """The keeper is another, or its connection is gone. What is held is kept, and told to the next."""
        self._stop_asking()
        self._told = False
        self._target = None
        self._refused_at = None
        if self.held or waiting:
            self._stand_alone(now)

    def tick(self, waiting: int, now: float, reachable: bool) -> Question | None:
        """Time has passed."""
        self._peak = max(self._peak, waiting)
        if self._asked_at is not None:
            if now - self._asked_at >= PATIENCE_S:
                self._lose_patience(now)
            return None
        if self._alone_since is not None:
            return self._look_for_keeper(waiting, now, reachable)
        if waiting > self.held:  # calls have come back
            return self.want(waiting - 1, now, reachable)
        if self._target is not None:
            return self._give_back(waiting)
        if now - self._window_from >= KEEP_S:
            needed = 2 * self._peak + EXTRA if self._peak else 0
            self._peak, self._window_from = waiting, now
            if self.held > needed:
                self.held = needed
                return self._say(waiting)
        return None

    def _look_for_keeper(self, waiting: int, now: float, reachable: bool) -> Question | None:
        assert self._alone_since is not None
        if not waiting and not reachable:
            self.held = 0  # nobody is left to whom they could be given back
        if not waiting and not self.held:
            self._alone_since = None
            return None
        if reachable and (not self._told or now - self._alone_since >= KEEP_S):
            return self._ask(waiting, now)
        return None

    def _lose_patience(self, now: float) -> None:
        if self._expected < 0:
            self._stand_alone(now)
        else:
            self._refused_at = now
        self._stop_asking()

    def _give_back(self, waiting: int) -> Question | None:
        """Hold no more than the target, but for calls that wait already."""
        assert self._target is not None
        held = min(self.held, max(self._target, waiting))
        if held <= self._target:
            self._target = None
        if held == self.held:
            return None
        self.held = held
        return self._say(waiting)

    def _ask(self, needs: int, now: float) -> Question:
        self._asked_at = now
        self._expected = -1
        self._refused_at = None
        if not self.held:
            self._window_from = now
        self._peak = max(self._peak, needs)
        return self._say(needs)

    def _say(self, needs: int) -> Question:
        self.number += 1
        self._told = True
        self._needs = min(needs, self.maximum)
        return Question(self.number, self._needs, self.held)

    def _stop_asking(self) -> None:
        self._asked_at = None
        self._expected = -1

    def _stand_alone(self, now: float) -> None:
        self._alone_since = now
