"""Mirrored requests over real connections: they come after the answer, take what is left, and leave nothing behind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_router import Asked, Replica, World, echo, until

from headrace.replica.compare import Comparer
from headrace.replica.incoming import Incoming
from headrace.router import Router
from headrace.router.mirror import MOST_EXAMPLES, MOST_OUTSTANDING, Copy, Mirror, Question
from headrace.router.pool import Pool
from headrace.spec.application import PickledCode
from headrace.spec.counts import Mirrored
from headrace.spec.errors import (
    BackPressureError,
    InstanceError,
    NoSpareCapacityError,
    ReplicaDiedError,
    RequestTimeoutError,
)
from headrace.spec.priority import LOWEST_PRIORITY
from headrace.spec.rollout import Comparison, ShadowTraffic
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, RevisionEntry, Snapshot
from headrace.wire.code import pack_code
from headrace.wire.compare import COMPARE
from headrace.wire.frames import GRPC, HTTP, STREAM, ErrorInfo, GrpcStatus, ResponseHead
from headrace.wire.payload import encode, encode_error

BROKEN = ErrorInfo("builtins.ValueError", "broken", "", 500)
NUMERIC = Comparison(kind="numeric", rtol=0.01)


def head(status: int, content_type: bytes = b"application/json") -> bytes:
    return msgspec.msgpack.encode(ResponseHead(status, [(b"content-type", content_type)]))


class Shadowed(World):
    """Revision 1 has the traffic, revision 2 is its shadow. `shared`: both have the same replicas."""

    def __init__(self, directory: Path, limit: int, **shadow: Any) -> None:
        super().__init__(directory, limit, 100, True)
        self.shared = bool(shadow.pop("shared", False))
        self.timeout_s: float | None = shadow.pop("timeout_s", None)
        self.weight = 0.0
        self.shadow: ShadowTraffic | None = ShadowTraffic(**{"fraction": 1.0} | shadow)
        self.names: dict[str, list[str]] = {"1": [], "2": []}  # of the replicas, by digest
        self.asked: list[Asked] = []

    async def begin(self) -> tuple[Replica, Replica]:
        """A replica of each; that of the primary answers with what it was asked."""
        (primary,) = await self.add_to("1")
        (shadow,) = (primary,) if self.shared else await self.add_to("2")
        if not self.shared:
            primary.handle = echo
        return primary, shadow

    async def add_to(self, digest: str, count: int = 1) -> list[Replica]:
        added = await self.add(count)
        self.names[digest] += [replica.entry.id for replica in added]
        self.publish()
        return added

    def publish(self, failed: str = "", router: Router | None = None) -> None:
        self.version += 1
        keys = {"1": "app/Model@1", "2": "app/Model@1" if self.shared else "app/Model@2"}
        entries = {
            key: DeploymentEntry(
                key=key,
                app="app",
                name="Model",
                max_ongoing_requests=self.limit,
                max_queued_requests=self.max_queued,
                replicas=tuple(self.replicas[name].entry for name in self.names[digest] if name in self.replicas),
                **self.options,
            )
            for digest, key in reversed(keys.items())
        }
        revisions = (
            RevisionEntry(number=1, weight=1.0 - self.weight, deployments={"Model": keys["1"]}),
            RevisionEntry(number=2, weight=self.weight, deployments={"Model": keys["2"]}, shadow=self.shadow),
        )
        app = ApplicationEntry(
            name="app", route_prefix="/", ingress="Model", revisions=revisions, request_timeout_s=self.timeout_s
        )
        self.snapshot = Snapshot(version=self.version, applications={"app": app}, deployments=entries)
        (router or self.router).update(self.snapshot)

    @property
    def mirror(self) -> Mirror:
        return self.router.mirrors._mirrors["app", 2]

    @property
    def counts(self) -> Mirrored:
        return self.mirror.counts

    def pool(self, digest: str) -> Pool:
        return self.router._pools[f"app/Model@{digest}"]

    def under_way(self, kind: type[Any]) -> list[Any]:
        return [call for link in self.router.links for call in link.calls.values() if isinstance(call, kind)]

    async def settled(self) -> Mirrored:
        """The counts, when nothing is under way any more, and all books are back at zero."""
        mirrors = self.router.mirrors
        await until(lambda: not mirrors.outstanding and not mirrors._pending)
        assert mirrors.kept_bytes == 0
        await until(lambda: not any(link.calls for link in self.router.links))
        await until(lambda: not any(replica.server.ongoing for replica in self.replicas.values()))
        for pool in self.router._pools.values():
            assert not pool.balancer.queued
            assert all(known.ours == 0 for known in pool.balancer.replicas.values())
        return self.counts


def shadowed(test: Callable[[Shadowed], Awaitable[None]], tmp_path: Path, limit: int = 100, **shadow: Any) -> None:
    async def run() -> None:
        world = Shadowed(tmp_path, limit, **shadow)
        try:
            await test(world)
        finally:
            await world.close()

    asyncio.run(run())


# --- what is mirrored, and when


def test_a_copy_leaves_when_the_answer_has(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        primary.handle = primary.calls.append
        call = world.ask(b"body", request_id="r", sticky="s", trace="t", priority=3, method="predict")
        (first,) = await primary.until_calls(1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not shadow.calls
        assert not world.router.mirrors.outstanding
        first.reply(b"answer")
        assert await call.outcome() == b"answer"
        (copy,) = await shadow.until_calls(1)
        assert bytes(copy.body) == b"body"
        assert copy.meta.mirrored
        assert not first.meta.mirrored
        assert (copy.meta.revision, copy.meta.key, copy.meta.priority) == (2, "app/Model@2", LOWEST_PRIORITY)
        for name in ("request_id", "app", "method", "sticky", "trace", "attempt"):
            assert getattr(copy.meta, name) == getattr(first.meta, name), name
        assert 50 < copy.meta.remaining_s <= 60
        copy.reply(b"answer")
        counts = await world.settled()
        assert (counts.sent, counts.compared, counts.differed, counts.failed, counts.skipped) == (1, 1, 0, 0, 0)
        assert "on_reply" not in vars(call)

    shadowed(test, tmp_path)


def test_the_share_is_drawn_independently_of_the_split(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = lambda incoming: (mirrored if incoming.meta.mirrored else split).append(incoming)
        mirrored: list[Incoming] = []
        split: list[Incoming] = []
        world.router.rng.seed(5)
        world.weight = 0.5
        world.publish()
        for i in range(400):
            call = world.ask(request_id=f"request-{i}")
            if call.revision == 2:
                await until(lambda: split)
                split.pop().reply(b"")
            await call.outcome()
            for _ in range(3):
                await asyncio.sleep(0)
            await until(lambda: not world.router.mirrors._pending)
            await until(lambda: len(mirrored) == world.router.mirrors.outstanding)
            for incoming in mirrored:
                incoming.reply(b"")
            mirrored.clear()
        counts = await world.settled()
        assert 60 < counts.sent < 140, "half of the half that the primary has"
        assert counts.skipped == 0
        tally = world.router.tallies.of("app", 2, "Model")
        assert tally.mirrored is counts
        assert tally.requests == counts.sent + sum(1 for i in range(400) if _revision(world, f"request-{i}") == 2)

    shadowed(test, tmp_path, fraction=0.5)


def _revision(world: Shadowed, request_id: str) -> int:
    return world.router._routes["app"].split.of(request_id)


def test_calls_that_are_pinned_or_mirrored_already_are_not_mirrored(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        await world.begin()
        assert await world.ask(b"nested", revision=1).outcome() == b"nested"
        assert await world.ask(b"mirrored", mirrored=True, hedge=False).outcome() == b"mirrored"
        counts = await world.settled()
        assert counts == Mirrored()

    shadowed(test, tmp_path)


def test_without_a_shadow_nothing_is_watched(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        world.shadow = None
        await world.begin()
        call = world.ask(b"x")
        assert call.watch is None
        assert world.router._routes["app"].mirrors is None
        assert await call.outcome() == b"x"

    shadowed(test, tmp_path)


@pytest.mark.parametrize("size", [0, 1, 60_000, 70_000, 1024 * 1024])
def test_bodies_and_answers_of_up_to_a_mebibyte_are_mirrored(tmp_path: Path, size: int) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = echo
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert await world.ask(body, whole=True).outcome() == body
        counts = await world.settled()
        assert (counts.sent, counts.compared, counts.differed, counts.skipped) == (1, 1, 0, 0)

    shadowed(test, tmp_path)


HTTP_HEAD = msgspec.Raw(msgspec.msgpack.encode(["POST", b"/", "", [], "1.1", "http", None, None]))


def test_a_body_that_streams_is_mirrored_when_it_is_whole_and_small_enough(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        shadow.handle = echo
        primary.handle = primary.calls.append
        shadow.handle = shadow.calls.append
        call = world.ask(b"a" * 1000, more=True)
        world.router.send_body(call, b"b" * 1000, True)
        world.router.send_body(call, b"c" * 1000, False)
        (first,) = await primary.until_calls(1)
        first.reply(b"answer")
        await call.outcome()
        (copy,) = await shadow.until_calls(1)
        assert bytes(copy.body) == b"a" * 1000 + b"b" * 1000 + b"c" * 1000
        copy.reply(b"answer")
        assert (await world.settled()).compared == 1

        early = world.ask(b"a", more=True, kind=HTTP, http=HTTP_HEAD)  # answered before its body has ended
        (_, second) = await primary.until_calls(2)
        second.reply(b"answer", b"", HTTP)
        await early.outcome()
        assert (await world.settled()).skipped == 1

    shadowed(test, tmp_path)


class Reading(Asked):
    """Reads an answer that streams as it comes."""

    router: Router

    def on_data(self, payload: bytes, more: bool) -> None:
        super().on_data(payload, more)
        self.router.consumed(self, len(payload))


@pytest.mark.parametrize("what", ["request", "answer", "items", "one replica"])
def test_what_is_not_mirrored_is_counted_as_skipped(tmp_path: Path, what: str) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        large = bytes(1024 * 1024 + 1)
        fields: dict[str, Any] = {"whole": True}
        if what == "request":
            fields["body"] = large
        elif what == "answer":
            primary.handle = lambda incoming: incoming.reply(large)
        elif what == "one replica":
            fields["target"] = primary.entry.id
        else:
            fields |= {"kind": STREAM | HTTP, "http": HTTP_HEAD}
        await world.ask(**fields).outcome()
        counts = await world.settled()
        assert (counts.sent, counts.skipped) == (0, 1)
        assert not shadow.calls

    shadowed(test, tmp_path)


@pytest.mark.parametrize("size", [1, 300_000, 1024 * 1024 + 1])
def test_an_answer_that_streams_is_compared_when_it_has_ended(tmp_path: Path, size: int) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        for replica in (primary, shadow):
            replica.handle = replica.calls.append
        call = Reading(kind=HTTP, http=HTTP_HEAD, router=world.router)
        world.router.submit(call)
        for replica in (primary, shadow)[: 1 + (size <= 1024 * 1024)]:
            (incoming,) = await replica.until_calls(1)
            incoming.start_reply(b"begin", b"", HTTP)
            incoming.write(bytes(size - 1))
            if replica is primary:
                for _ in range(5):
                    await asyncio.sleep(0)
                assert not shadow.calls
            incoming.write(b"1" if replica is primary else b"2")
            incoming.end()
        await call.end.wait()
        counts = await world.settled()
        if size > 1024 * 1024:
            assert (counts.sent, counts.skipped) == (0, 1)
        else:
            assert (counts.compared, counts.differed, counts.skipped) == (1, 1, 0)
            assert counts.examples[0].reason == f"they differ from byte {size + 4} on, of {size + 5} against {size + 5}"

    shadowed(test, tmp_path)


@pytest.mark.parametrize("when", ["before its answer", "while it streams"])
def test_a_request_that_is_cancelled_has_no_copy(tmp_path: Path, when: str) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        primary.handle = primary.calls.append
        call = world.ask(kind=HTTP, http=HTTP_HEAD)
        (incoming,) = await primary.until_calls(1)
        if when == "while it streams":
            incoming.start_reply(b"begin", b"", HTTP)
            await until(lambda: call.replies)
            assert world.router.mirrors.kept_bytes == 5
        world.router.cancel(call)
        assert call.watch is None
        await until(lambda: incoming.cancelled)
        incoming.fail(BROKEN) if when == "before its answer" else incoming.end()
        assert await world.settled() == Mirrored()
        assert not shadow.calls

    shadowed(test, tmp_path)


def test_errors_of_load_and_time_are_not_mirrored_and_those_of_the_code_are(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        now = asyncio.get_running_loop().time()
        assert isinstance(await world.ask(deadline=now - 1).outcome(), RequestTimeoutError)
        busy = encode_error(BackPressureError("much to do"))
        primary.handle = lambda incoming: incoming.fail(busy)
        assert await world.ask().outcome() == busy
        assert await world.settled() == Mirrored()
        assert not shadow.calls

        primary.handle = shadow.handle = lambda incoming: incoming.fail(BROKEN)
        assert await world.ask(request_id="both").outcome() == BROKEN
        counts = await world.settled()
        assert (counts.compared, counts.differed, counts.failed) == (1, 0, 0), "both raise the same"

        shadow.handle = lambda incoming: incoming.fail(ErrorInfo("builtins.KeyError", "'k'", "", 500))
        assert await world.ask(request_id="otherwise").outcome() == BROKEN
        await world.settled()
        shadow.handle = echo
        assert await world.ask(request_id="better").outcome() == BROKEN
        counts = await world.settled()
        assert (counts.compared, counts.differed, counts.failed) == (3, 2, 0)
        assert [example.reason for example in counts.examples] == [
            "the primary failed (ValueError: broken), and so did the shadow, otherwise: KeyError: 'k'",
            "the primary failed, the shadow did not: ValueError: broken",
        ]

    shadowed(test, tmp_path)


# --- what the shadow may do


@pytest.mark.parametrize("how", ["raises", "dies", "answers 500", "answers garbage", "is longer", "is late", "leaves"])
def test_whatever_the_shadow_does_the_primary_has_answered(tmp_path: Path, how: str) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        primary = world.replicas[world.names["1"][0]]
        primary.handle = lambda incoming: incoming.reply(b'{"digit": 3}', b"", HTTP)
        shadow.handle = shadow.calls.append
        call = world.ask(request_id="r", kind=HTTP, http=HTTP_HEAD)
        assert await call.outcome() == b'{"digit": 3}'
        (copy,) = await shadow.until_calls(1)
        failed, reason = 1, ""
        if how == "raises":
            copy.fail(BROKEN)
            reason = "the shadow failed: ValueError: broken"
        elif how == "dies":
            shadow.crash()
            reason = f"the shadow failed: ReplicaDiedError: replica {shadow.entry.id} died while it worked on"
        elif how == "answers 500":
            copy.reply(b"oh no", head(500, b"text/plain"), HTTP)
            reason = "the shadow failed: status 500: oh no"
        elif how == "answers garbage":
            copy.reply(b"\xff\xfe", b"\x93garbage", HTTP)
            reason = "the shadow failed: status 0: "
        elif how == "is longer":
            copy.start_reply(bytes(60_000), b"", HTTP)
            copy.write(bytes(4 * 1024 * 1024))
            reason = "the shadow failed: its answer is longer than 1048576 bytes"
            await until(lambda: copy.cancelled)
            copy.end()
        elif how == "is late":
            (mine,) = world.under_way(Copy)
            mine.expire()
            reason = "the shadow failed: RequestTimeoutError: no answer in time"
            await until(lambda: copy.cancelled)
            copy.fail(BROKEN)
        else:
            shadow.server.drain()
            copy.reply(b'{"digit": 4}', b"", HTTP)
            failed, reason = 0, "$.digit: 3 against 4"
        if how == "dies":
            await until(lambda: not world.router.mirrors.outstanding)
        else:
            await world.settled()
        counts = world.counts
        assert (counts.sent, counts.failed, counts.differed, counts.skipped) == (1, failed, 1, 0)
        (example,) = counts.examples
        assert (example.request_id, example.primary) == ("r", '{"digit": 3}')
        assert example.reason.startswith(reason), example.reason
        assert len(call.replies) == 1
        assert not call.errors
        assert len(shadow.calls) == 1, "never repeated"

    shadowed(test, tmp_path)


def test_a_copy_is_not_late_but_its_time_is_that_of_its_application(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = shadow.calls.append
        await world.ask(deadline=asyncio.get_running_loop().time() + 1).outcome()
        (copy,) = await shadow.until_calls(1)
        assert 200 < copy.meta.remaining_s <= 300
        copy.reply(b"")

    shadowed(test, tmp_path, timeout_s=300.0)


def test_the_router_closes_while_copies_are_under_way(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = shadow.calls.append
        await world.ask().outcome()
        await shadow.until_calls(1)
        await world.ask().outcome()  # its copy has not left
        mirror = world.mirror
        await world.router.close()
        await until(lambda: not world.router.mirrors.outstanding)
        assert (mirror.counts.failed, mirror.counts.skipped) == (0, 2)
        assert isinstance(await world.ask().outcome(), InstanceError)

    shadowed(test, tmp_path)


def test_a_shadow_that_ends_while_copies_wait_and_work(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = shadow.calls.append
        await world.ask(b"1").outcome()
        (copy,) = await shadow.until_calls(1)
        mirror = world.mirror
        world.shadow = None
        world.publish()
        await world.ask(b"2").outcome()
        copy.reply(b"1")
        assert (await world.settled()).compared == 1
        assert mirror is world.mirror, "the counts are kept as long as the revision"
        assert len(shadow.calls) == 1

    shadowed(test, tmp_path)


# --- spare capacity


def test_without_a_free_slot_requests_are_skipped_and_nothing_waits(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = shadow.calls.append
        for i in range(10):
            assert await world.ask(b"%d" % i).outcome() == b"%d" % i
            await until(lambda: not world.router.mirrors._pending)
        await shadow.until_calls(2)
        assert (world.counts.sent, world.counts.skipped) == (2, 8)
        assert world.pool("2").balancer.queued == 0
        for copy in shadow.calls:
            copy.reply(bytes(copy.body))
        assert (await world.settled()).compared == 2

    shadowed(test, tmp_path, limit=2)


def test_no_replica_of_the_shadow_is_there(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        (primary,) = await world.add_to("1")
        primary.handle = echo
        assert await world.ask(b"x").outcome() == b"x"
        assert (await world.settled()).skipped == 1
        (shadow,) = await world.add_to("2")
        shadow.server.close()  # it has died, and nobody has heard of it
        assert await world.ask(b"x").outcome() == b"x"
        assert (await world.settled()).skipped == 2

    shadowed(test, tmp_path)


def test_a_copy_that_the_shadow_has_no_slot_for_after_all_is_skipped(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = shadow.calls.append
        other = Router(asyncio.get_running_loop(), "test#1")
        world.publish(router=other)
        taken = world.ask(router=other, revision=2)
        (mine,) = await shadow.until_calls(1)
        assert await world.ask(b"x").outcome() == b"x"
        await until(lambda: world.counts.skipped)
        mine.reply(b"")
        assert await taken.outcome() == b""
        counts = await world.settled()
        assert (counts.sent, counts.skipped, counts.compared, counts.failed) == (1, 1, 0, 0)
        assert len(shadow.calls) == 1
        await other.close()

    shadowed(test, tmp_path, limit=1)


def test_replicas_that_are_shared_keep_room_for_requests(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        (primary, _) = await world.begin()
        first = world.ask(b"1")
        (one,) = await primary.until_calls(1)
        one.reply(b"")
        await first.outcome()
        (_, copy) = await primary.until_calls(2)  # of two slots one is left
        assert copy.meta.mirrored
        second = world.ask(b"2")
        (*_, two) = await primary.until_calls(3)
        two.reply(b"")
        await second.outcome()
        await until(lambda: not world.router.mirrors._pending)
        assert (world.counts.sent, world.counts.skipped) == (1, 1), "a second copy would take the last slot"
        copy.reply(b"")
        assert (await world.settled()).compared == 1

    shadowed(test, tmp_path, limit=2, shared=True)


def test_calls_of_mirrored_requests_take_what_is_left_of_shared_deployments(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        primary.handle, shadow.handle = primary.calls.append, shadow.calls.append
        mirrored: dict[str, Any] = {"mirrored": True, "hedge": False}
        first = world.ask(revision=1, **mirrored)
        (one,) = await primary.until_calls(1)
        assert one.meta.mirrored
        assert one.meta.priority == LOWEST_PRIORITY
        error = await world.ask(revision=1, **mirrored).outcome()  # the last slot
        assert isinstance(error, NoSpareCapacityError)
        assert error.status == 503
        plain = world.ask(revision=1)
        (_, two) = await primary.until_calls(2)
        two.reply(b"")
        one.reply(b"")
        assert (await first.outcome(), await plain.outcome()) == (b"", b"")
        assert world.router.tallies.of("app", 1, "Model").errors == 0

        own = [world.ask(revision=2, **mirrored) for _ in range(3)]  # the shadow's own: one may wait
        refused = await world.ask(revision=2, **mirrored).outcome()
        assert isinstance(refused, NoSpareCapacityError), "one waits already"
        await shadow.until_calls(2)
        shadow.handle = echo
        for incoming in shadow.calls:
            incoming.reply(b"")
        for call in own:
            assert await call.outcome() == b""
        await world.settled()

    shadowed(test, tmp_path, limit=2)


def test_a_mirrored_call_is_not_repeated(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        await world.begin()
        (other,) = await world.add_to("2")
        for replica in world.replicas.values():
            replica.handle = replica.calls.append
        call = world.ask(revision=2, mirrored=True, hedge=False)
        await until(lambda: sum(len(replica.calls) for replica in world.replicas.values()) == 1)
        (holder,) = [replica for replica in world.replicas.values() if replica.calls]
        holder.crash()
        assert isinstance(await call.outcome(), ReplicaDiedError)
        assert sum(len(replica.calls) for replica in world.replicas.values()) == 1
        assert other.entry.id in world.replicas

    shadowed(test, tmp_path)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        shadow.handle = shadow.calls.append
        calls = [world.ask(b"%d" % i) for i in range(MOST_OUTSTANDING + 10)]
        for call in calls:
            await call.outcome()
        await shadow.until_calls(MOST_OUTSTANDING)
        assert (world.counts.sent, world.counts.skipped) == (MOST_OUTSTANDING, 10)
        for copy in shadow.calls:
            copy.reply(bytes(copy.body))
        shadow.calls.clear()
        await world.settled()
        large = [world.ask(bytes(900_000), whole=True) for _ in range(12)]  # with its answer twice that
        for call in large:
            await call.outcome()
        mirrors = world.router.mirrors
        await until(lambda: not mirrors._pending)
        assert mirrors.kept_bytes <= 16 * 1024 * 1024
        assert world.counts.sent == MOST_OUTSTANDING + 9
        for copy in await shadow.until_calls(9):
            echo(copy)
        await world.settled()

    shadowed(test, tmp_path, limit=100)


# --- comparisons


def answering(primary: Replica, shadow: Replica, one: bytes, other: bytes, meta: tuple[bytes, bytes]) -> None:
    """Both answer so over HTTP; the shadow's replica compares as replicas do."""
    comparer = Comparer()

    def answer(incoming: Incoming) -> None:
        if incoming.meta.method == COMPARE:
            try:
                incoming.reply(comparer.compare(incoming))
            except Exception as error:  # as Invoker._compare
                incoming.fail(encode_error(error))
        else:
            flags = incoming.flags & HTTP
            incoming.reply(other if incoming.meta.mirrored else one, meta[incoming.meta.mirrored], flags)

    primary.handle = shadow.handle = answer


