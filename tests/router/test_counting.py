"""Each request is counted once, however it ends: as an error when the server failed, not at all if its client left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_hedges import EAGER, KNOWN, Hedged, hedged
from test_result_items import AskedForItems
from test_router import Replica, World, echo, in_world, until

from headrace.ingress.grpc_calls import UnaryCall
from headrace.observe.tally import Tally
from headrace.replica.grpc_call import fault_of
from headrace.replica.incoming import Incoming
from headrace.replica.response import flags_of
from headrace.router.reservation import Reservation
from headrace.spec.snapshot import RevisionEntry, Snapshot
from headrace.wire.frames import FAULT, GRPC, GRPC_FAULTS, HTTP, STREAM, ErrorInfo, GrpcStatus
from headrace.wire.items import STATUS

BROKEN = ErrorInfo("builtins.ValueError", "broken", "", 500)
ASKED_WRONG = ErrorInfo("headrace.InputError", "no such label", "", 400)


def tally_of(world: World, revision: int = 1) -> Tally:
    return world.router.tallies.of("app", revision, "Model")


def counts(world: World) -> tuple[int, int, int]:
    """Requests, errors, and latencies."""
    tally = tally_of(world)
    return tally.requests, tally.errors, sum(tally.latency)


async def working(world: World) -> tuple[Replica, Incoming, Any]:
    """A call that a replica works on."""
    (replica,) = await world.add()
    call = world.ask(request_id="r")
    (incoming,) = await replica.until_calls(1)
    return replica, incoming, call


async def reply(world: World) -> None:
    _, incoming, call = await working(world)
    incoming.reply(b"x")
    await call.outcome()


async def large_reply(world: World) -> None:
    _, incoming, call = await working(world)
    call.whole = True
    incoming.reply(b"x" * 1_000_000)
    await call.outcome()


async def reply_with_fault(world: World) -> None:
    _, incoming, call = await working(world)
    incoming.reply(b"x", flags=HTTP | FAULT)
    await call.outcome()


async def error(world: World) -> None:
    _, incoming, call = await working(world)
    incoming.fail(BROKEN)
    await call.outcome()


async def wrong_request(world: World) -> None:
    _, incoming, call = await working(world)
    incoming.fail(ASKED_WRONG)
    await call.outcome()


async def stream(world: World) -> None:
    _, incoming, call = await working(world)
    incoming.start_reply(b"x", b"", 0)
    await until(lambda: call.replies)
    assert counts(world) == (1, 0, 1), "counted when its first part comes"
    incoming.end()
    await call.outcome()


async def broken_stream(world: World) -> None:
    _, incoming, call = await working(world)
    incoming.start_reply(b"x", b"", 0)
    await until(lambda: call.replies)
    incoming.fail(BROKEN)
    await until(lambda: call.errors)


async def cancelled(world: World) -> None:
    _, incoming, call = await working(world)
    world.router.cancel(call)
    await until(lambda: incoming.cancelled)
    incoming.reply(b"x")
    await until(lambda: not any(link.calls for link in world.router.links))


async def refused(world: World) -> None:
    world.max_queued = 0
    world.publish()
    await world.ask().outcome()


async def refused_with_429(world: World) -> None:
    world.max_queued = 0
    world.options["busy_status"] = 429
    world.publish()
    await world.ask().outcome()


async def failed_deployment(world: World) -> None:
    world.publish(failed="no such model")
    await world.ask().outcome()


async def late_before_it_came(world: World) -> None:
    await world.add()
    await world.ask(deadline=asyncio.get_running_loop().time() - 1).outcome()


async def late_while_it_waited(world: World) -> None:
    world.publish()
    await world.ask(deadline=asyncio.get_running_loop().time() + 0.01).outcome()


async def died_and_repeated(world: World) -> None:
    replica, _, call = await working(world)
    world.replicas.pop(replica.entry.id)
    replica.crash()
    (other,) = await world.add()
    (again,) = await other.until_calls(1)
    assert again.meta.attempt == 2
    again.reply(b"x")
    await call.outcome()


async def died_twice(world: World) -> None:
    replica, _, call = await working(world)
    for _ in range(2):
        world.replicas.pop(replica.entry.id)
        replica.crash()
        (replica,) = await world.add()
        if not call.errors:
            await until(lambda: call.errors or replica.calls)  # noqa: B023 - it is awaited here
    await call.outcome()


async def items(world: World) -> None:
    (replica,) = await world.add()
    call = AskedForItems()
    world.router.submit(call)
    (incoming,) = await replica.until_calls(1)
    incoming.open_items()
    incoming.put_item(b"1")
    await until(lambda: call.answered)
    assert counts(world) == (1, 0, 1)
    incoming.put_item(b"2")
    incoming.end_items()
    await until(lambda: not any(link.calls for link in world.router.links))


async def items_that_fail_at_once(world: World) -> None:
    (replica,) = await world.add()
    world.router.submit(AskedForItems())
    (incoming,) = await replica.until_calls(1)
    incoming.open_items()
    incoming.fail(BROKEN)
    await until(lambda: not any(link.calls for link in world.router.links))


async def rpc_stream(world: World, *statuses: GrpcStatus | bytes) -> None:
    (replica,) = await world.add()
    call = AskedForItems()
    call.kind = GRPC | STREAM
    world.router.submit(call)
    (incoming,) = await replica.until_calls(1)
    incoming.open_items()
    for each in statuses:
        if isinstance(each, bytes):
            incoming.put_item(each)
            await until(lambda: call.answered)
        else:
            incoming.put_item(msgspec.msgpack.encode(each), STATUS)
    incoming.end_items()
    await until(lambda: not any(link.calls for link in world.router.links))


async def rpc_that_says_all_is_well(world: World) -> None:
    await rpc_stream(world, GrpcStatus(initial=[("a", "b")]), b"1", GrpcStatus(trailing=[("c", "d")]))


async def rpc_that_fails_at_once(world: World) -> None:
    await rpc_stream(world, GrpcStatus(13, "broken"))


async def rpc_that_fails_in_the_end(world: World) -> None:
    await rpc_stream(world, b"1", GrpcStatus(14, "broken"))


async def rpc_that_is_refused(world: World) -> None:
    await rpc_stream(world, GrpcStatus(5, "there is none"))


async def reservation(world: World) -> None:
    class Kept(Reservation):
        kept = False
        over = False

        def on_kept(self) -> None:
            self.kept = True

        def on_over(self) -> None:
            self.over = True

    (replica,) = await world.add()
    slot = Kept("app", "Model")
    replica.handle = lambda incoming: incoming.start_reply(b"", b"", 0)
    world.router.submit(slot)
    await until(lambda: slot.kept)
    world.router.cancel(slot)


@pytest.mark.parametrize(
    ("way", "counted"),
    [
        (reply, (1, 0, 1)),
        (large_reply, (1, 0, 1)),
        (reply_with_fault, (1, 1, 0)),
        (error, (1, 1, 0)),
        (wrong_request, (1, 0, 0)),
        (stream, (1, 0, 1)),
        (broken_stream, (1, 1, 1)),
        (cancelled, (0, 0, 0)),
        (refused, (1, 1, 0)),
        (refused_with_429, (1, 0, 0)),
        (failed_deployment, (1, 1, 0)),
        (late_before_it_came, (1, 1, 0)),
        (late_while_it_waited, (1, 1, 0)),
        (died_and_repeated, (1, 0, 1)),
        (died_twice, (1, 1, 0)),
        (items, (1, 0, 1)),
        (items_that_fail_at_once, (1, 1, 0)),
        (rpc_that_says_all_is_well, (1, 0, 1)),
        (rpc_that_fails_at_once, (1, 1, 0)),
        (rpc_that_fails_in_the_end, (1, 1, 1)),
        (rpc_that_is_refused, (1, 0, 1)),
        (reservation, (0, 0, 0)),
    ],
)
def test_each_end_is_counted_once(
    way: Callable[[World], Awaitable[None]], counted: tuple[int, int, int], tmp_path: Path
) -> None:
    async def test(world: World) -> None:
        await way(world)
        assert counts(world) == counted

    in_world(test, tmp_path)


def test_what_may_not_be_repeated_fails_once(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _, call = await working(world)
        replica.crash()
        await call.outcome()
        assert counts(world) == (1, 1, 0)

    in_world(test, tmp_path, repeatable=False)


@pytest.mark.parametrize("by_copy", [True, False])
@pytest.mark.parametrize(("fails", "counted"), [(False, (1, 0, 1)), (True, (1, 1, 0))])
def test_a_hedged_call_is_one_request(
    tmp_path: Path, by_copy: bool, fails: bool, counted: tuple[int, int, int]
) -> None:
    async def test(world: Hedged) -> None:
        await world.begin()
        before = counts(world)
        assert before == (KNOWN, 0, KNOWN)
        call = world.ask()
        first, second = await world.copied(call)
        winner, loser = (second, first) if by_copy else (first, second)
        winner.fail(BROKEN) if fails else winner.reply(b"x")
        await call.outcome()
        loser.reply(b"late")
        await world.until_nothing_is_held()
        assert tuple(now - then for now, then in zip(counts(world), before, strict=True)) == counted

    assert EAGER.budget == 1.0
    hedged(test, tmp_path)


def test_latencies_are_from_the_door_also_for_those_that_wait(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        call = world.ask()
        came_at = call.came_at
        (replica,) = await world.add()
        replica.handle = echo
        for incoming in replica.calls:
            echo(incoming)
        await call.outcome()
        assert call.came_at == came_at > 0
        assert counts(world) == (1, 0, 1)

    in_world(test, tmp_path)


def test_one_that_is_drawn_again_is_counted_where_it_went(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        call = world.ask()  # waits, for revision 1 has no replica
        (replica,) = [Replica(world.directory, 9, 10)]
        await replica.server.listen(replica.entry.address)
        replica.handle = echo
        entry = msgspec.structs.replace(
            world.snapshot.deployments["app/Model@1"], key="app/Model@2", replicas=(replica.entry,)
        )
        app = msgspec.structs.replace(
            world.snapshot.applications["app"],
            revisions=(RevisionEntry(number=2, weight=1.0, deployments={"Model": entry.key}),),
        )
        world.router.update(Snapshot(version=99, applications={"app": app}, deployments={entry.key: entry}))
        await call.outcome()
        assert tally_of(world, 2).requests == 1
        assert tally_of(world, 1).requests == 0
        replica.server.close()

    in_world(test, tmp_path)


def test_the_revision_is_a_pure_function_of_the_key_else_the_id(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        revisions = tuple(RevisionEntry(number=n, weight=0.5, deployments={"Model": "app/Model@1"}) for n in (1, 2))
        app = msgspec.structs.replace(world.snapshot.applications["app"], revisions=revisions)
        world.router.update(msgspec.structs.replace(world.snapshot, version=99, applications={"app": app}))
        drawn = [world.ask(request_id=str(i)).revision for i in range(40)]
        assert set(drawn) == {1, 2}
        assert drawn == [world.ask(request_id=str(i)).revision for i in range(40)]
        assert drawn == [world.ask(request_id="r", sticky=str(i)).revision for i in range(40)]
        assert drawn == [world.ask(request_id="r", sticky="s", key=str(i)).revision for i in range(40)]

    in_world(test, tmp_path, limit=1000)


@pytest.mark.parametrize(("status", "fault"), [(200, False), (404, False), (499, False), (500, True), (503, True)])
def test_replicas_say_which_http_answers_are_failures(status: int, fault: bool) -> None:
    assert bool(flags_of(status) & FAULT) == fault
    assert flags_of(status) & HTTP


def test_replicas_say_which_statuses_of_rpcs_are_failures() -> None:
    assert {code for code in range(17) if fault_of(GrpcStatus(code))} == GRPC_FAULTS


@pytest.mark.parametrize(
    ("deadline_in_s", "end", "counted"),
    [(60.0, "expire", (1, 1, 0)), (0.0, "leave", (1, 1, 0)), (60.0, "leave", (0, 0, 0)), (None, "leave", (0, 0, 0))],
)
def test_an_rpc_whose_time_is_over_is_an_error_whoever_keeps_the_time(
    tmp_path: Path, deadline_in_s: float | None, end: str, counted: tuple[int, int, int]
) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        call = UnaryCall(world.router)
        call.app, call.deployment = "app", "Model"
        world.router.submit(call)
        await replica.until_calls(1)
        if deadline_in_s is not None:
            call.deadline = world.router.loop.time() + deadline_in_s
        getattr(call, end)()
        assert counts(world) == counted

    in_world(test, tmp_path)
