"""Calls that wait at real routers: who goes first, who is refused and how, what is too late to be sent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from test_router import Asked, Replica, World, echo, in_world, until

from headrace.core.places import PATIENCE_S
from headrace.replica.incoming import Incoming
from headrace.router import Router
from headrace.spec.errors import BackPressureError, ReplicaDiedError, RequestTimeoutError
from headrace.wire.frames import GRANT, PLACES


def now() -> float:
    return asyncio.get_running_loop().time()


async def busy(world: World) -> tuple[Replica, Asked]:
    """A replica with all of its slots in work, and the call that holds the first."""
    (replica,) = await world.add()
    calls = [world.ask(b"first") for _ in range(world.limit)]
    await replica.until_calls(world.limit)
    return replica, calls[0]


def in_order(replica: Replica, seen: list[bytes]) -> None:
    """From now on the replica answers at once, and notes whom."""

    def answer(incoming: Incoming) -> None:
        seen.append(bytes(incoming.body))
        asyncio.get_running_loop().call_soon(echo, incoming)

    replica.handle = answer


def test_of_calls_that_wait_the_higher_priority_goes_first(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _ = await busy(world)
        given = [("low", -10), ("plain", 0), ("high", 10), ("plain too", 0), ("high too", 10)]
        calls = [world.ask(body.encode(), priority=priority) for body, priority in given]
        seen: list[bytes] = []
        in_order(replica, seen)
        replica.calls[0].reply(b"")
        for call in calls:
            await call.outcome()
        assert seen == [b"high", b"high too", b"plain", b"plain too", b"low"]

    in_world(test, tmp_path, limit=1)


def test_a_slot_goes_to_the_router_with_the_most_urgent_call(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _ = await busy(world)
        other = Router(asyncio.get_running_loop(), "other#0")
        world.publish(router=other)
        calls = [world.ask(b"mine"), world.ask(b"mine too")]
        await until(lambda: replica.server.gate.wanted == 1)
        calls += [world.ask(b"background", other, priority=-5)]
        await until(lambda: replica.server.gate.wanted == 2)
        calls += [world.ask(b"urgent", other, priority=5)]
        waiter = replica.server.gate._heap
        await until(lambda: len({entry[0] for entry in waiter}) == 3)  # the other has said so
        seen: list[bytes] = []
        in_order(replica, seen)
        replica.calls[0].reply(b"")
        for call in calls:
            await call.outcome()
        assert seen == [b"urgent", b"mine", b"mine too", b"background"]
        await other.close()

    in_world(test, tmp_path, limit=1)


def test_a_full_queue_refuses_the_youngest_of_the_lowest_priority(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, first = await busy(world)
        low, low_too = world.ask(b"low", priority=-1), world.ask(b"low too", priority=-1)
        plain = world.ask(b"plain")
        error = await low_too.outcome()
        assert isinstance(error, BackPressureError)
        assert (error.status, error.retry_after_s) == (503, 1.0)
        assert isinstance(await world.ask(priority=-1).outcome(), BackPressureError)
        replica.handle = echo
        replica.calls[0].reply(b"done")
        assert [await call.outcome() for call in (first, low, plain)] == [b"done", b"low", b"plain"]

    in_world(test, tmp_path, limit=1, max_queued=2)


def test_a_refusal_says_what_the_deployment_wants_it_to(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.options = {"busy_status": 429, "retry_after_s": 7.5}
        await busy(world)
        world.ask()
        error = await world.ask().outcome()
        assert isinstance(error, BackPressureError)
        assert (error.status, error.retry_after_s) == (429, 7.5)

    in_world(test, tmp_path, limit=1, max_queued=1)


def test_what_expires_while_it_waits_is_never_sent(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _ = await busy(world)
        assert isinstance(await world.ask(deadline=now()).outcome(), RequestTimeoutError)
        assert isinstance(await world.ask(deadline=now() + 0.01).outcome(), RequestTimeoutError)
        replica.handle = echo
        replica.calls[0].reply(b"done")
        assert await world.ask(b"next").outcome() == b"next"
        assert len(replica.calls) == 1

    in_world(test, tmp_path, limit=1)


def test_what_has_waited_and_would_be_late_by_what_calls_take_is_refused(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _ = await busy(world)
        (pool,) = world.router._pools.values()
        for _ in range(20):
            pool.balancer.lateness.times.observe(50.0, now())
        late, in_time = world.ask(b"late", deadline=now() + 30.0), world.ask(b"in time", deadline=now() + 300.0)
        replica.handle = echo
        replica.calls[0].reply(b"done")
        error = await late.outcome()
        assert isinstance(error, BackPressureError)
        assert "late" in str(error)
        assert await in_time.outcome() == b"in time"

    in_world(test, tmp_path, limit=1)


def test_a_router_learns_how_long_calls_with_a_deadline_take(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        for _ in range(5):
            await world.ask().outcome()
        (pool,) = world.router._pools.values()
        times = pool.balancer.lateness.times
        assert times.count == 0
        for _ in range(12):
            await world.ask(deadline=now() + 10.0).outcome()
        assert times.count == 12
        assert 0 < times.doubtful_s <= times.likely_s < 5.0

        replica.handle = replica.calls.append
        given_up = world.ask(deadline=now() + 0.01)
        await replica.until_calls(1)
        await until(lambda: now() > (given_up.deadline or 0.0))
        world.router.cancel(given_up)
        assert times.count == 13, "it takes longer than it had"
        replica.calls[0].reply(b"")
        await until(lambda: replica.server.ongoing == 0)
        assert times.count == 13, "and counts once"

    in_world(test, tmp_path)


def test_a_call_is_refused_when_those_before_it_will_take_too_long(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _ = await busy(world)
        (pool,) = world.router._pools.values()
        rate = pool.balancer.lateness.rate
        rate.begin(now() - 16.0)
        rate.starts += 16  # one a second
        rate.end(now())
        waiting = [world.ask(b"%d" % i, deadline=now() + 100.0) for i in range(30)]
        error = await world.ask(deadline=now() + 10.0).outcome()
        assert isinstance(error, BackPressureError)
        assert "would be late" in str(error)
        assert not world.ask(deadline=now() + 10.0, priority=1).errors, "it goes before them"
        in_order(replica, [])
        replica.calls[0].reply(b"done")
        assert [await call.outcome() for call in waiting] == [b"%d" % i for i in range(30)]

    in_world(test, tmp_path, limit=1)


def test_a_caller_that_holds_up_its_loop_while_it_makes_calls_is_not_refused_for_that(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _ = await busy(world)
        (pool,) = world.router._pools.values()
        rate = pool.balancer.lateness.rate
        rate.begin(now() - 0.1)
        rate.starts += 1000
        rate.end(now())
        assert (rate.per_s(now()) or 0) > 5000
        calls = [world.ask(deadline=now() + 5.0)]
        begun = time.monotonic()
        while time.monotonic() < begun + 0.2:
            pass
        calls += [world.ask(deadline=now() + 5.0) for _ in range(150)]
        assert not any(call.errors for call in calls)
        in_order(replica, [])
        replica.calls[0].reply(b"done")
        for call in calls:
            assert await call.outcome() == b""

    in_world(test, tmp_path, limit=1, max_queued=1000)


@pytest.mark.parametrize(
    "options", [{"unrepeatable": ("pay",)}, {"retry_ratio": 0.0, "retry_per_second": 0.0}], ids=["method", "budget"]
)
def test_what_must_not_run_twice_is_not_repeated(tmp_path: Path, options: dict[str, object]) -> None:
    async def test(world: World) -> None:
        world.options = options
        replica, other = await world.add(2)
        pay, look = world.ask(b"pay", method="pay"), world.ask(b"look", method="look")
        await until(lambda: len(replica.calls) + len(other.calls) == 2)
        for each in (replica, other):
            each.crash()
        world.replicas.clear()
        (last,) = await world.add()
        last.handle = echo
        assert isinstance(await pay.outcome(), ReplicaDiedError)
        if "unrepeatable" in options:
            assert await look.outcome() == b"look"
        else:
            assert isinstance(await look.outcome(), ReplicaDiedError)

    in_world(test, tmp_path)


def test_the_budget_of_repeats_follows_the_deployment(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        (pool,) = world.router._pools.values()
        assert pool.repeats.budget.withdraw(now())
        world.options = {"retry_ratio": 0.0, "retry_per_second": 0.0}
        world.publish()
        assert not pool.repeats.budget.withdraw(now())

    in_world(test, tmp_path)


class Crowd:
    """Several routers that call one world's deployment."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.routers = [Router(asyncio.get_running_loop(), f"crowd#{i}") for i in range(count)]
        self.publish()

    def publish(self) -> None:
        self.world.options["routers"] = len(self.routers)
        for router in self.routers:
            self.world.publish(router=router)
        for replica in self.world.replicas.values():
            replica.server.limit_queues(self.world.max_queued)

    def waiting(self) -> int:
        return sum(pool.balancer.queued for router in self.routers for pool in router._pools.values())

    def held(self) -> int:
        return sum(pool.places._allowance.held for router in self.routers for pool in router._pools.values())

    def asking(self) -> bool:
        return any(
            pool.places._allowance._asked_at is not None for router in self.routers for pool in router._pools.values()
        )

    async def close(self) -> None:
        for router in self.routers:
            await router.close()


