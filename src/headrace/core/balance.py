"""Which replica a call goes to, or that it waits, or that it is refused: a router's view of one deployment.

In come, from the router's shell: replicas that come and go, calls, and what replicas say (replies with their load,
refusals, offers). Out go the choice itself, the calls to send where a slot was offered or room appeared, those that it
is too late to send (`shed`), and the replicas that are to be told how many calls wait.

Invariants:
- a call is sent only by `choose`, `drain` and `offered`, and counts in `ours` of its replica from then until
  `finished`, `rejected` or `remove`;
- while calls wait, a new one waits behind them, or before those that are less urgent;
- a call that would be late is not sent after it has waited, but found in `shed`;
- after `announce`, each replica that could take a call that waits here has been told, and none other;
- a replica is not taken to be full for ever on what was last heard of it: with no call of ours there, it fades.

Of the replicas with room (`core.room`) one with a lesser load is taken, first of those on the router's own node, where
there are several. A call may be *bound*: to one replica, or to those that have its model (`core.homes`). It waits in a
line of its own (`core.bound`), only for replicas that it may go to, and holds up no other; where calls for very many
models wait, those for yet another wait as if they were not bound. A `policy` (`core.routing`) comes before the lesser
load and the node for calls that are not bound. What waits, and whose turn it is, is `core.waiting`'s.
"""

from __future__ import annotations

from collections.abc import Hashable
from random import Random
from typing import Any, Generic, TypeVar

from headrace.core.bound import Key, to_model, to_replica
from headrace.core.homes import Homes
from headrace.core.room import Replica, Room
from headrace.core.routing import RoutingPolicy
from headrace.core.waiting import Waiting

__all__ = ["Balancer", "Replica"]

CallT = TypeVar("CallT", bound=Hashable)