def raising(primary: Any, shadow: Any) -> bool:
    raise ZeroDivisionError("division by zero")


def wordy(primary: Any, shadow: Any) -> Any:
    return "the same"


def lenient(primary: Any, shadow: Any) -> bool:
    return bool(primary["digit"] == shadow["digit"])


async def asynchronous(primary: Any, shadow: Any) -> bool:
    return True


def user(function: Callable[..., Any]) -> Comparison:
    return Comparison(kind="user", function=pack_code(function))


J = head(200)
T = head(200, b"text/plain")


@pytest.mark.parametrize(
    ("compare", "one", "other", "meta", "expected"),
    [
        (Comparison(), b'{"a": 1}', b'{"a": 1}', (b"", b""), ""),
        (Comparison(), b'{"a": 1}', b'{"a": 1}', (b"", J), ""),
        (Comparison(), b'{"a": 1}', b'{"a":1}', (b"", J), "the same values, written otherwise"),
        (Comparison(), b'{"a": [1, 2]}', b'{"a": [1, 3]}', (J, J), "$.a[1]: 2 against 3"),
        (Comparison(), b"abc", b"abd", (T, T), "they differ from byte 2 on, of 3 against 3"),
        (Comparison(), b"{no json", b"{no josn", (J, J), "they differ from byte 5 on, of 8 against 8"),
        (Comparison(), b"x", b"x", (T, head(404, b"text/plain")), "status 200 against 404"),
        (NUMERIC, b'{"a": 1.0}', b'{"a": 1.001}', (J, J), ""),
        (NUMERIC, b'{"s": [0, 0.91]}', b'{"s": [0, 0.87]}', (J, J), "$.s[1]: 0.91 against 0.87"),
        (NUMERIC, b"1.0", b"1.001", (T, T), "they differ from byte 3 on, of 3 against 5"),
        (NUMERIC, b'{"a": 1}', b'{"a": ', (J, J), "the comparison failed: headrace.spec.errors.PayloadError"),
        (user(lenient), b'{"digit": 1, "t": 5}', b'{"digit": 1, "t": 6}', (J, J), ""),
        (user(lenient), b'{"digit": 1}', b'{"digit": 2}', (J, J), "$.digit: 1 against 2"),
        (user(raising), b"1", b"2", (J, J), "the comparison failed: ZeroDivisionError: division by zero"),
        (
            user(wordy),
            b"1",
            b"2",
            (J, J),
            "the comparison failed: headrace.spec.errors.HeadraceError: the comparison wordy",
        ),
        (
            user(asynchronous),
            b"1",
            b"2",
            (J, J),
            "the comparison failed: headrace.spec.errors.HeadraceError: the comparison asy",
        ),
        (Comparison(kind="user", function=PickledCode(b"junk")), b"1", b"2", (J, J), "the comparison failed: "),
    ],
)
def test_answers_over_http_are_compared(
    tmp_path: Path, compare: Comparison, one: bytes, other: bytes, meta: tuple[bytes, bytes], expected: str
) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        answering(primary, shadow, one, other, meta)
        assert await world.ask(kind=HTTP, http=HTTP_HEAD).outcome() == one
        counts = await world.settled()
        reasons = [example.reason for example in counts.examples]
        assert [reason.startswith(expected) for reason in reasons] == [True] * bool(expected), reasons
        failed = expected.startswith("the comparison failed")
        assert (counts.failed, counts.compared, counts.differed) == (failed, not failed, bool(expected) and not failed)
        assert world.router.tallies.of("app", 2, "Model").requests == 1, "to compare is no request"

    shadowed(test, tmp_path, compare=compare)