def refused(calls: list[Asked]) -> int:
    return sum(isinstance(error, BackPressureError) for call in calls for error in call.errors)


def test_the_queues_of_all_routers_together_hold_what_the_deployment_allows(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replica, _ = await busy(world)
        crowd = Crowd(world, 4)
        calls: list[Asked] = []
        for _ in range(40):
            calls += [world.ask(b"x", router) for router in crowd.routers]
            await until(lambda: not crowd.asking())
            assert crowd.waiting() <= 50
            assert crowd.held() <= 50
        assert crowd.waiting() == 50
        assert refused(calls) == 110
        in_order(replica, [])
        replica.calls[0].reply(b"done")
        await asyncio.gather(*(call.outcome() for call in calls))
        assert refused(calls) == 110
        await until(lambda: crowd.held() == 0 and replica.server.places.granted == 0)
        await crowd.close()

    in_world(test, tmp_path, limit=1, max_queued=50)


def test_one_router_may_fill_the_queue_alone(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await busy(world)
        crowd = Crowd(world, 4)
        calls = [world.ask(b"x", crowd.routers[0]) for _ in range(60)]
        await until(lambda: not crowd.asking())
        assert crowd.waiting() == 50
        assert refused(calls) == 10
        await crowd.close()

    in_world(test, tmp_path, limit=1, max_queued=50)


@pytest.mark.parametrize("max_queued", [1, 2])
def test_few_places_go_round(tmp_path: Path, max_queued: int) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        loop = asyncio.get_running_loop()
        replica.handle = lambda incoming: loop.call_later(0.001, echo, incoming)  # type: ignore[assignment,misc]
        crowd = Crowd(world, 3)
        waited: set[Router] = set()
        calls: dict[Router, list[Asked]] = {router: [] for router in crowd.routers}

        def go_on() -> bool:
            """All routers always have two calls under way."""
            for router, asked in calls.items():
                pending = [call for call in asked if not call.end.is_set()]
                for call in asked:
                    if call.queued_since is not None and call.replies:
                        waited.add(router)
                calls[router] = pending + [world.ask(b"x", router) for _ in range(2 - len(pending))]
            return len(waited) == len(crowd.routers)

        await until(go_on)
        await crowd.close()

    in_world(test, tmp_path, limit=1, max_queued=max_queued)


def test_the_next_replica_keeps_the_places_when_the_first_is_gone(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second = await world.add(2)
        for _ in range(2):
            world.ask(b"held")
        await until(lambda: len(first.calls) + len(second.calls) == 2)
        crowd = Crowd(world, 2)
        calls = [world.ask(b"x", router) for router in crowd.routers for _ in range(10)]
        await until(lambda: first.server.places.granted >= 20 and not crowd.asking())
        del world.replicas[first.entry.id]
        crowd.publish()
        await until(lambda: second.server.places.granted >= 20)
        assert crowd.waiting() == 20
        assert not refused(calls)
        assert crowd.held() <= 50
        await crowd.close()

    in_world(test, tmp_path, limit=1, max_queued=50)


def test_a_keeper_that_does_not_answer_leaves_each_its_share(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await busy(world)
        crowd = Crowd(world, 4)
        one = crowd.routers[0]
        (pool,) = one._pools.values()
        world.ask(b"x", one)
        await until(lambda: not crowd.asking())
        (link,) = one.links
        asyncio.get_running_loop().remove_reader(link.sock.fileno())  # what the replica says is not heard
        calls = [world.ask(b"x", one) for _ in range(40)]
        assert pool.balancer.queued == 40, "but one, they may wait until the answer comes"
        await until(lambda: pool.balancer.queued == 10)
        assert refused(calls) == 30
        await crowd.close()

    in_world(test, tmp_path, limit=1, max_queued=40)


def test_without_a_limit_or_a_queue_nothing_is_said_of_places(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        (pool,) = world.router._pools.values()
        replica.handle = echo
        for _ in range(5):
            await world.ask().outcome()
        assert pool.places._allowance.number == 0
        world.max_queued = -1
        world.publish()
        in_order(replica, [])
        await asyncio.gather(*(world.ask().outcome() for _ in range(500)))
        assert pool.places._allowance.number == 0

    in_world(test, tmp_path, limit=1)


@pytest.mark.parametrize(("kind", "from_router"), [(PLACES, True), (GRANT, False)])
def test_a_frame_about_places_that_is_none_ends_the_connection(tmp_path: Path, kind: int, from_router: bool) -> None:
    async def test(world: World) -> None:
        (replica,) = await world.add()
        replica.handle = echo
        await world.ask().outcome()
        (link,) = replica.server.links
        (other,) = world.router.links
        (other if from_router else link).send(0, kind, payload=b"123")
        await until(lambda: link not in replica.server.links and other not in world.router.links)
        assert await world.ask(b"again").outcome() == b"again"

    in_world(test, tmp_path)


def test_a_pause_of_the_process_is_not_the_silence_of_the_keeper(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await busy(world)
        crowd = Crowd(world, 4)
        calls = [world.ask(b"x", crowd.routers[0]) for _ in range(60)]
        time.sleep(3 * PATIENCE_S)  # noqa: ASYNC251 - the pause
        await until(lambda: not crowd.asking())
        assert crowd.waiting() == 50
        assert refused(calls) == 10
        await crowd.close()

    in_world(test, tmp_path, limit=1, max_queued=50)