class Balancer(Generic[CallT]):
    """The replicas of one deployment, and the calls that wait for one. Times are seconds on one clock, `now`.

    `limit` is what a replica takes at once (max_ongoing_requests), `max_queued` how many calls may wait here (negative:
    any number). `choose`, `enqueue`, `finished`, `offered` cost O(1), whatever the number of replicas. `shed` are calls
    with a deadline that waited and do not wait any more because they would be late: take them out and answer them after
    `drain` and `offered`. `node` is that of the router, whose replicas are near (""; not known, and none is).
    """

    __slots__ = (
        "_bound",
        "_loaders",
        "_open",
        "_policy",
        "_queue",
        "_random",
        "_room",
        "_silent",
        "_special",
        "_suspects",
        "_told",
        "_waiting",
        "expected",
        "homes",
        "lateness",
        "limit",
        "max_queued",
        "node",
        "replicas",
        "shed",
        "to_load",
    )

    def __init__(self, limit: int, max_queued: int, rng: Random, node: str = "") -> None:
        self.limit = limit
        self.max_queued = max_queued
        self.node = node
        self.replicas: dict[str, Replica] = {}
        self.expected: set[str] = set()  # replicas that are about to come: calls for one of them wait
        self._room = Room(rng.random)
        self._open = self._room.open
        self._silent = self._room.silent
        self._special = False  # not every replica with room is as good as another: by a policy, or as one is near
        self._waiting: Waiting[CallT] = Waiting(self._serves)
        self._queue = self._waiting.queue
        self._suspects = self._waiting.suspects
        self._bound = self._waiting.bound
        self.lateness = self._waiting.lateness
        self.shed = self._waiting.shed
        self._loaders: dict[CallT, tuple[str, Replica]] = {}
        self._random = rng.random
        self.homes = Homes(rng.random, lambda model: to_model(model) in self._bound)
        self._policy: RoutingPolicy | None = None
        self.to_load: list[tuple[str, Replica]] = []  # models that replicas are to be asked to load: take them out
        self._told = 0  # replicas that know that calls wait

    def __repr__(self) -> str:
        return f"<Balancer replicas={len(self.replicas)} with_room={len(self._open)} queued={self.queued}>"

    @property
    def queued(self) -> int:
        """Calls that wait, suspects and bound ones included, but not those for one replica: they are never too many."""
        return self._waiting.count

    @property
    def policy(self) -> RoutingPolicy | None:
        """What comes before the lesser load, for calls that are not bound."""
        return self._policy

    @policy.setter
    def policy(self, policy: RoutingPolicy | None) -> None:
        self._policy = policy
        self._special = policy is not None or self._room.split

    # --- replicas --------------------------------------------------------------------------------------------------

    def add(self, replica_id: str, link: Any = None, node: str = "") -> Replica:
        """A replica on `node` that takes calls. Then send what `drain` gives. Raises ValueError when it is there
        already.
        """
        if replica_id in self.replicas:
            raise ValueError(f"replica {replica_id} is known already")
        near = node != "" and node == self.node
        replica = self.replicas[replica_id] = Replica(replica_id, self.limit, link, node, near)
        self._room.add(replica)
        self._special = self._policy is not None or self._room.split
        self._waiting.news = True
        if self._policy is not None:
            self._policy.added(replica)
        return replica

    def remove(self, replica_id: str) -> Replica | None:
        """The replica takes no more calls (it is gone, drains, or its connection broke). None: it was not known.

        Calls that it still works on may be told as `finished` or `rejected` as before. Look after the `stranded`.
        """
        replica = self.replicas.pop(replica_id, None)
        if replica is not None:
            self._room.remove(replica)
            self._special = self._policy is not None or self._room.split
            self._note(replica, False)
            self.homes.removed(replica)
            if self._policy is not None:
                self._policy.removed(replica)
        return replica

    def resize(self, limit: int) -> None:
        """Replicas take `limit` calls at once from now on. Then send what `drain` gives."""
        self.limit = limit
        for replica in self.replicas.values():
            replica.limit = limit
            self._room.refresh(replica)
        self._waiting.news = True

    # --- calls -----------------------------------------------------------------------------------------------------

    def choose(self, call: Any = None) -> Replica | None:
        """The replica to send a new call to now; it is booked. None: there is no room, or others wait: `enqueue` it.

        `call` matters where there is a policy (then it is an `Asked`).
        """
        if self._queue.count or not self._open:
            return None
        if self._bound.count:
            return self._draw_beside_bound(call)
        return self._draw_special(call) if self._special else self._room.draw()

    def choose_bound(self, call: CallT, key: Key, now: float) -> Replica | None:
        """As `choose`, for a call that is bound; None: `enqueue` it with its key. Send what `to_load` names."""
        replica: Replica | None = None
        if key.kind == "replica":
            replica = self.replicas.get(key.name)
            if replica is None or key in self._bound or replica.shelf is not self._open:
                return None
        else:
            homes = self.homes
            if key not in self._bound:
                replica = self._with_room(key)
            # Busy is what is full, or has so many calls that another with few would be as quick.
            if self._open and (replica is None or replica.ours + replica.others > 1):
                other = homes.spread(key.name, now, self._open)
                if other is not None:
                    self.to_load.append((key.name, other))
            if replica is None:
                return None
            self._note_loader(call, key, replica)
        self._room.book(replica)
        return replica

    def choose_beside(self, replica: Replica, key: Key | None = None) -> Replica | None:
        """The replica for a copy of a call that `replica` has; it is booked. None: none has room and less to do.

        Of two random ones the lesser load, as in `choose`, rather on another node, and it must have less to do than
        `replica`, with this call.
        """
        if key is not None:
            other = self.homes.pick(key.name, lambda home: home is not replica and home.shelf is self._open)
        else:
            other = self._room.draw_beside(replica)
        if other is None or other.ours + other.others >= replica.ours + replica.others:
            return None
        self._room.book(other)
        return other

    def has_spare(self) -> bool:
        """Whether nothing waits, and after one more call there is still room for another, as far as is known here."""
        if self.queued or not self._open:
            return False
        replica = self._open[0]
        return len(self._open) > 1 or replica.ours + replica.others + 1 < replica.limit

    def book(self, replica: Replica) -> None:
        """A call is sent there in a slot that was kept for it, and was booked with what kept it: both end."""
        self._room.book(replica)

    def enqueue(
        self, call: CallT, now: float, priority: int = 0, deadline: float | None = None, key: Key | None = None
    ) -> bool:
        """The call waits. False: too many wait already. It is refused, or takes the place of one that `evict` gives."""
        if 0 <= self.max_queued <= self.queued and (key is None or key.kind != "replica"):
            return False
        self._waiting.put(call, now, priority, deadline, key)
        return True

    def evict(self, below: int | None = None) -> CallT | None:
        """The youngest of the calls of the lowest priority, which waits no more.

        None: none waits, or none of a priority under `below`. Suspects stay. Of the same priority it is one of the
        longest line: many calls for one model shall not drive out all others.
        """
        return self._waiting.evict(below)

    def hopeless(self, now: float, deadline: float, priority: int = 0) -> bool:
        """Whether a call that cannot be sent now would wait in vain: by what waits before it, it would be late.

        Never while less urgent ones wait: it is for them to give way.
        """
        return self._waiting.hopeless(now, deadline, priority)

    def requeue(
        self, call: CallT, since: float, priority: int = 0, deadline: float | None = None, key: Key | None = None
    ) -> None:
        """A call that was sent but not started waits again, before later ones. Then send what `drain` gives."""
        self._waiting.put_back(call, since, priority, deadline, key)

    def quarantine(self, call: CallT, since: float, priority: int = 0) -> None:
        """A suspect (it was in flight at a crash) waits for a replica without another suspect. Then send `drain`'s."""
        self._waiting.quarantine(call, since, priority)

    def discard(self, call: CallT) -> bool:
        """The call does not wait any more: it was cancelled, or its time is over. False: it did not wait."""
        return self._waiting.discard(call)

    def take_all(self) -> list[CallT]:
        """All calls that wait, which wait no more: suspects first, then by age."""
        return self._waiting.take_all()

    def drain(self, now: float) -> list[tuple[CallT, Replica]]:
        """The calls that wait and can be sent now, each with its replica, which is booked: room has appeared."""
        pairs: list[tuple[CallT, Replica]] = []
        if self._suspects.count:
            for replica in [replica for replica in self._open if not replica.suspect]:
                suspect = self._suspects.take()
                if suspect is None:
                    break
                replica.suspect = True
                self._room.book(replica)
                pairs.append((suspect, replica))
        if self._bound.count and self._open:
            self._drain_bound(pairs, now)
        while self._open and (call := self._waiting.take(now)) is not None:
            pairs.append((call, self._draw_special(call) if self._special else self._room.draw()))
        if pairs or self.shed:
            self._waiting.news = True
        return pairs

    def _drain_bound(self, pairs: list[tuple[CallT, Replica]], now: float) -> None:
        for key in self._bound:
            while (replica := self._with_room(key)) is not None and (
                call := self._waiting.take_bound(key, now)
            ) is not None:
                if key.kind == "model":
                    self._note_loader(call, key, replica)
                self._room.book(replica)
                pairs.append((call, replica))

    def stranded(self) -> list[CallT]:
        """The calls that are bound to replicas which are not there, nor expected: they wait no more."""
        stranded: list[CallT] = []
        for key in self._bound:
            if key.kind == "replica" and key.name not in self.replicas and key.name not in self.expected:
                while (call := self._bound.take(key)) is not None:
                    stranded.append(call)
        return stranded

    def awaited(self, replica_id: str) -> bool:
        """Whether calls wait for that replica alone."""
        return to_replica(replica_id) in self._bound

    # --- models ----------------------------------------------------------------------------------------------------

    def models_changed(self, replica: Replica, ready: list[str], loading: list[str], gone: list[str]) -> None:
        """The replica says so of its models. Then send what `drain` gives."""
        if self.replicas.get(replica.id) is replica:
            self.homes.told(replica, ready, loading, gone)
            self._waiting.news = self._waiting.news or self._bound.count > 0

    def loads(self, call: CallT) -> bool:
        """Whether the call, which has been sent, is the first for its model there: say when it has `loader_ended`."""
        return call in self._loaders

    def loader_ended(self, call: CallT, started: bool = True) -> bool:
        """It was answered, was cancelled, or (not `started`) refused. True: send what `drain` gives."""
        model, replica = self._loaders.pop(call, (None, None))
        if model is None or replica is None or not self.homes.ended(model, replica, started):
            return False
        self._waiting.news = True
        return True

    def _note_loader(self, call: CallT, key: Key, replica: Replica) -> None:
        if self.homes.sent(key.name, replica):
            self._loaders[call] = key.name, replica

    # --- what replicas say -----------------------------------------------------------------------------------------

    def finished(self, replica: Replica, load: int) -> None:
        """A call of ours at the replica has ended; its reply says `load`."""
        replica.ours = ours = replica.ours - 1
        others = load - ours
        replica.others = others if others > 0 else 0
        if load >= replica.limit or replica.shelf is not self._open:
            self._room.refresh(replica)
        if self._silent:
            self._room.fade()

    def rejected(self, replica: Replica, load: int) -> None:
        """The replica had no slot for a call of ours, which has not started: `requeue` it. It is full for now."""
        replica.ours -= 1
        replica.others = max(load, replica.limit) - replica.ours
        self._room.refresh(replica)

    def unbook(self, replica: Replica) -> None:
        """A call that was booked there never left, and will not. Then send what `drain` gives."""
        replica.ours -= 1
        self._room.refresh(replica)

    def offered(self, replica: Replica, load: int, now: float) -> CallT | None:
        """The replica holds a slot for us, which `load` counts. The call to send there as leased, or None: decline.

        The leased call carries `urgency_s(now, replica)` as it is right after this.
        """
        replica.others = max(0, load - 1 - replica.ours)
        call: CallT | None = None
        if replica.limit:
            if self._suspects.count and not replica.suspect:
                call = self._suspects.take()
                replica.suspect = True
                self._waiting.news = True
            elif self._bound.count:
                call = self._take_bound_for(replica, now) or self._waiting.take_for_slot(now)
                if call is None:  # all of the queue were too late
                    call = self._take_bound_for(replica, now)
                self._waiting.news = True
            else:
                call = self._waiting.take_for_slot(now)
        if call is not None:
            replica.ours += 1
        # The leased call, by the age in it, or the decline, says so.
        self._note(replica, replica.limit > 0 and self._waiting.any_for(replica))
        self._room.refresh(replica)
        return call

    def suspect_ended(self, replica: Replica) -> None:
        """The suspect of ours there has ended or was rejected. Another may go there: send what `drain` gives."""
        replica.suspect = False
        self._waiting.news = True

    # --- what replicas are told ------------------------------------------------------------------------------------

    def announce(self) -> list[Replica]:
        """The replicas to tell now: WAITING with `waiting_for` and `urgency_s`, or WITHDRAW where the first is 0.

        Call it at the end of each tick in which anything happened. Where nothing changed it costs nothing; telling all
        is O(replicas), which is why it waits for the end of the tick: a queue that comes and goes within it is no news.
        A call more urgent than those that they were told of is news to all, and so is it when such a call has left:
        else the replicas would take the next for it, and let it go before more urgent ones of other routers.
        """
        if not self._waiting.news:
            return []
        self._waiting.news = False
        urgent = self._waiting.urgency_changed()
        told: list[Replica] = []
        settled = self._told == (len(self.replicas) if self._queue.count else 0)
        if settled and not urgent and not self._suspects.count and not self._bound.count:
            return told
        for replica in self.replicas.values():
            waits = self._waiting.any_for(replica)
            if waits is not replica.told or (urgent and waits):
                self._note(replica, waits)
                told.append(replica)
        return told

    def waiting_for(self, replica: Replica) -> int:
        """How many of the calls that wait could go to this replica."""
        return self._waiting.count_for(replica)

    def urgency_s(self, now: float, replica: Replica | None = None) -> float | None:
        """How urgent the most urgent call is (of those that could go to `replica`); None: none waits.

        It is how long the call has waited, in seconds, plus the head start that its priority has over the lowest: never
        negative, so that routers can be compared by it.
        """
        return self._waiting.urgency_s(now, replica)

    # --- room ------------------------------------------------------------------------------------------------------

    def _draw_special(self, call: Any) -> Replica:
        """As `Room.draw`, where a policy may prefer some replica, or near ones come first."""
        replica = None if self._policy is None else self._policy.choose(call, self._open)
        if replica is None or replica.shelf is not self._open:
            return self._room.draw_nearby()
        self._room.book(replica)
        return replica

    def _draw_beside_bound(self, call: Any) -> Replica | None:
        """As `_draw`, but of replicas with room for which no bound call waits; None: there is none."""
        free = [replica for replica in self._open if not self._waiting.any_bound_for(replica)]
        if not free:
            return None
        replica = None if self._policy is None else self._policy.choose(call, free)
        if replica is None or replica not in free:
            replica = min(free, key=lambda replica: (replica.ours + replica.others, not replica.near, self._random()))
        self._room.book(replica)
        return replica

    def _take_bound_for(self, replica: Replica, now: float) -> CallT | None:
        """The bound call whose turn it is at this replica, before all others; None: there is none."""
        while (key := self._waiting.key_before_others(replica)) is not None:
            call = self._waiting.take_bound(key, now)
            if call is not None:
                if key.kind == "model":
                    self._note_loader(call, key, replica)
                return call
        return None

    def _has_room(self, replica: Replica) -> bool:
        return replica.shelf is self._open

    def _serves(self, replica: Replica, key: Key) -> bool:
        return key.name == replica.id if key.kind == "replica" else self.homes.takes(key.name, replica)

    def _with_room(self, key: Key) -> Replica | None:
        """A replica with room that serves the key."""
        if key.kind == "model":
            known = self.homes.known(key.name)
            return self.homes.pick(key.name, self._has_room) if known else self.homes.first(key.name, self._open)
        replica = self.replicas.get(key.name)
        return replica if replica is not None and replica.shelf is self._open else None

    def _note(self, replica: Replica, told: bool) -> None:
        self._told += told - replica.told
        replica.told = told