@pytest.mark.parametrize("code", [0, 5])
def test_rpcs_are_compared_by_their_status_and_bytes(tmp_path: Path, code: int) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        answering(primary, shadow, b"a", b"b", (b"", msgspec.msgpack.encode(GrpcStatus(code))))
        assert await world.ask(kind=GRPC, http=HTTP_HEAD).outcome() == b"a"
        counts = await world.settled()
        assert (counts.compared, counts.differed) == (1, 1)
        assert counts.examples[0].reason == (
            "status 0 against 5" if code else "they differ from byte 0 on, of 1 against 1"
        )

    shadowed(test, tmp_path, compare=NUMERIC)


@pytest.mark.parametrize("compare", [Comparison(), NUMERIC], ids=["exact", "numeric"])
def test_results_of_calls_by_handle_are_compared_as_values(tmp_path: Path, compare: Comparison) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        text = "".join(["a", "b"])
        cases = [
            ([text, text], ["ab", "".join(["a", "b"])], ""),  # other bytes, the same values
            ({"p": [0.91, 1]}, {"p": [0.87, 1]}, "$.p[0]: 0.91 against 0.87"),
            (1.0, 1.001, "" if compare is NUMERIC else "$: 1.0 against 1.001"),
        ]
        for i, (one, other, expected) in enumerate(cases):
            answering(primary, shadow, encode(one).data, encode(other).data, (b"", b""))
            await world.ask().outcome()
            counts = await world.settled()
            assert (counts.compared, counts.failed) == (i + 1, 0)
            assert [example.reason for example in counts.examples[-1:]] == [expected] * bool(expected) or not expected
        assert counts.examples[0].primary == "{'p': [0.91, 1]}"

    shadowed(test, tmp_path, compare=compare)


