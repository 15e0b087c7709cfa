"""A replica that is chosen before it is called: its slot is kept, used, given back, and never lost for good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headrace import serve
from headrace.serve.handle import ReplicaSelection
from headrace.serve.request_router import RequestRouter
from headrace.serve.testing import LocalTesting, TestInstance
from headrace.spec.errors import (
    BackPressureError,
    DeploymentNotFound,
    LoopBlockedError,
    OptionError,
    OptionTypeError,
    ReplicaDiedError,
    RequestCancelledError,
    RequestTimeoutError,
)


class Shared:
    """What a test and its replicas both see."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.seen: list[str] = []


@serve.deployment(num_replicas=2, max_ongoing_requests=1, max_queued_requests=2)
class Model:
    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.name = serve.get_replica_context().replica_id

    async def who(self, *args: Any) -> Any:
        self.shared.seen.append(self.name)
        return (self.name, *args) if args else self.name

    async def hold(self) -> str:
        self.shared.seen.append(self.name)
        await self.shared.go.wait()
        return self.name

    async def count(self, to: int) -> Any:
        for i in range(to):
            yield self.name, i


def run(check: Callable[[TestInstance, Any, Shared], Awaitable[None]], deployment: Any = Model) -> None:
    async def test() -> None:
        shared = Shared()
        async with TestInstance() as instance, asyncio.timeout(30):
            handle = await instance.run(deployment.bind(shared), route_prefix=None)
            await check(instance, handle, shared)
            await until(lambda: free(handle))

    asyncio.run(test())


def free(handle: Any) -> bool:
    """Whether this process holds nothing at any replica."""
    pools = handle._runtime.router._pools.values()
    return not any(replica.ours for pool in pools for replica in pool.balancer.replicas.values())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_the_call_goes_to_the_replica_that_was_chosen() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        for _ in range(6):
            async with handle.who.choose_replica("for the router") as selection:
                assert isinstance(selection, ReplicaSelection)
                assert await handle.dispatch(selection, 1) == (selection.replica_id, 1)
        async with handle.options(method_name="count", stream=True).choose_replica() as selection:
            items = [item async for item in handle.dispatch(selection, 3)]
        assert items == [(selection.replica_id, i) for i in range(3)]

    run(check)


def test_the_slot_is_kept_while_others_wait_and_taken_over() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        async with handle.who.choose_replica() as one, handle.who.choose_replica() as other:
            assert {one.replica_id, other.replica_id} == {"Model#1", "Model#2"}
            assert "kept" in repr(one)
            waiting = handle.who.remote()
            for _ in range(30):
                await asyncio.sleep(0)
            assert not waiting.done()
            assert await handle.dispatch(one) == one.replica_id
            assert "dispatched" in repr(one)
            assert await waiting == one.replica_id
        assert "over" in repr(other)

    run(check)


def test_a_slot_that_is_not_used_is_given_back() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        for _ in range(5):
            async with handle.choose_replica():
                pass
            with pytest.raises(KeyError):
                async with handle.choose_replica():
                    raise KeyError("changed my mind")
        await until(lambda: free(handle))
        assert shared.seen == []

    run(check)


def test_who_is_cancelled_gives_back_what_he_holds_or_waits_for() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        entered: list[str] = []

        async def choose() -> None:
            async with handle.choose_replica() as selection:
                entered.append(selection.replica_id)
                await asyncio.Event().wait()

        tasks = [asyncio.ensure_future(choose()) for _ in range(3)]
        await until(lambda: len(entered) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: free(handle))
        assert await handle.who.remote() in entered

    run(check)


