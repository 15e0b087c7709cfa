"""Copies of slow calls, over real connections: the first answer is the call's, and nothing is left of the other."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_result_items import AskedForItems
from test_router import Asked, Replica, World, echo, taken_bytes, until

from headrace.core.hedging import LEAST_LATENCIES, Refusal
from headrace.replica.incoming import Incoming
from headrace.router import Router
from headrace.router.hedges import MOST_CONFIGS, Hedges
from headrace.router.pool import Pool
from headrace.spec.errors import (
    InstanceError,
    OptionError,
    PoisonousRequestError,
    RequestTimeoutError,
)
from headrace.spec.hedging import HedgingConfig
from headrace.wire.frames import GRPC, HTTP, ErrorInfo
from headrace.wire.payload import Payload

EAGER = HedgingConfig(budget=1.0)
BROKEN = ErrorInfo("builtins.ValueError", "broken", "", 500)
KNOWN = 2 * LEAST_LATENCIES


class Hedged(World):
    """Replicas whose calls are hedged after a moment, since so many have been answered at once."""

    def __init__(self, directory: Path, limit: int = 10, max_queued: int = 100, repeatable: bool = True) -> None:
        super().__init__(directory, limit, max_queued, repeatable)
        self.options["hedge"] = EAGER
        self.asked = 0

    async def begin(self, replicas: int = 2, **fields: Any) -> None:
        for replica in await self.add(replicas):
            replica.handle = echo
        for _ in range(KNOWN):
            assert await self.ask(**fields).outcome() == b""
        await self.until_nothing_is_held()
        self.hedges.sent_count = self.hedges.won_count = 0  # of those that took a little longer
        for replica in self.replicas.values():
            replica.handle = replica.calls.append

    @property
    def pool(self) -> Pool:
        return self.router._pools["app/Model@1"]

    @property
    def hedges(self) -> Hedges:
        return self.pool.hedges

    def ask(self, body: bytes = b"", router: Router | None = None, **fields: Any) -> Asked:
        self.asked += 1
        return super().ask(body, router, **{"request_id": str(self.asked)} | fields)

    def holder(self, call: Asked) -> Replica:
        """The replica that the call is in now."""
        assert call.link is not None
        return self.replicas[call.link.replica.id]

    async def copied(self, call: Asked) -> tuple[Incoming, Incoming]:
        """The first and its copy, once both have arrived."""
        await until(lambda: call.copy is not None)
        assert call.copy is not None
        assert call.copy.link is not None
        first, second = self.holder(call), self.replicas[call.copy.link.replica.id]
        assert first is not second
        return await arrived(first, call), await arrived(second, call)

    async def until_nothing_is_held(self) -> None:
        """No slot is taken, no call under way, and no timer set for one."""
        await until(lambda: not any(link.calls or link.outflows or link._owed for link in self.router.links))
        await until(lambda: not any(replica.server.ongoing for replica in self.replicas.values()))
        assert all(known.ours == 0 for known in self.pool.balancer.replicas.values())
        for hedger in self.hedges._hedgers.values():
            for line in hedger.lines():
                assert not line._out
                await until(lambda line=line: line.timer is None)  # type: ignore[misc]
        await until(lambda: taken_bytes(self) == 0)


async def arrived(replica: Replica, call: Asked) -> Incoming:
    """The call, or its copy, in this replica."""
    found: list[Incoming] = []

    def look() -> bool:
        found.extend(each for each in replica.calls if each.meta.request_id == call.request_id)
        return bool(found)

    await until(look)
    return found[0]


def hedged(
    test: Callable[[Hedged], Awaitable[None]],
    tmp_path: Path,
    limit: int = 10,
    repeatable: bool = True,
    **options: Any,
) -> None:
    async def run() -> None:
        world = Hedged(tmp_path, limit, repeatable=repeatable)
        world.options |= options
        try:
            await test(world)
        finally:
            await world.close()

    asyncio.run(run())


# --- the first answer counts


def test_the_copy_of_a_slow_call_answers_it_and_the_first_is_cancelled(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask(b"body", request_id="r", sticky="s", trace="t", priority=3)
        first, second = await world.copied(call)
        assert bytes(second.body) == b"body"
        for name in ("request_id", "app", "revision", "key", "method", "attempt", "sticky", "trace", "priority"):
            assert getattr(first.meta, name) == getattr(second.meta, name), name
        assert first.meta.waited_s == 0.0
        assert second.meta.waited_s >= EAGER.least_delay_s, "since the first left, so that a batch does not wait again"
        second.reply(b"quick")
        assert await call.outcome() == b"quick"
        await until(lambda: first.cancelled)
        assert not second.cancelled
        assert sum(known.ours for known in world.pool.balancer.replicas.values()) == 1, "its slot is still taken"
        first.reply(b"slow")
        await world.until_nothing_is_held()
        assert len(call.replies) == 1
        assert (world.hedges.sent_count, world.hedges.won_count) == (1, 1)

    hedged(test, tmp_path)


def test_the_first_answers_and_its_copy_is_cancelled(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        first, second = await world.copied(call)
        first.reply(b"first")
        assert await call.outcome() == b"first"
        await until(lambda: second.cancelled)
        second.reply(b"second")
        await world.until_nothing_is_held()
        assert (world.hedges.sent_count, world.hedges.won_count) == (1, 0)

    hedged(test, tmp_path)


@pytest.mark.parametrize("by_copy", [True, False])
def test_an_error_of_user_code_is_an_answer(tmp_path: Path, by_copy: bool) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        first, second = await world.copied(call)
        (second if by_copy else first).fail(BROKEN)
        error = await call.outcome()
        assert isinstance(error, ErrorInfo)
        assert error.message == "broken"
        other = first if by_copy else second
        await until(lambda: other.cancelled)
        other.fail(BROKEN)
        await world.until_nothing_is_held()
        assert len(call.errors) == 1
        assert not call.replies

    hedged(test, tmp_path)


def test_both_answers_may_be_on_their_way_at_once(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        for _ in range(10):
            call = world.ask()
            first, second = await world.copied(call)
            first.reply(b"first")
            second.reply(b"second")
            assert await call.outcome() in (b"first", b"second")
            await world.until_nothing_is_held()
            assert len(call.replies) == 1
            assert not call.errors

    hedged(test, tmp_path)


@pytest.mark.parametrize("by_copy", [True, False])
def test_a_result_that_streams_goes_on_from_where_it_began(tmp_path: Path, by_copy: bool) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(kind=HTTP)
        call = world.ask(kind=HTTP)
        first, second = await world.copied(call)
        winner, loser = (second, first) if by_copy else (first, second)
        winner.start_reply(b"head ", b"", HTTP)
        await until(lambda: loser.cancelled)
        loser.reply(b"")
        await until(lambda: call.replies)
        part = os.urandom(100_000)
        for _ in range(10):  # far more than a window: it goes on as it is read
            winner.write(part)
        winner.end()
        told = 0
        async with asyncio.timeout(20):
            while not call.end.is_set():
                await asyncio.sleep(0)
                world.router.consumed(call, sum(map(len, call.data[told:])))
                told = len(call.data)
        assert b"".join(call.data) == part * 10
        await world.until_nothing_is_held()

    hedged(test, tmp_path)


def test_a_streaming_result_of_a_copy_can_be_cancelled(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(kind=HTTP)
        call = world.ask(kind=HTTP)
        first, second = await world.copied(call)
        second.start_reply(b"head", b"", HTTP)
        await until(lambda: call.replies)
        world.router.cancel(call)
        await until(lambda: second.cancelled and first.cancelled)
        second.end()
        first.reply(b"")
        await world.until_nothing_is_held()
        assert len(call.replies) == 1
        assert not call.errors

    hedged(test, tmp_path)


def test_a_streaming_result_of_a_copy_breaks_with_its_replica(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(kind=HTTP)
        call = world.ask(kind=HTTP)
        first, second = await world.copied(call)
        second.start_reply(b"head", b"", HTTP)
        await until(lambda: call.replies)
        world.holder(call).crash()
        await until(lambda: call.errors)
        first.reply(b"")
        await until(lambda: not any(link.calls for link in world.router.links))
        assert len(call.replies) == len(call.errors) == 1

    hedged(test, tmp_path)


@pytest.mark.parametrize("by_copy", [True, False])
@pytest.mark.parametrize("arrays", [True, False])
def test_large_arguments_and_results(tmp_path: Path, by_copy: bool, arrays: bool) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        for _ in range(5):
            body = os.urandom(200_000)
            array = bytearray(os.urandom(600_000))
            before = bytes(array)
            call = world.ask(body, whole=True, buffers=[memoryview(array)] if arrays else ())
            array[:] = bytes(len(array))  # the caller's own: it may change once the call has been submitted
            first, second = await world.copied(call)
            for incoming in (first, second):
                assert bytes(incoming.body) == body
                assert [bytes(buffer) for buffer in incoming.buffers] == [before] * arrays
            winner, loser = (second, first) if by_copy else (first, second)
            result = Payload(body[::-1], [memoryview(before[::-1])] if arrays else [])
            winner.answer(result)
            assert await call.outcome() == body[::-1]
            assert [bytes(buffer) for buffer in call.buffers] == [before[::-1]] * arrays
            call.buffers = ()
            await until(lambda loser=loser: loser.cancelled)  # type: ignore[misc]
            loser.answer(result)
            first.buffers = second.buffers = ()
            for replica in world.replicas.values():
                replica.calls.clear()
            del first, second, winner, loser, incoming
            await world.until_nothing_is_held()

    hedged(test, tmp_path)


def test_a_large_result_of_the_first_in_parts_makes_the_copy_superfluous(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask(whole=True)
        first, second = await world.copied(call)
        second.reply(bytes(20_000_000))  # it is on its way for long
        await until(lambda: call.copy is not None and call.copy.parts is not None)
        first.reply(b"first")
        assert await call.outcome() == b"first"
        await world.until_nothing_is_held()

    hedged(test, tmp_path)


# --- when a replica is lost


def test_the_copy_goes_on_when_the_replica_of_the_first_dies(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        _, second = await world.copied(call)
        budget = world.pool.repeats.budget.balance(world.router.loop.time())
        world.holder(call).crash()
        await until(lambda: call.copy is None)
        second.reply(b"second")
        assert await call.outcome() == b"second"
        assert call.attempt == 1
        assert world.pool.repeats.budget.balance(world.router.loop.time()) >= budget, "it was no repeat"
        assert world.hedges.took_over_count == 1

    hedged(test, tmp_path)


def test_nothing_happens_when_the_replica_of_the_copy_dies(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        first, _ = await world.copied(call)
        assert call.copy is not None
        assert call.copy.link is not None
        world.replicas[call.copy.link.replica.id].crash()
        await until(lambda: call.copy is None)
        assert not call.end.is_set()
        first.reply(b"first")
        assert await call.outcome() == b"first"
        assert call.attempt == 1

    hedged(test, tmp_path)


def test_a_call_whose_replicas_both_die_is_repeated_as_after_one_death(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        await world.copied(call)
        for replica in list(world.replicas.values()):
            replica.crash()
        world.replicas.clear()
        (third,) = await world.add()
        (again,) = await third.until_calls(1)
        assert again.meta.attempt == 2
        assert call.line is call.copy is None
        third.crash()
        assert isinstance(await call.outcome(), PoisonousRequestError), "it was in work at two"

    hedged(test, tmp_path)


def test_a_call_that_is_repeated_has_no_copy(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(3)
        world.hedges._hedgers.clear()
        call = world.ask()
        first = world.holder(call)
        await first.until_calls(1)
        line = call.line
        first.crash()
        await until(lambda: call.suspect and call.link is not None)
        assert line is not None
        assert call.line is None
        assert not line._out
        (await arrived(world.holder(call), call)).reply(b"again")
        assert await call.outcome() == b"again"

    hedged(test, tmp_path)


def test_a_copy_that_finds_no_slot_is_forgotten(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        other = next(replica for replica in world.replicas.values() if replica is not world.holder(call))
        rival = Router(asyncio.get_running_loop(), "rival#0")
        world.replicas, both = {other.entry.id: other}, world.replicas
        world.publish(router=rival)
        world.replicas = both
        taking = [world.ask(b"rival", rival) for _ in range(world.limit)]  # of which our router knows nothing
        await until(lambda: world.hedges.sent_count)
        await until(lambda: call.copy is None)
        assert not call.end.is_set()
        assert other.server.ongoing == world.limit
        (await arrived(world.holder(call), call)).reply(b"first")
        assert await call.outcome() == b"first"
        for incoming in other.calls:
            incoming.reply(b"rival")
        assert [await each.outcome() for each in taking] == [b"rival"] * world.limit
        await world.until_nothing_is_held()
        await rival.close()

    hedged(test, tmp_path, limit=3)


def test_a_first_that_is_refused_late_leaves_the_call_to_its_copy(tmp_path: Path) -> None:
    """The replica that it went to is stalled, and takes no more calls when it comes to itself."""

    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        stalled = world.holder(call)
        (end,) = stalled.server.links
        asyncio.get_running_loop().remove_reader(end.sock.fileno())
        await until(lambda: call.copy is not None)
        copy = call.copy
        assert copy is not None
        stalled.server.gate.close()
        end.start()
        await until(lambda: call.copy is None)
        assert call.link is copy.link
        assert call.queued_since is None, "it never waited"
        (await arrived(world.holder(call), call)).reply(b"second")
        assert await call.outcome() == b"second"
        assert not stalled.calls
        await world.until_nothing_is_held()

    hedged(test, tmp_path)


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_replica_that_drains_still_answers(tmp_path: Path, which: str) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        first, second = await world.copied(call)
        assert call.copy is not None
        assert call.copy.link is not None
        drains = world.holder(call) if which == "first" else world.replicas[call.copy.link.replica.id]
        drains.server.drain()
        await until(lambda: len(world.pool.balancer.replicas) == 1)
        (first if which == "first" else second).reply(b"drained")
        assert await call.outcome() == b"drained"
        other = second if which == "first" else first
        await until(lambda: other.cancelled)
        other.reply(b"")
        await until(lambda: not any(link.calls for link in world.router.links))

    hedged(test, tmp_path)


def test_calls_are_answered_after_their_deployment_is_gone(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(4)
        call, alone = world.ask(), world.ask()
        first, second = await world.copied(call)
        world.replicas, replicas = {}, world.replicas
        world.version += 1
        world.router.update(type(world.snapshot)(version=world.version))
        second.reply(b"second")
        assert await call.outcome() == b"second"
        first.reply(b"")
        for replica in replicas.values():
            for incoming in replica.calls:
                if incoming not in (first, second):
                    incoming.reply(b"alone")
        assert await alone.outcome() == b"alone"
        await until(lambda: not world.router.links)
        for replica in replicas.values():
            replica.server.close()

    hedged(test, tmp_path)


def test_a_call_that_waited_through_a_deploy_is_hedged_as_its_new_deployment_says(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(1)
        (old,) = world.replicas.values()
        busy, waits = world.ask(), world.ask()
        await old.until_calls(1)
        assert waits.line is not None
        del world.options["hedge"]
        world.options["hedged_methods"] = {}
        before = world.snapshot
        world.publish()
        assert world.hedges.on is False
        app = before.applications["app"]
        entry = world.snapshot.deployments["app/Model@1"]
        renamed = msgspec.structs.replace(entry, key="app/Model@2")
        revision = msgspec.structs.replace(app.revisions[0], number=2, deployments={"Model": "app/Model@2"})
        world.version += 1
        world.router.update(
            type(before)(
                version=world.version,
                applications={"app": msgspec.structs.replace(app, revisions=(revision,))},
                deployments={"app/Model@2": renamed},
            )
        )
        assert waits.line is None
        old.handle = echo
        old.calls[0].reply(b"busy")
        assert await busy.outcome() == b"busy"
        await waits.outcome()

    hedged(test, tmp_path, limit=1)


def test_a_router_that_closes_tells_each_call_once(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(10)
        calls = [world.ask() for _ in range(3)]
        for call in calls:
            await world.copied(call)
        calls.append(world.ask(hedge=False))
        await world.router.close()
        for call in calls:
            assert isinstance(await call.outcome(), InstanceError)
            assert len(call.errors) == 1
            assert not call.replies

    hedged(test, tmp_path)


# --- its end before an answer


def test_cancelling_the_call_cancels_both(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = world.ask()
        first, second = await world.copied(call)
        world.router.cancel(call)
        await until(lambda: first.cancelled and second.cancelled)
        first.reply(b"")
        second.reply(b"")
        await world.until_nothing_is_held()
        assert not call.replies
        assert not call.errors

    hedged(test, tmp_path)


def test_a_call_cancelled_before_its_copy_has_none(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(4)
        cancelled, slow = world.ask(), world.ask()
        world.router.cancel(cancelled)
        await world.copied(slow)
        assert cancelled.copy is None
        assert world.hedges.sent_count == 1
        for replica in world.replicas.values():
            for incoming in replica.calls:
                incoming.reply(b"")
        await slow.outcome()
        await world.until_nothing_is_held()

    hedged(test, tmp_path)


def test_both_know_the_deadline_and_a_call_past_it_has_no_copy(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(deadline=world.router.loop.time() + 1000)
        call = world.ask(deadline=world.router.loop.time() + 100)
        first, second = await world.copied(call)
        assert 90 < second.meta.remaining_s <= first.meta.remaining_s <= 100
        late = world.ask(deadline=world.router.loop.time() - 1)
        assert isinstance(await late.outcome(), RequestTimeoutError)
        first.reply(b"")
        await call.outcome()
        second.reply(b"")

        overdue = world.ask(deadline=world.router.loop.time() + 0.0005)
        while overdue.link is None:  # this process was not let run for as long
            overdue = world.ask(deadline=world.router.loop.time() + 0.0005)
        await arrived(world.holder(overdue), overdue)
        await until(lambda: world.hedges.refused[Refusal.NO_REPLICA])
        assert overdue.copy is None
        world.router.cancel(overdue)
        for replica in world.replicas.values():
            await until(lambda replica=replica: all(i.cancelled or i in (first, second) for i in replica.calls))  # type: ignore[misc]
            for incoming in replica.calls:
                incoming.reply(b"")
        await world.until_nothing_is_held()

    hedged(test, tmp_path)


# --- which calls, and when


def large() -> list[memoryview]:
    return [memoryview(bytes(1_100_000))]


@pytest.mark.parametrize(
    "fields",
    [
        {"hedge": False},
        {"more": True},
        {"body": bytes(1_100_000)},
        {"buffers": large()},
        {"target": "Model#1"},
        {"method": "exempt"},
        {"method": "once"},
        {"attempt": 2},
    ],
    ids=["not wanted", "streamed body", "large body", "large array", "bound", "exempt", "once", "repeated"],
)
def test_calls_that_have_no_copy(tmp_path: Path, fields: dict[str, Any]) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = Asked(**fields)
        world.router.submit(call)
        assert call.line is None
        world.router.cancel(call)

    hedged(test, tmp_path, hedged_methods={"exempt": None}, unrepeatable=("once",))


def test_a_call_for_items_has_no_copy(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        call = AskedForItems()
        world.router.submit(call)
        assert call.line is None
        world.router.cancel(call)

    hedged(test, tmp_path)


@pytest.mark.parametrize("kind", [0, HTTP, GRPC])
def test_calls_with_one_answer_of_each_kind_may_have_one(tmp_path: Path, kind: int) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(kind=kind)
        call = world.ask(kind=kind)
        _, second = await world.copied(call)
        assert second.flags & (HTTP | GRPC) == kind
        second.reply(b"", b"", kind)
        await call.outcome()

    hedged(test, tmp_path)


def test_what_the_call_asks_for_comes_before_its_deployment(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(4, hedge=EAGER)
        assert not world.hedges.on
        plain = world.ask()
        assert plain.line is None
        call = world.ask(hedge=EAGER)
        first, second = await world.copied(call)
        second.reply(b"second")
        assert await call.outcome() == b"second"
        first.reply(b"")
        by_default = world.ask(hedge=True)
        assert by_default.line is not None
        for replica in world.replicas.values():
            for incoming in replica.calls:
                incoming.reply(b"")
            replica.handle = echo
        for each in (plain, by_default):
            await each.outcome()
        await world.until_nothing_is_held()

    hedged(test, tmp_path, hedge=None)


def test_a_method_may_be_hedged_alone(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin(4, method="rank")
        assert world.hedges.on
        other, call = world.ask(), world.ask(method="rank")
        assert other.line is None
        first, second = await world.copied(call)
        for incoming in (first, second):
            incoming.reply(b"")
        await call.outcome()

    hedged(test, tmp_path, hedge=None, hedged_methods={"rank": EAGER})


@pytest.mark.parametrize("options", [{"repeatable": False, "hedge": None}, {"unrepeatable": ("__call__",)}], ids=str)
def test_to_ask_for_a_copy_of_what_must_not_run_twice_is_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    async def test(world: Hedged) -> None:
        for replica in await world.add(2):
            replica.handle = echo
        error = await world.ask(hedge=True).outcome()
        assert isinstance(error, OptionError)
        assert "hedge=True" in str(error)
        assert "Model.__call__" in str(error)
        assert "repeatable=False" in str(error)
        assert await world.ask(b"plain", hedge=False).outcome() == b"plain"
        assert await world.ask(b"plain").outcome() == b"plain"

    hedged(test, tmp_path, **options)


def test_no_copy_leaves_while_calls_wait(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        slow, *others = [world.ask() for _ in range(5)]
        await until(lambda: world.hedges.refused[Refusal.WAITING] >= 3)
        assert world.hedges.sent_count == 0
        for replica in world.replicas.values():
            replica.handle = echo
            for incoming in replica.calls:
                incoming.reply(b"")
        for call in (slow, *others):
            await call.outcome()
        await world.until_nothing_is_held()

    hedged(test, tmp_path, limit=2)


def test_no_copy_leaves_for_a_replica_as_busy_as_the_first(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        one, other = world.ask(), world.ask()
        while world.holder(one) is world.holder(other):  # by the lesser load, they are not
            await asyncio.sleep(0)
        await until(lambda: world.hedges.refused[Refusal.NO_REPLICA] >= 3)
        assert world.hedges.sent_count == 0
        await world.holder(other).until_calls(1)
        world.holder(other).calls[0].reply(b"")
        await other.outcome()
        await until(lambda: world.hedges.sent_count == 1)
        assert one.copy is not None

    hedged(test, tmp_path)


def test_the_budget_of_another_config_is_another(tmp_path: Path) -> None:
    async def test(world: Hedged) -> None:
        for replica in await world.add(2):
            replica.handle = echo
        for i in range(MOST_CONFIGS + 5):
            await world.ask(hedge=HedgingConfig(budget=0.01 * (i + 1))).outcome()
        assert len(world.hedges._hedgers) == MOST_CONFIGS
        assert "sent=0" in repr(world.hedges)

    hedged(test, tmp_path)


# --- whatever happens, in any order


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("ask", "ask", "ask_large", "ask_array", "reply", "reply", "reply_large", "reply_array", "stream"),
                *("write", "end", "fail", "cancel", "crash", "drain", "tick", "tick", "copy", "copy"),
            ]
        ),
        st.integers(0, 9),
    ),
    min_size=5,
    max_size=30,
)


class Play:
    """Three replicas, a router that hedges at once, and the calls between them."""

    def __init__(self, world: Hedged) -> None:
        self.world = world
        self.calls: list[Asked] = []
        self.cancelled: set[Asked] = set()
        self.everyone: list[Replica] = []
        self.working: list[Incoming] = []
        self.streaming: set[Incoming] = set()

    async def begin(self) -> None:
        self.everyone = await self.world.add(3)
        for replica in self.everyone:
            replica.handle = self.working.append
        line = self.world.hedges._hedger(EAGER).line("__call__")
        for _ in range(KNOWN):
            call = Asked()
            line.sent(call, 0.0)
            line.answered(call, 0.001, 0.0)

    async def step(self, what: str, which: int) -> None:
        world = self.world
        if what.startswith("ask"):
            call = Asked(bytes(70_000 if what == "ask_large" else 10), whole=what != "ask", kind=HTTP)
            if what == "ask_array":
                call.kind, call.buffers = 0, [memoryview(bytes(300_000))]
            self.calls.append(call)
            world.router.submit(call)
        elif what == "cancel" and self.calls:
            call = self.calls[which % len(self.calls)]
            if not call.end.is_set():
                self.cancelled.add(call)
                world.router.cancel(call)
                call.end.set()
        elif what in ("crash", "drain") and world.replicas:
            await self.replace(what, which)
        elif what == "tick":
            await asyncio.sleep(0)
        elif what == "copy":
            self.look()
            for _ in range(which):
                await asyncio.sleep(0)
        elif self.working:
            self.work(what, self.working[which % len(self.working)])

    def look(self) -> None:
        """The time has come at which calls under way have a copy."""
        for hedger in self.world.hedges._hedgers.values():
            for line in hedger.lines():
                for call in line._out:
                    line._out[call] -= 10.0
                if line.timer is not None:
                    line.timer.cancel()
                    self.world.hedges._look(line)

    async def replace(self, how: str, which: int) -> None:
        world = self.world
        names = list(world.replicas)
        old = world.replicas.pop(names[which % len(names)])
        (new,) = await world.add()
        new.handle = self.working.append
        self.everyone.append(new)
        if how == "crash":
            old.crash()
        else:
            old.server.drain()

    def work(self, what: str, incoming: Incoming) -> None:
        if incoming in self.streaming:
            if what == "write":
                incoming.write(bytes(1000))
            elif what in ("end", "fail", "reply"):
                self.finish(incoming, what == "fail")
        elif what == "stream" and incoming.flags & HTTP:
            self.streaming.add(incoming)
            incoming.start_reply(b"start", b"", HTTP)
        elif what in ("reply", "reply_large", "reply_array", "fail"):
            self.working.remove(incoming)
            if what == "fail":
                incoming.fail(BROKEN)
            elif what == "reply_array" and not incoming.flags & HTTP:
                incoming.answer(Payload(b"array", [memoryview(bytes(300_000))]))
            else:
                incoming.reply(bytes(300_000 if what == "reply_large" else 5), b"", incoming.flags & HTTP)

    def finish(self, incoming: Incoming, failed: bool = False) -> None:
        self.working.remove(incoming)
        if failed:
            incoming.fail(BROKEN)
        elif incoming in self.streaming:
            incoming.end()
        else:
            incoming.reply(b"late", b"", incoming.flags & HTTP)

    async def end(self) -> None:
        """All work ends; each call that was not cancelled is answered once, and nothing is left of any."""
        world, told = self.world, dict.fromkeys(self.calls, 0)

        def over() -> bool:
            for incoming in list(self.working):
                self.finish(incoming)
            for call in self.calls:
                if len(call.data) > told[call]:
                    world.router.consumed(call, sum(map(len, call.data[told[call] :])))
                    told[call] = len(call.data)
            left = any(link.calls for link in world.router.links)
            taken = any(replica.server.ongoing for replica in self.everyone)
            return all(call.end.is_set() for call in self.calls) and not left and not taken

        await until(over)
        for call in self.calls:
            call.buffers = ()
            assert len(call.replies) <= 1
            assert len(call.errors) <= 1
            if call not in self.cancelled:
                assert call.replies or call.errors
                if call.replies and call.errors:
                    assert call.replies[0][0] & 1, "only what had begun breaks off"
            assert call.copy is None
        for link in world.router.links:
            assert not link.outflows
            assert not link._owed
            assert link.replica.ours == 0
        assert not world.pool.balancer.queued
        for hedger in world.hedges._hedgers.values():
            assert not any(line._out for line in hedger.lines())
        await until(lambda: taken_bytes(world) == 0)
        for replica in self.everyone:
            for callee in replica.server.links:
                assert not callee.calls
                assert not callee.outflows
            replica.server.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_in_the_end_each_call_is_answered_once_and_nothing_is_held(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="hr-") as directory:
            play = Play(Hedged(Path(directory), limit=4))
            try:
                await play.begin()
                for step in steps:
                    await play.step(*step)
                await play.end()
            finally:
                await play.world.close()

    asyncio.run(run())