def test_a_comparison_that_hangs_ends_and_the_next_is_made(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        primary, shadow = await world.begin()
        answering(primary, shadow, b"1", b"2", (J, J))
        answer = shadow.handle
        shadow.handle = lambda incoming: (
            shadow.calls.append(incoming) if incoming.meta.method == COMPARE else answer(incoming)
        )
        await world.ask(kind=HTTP, http=HTTP_HEAD).outcome()
        (hanging,) = await shadow.until_calls(1)
        (question,) = world.under_way(Question)
        question.expire()
        assert (world.counts.failed, world.counts.compared) == (1, 0)
        assert world.counts.examples[0].reason == "the comparison failed: it did not end in 30 s"
        await until(lambda: hanging.cancelled)
        hanging.reply(b"\x00nonsense")
        shadow.handle = lambda incoming: (
            incoming.reply(b"\x00nonsense") if incoming.meta.method == COMPARE else answer(incoming)
        )
        await world.ask(kind=HTTP, http=HTTP_HEAD).outcome()
        counts = await world.settled()
        assert counts.failed == 2
        assert "cannot be read" in counts.examples[1].reason

    shadowed(test, tmp_path, compare=user(lenient))


def test_examples_are_few_short_and_drawn_from_all(tmp_path: Path) -> None:
    async def test(world: Shadowed) -> None:
        _, shadow = await world.begin()
        world.router.rng.seed(1)
        shadow.handle = lambda incoming: incoming.reply(b"y" * 5000, T, HTTP)
        primary = world.replicas[world.names["1"][0]]
        primary.handle = lambda incoming: incoming.reply(b"x" * 5000, T, HTTP)
        for i in range(100):
            await world.ask(request_id=f"{i}", kind=HTTP, http=HTTP_HEAD).outcome()
        counts = await world.settled()
        assert counts.differed == 100 - counts.skipped
        assert len(counts.examples) == MOST_EXAMPLES
        assert all(len(example.primary) == len(example.shadow) == 300 for example in counts.examples)
        assert any(int(example.request_id) > 50 for example in counts.examples)

    shadowed(test, tmp_path)


# --- whatever happens, in any order

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(
                    "ask",
                    "ask",
                    "ask",
                    "ask_http",
                    "ask_large",
                    "body",
                    "nested",
                    "answer",
                    "answer",
                    "answer",
                    "begin",
                ),
                *("go_on", "end", "fail", "fail", "cancel", "expire", "crash", "withdraw", "drain", "tick", "tick"),
            ]
        ),
        st.integers(0, 9),
    ),
    min_size=5,
    max_size=40,
)