def test_it_raises_what_a_call_would() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        async with handle.choose_replica(), handle.choose_replica():
            with pytest.raises(RequestTimeoutError):
                async with handle.options(timeout_s=0.02).choose_replica():
                    pass
            waiting = [asyncio.ensure_future(handle.choose_replica().__aenter__()) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(BackPressureError):
                async with handle.choose_replica():
                    pass
            for one in waiting:
                one.cancel()
            await asyncio.wait(waiting)
        with pytest.raises(DeploymentNotFound):
            async with type(handle)("Modle", "default", runtime=handle._runtime).choose_replica():
                pass

    run(check)


def test_the_time_of_the_handle_is_that_of_choice_and_call() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        async with handle.options(timeout_s=0.1).hold.choose_replica() as selection:
            with pytest.raises(RequestTimeoutError):
                await handle.dispatch(selection)
        async with handle.options(timeout_s=0.05).hold.choose_replica() as selection:
            await until(lambda: not selection._slot.stands)
            assert "over" in repr(selection)
            with pytest.raises(RequestTimeoutError):
                await handle.dispatch(selection)

    run(check)


def test_a_replica_that_dies_takes_its_slots_along() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        async with handle.who.choose_replica() as selection:
            instance.engine.crash(f"{selection.replica_id}@default")
            await until(lambda: not selection._slot.stands)
            with pytest.raises(ReplicaDiedError):
                await handle.dispatch(selection)
        assert await handle.who.remote()

    run(check)


def test_a_drain_does_not_wait_for_slots() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        async with handle.who.choose_replica() as one, handle.who.choose_replica() as other:
            again = await instance.run(Model.options(num_replicas=1).bind(shared), route_prefix=None)
            await until(lambda: not (one._slot.stands and other._slot.stands))
            gone, stays = (other, one) if one._slot.stands else (one, other)
            with pytest.raises(ReplicaDiedError):
                await handle.dispatch(gone)
            assert await handle.dispatch(stays) == stays.replica_id
        assert await again.who.remote()

    run(check)


def test_it_is_dispatched_once_and_inside_of_its_block_by_a_handle_of_its_deployment() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        other = await instance.run(Model.options(name="Other").bind(shared), name="other", route_prefix=None)
        choice = handle.who.choose_replica()
        async with choice as selection:
            with pytest.raises(OptionError, match="'Other' of 'other': the selection is of 'Model' of 'default'"):
                other.dispatch(selection)
            for wrong in ("Model#1", handle.who.choose_replica()):
                with pytest.raises(OptionTypeError, match="must be a selection, as in"):
                    handle.dispatch(wrong)
            with pytest.raises(OptionError, match="entered already"):
                await choice.__aenter__()
            await handle.hold.dispatch(selection)  # the method is that of the choice
            with pytest.raises(OptionError, match="already"):
                handle.dispatch(selection)
        async with handle.who.choose_replica() as selection:
            pass
        with pytest.raises(OptionError, match="has ended"):
            handle.dispatch(selection)

    run(check)


def test_a_response_among_the_arguments_is_waited_for() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        async with handle.who.choose_replica() as selection:
            other = "Model#2" if selection.replica_id == "Model#1" else "Model#1"
            assert await handle.dispatch(selection, handle.who.remote()) == (selection.replica_id, other)
        held = handle.hold.remote()
        async with handle.who.choose_replica() as selection:
            late = handle.dispatch(selection, held)  # sent when its slot has long been given back
        await until(lambda: free(handle) or len(shared.seen) > 2)
        shared.go.set()
        assert await late == (selection.replica_id, await held)

    run(check)


def test_a_call_that_is_cancelled_frees_the_slot() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        async with handle.hold.choose_replica() as selection:
            response = handle.dispatch(selection)
            await until(lambda: shared.seen)
            response.cancel()
            with pytest.raises(RequestCancelledError):
                await response

    run(check)


def test_a_request_that_ends_early_gives_its_slots_back() -> None:
    @serve.deployment
    class Front:
        def __init__(self, model: Any) -> None:
            self.model = model

        async def keep(self) -> None:
            async with self.model.choose_replica(), self.model.choose_replica():
                await asyncio.Event().wait()

        def keep_in_a_thread(self) -> str:
            with self.model.who.choose_replica() as selection:
                answer: str = self.model.dispatch(selection).result(timeout_s=10)
                assert answer == selection.replica_id
                return answer

    async def test() -> None:
        shared = Shared()
        async with TestInstance() as instance, asyncio.timeout(30):
            handle = await instance.run(Front.bind(Model.bind(shared)), route_prefix=None)
            response = handle.keep.remote()
            model = type(handle)("Model", "default", runtime=handle._runtime)
            with contextlib.suppress(RequestTimeoutError):
                while True:  # until both slots are taken
                    await model.options(timeout_s=0.05).who.remote()
            response.cancel()
            assert await model.who.remote()
            assert await handle.keep_in_a_thread.remote() in ("Model#1", "Model#2")

    asyncio.run(test())


class ByArgument(RequestRouter):
    """To the replica that the first argument names."""

    def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        assert pending_request.text() == pending_request.args[0]
        return [[replica for replica in candidate_replicas if str(replica.replica_id) == pending_request.args[0]]]


def test_a_router_goes_by_the_arguments_of_the_choice() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        for name in ("Model#1", "Model#2", "Model#2", "Model#1"):
            async with handle.who.choose_replica(name) as selection:
                assert selection.replica_id == name
                assert await handle.dispatch(selection) == name

    run(check, Model.options(request_router_config=ByArgument))


def test_from_a_plain_script() -> None:
    with contextlib.closing(LocalTesting()) as local:
        handle = local.run(Model.bind(Shared()), route_prefix=None)
        with handle.who.choose_replica() as selection:
            assert handle.dispatch(selection, 1).result(timeout_s=10) == (selection.replica_id, 1)
            told = selection.to_dict()
            assert told.pop("node_id")
            assert told == {
                "replica_id": selection.replica_id,
                "node_ip": selection.address,
                "port": None,
                "availability_zone": None,
                "replica_metadata": {},
            }
        late = handle.options(timeout_s=0.05)
        with (
            handle.choose_replica(),
            handle.choose_replica(),
            pytest.raises(RequestTimeoutError),
            late.choose_replica(),
        ):
            pass
        assert handle.who.remote().result(timeout_s=10)

        async def on_a_loop() -> str:
            with pytest.raises(LoopBlockedError, match="async with"), handle.choose_replica():
                pass
            async with handle.who.choose_replica() as selection:
                answer: str = await handle.dispatch(selection)
                assert answer == selection.replica_id
                return answer

        assert asyncio.run(on_a_loop())
