"""One deployment as a router knows it: its replicas, the links to them, the calls that wait for a slot.

In: calls of the router; what the links tell (replies, offers, refusals, losses); changes of the snapshot. Out: calls
to links, answers to calls that cannot be sent. All choices are `core`'s: Balancer (where, wait, refuse or shed) and
Repeats (what becomes of a call whose replica died); this is their shell.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from headrace.core.balance import Balancer, Replica
from headrace.core.bound import Key, to_model, to_replica
from headrace.core.repeat import Repeats, RetryBudget, Verdict
from headrace.router.approach import Approach
from headrace.router.call import Call
from headrace.router.connections import Connections
from headrace.router.hedges import Hedges
from headrace.router.link import NONE_WAITS, Link
from headrace.router.places import Places
from headrace.router.policy import make_policy
from headrace.router.reservation import send_in_slot
from headrace.router.spare import died, refused, submit_mirrored
from headrace.spec.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    HeadraceError,
    PoisonousRequestError,
    ReplicaDiedError,
    RequestTimeoutError,
)
from headrace.spec.snapshot import DeploymentEntry
from headrace.wire.frames import LEASED, RESERVED, SUSPECT, ModelsInfo

if TYPE_CHECKING:
    from headrace.router.router import Router

log = logging.getLogger("headrace.router")

RETRY_AFTER_S = 1.0  # what a client is told that was refused for load, where the deployment does not say


class Pool:
    """The replicas of one deployment entry, and the calls on their way to them."""

    def __init__(self, router: Router, entry: DeploymentEntry) -> None:
        self.router = router
        self.loop = router.loop
        self.key = entry.key
        self.entry = entry
        self.balancer: Balancer[Call] = Balancer(entry.max_ongoing_requests, 0, router.rng, router.node)
        # One crash can hit as many calls as a replica takes at once.
        limit = entry.max_ongoing_requests
        self.repeats = Repeats(
            RetryBudget(entry.retry_ratio, max(100, limit), entry.retry_per_second, max(1000, 2 * limit))
        )
        self.places = Places(self)
        self.hedges = Hedges(self)
        self._special = entry.multiplexed or self.hedges.on  # what is done with a call depends on the call
        self._adopt_policy()
        self.closed = False  # the entry is gone: what comes back is the router's to place elsewhere
        self.serving = True  # requests come here whose answers somebody gets: mirrored ones take only what those leave
        self.connections = Connections(self)
        self._announcing = False
        self._tick_at = 0.0  # while announcing: when the first news of this tick came

    def __repr__(self) -> str:
        return f"<Pool {self.key} {self.balancer}>"

    # --- what the snapshot says ------------------------------------------------------------------------------------

    def update(self, entry: DeploymentEntry) -> None:
        """Adopt the entry: new replicas take calls, those that are gone from it finish what they have."""
        before, self.entry = self.entry, entry
        balancer = self.balancer
        if before.request_router != entry.request_router:
            self._adopt_policy()
        self.hedges.update()
        self._special = entry.multiplexed or balancer.policy is not None or self.hedges.on
        self.repeats.budget.tune(entry.retry_ratio, entry.retry_per_second)
        if balancer.limit != entry.max_ongoing_requests:
            balancer.resize(entry.max_ongoing_requests)
        policy = balancer.policy
        replicas = entry.replicas if policy is not None and policy.sees_all else self.router.subset(entry)
        self.connections.update(replicas)
        self.places.update(entry)
        if entry.failed:
            self.fail_queued(self._unavailable())
        self.pump()

    def _adopt_policy(self) -> None:
        entry, balancer = self.entry, self.balancer
        policy = balancer.policy = make_policy(entry.request_router, f"{entry.app}/{entry.name}")
        if policy is not None:
            self._special = True
            for replica in balancer.replicas.values():
                policy.added(replica)

    def close(self) -> list[Call]:
        """The entry is gone. The calls that had not started are the caller's to place elsewhere."""
        self.closed = True
        self.places.close()
        self.connections.close()
        calls = self._take_queue()
        for call in calls:
            call.line = None
        return calls

    def _unavailable(self) -> DeploymentUnavailableError:
        entry = self.entry
        return DeploymentUnavailableError(f"deployment {entry.name} of application {entry.app}: {entry.failed}")

    # --- calls -----------------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Send the call to a replica now, or let it wait, or refuse it."""
        call.pool = self
        if call.deadline is not None and call.deadline <= self.loop.time():
            call.fail(_expired(call, "came when"))
            return
        self.repeats.budget.calls += 1
        if self._special or call.target is not None or call.hedge is not None:
            self._submit_special(call)
            return
        replica = self.balancer.choose()
        if replica is not None:
            link = replica.link
            if link is not None:
                link.call(call, self.router.snapshot.version, 0, NONE_WAITS)
            else:
                self.send(replica, call)
        elif self.entry.failed:
            call.fail(self._unavailable())
        else:
            self.wait(call)

    def _submit_special(self, call: Call) -> None:
        """As `submit`, where not every replica is as good as another for the call."""
        if call.slot is not None and send_in_slot(self, call, call.slot):
            return
        if call.target is not None and not self.connections.knows(call.target):
            call.fail(self._no_such_replica(call.target))
            return
        if call.mirrored:
            submit_mirrored(self, call)
            return
        if (self.hedges.on or call.hedge) and not self.hedges.came(call):
            return
        key = self.key_of(call)
        balancer = self.balancer
        replica = balancer.choose(call) if key is None else balancer.choose_bound(call, key, self.loop.time())
        if balancer.to_load:
            self._ask_to_load()
        if replica is not None:
            self.send(replica, call)
        elif self.entry.failed:
            call.fail(self._unavailable())
        else:
            self.wait(call, key)

    def key_of(self, call: Call) -> Key | None:
        """What the call is bound to. A suspect goes wherever no other suspect is."""
        if call.target is not None:
            return to_replica(call.target)
        if call.model_id is not None and self.entry.multiplexed:
            return to_model(call.model_id)
        return None

    def _no_such_replica(self, replica_id: str) -> ReplicaDiedError:
        entry = self.entry
        return ReplicaDiedError(
            f"replica {replica_id} of deployment {entry.name} of application {entry.app} takes no calls: it has ended, "
            "or drains"
        )

    def _ask_to_load(self) -> None:
        """Have models loaded where the balancer wants them: at the end of the tick, for links may have to be opened."""
        wanted, self.balancer.to_load = self.balancer.to_load, []
        for model, replica in wanted:
            link = self.link_to(replica)
            if link is not None:
                link.load(model)

    def cancel(self, call: Call) -> None:
        """Forget a call that waits, or tell the replica that works on it."""
        if call.line is not None:
            self.hedges.dropped(call)
        if call.expiry is not None:
            call.expiry.cancel()
        if call.link is not None:
            overdue = call.deadline is not None and call.deadline <= self.loop.time()
            if overdue and call.link.calls.get(call.stream) is call:
                self.served(call)  # it takes longer still: if only those in time were told, all would seem quick
            sent = not isinstance(call.link, Approach)
            call.link.cancel(call)
            if self._special:
                self._loader_ended(call, started=sent)
        elif self.balancer.discard(call):
            self._announce_soon()

    def send(self, replica: Replica, call: Call, flags: int = 0, next_age_ms: int = NONE_WAITS) -> None:
        """Send the call to the replica, where it is booked."""
        link = self.link_to(replica)
        if link is None:  # it has died, and the snapshot does not say so yet
            if self._special:
                self.balancer.loader_ended(call, started=False)
            self._put_back(call)
            self._pump_soon()
            return
        if call.expiry is not None:
            call.expiry.cancel()
            call.expiry = None
        if self._special:
            if self.balancer.policy is not None:
                self.balancer.policy.sent(call, replica)
            if self.balancer.loads(call):
                call.observed = True  # the end of it is of interest
        link.call(call, self.router.snapshot.version, flags, next_age_ms)
        if call.line is not None and call.link is link:  # else the link has broken under it
            self.hedges.sent(call)

    def link_to(self, replica: Replica) -> Link | Approach | None:
        """The connection to the replica, opened when there is none yet. None when nobody is there."""
        link: Link | Approach | None = replica.link
        return self.connections.open(replica) if link is None else link

    # --- waiting ---------------------------------------------------------------------------------------------------

    def wait(self, call: Call, key: Key | None = None) -> None:
        """The call waits for a slot, or is refused."""
        balancer, now, deadline, priority = self.balancer, self.loop.time(), call.deadline, call.priority
        # In this tick no answer can have come, however long it takes: that says nothing of the replicas.
        heard_at = self._tick_at if self._announcing else now
        if deadline is not None and key is None and balancer.hopeless(heard_at, deadline, priority):
            call.fail(self._busy(f"{balancer.queued} calls waiting: request {call.request_id} would be late"))
            return
        evicted: list[Call] = []
        waits = balancer.enqueue(call, now, priority, deadline, key)
        if not waits and self.places.make_room():
            waits = balancer.enqueue(call, now, priority, deadline, key)
        while not waits and (other := balancer.evict(below=priority)) is not None:
            evicted.append(other)
            waits = balancer.enqueue(call, now, priority, deadline, key)
        if waits:
            call.queued_since = now
            self.park(call)
            self._announce_soon()
        else:
            evicted.append(call)
        for each in evicted:
            self._refuse_full(each)

    def refuse_lowest(self) -> bool:
        """The youngest call of the lowest priority has no place in the queue. False: there is none."""
        call = self.balancer.evict()
        if call is None:
            return False
        self._announce_soon()
        self._refuse_full(call)
        return True

    def _refuse_full(self, call: Call) -> None:
        if call.expiry is not None:
            call.expiry.cancel()
        limit = self.entry.max_queued_requests
        call.fail(self._busy(f"{self.balancer.queued} calls waiting; max_queued_requests is {limit}"))

    def _busy(self, what: str) -> BackPressureError:
        entry = self.entry
        retry_after_s = RETRY_AFTER_S if entry.retry_after_s is None else entry.retry_after_s
        message = f"deployment {entry.name} of application {entry.app} has {what}"
        return BackPressureError(message, retry_after_s, entry.busy_status)

    def _answer_shed(self) -> None:
        """Answer the calls that it was too late to send."""
        shed, now = self.balancer.shed, self.loop.time()
        while shed:
            call = shed.pop()
            if call.expiry is not None:
                call.expiry.cancel()
            if call.deadline is not None and call.deadline <= now:
                call.fail(_expired(call, "waited until"))
            else:
                call.fail(
                    self._busy(f"too little time for request {call.request_id}: it waited, and would be late now")
                )

    def _put_back(self, call: Call) -> None:
        """A call that no replica has started waits again in its old place."""
        if call.reservation:
            call.reservation = 0  # the slot was lost on the way
            call.kind &= ~RESERVED
        if call.queued_since is None:
            call.queued_since = self.loop.time()
        call.link = None
        if self.closed:  # the replica ended, or refused the call, when the router knew that its entry is gone
            call.line = None
            self.router.replace(call, self)
            return
        self.park(call)
        if call.suspect:
            self.balancer.quarantine(call, call.queued_since, call.priority)
        else:
            key = self.key_of(call) if self._special or call.target is not None else None
            self.balancer.requeue(call, call.queued_since, call.priority, call.deadline, key)
        if 0 <= self.balancer.max_queued < self.balancer.queued:
            self.places.come_back()

    def park(self, call: Call) -> None:
        """The call is not sent yet: it may be over before."""
        if call.buffers:
            # The caller may change its arrays once the call has been submitted.
            call.buffers = [buffer if isinstance(buffer, bytes) else bytes(buffer) for buffer in call.buffers]
        if call.deadline is not None and call.expiry is None:
            call.expiry = self.loop.call_at(call.deadline, self._expire, call)

    def _expire(self, call: Call) -> None:
        call.expiry = None
        if isinstance(call.link, Approach) and call.link.calls.get(call.stream) is call:
            self.cancel(call)
        elif self.balancer.discard(call):
            self._announce_soon()
        else:
            return
        call.fail(_expired(call, "waited until"))

    def _announce_soon(self) -> None:
        """At the end of this tick, tell the replicas what has changed: a queue that came and went is no news."""
        if not self._announcing:
            self._announcing = True
            self._tick_at = self.loop.time()
            self.loop.call_soon(self._announce)

    def _announce(self) -> None:
        self._announcing = False
        if self.router.closed:
            return
        balancer, now, opened = self.balancer, self.loop.time(), True
        for replica in balancer.announce():
            link: Link | Approach | None = replica.link
            count = balancer.waiting_for(replica)
            if link is None and count:
                link = self.connections.open(replica)
                opened = opened and link is not None
            if link is None:
                continue
            if count:
                link.tell_waiting(count, balancer.urgency_s(now, replica) or 0.0)
            else:
                link.tell_withdrawn()
        if not opened:
            self.pump()

    def pump(self) -> None:
        """Send what waits to replicas that have room: a replica has come, or a call has come back."""
        for call in self.balancer.stranded():
            if call.expiry is not None:
                call.expiry.cancel()
            call.fail(self._no_such_replica(call.target or ""))
        for call, replica in self.balancer.drain(self.loop.time()):
            self.send(replica, call)
        if self.balancer.shed:
            self._answer_shed()
        self._announce_soon()

    def _pump_soon(self) -> None:
        self.loop.call_soon(self.pump)

    def _take_queue(self) -> list[Call]:
        calls = self.balancer.take_all()
        for call in calls:
            if call.expiry is not None:
                call.expiry.cancel()
                call.expiry = None
        self._announce_soon()
        return calls

    def fail_queued(self, error: HeadraceError) -> None:
        """Answer all calls that wait with `error`."""
        for call in self._take_queue():
            call.fail(error)

    # --- what the links tell ---------------------------------------------------------------------------------------

    def replied(self, replica: Replica, load: int, offered: int, suspect: bool) -> None:
        """An answer of the replica freed a slot; `offered`: it is held for a call of ours."""
        self.balancer.finished(replica, load)
        if suspect:
            self.balancer.suspect_ended(replica)
            self._pump_soon()
        if offered:
            self.offered(replica, load)

    def served(self, call: Call, failed: bool = False) -> None:
        """An observed call is answered, or given up after its deadline. Of streams nothing is learned."""
        if call.line is not None:
            self.hedges.answered(call, failed)
        if call.deadline is not None and not call.answered and not call.held:
            now = self.loop.time()
            self.balancer.lateness.times.observe(now - call.sent_at, now)
        if self._special:
            self._loader_ended(call)

    def begun(self, call: Call) -> None:
        """The first part of the result of an observed call has come, and more will."""
        if call.line is not None:
            self.hedges.answered(call)
        if self._special:
            self._loader_ended(call)

    def offered(self, replica: Replica, load: int) -> None:
        """The replica holds a slot for us: send the most urgent call that waits, or decline."""
        balancer, now = self.balancer, self.loop.time()
        call = balancer.offered(replica, load, now)
        if call is None:
            replica.link.decline()
        else:
            age = balancer.urgency_s(now, replica)
            self.send(replica, call, LEASED, NONE_WAITS if age is None else min(int(age * 1000), NONE_WAITS - 1))
        if balancer.shed:
            self._answer_shed()
        self._announce_soon()

    def models_changed(self, replica: Replica, info: ModelsInfo) -> None:
        """The replica has loaded models, or let go of some."""
        self.balancer.models_changed(replica, info.ready, info.loading, info.gone)
        self.pump()

    def _loader_ended(self, call: Call, started: bool = True) -> None:
        if self.balancer.loader_ended(call, started):
            self._pump_soon()

    def rejected(self, replica: Replica, load: int, call: Call | None, suspect: bool) -> None:
        """The replica had no slot: the call, which has not started, waits in its old place."""
        self.balancer.rejected(replica, load)
        if suspect:
            self.balancer.suspect_ended(replica)
        if call is not None:
            self.returned(call)
        self._pump_soon()

    def returned(self, call: Call) -> None:
        """A replica that the call was given to has not started with it, and will not."""
        if self._special:
            self._loader_ended(call, started=False)
        if call.mirrored and refused(self, call):
            return
        if call.line is None or not self.hedges.survives(call):
            self._put_back(call)

    def unbook(self, call: Call, replica: Replica) -> None:
        """A call that was given to the replica is over, and never left."""
        self.balancer.unbook(replica)
        if call.suspect:
            self.balancer.suspect_ended(replica)
        self._pump_soon()

    def going(self, replica: Replica) -> None:
        """The replica drains: no new calls go there."""
        self.connections.going(replica.id)
        self.places.lost(replica.id)
        self.pump()

    def lost(self, replica: Replica, calls: list[Call]) -> None:
        """The connection broke, the replica most likely died, with these calls in work there or on their way."""
        replica.link = None
        self.connections.out_of_reach(replica)
        self.places.lost(replica.id)
        now = self.loop.time()
        for call in calls:
            if self._special:
                self._loader_ended(call)
            if call.mirrored:
                died(call, replica)
            elif call.line is None or not self.hedges.survives(call):
                self._judge(call, replica, now)
        self.pump()

    def _judge(self, call: Call, replica: Replica, now: float) -> None:
        started = not call.unstarted()  # before its body is taken back
        verdict = self.repeats.judge(
            now,
            started=started,
            suspect=call.suspect,
            repeatable=self.repeatable(call) and call.target is None,
            kept=call.take_back_body(started),
            answered=call.answered,
        )
        if verdict is Verdict.MOVE:
            self._put_back(call)
        elif verdict is Verdict.REPEAT:
            call.suspect = True
            call.kind |= SUSPECT
            call.attempt += 1
            call.parts = None
            self._put_back(call)
        elif verdict is Verdict.POISONOUS:
            log.error("request %s was in work at two crashes of %s: not tried again", call.request_id, self.entry.name)
            call.fail(
                PoisonousRequestError(
                    f"request {call.request_id} was in work at two crashes of replicas of {self.entry.name}"
                )
            )
        else:
            reason = "it could not be sent again" if self.repeatable(call) else "its calls are not repeatable"
            call.fail(
                ReplicaDiedError(f"replica {replica.id} died while it worked on request {call.request_id}; {reason}")
            )

    def repeatable(self, call: Call) -> bool:
        """Whether the call may run twice."""
        return self.entry.repeatable and call.method not in self.entry.unrepeatable


def _expired(call: Call, how: str) -> RequestTimeoutError:
    return RequestTimeoutError(f"request {call.request_id} {how} its deadline had passed")