class Play:
    """Two replicas of each revision, requests to them, and whatever may become of both and of their copies."""

    def __init__(self, world: Shadowed) -> None:
        self.world = world
        self.calls: list[Asked] = []
        self.working: list[Incoming] = []
        self.begun: list[Incoming] = []

    async def begin(self) -> None:
        for digest in ("1", "2"):
            for replica in await self.world.add_to(digest, 2):
                replica.handle = self.working.append

    async def step(self, what: str, which: int) -> None:
        world = self.world
        mirrors = world.router.mirrors
        if what in ("ask", "ask_http", "ask_large", "nested"):
            self.ask(what, which)
        elif what == "body" and self.calls:
            call = self.calls[which % len(self.calls)]
            if call.more and not call.end.is_set():
                world.router.send_body(call, bytes(50_000), which > 4)
        elif what in ("cancel", "expire"):
            copies = world.under_way(Copy) + world.under_way(Question)
            if what == "expire" and copies:
                copies[which % len(copies)].expire()
            elif what == "cancel" and self.calls:
                call = self.calls[which % len(self.calls)]
                if not call.end.is_set():
                    world.router.cancel(call)
                    call.end.set()
        elif what in ("crash", "drain"):
            await self.replace(what, "2" if which > 2 else "1")
        elif what == "withdraw":
            world.shadow = None if world.shadow is not None else ShadowTraffic(fraction=1.0)
            world.publish()
        elif what == "tick":
            await self.settle(which)
        else:
            self.work(what, which)
        assert 0 <= mirrors.outstanding <= MOST_OUTSTANDING
        assert mirrors.kept_bytes >= 0

    def ask(self, what: str, which: int) -> None:
        call = Reading(bytes(which), request_id=str(len(self.calls)), router=self.world.router)
        if what == "ask_http":
            call.kind, call.http, call.more = HTTP, HTTP_HEAD, which > 6
        elif what == "ask_large":
            call.buffers = [memoryview(bytes(200_000 * which))]
        elif what == "nested":
            call.revision, call.mirrored, call.hedge = 1 + which % 2, True, False
        else:
            call.whole = True
        self.calls.append(call)
        self.world.router.submit(call)

    async def settle(self, turns: int = 9) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def replace(self, how: str, digest: str) -> None:
        """A replica ends, and another comes."""
        world = self.world
        name = world.names[digest].pop(0)
        old = world.replicas.pop(name)
        (new,) = await world.add_to(digest)
        new.handle = self.working.append
        if how == "crash":
            old.crash()
        else:
            old.server.drain()

    def work(self, what: str, which: int) -> None:
        """What the code of a replica does, which ends each call once."""
        if what in ("go_on", "end"):
            if self.begun:
                incoming = self.begun[which % len(self.begun)]
                incoming.write(bytes(10_000 * which))
                if what == "end":
                    self.begun.remove(incoming)
                    incoming.end()
        elif self.working:
            incoming = self.working.pop(which % len(self.working))
            flags = incoming.flags & HTTP
            if what == "fail":
                incoming.fail(BROKEN)
            elif what == "begin" and flags:
                incoming.start_reply(b"begin", b"", flags)
                self.begun.append(incoming)
            else:
                incoming.reply(encode(which).data * (1 if which < 8 else 30_000), b"", flags)

    async def end(self) -> None:
        """All that is under way comes to its end."""
        world = self.world
        for call in self.calls:
            if call.more and not call.end.is_set():
                world.router.send_body(call, b"", False)
        async with asyncio.timeout(20):
            while (
                not all(call.end.is_set() for call in self.calls)
                or world.router.mirrors.outstanding
                or any(replica.server.ongoing for replica in world.replicas.values())
                or any(link.calls for link in world.router.links)
            ):
                for incoming in self.begun:
                    incoming.end()
                self.begun.clear()
                for incoming in self.working:
                    incoming.reply(b"", b"", incoming.flags & HTTP)
                self.working.clear()
                await asyncio.sleep(0)
        await world.settled()
        assert all(call.end.is_set() for call in self.calls)
        assert all(call.watch is None for call in self.calls)
        counts = world.counts if world.router.mirrors._mirrors else Mirrored()
        assert counts.differed <= counts.compared <= counts.sent
        assert len(counts.examples) <= MOST_EXAMPLES


# Calls have crossed offers of slots here, again and again.
CROSSING = "ask_http 7, tick 8, nested 9, ask_large 1, begin 0, go_on 7, drain 7, fail 3, body 2, crash 1, answer 4"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(1, 4))
@example([(what, int(which)) for what, which in map(str.split, f"{CROSSING}, nested 9".split(", "))], 1)
def test_in_the_end_no_slot_is_taken_and_nothing_is_kept(steps: list[tuple[str, int]], limit: int) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="hr") as folder:
            world = Shadowed(Path(folder), limit)
            play = Play(world)
            try:
                await play.begin()
                for what, which in steps:
                    await play.step(what, which)
                await play.end()
            finally:
                await world.close()

    asyncio.run(run())
