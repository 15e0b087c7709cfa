"""Models are held while they are used, and closed when they go."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from model_zoo import NOWHERE, Model, World, Zoo, errors_of, load, no_collector, run, zoo_of
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse

from headrace import serve
from headrace.context import current_replica, get_request_context
from headrace.handle import DeploymentHandle
from headrace.replica import held
from headrace.serve.testing import TestInstance
from headrace.spec.errors import RequestCancelledError, RequestTimeoutError


@pytest.mark.parametrize("streams", [False, True])
def test_a_model_in_use_is_closed_after_its_last_request_and_at_once_then(streams: bool) -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(limit=1).bind(world))
        if streams:
            items = zoo.options(stream=True).hold_and_see.remote("a")
            assert await anext(items)
        else:
            call = zoo.hold.remote("a")
        await world.heard("hold a")
        other = zoo.name.remote("b")  # it waits: there is room for one
        assert await zoo.models.remote() == {}
        assert "close a" not in world.said
        with no_collector():
            await zoo.let_go.remote()
            assert [item async for item in items] == [True] if streams else await call
            assert await other == "b"
        assert world.said == ["load a", "hold a", "close a", "load b"]

    run(check)


@pytest.mark.parametrize("method", ["name", "plain"])
def test_a_request_without_end_does_not_stop_all_others(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(limit=1).bind(world))
        await zoo.become_impatient.remote()
        call = zoo.hold.remote("a")
        await world.heard("hold a")
        assert await zoo.options(method_name=method).remote("b") == "b"
        assert world.said == ["load a", "hold a", "load b"]
        await zoo.let_go.remote()
        assert await call
        await world.heard("close a")

    run(check)
    assert "Own.get_model loads 'b' beyond its limits: the others are in use for long" in caplog.messages


def test_whoever_else_still_uses_a_model_keeps_it() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(limit=1).bind(world))
        first, second = zoo.hold.remote("a"), zoo.hold.remote("a")
        await world.heard("hold a", 2)
        other = zoo.name.remote("b")
        first.cancel()
        with pytest.raises(RequestCancelledError):
            await first
        assert await zoo.models.remote() == {}
        assert "close a" not in world.said
        await zoo.let_go.remote()
        assert await second
        assert await other == "b"

    run(check)


def test_a_request_may_use_more_models_than_stay() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(limit=1).bind(world))
        assert await zoo.both.remote("a", "b") == [True, True, True]
        assert world.count("load a") == 1
        await world.until(lambda: len([text for text in world.said if text.startswith("close")]) == 1)
        assert len(await zoo.models.remote()) == 1

    run(check)


def test_a_call_within_a_request_that_holds_a_model_does_not_wait_for_it() -> None:
    class Nested(Zoo):
        @serve.multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> Any:
            return await load(self, model_id)

        async def outer(self) -> list[str]:
            own = await self.get_model("a")
            me = serve.get_deployment_handle("Nested", "default")
            again, other = await me.name.remote("a"), await me.name.remote("b")
            assert own.open
            return [again, other, await me.name.remote("a")]

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Nested).bind(world))
        assert await zoo.outer.remote() == ["a", "b", "a"]

    run(check)


def test_the_task_of_a_response_holds_its_models_to_its_end() -> None:
    class Answering(Zoo):
        @serve.multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> Any:
            return await load(self, model_id)

        async def __call__(self, request: Any) -> PlainTextResponse:
            model = await self.get_model(serve.get_multiplexed_model_id())

            async def after() -> None:
                await self.go.wait()
                self.world.say(f"after: {model.open}")

            return PlainTextResponse(model.name, background=BackgroundTask(after))

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Answering).bind(world))
        async with instance.http_client() as client:
            answer = await client.get("/", headers={"serve_multiplexed_model_id": "a"})
            assert answer.text == "a"
            other = zoo.name.remote("b")
            await zoo.let_go.remote()
            assert await other == "b"
            assert world.said == ["load a", "after: True", "close a", "load b"]

    run(check)


def test_what_a_request_leaves_running_holds_nothing() -> None:
    class Lingering(Zoo):
        @serve.multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> Any:
            return await load(self, model_id)

        async def linger(self, model: str) -> str:
            found = await self.get_model(model)
            self.lingering.append(asyncio.create_task(self.go.wait()))  # as a library may, in the context of the call
            return found.name

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Lingering).bind(world))
        assert await zoo.linger.remote("a") == "a"
        assert await zoo.name.remote("b") == "b"
        assert world.said == ["load a", "close a", "load b"]
        await zoo.let_go.remote()

    run(check)


def test_a_task_outside_of_any_request_holds_the_model_that_it_got_last() -> None:
    class Background(Zoo):
        @serve.multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> Any:
            return await load(self, model_id)

        async def begin(self) -> None:
            context = contextvars.Context()  # which knows of no request and no replica
            self.lingering.append(asyncio.get_running_loop().create_task(self.work(), context=context))

        async def work(self) -> None:
            for model in "abc":
                found = await self.get_model(model)
            self.world.say("at work")
            await self.go.wait()
            self.world.say(f"worked: {found.open}")

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Background).bind(world))
        await zoo.begin.remote()
        await world.heard("at work")
        assert world.said == ["load a", "close a", "load b", "close b", "load c", "at work"]
        other = zoo.name.remote("d")
        await zoo.let_go.remote()
        assert await other == "d"
        assert world.said[6:] == ["worked: True", "close c", "load d"]

    run(check)


class AsyncClose(Model):
    async def close(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.world.say(f"async close {self.name}")


class Destructor:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    def __del__(self) -> None:
        self.world.say(f"del {self.name}")


class AsyncDestructor(Destructor):
    async def __del__(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.world.say(f"async del {self.name}")


class Raising(Model):
    def close(self) -> None:
        raise OSError("the device is gone")


class Odd:
    """Whose attributes are made by its own code."""

    def __init__(self, world: World, name: str) -> None:
        self.__dict__.update(world=world, name=name)

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Model, "close a"),
        (AsyncClose, "async close a"),
        (Destructor, "del a"),
        (AsyncDestructor, "async del a"),
        (Raising, ""),
        (Odd, ""),
    ],
)
def test_the_ways_in_which_models_end(kind: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    async def make(zoo: Zoo, model: str) -> Any:
        return kind(zoo.world, model)

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(make, limit=1).bind(world))
        for name in ("a", "b", "c"):
            assert await zoo.name.remote(name) == name
        if said:
            assert world.count(said) == 1
            assert any(name.startswith(("headrace-close", "headrace-del", "MainThread")) for name in world.threads)
        assert list(await zoo.models.remote()) == ["c"]
        await instance.delete("default")
        if said:
            assert world.count(said[:-1] + "c") == 1
            assert len(world.said) == 3

    run(check)
    logged = [text for text in errors_of(caplog) if "closing a model" in text]
    assert len(logged) == (3 if kind is Raising else 0)
    assert all("OSError: the device is gone" in text for text in logged)


def test_one_object_under_two_ids_is_closed_with_the_last() -> None:
    shared: list[Model] = []

    async def share(zoo: Zoo, model: str) -> Any:
        if not shared:
            shared.append(Model(zoo.world, "shared"))
        return shared[0]

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(share, limit=2).bind(world))
        for name in ("a", "b", "c", "d"):
            await zoo.name.remote(name)
        assert not world.said
        await instance.delete("default")
        assert world.said == ["close shared"]

    run(check)


def test_when_a_replica_ends_its_models_are_closed_before_it() -> None:
    class Ending(Zoo):
        @serve.multiplexed
        async def get_model(self, model_id: str) -> Any:
            return await load(self, model_id)

        def __del__(self) -> None:
            self.world.say("del zoo")

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Ending).bind(world))
        for name in ("a", "b"):
            await zoo.name.remote(name)
        world.shut_off("c")
        world.shut_off("d")
        left = zoo.options(timeout_s=0.02).name.remote("c")
        with pytest.raises(RequestTimeoutError):
            await left
        await instance.delete("default")
        assert sorted(world.said[3:-1]) == ["cancel c", "close a", "close b"]
        assert world.said[-1] == "del zoo"

    run(check)


# ---- everything at once


class Busy(Zoo):
    """Whose models are used for a while, by code of every kind."""

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str) -> Any:
        return await self.load(model_id)

    @serve.multiplexed(max_num_models_per_replica=2)
    def get_plainly(self, model_id: str) -> Any:
        if model_id == NOWHERE:
            raise LookupError(model_id)
        self.world.say(f"load {model_id}+")
        return Model(self.world, f"{model_id}+")

    async def load(self, model_id: str) -> Model:
        if model_id == NOWHERE:
            raise LookupError(model_id)
        for _ in range(3):
            await asyncio.sleep(0)
        self.world.say(f"load {model_id}")
        return Model(self.world, model_id)

    async def on_loop(self, *names: str) -> bool:
        models = [await self.get_model(name) for name in names]
        models += await asyncio.gather(*(self.get_plainly(name) for name in names))
        for _ in range(5):
            await asyncio.sleep(0)
        return all(model.open for model in models)

    def in_thread(self, *names: str) -> bool:
        models = [get(name) for name in names for get in (self.get_model, self.get_plainly)]
        get_request_context().check()
        return all(model.open for model in models)

    async def items(self, *names: str) -> AsyncIterator[bool]:
        for name in names:
            model = await self.get_model(name)
            yield model.open
            await asyncio.sleep(0)
            yield model.open

    async def left(self) -> list[Any]:
        tables = [function._table(self, current_replica()) for function in (self.get_model, self.get_plainly)]
        return [
            [list(table._tickets), table.models.leaving, len(table._parts) - len(table.sizes())] for table in tables
        ]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_no_model_is_closed_in_use_and_each_is_closed_once(seed: int) -> None:
    random = Random(seed)

    async def use(zoo: DeploymentHandle) -> None:
        names = random.choices([*"abcdef", NOWHERE], k=random.choice([1, 1, 1, 2, 3]))
        how = random.choice(["on_loop", "in_thread", "items"])
        by = zoo.options(method_name=how, timeout_s=random.choice([None, None, 0.02]), stream=how == "items")
        call: Any = by.remote(*names)
        if random.random() < 0.3:
            for _ in range(random.randrange(20)):
                await asyncio.sleep(0)
            call.cancel()
        with contextlib.suppress(LookupError, RequestCancelledError, RequestTimeoutError, TimeoutError):
            answers = [item async for item in call] if how == "items" else [await call]
            assert all(answers)

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Busy, max_ongoing_requests=12).bind(world))  # type: ignore[call-arg]
        async with asyncio.TaskGroup() as group:
            for _ in range(150):
                group.create_task(use(zoo))
        while await zoo.left.remote() != [[[], [], 0]] * 2:
            pass
        assert not held._holding
        await instance.delete("default")
        for name in {text.split()[1] for text in world.said}:
            assert world.count(f"load {name}") == world.count(f"close {name}"), name

    run(check)
