"""Whatever happens to calls, in any order, over real connections: in the end no slot is taken and nothing is owed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_reservations import Kept
from test_result_items import AskedForItems
from test_router import Asked, Replica, World, taken_bytes, until
from test_router_tcp import SECRET, Cluster

from headrace.replica.incoming import Incoming
from headrace.wire.frames import ErrorInfo
from headrace.wire.payload import Payload
from headrace.wire.tcp import Credentials

LIMIT = 3
SIZES = (0, 10, 70_000, 300_000)
BUFFER = memoryview(bytes(300_000))
BROKEN = ErrorInfo("builtins.ValueError", "broken", "", 500)

# What is done, with which of the calls there are, and how large it is.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("ask", "ask_large", "ask_items", "ask_items", "put", "put", "put_array", "take", "reply"),
                *("reserve", "reserve", "use", "use_items", "give_back"),
                *("answer_array", "end", "end", "fail", "cancel", "cancel", "expire", "crash", "drain", "tick"),
            ]
        ),
        st.integers(0, 9),
        st.sampled_from(SIZES),
    ),
    min_size=5,
    max_size=25,
)


class Play:
    """One replica at a time, a router, and the calls between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[Asked] = []
        self.reservations: list[Kept] = []
        self.replicas: list[Replica] = []
        self.working: list[Incoming] = []
        self.open: set[Incoming] = set()  # those whose result has begun, as items
        self.ended: dict[Asked, int] = {}

    async def begin(self) -> None:
        world = self.world
        (replica,) = await (world.add_distant(None) if isinstance(world, Cluster) else world.add())
        replica.handle = self.working.append
        self.replicas.append(replica)

    async def step(self, what: str, which: int, size: int) -> None:
        world = self.world
        if what.startswith("ask") or what.startswith("use"):
            self.ask(what, size, which)
            if which:
                await self.settle()
        elif what == "cancel" and self.calls:
            call = self.calls[which % len(self.calls)]
            if not call.end.is_set():
                world.router.cancel(call)
                call.end.set()
        elif what == "take" and self.calls:
            call = self.calls[which % len(self.calls)]
            if isinstance(call, AskedForItems):
                world.router.consumed(call, sum(call.costs))
                call.costs.clear()
        elif what in ("crash", "drain"):
            await self.replace(what)
        elif what == "reserve":
            self.reservations.append(Kept())
            world.router.submit(self.reservations[-1])
            if which:
                await self.settle()
        elif what == "give_back" and self.reservations:
            world.router.cancel(self.reservations[which % len(self.reservations)])
        elif what == "tick":
            await asyncio.sleep(0)
        elif self.working:
            self.work(what, self.working[which % len(self.working)], size)

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    def ask(self, what: str, size: int, which: int) -> None:
        call = AskedForItems() if what.endswith("items") else Asked(bytes(size), whole=True)
        if what.startswith("use"):
            standing = [kept for kept in self.reservations if kept.link is not None]
            if not standing:
                return
            slot = standing[which % len(standing)]
            assert slot.link is not None
            call.slot, call.target, call.revision = slot, slot.link.replica.id, slot.revision
        if what == "ask_large":
            call.buffers = [BUFFER]
        self.calls.append(call)
        self.world.router.submit(call)

    async def replace(self, how: str) -> None:
        """The replica ends, by force or at its leisure; the next is there already."""
        old = next(iter(self.world.replicas.values()))
        self.world.replicas.clear()
        await self.begin()
        if how == "crash":
            old.crash()
        else:
            old.server.drain()

    def work(self, what: str, incoming: Incoming, size: int) -> None:
        """What the code of a replica does, which ends each call once."""
        if what == "expire":
            incoming.expire_at(self.world.router.loop.time())
            return
        wants_items = bool(incoming.flags & AskedForItems.kind)
        if what in ("put", "put_array") and wants_items:
            if incoming not in self.open:
                self.open.add(incoming)
                incoming.open_items()
            incoming.put_item(bytes(size) if what == "put" else Payload(bytes(size), [BUFFER]))
        elif what in ("end", "fail", "reply", "answer_array") and (what != "end" or incoming in self.open):
            if (what == "reply" or what == "answer_array") and wants_items:
                return
            self.finish(what, incoming, size)

    def finish(self, what: str, incoming: Incoming, size: int) -> None:
        self.working.remove(incoming)
        if what == "end":
            incoming.end_items()
        elif what == "fail":
            incoming.fail(BROKEN)
        elif what == "reply":
            incoming.reply(bytes(size))
        else:
            incoming.answer(Payload(bytes(size), [BUFFER]))

    async def end(self) -> None:
        """All work ends; each call that was not cancelled is answered, and nothing is left of any."""
        world = self.world
        for kept in self.reservations:
            world.router.cancel(kept)

        def over() -> bool:
            for incoming in list(self.working):
                self.finish("end" if incoming in self.open else "fail", incoming, 0)
            for call in self.calls:
                if isinstance(call, AskedForItems) and call.costs:
                    world.router.consumed(call, sum(call.costs))
                    call.costs.clear()
            left = any(link.calls for link in world.router.links)
            taken = any(replica.server.ongoing for replica in self.replicas)
            return all(call.end.is_set() for call in self.calls) and not left and not taken

        await until(over)
        for call in self.calls:
            call.buffers = ()
        for replica in self.replicas:
            assert replica.server.suspects.current is None
            assert not replica.server.on_drain
            for link in replica.server.links:
                assert not link.calls
                assert not link.reserved._kept
                assert not link.outflows
        for link in world.router.links:
            assert not link.outflows
            assert not link._owed
            assert link.replica.ours == 0
        for pool in world.router._pools.values():
            assert not pool.balancer.queued
        await until(lambda: taken_bytes(world) == 0)
        for replica in self.replicas:
            replica.server.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_in_the_end_nothing_is_held(steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(play(lambda directory: World(directory, LIMIT, 100, True), steps))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_nor_between_nodes(steps: list[tuple[str, int, int]]) -> None:
    """Where calls also wait for connections that are being made."""
    asyncio.run(play(lambda directory: Cluster(directory, Credentials(SECRET), LIMIT), steps))


async def play(make: Callable[[Path], World], steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        play = Play(make(Path(directory)))
        try:
            await play.begin()
            for step in steps:
                await play.step(*step)
            await play.end()
        finally:
            await play.world.close()
