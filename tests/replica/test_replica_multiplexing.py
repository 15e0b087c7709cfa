"""Models of a replica: loaded once, held while they are used, closed when they go, whatever loaders and requests do."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from random import Random
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse

from headrace import serve
from headrace.context import current_replica, get_request_context
from headrace.core.models import Models
from headrace.handle import DeploymentHandle
from headrace.replica import held
from headrace.serve.testing import TestInstance
from headrace.spec.errors import ModelLoadError, OptionTypeError, RequestCancelledError, RequestTimeoutError

NOWHERE = "nowhere"


class World:
    """What happened, and what loaders wait for. On the loop of the test, which is that of the replicas."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shut: dict[str, asyncio.Event] = {}  # loads of these models wait
        self.shut_thread: dict[str, threading.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.threads: set[str] = set()

    def say(self, text: str) -> None:
        self.said.append(text)
        self.threads.add(threading.current_thread().name)

    def count(self, text: str) -> int:
        return self.said.count(text)

    def shut_off(self, model: str) -> Callable[[], None]:
        """Loads of the model do not end until what is returned is called."""
        self.shut[model], self.shut_thread[model] = asyncio.Event(), threading.Event()

        def let_in() -> None:
            self.shut[model].set()
            self.shut_thread[model].set()

        return let_in

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0)

    async def heard(self, text: str, times: int = 1) -> None:
        await self.until(lambda: self.count(text) >= times)


class Model:
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.open = True

    def close(self) -> None:
        self.open = False
        self.world.say(f"close {self.name}")


class Zoo:
    """A deployment with all the ways in which models are used. Subclasses have the loader, `get_model`."""

    get_model: Any

    def __init__(self, world: World) -> None:
        self.world = world
        self.go = asyncio.Event()
        self.lingering: list[asyncio.Task[None]] = []

    async def name(self, model: str) -> str:
        return (await self.get_model(model)).name

    def plain(self, model: str) -> str:
        return self.get_model(model).name

    async def hold(self, model: str) -> bool:
        found = await self.get_model(model)
        self.world.say(f"hold {model}")
        await self.go.wait()
        return found.open

    async def hold_and_see(self, model: str) -> AsyncIterator[bool]:
        found = await self.get_model(model)
        yield found.open
        self.world.say(f"hold {model}")
        await self.go.wait()
        yield found.open

    async def both(self, first: str, second: str) -> list[bool]:
        models = await asyncio.gather(self.get_model(first), self.get_model(second))
        models.append(await asyncio.wait_for(self.get_model(first), 30))
        return [model.open for model in models]

    async def let_go(self) -> None:
        self.go.set()

    def core(self) -> Models[Any]:
        models: Models[Any] = self.get_model._table(self, current_replica()).models
        return models

    async def waiters(self, model: str) -> int:
        load = self.core().load_of(model)
        return 0 if load is None else load.waiters

    async def become_impatient(self) -> None:
        self.core().patience_s = 0.05

    async def models(self) -> dict[str, int | None]:
        return self.get_model.models


async def load(zoo: Zoo, model: str) -> Any:
    zoo.world.say(f"load {model}")
    if model in zoo.world.shut:
        try:
            await zoo.world.shut[model].wait()
        except asyncio.CancelledError:
            zoo.world.say(f"cancel {model}")
            raise
    if model in zoo.world.errors:
        raise zoo.world.errors[model]
    return Model(zoo.world, model)


def load_in_thread(zoo: Zoo, model: str) -> Any:
    zoo.world.say(f"load {model}")
    if model in zoo.world.shut_thread:
        zoo.world.shut_thread[model].wait(30)
    if model in zoo.world.errors:
        raise zoo.world.errors[model]
    return Model(zoo.world, model)


def zoo_of(loader: Callable[..., Any] = load, limit: int = 3, **options: Any) -> Any:
    """A deployment whose models this loads."""

    class Own(Zoo):
        if asyncio.iscoroutinefunction(loader):

            @serve.multiplexed(max_num_models_per_replica=limit, **options)
            async def get_model(self, model_id: str) -> Any:
                return await loader(self, model_id)

        else:

            @serve.multiplexed(max_num_models_per_replica=limit, **options)
            def get_model(self, model_id: str) -> Any:
                return loader(self, model_id)

    return serve.deployment(Own, max_ongoing_requests=20)  # type: ignore[call-arg]


both_kinds = pytest.mark.parametrize("loader", [load, load_in_thread], ids=["async", "plain"])


def run(check: Callable[[TestInstance, World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), TestInstance() as instance:
            await check(instance, World())

    asyncio.run(main())


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# ---- loading


@both_kinds
def test_all_who_ask_at_once_wait_for_one_load(loader: Any) -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(loader).bind(world))
        let_in = world.shut_off("a")
        calls = [zoo.name.remote("a") for _ in range(4)] + [zoo.plain.remote("a") for _ in range(4)]
        await world.heard("load a")
        assert await zoo.name.remote("b") == "b"  # which needs no other load
        assert await zoo.plain.remote("b") == "b"
        let_in()
        assert await asyncio.gather(*calls) == ["a"] * 8
        assert world.count("load a") == 1

    run(check)


@both_kinds
def test_a_failed_load_fails_those_who_wait_and_no_other(loader: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(loader).bind(world))
        let_in = world.shut_off("a")
        world.errors["a"] = LookupError("no file for a")
        calls = [zoo.name.remote("a"), zoo.plain.remote("a"), zoo.name.remote("a")]
        while await zoo.waiters.remote("a") < 3:
            pass
        let_in()
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert type(error) is LookupError
            assert "raise zoo.world.errors[model]" in str(error.__cause__)  # with the loader's own traceback
        assert await zoo.name.remote("b") == "b"
        (logged,) = errors_of(caplog)
        assert logged.startswith("Own.get_model could not load 'a':\nTraceback")
        del world.errors["a"]
        assert await zoo.name.remote("a") == "a"
        assert world.count("load a") == 2

    run(check)


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError("by itself"), KeyboardInterrupt()], ids=repr)
@both_kinds
def test_what_means_something_to_the_loop_ends_the_load_alone(loader: Any, error: BaseException) -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(loader).bind(world))
        world.errors["a"] = error
        for method in (zoo.name, zoo.plain):
            with pytest.raises(Exception, match=r"SystemExit|cancelled|KeyboardInterrupt"):
                await method.remote("a")
        assert await zoo.name.remote("b") == "b"

    run(check)


def test_none_is_a_model_like_any_other() -> None:
    async def nothing(zoo: Zoo, model: str) -> None:
        zoo.world.say(f"load {model}")

    class Engine(Zoo):
        @serve.multiplexed
        async def get_model(self, model_id: str) -> None:
            await nothing(self, model_id)

        async def see(self, model: str) -> bool:
            return await self.get_model(model) is None

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Engine).bind(world))
        assert await zoo.see.remote("a")
        assert await zoo.see.remote("a")
        assert world.said == ["load a"]

    run(check)


def test_a_plain_loader_that_returns_a_coroutine_is_awaited() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(lambda zoo, model: load(zoo, model)).bind(world))
        assert await zoo.name.remote("a") == "a"
        assert await zoo.plain.remote("a") == "a"

    run(check)


def test_a_loader_runs_outside_of_the_request_that_it_is_called_for() -> None:
    class Inside(Zoo):
        @serve.multiplexed
        async def get_model(self, model_id: str) -> Any:
            replica = current_replica()
            assert replica is not None
            with pytest.raises(Exception, match="outside of a request"):
                get_request_context()
            return serve.get_multiplexed_model_id(), replica.replica_id

        async def see(self, model: str) -> Any:
            return await self.get_model(model)

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Inside).bind(world))
        assert await zoo.see.remote("a") == ("a", "Inside#1")

    run(check)


# ---- leaving


def test_a_load_whose_callers_have_all_left_is_cancelled() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of().bind(world))
        world.shut_off("a")
        first, second = zoo.name.remote("a"), zoo.plain.remote("a")
        await world.heard("load a")
        while await zoo.waiters.remote("a") < 2:
            pass
        first.cancel()
        while await zoo.waiters.remote("a") > 1:
            pass
        assert not world.count("cancel a")
        second.cancel()
        await world.heard("cancel a")
        del world.shut["a"]
        assert await zoo.name.remote("a") == "a"

    run(check)


def test_a_load_in_a_thread_goes_on_and_its_model_is_kept() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(load_in_thread).bind(world))
        let_in = world.shut_off("a")
        for method in (zoo.name, zoo.plain):
            call = method.remote("a")
            await world.heard("load a")
            call.cancel()
            with pytest.raises(RequestCancelledError):
                await call
        let_in()
        assert await zoo.name.remote("a") == "a"
        assert world.count("load a") == 1

    run(check)


@both_kinds
def test_a_load_that_takes_longer_than_its_callers_have_goes_on(loader: Any) -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(loader).bind(world))
        let_in = world.shut_off("a")
        for method in (zoo.name, zoo.plain):
            call = method.options(timeout_s=0.2).remote("a")
            await world.heard("load a")
            with pytest.raises(RequestTimeoutError):
                await call
        let_in()
        assert await zoo.name.remote("a") == "a"
        assert world.count("load a") == 1
        assert not world.count("cancel a")

    run(check)


# ---- holding and closing


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


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_constructor_can_have_models_loaded(kind: str) -> None:
    class Plain(Zoo):
        def __init__(self, world: World) -> None:
            super().__init__(world)
            self.get_model("a")

        @serve.multiplexed
        async def get_model(self, model_id: str) -> Any:
            return await load(self, model_id)

    class Async(Plain):
        async def __init__(self, world: World) -> None:  # type: ignore[misc]
            Zoo.__init__(self, world)
            await self.get_model("a")

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Plain if kind == "plain" else Async).bind(world))
        assert list(await zoo.models.remote()) == ["a"]
        assert await zoo.name.remote("a") == "a"
        assert world.said == ["load a"]

    run(check)


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


# ---- loads that ask for models


def test_a_model_keeps_the_models_that_it_is_made_of() -> None:
    class Made(Zoo):
        @serve.multiplexed(max_num_models_per_replica=2)
        async def get_model(self, model_id: str) -> Any:
            if model_id == "pair":
                self.part = await self.get_model("part")
            return await load(self, model_id)

        async def see(self) -> bool:
            pair = await self.get_model("pair")
            return pair.open and self.part.open

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Made).bind(world))
        assert await zoo.see.remote()
        assert await zoo.name.remote("b") == "b"  # in the place of the pair: the part is in use by it
        assert world.said == ["load part", "load pair", "close pair", "load b"]
        assert await zoo.name.remote("c") == "c"
        assert world.said[4:] == ["close part", "load c"]

    run(check)


def test_a_loader_that_waits_for_itself_is_told() -> None:
    class Circle(Zoo):
        @serve.multiplexed
        async def get_model(self, model_id: str) -> Any:
            needs = {"self": "self", "a": "b", "b": "c", "c": "a"}
            if model_id in needs:
                await self.get_model(needs[model_id])
            return await load(self, model_id)

        @serve.multiplexed
        def in_thread(self, model_id: str) -> Any:
            return self.in_thread(model_id)

        def thread(self) -> Any:
            return self.in_thread("x")

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Circle).bind(world))
        with pytest.raises(ModelLoadError, match="asks for 'self' while it loads that very model"):
            await zoo.name.remote("self")
        with pytest.raises(ModelLoadError, match="while 'c' is loaded, 'a' is asked for, whose own load waits for 'c'"):
            await zoo.name.remote("a")
        with pytest.raises(ModelLoadError, match="asks for 'x' while it loads that very model"):
            await zoo.thread.remote()
        assert await zoo.name.remote("d") == "d"

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


# ---- memory


def test_models_are_measured_by_a_function() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        sizes = {"a": 40, "b": 50, "c": 20, "large": 400}
        options: dict[str, Any] = {"max_memory_bytes": 100, "memory_fn": lambda model: sizes[model.name]}
        zoo = await instance.run(zoo_of(limit=-1, **options).bind(world))
        for name in ("a", "b", "a", "c"):
            await zoo.name.remote(name)
        assert await zoo.models.remote() == {"a": 40, "c": 20}
        await zoo.name.remote("large")
        assert await zoo.models.remote() == {"large": 400}

    run(check)


@pytest.mark.parametrize("size", [-1, "12", None, 1.5, True, ValueError("no idea")])
def test_a_memory_fn_that_does_not_do_its_part_fails_the_load(size: Any, caplog: pytest.LogCaptureFixture) -> None:
    def measure(model: Model) -> Any:
        if isinstance(size, Exception):
            raise size
        return size

    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(zoo_of(memory_fn=measure).bind(world))
        with pytest.raises((OptionTypeError, ValueError), match=r"get_model gave .*: it is to give a whole|no idea"):
            await zoo.name.remote("a")
        assert world.said == ["load a", "close a"]

    run(check)


@both_kinds
def test_models_are_measured_by_what_the_process_grows_by(loader: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Large(Model):
        def __init__(self, world: World, name: str) -> None:
            super().__init__(world, name)
            self.data = bytearray(b"x" * 30_000_000)

    async def large(zoo: Zoo, model: str) -> Any:
        return Large(zoo.world, model)

    def large_in_thread(zoo: Zoo, model: str) -> Any:
        return Large(zoo.world, model)

    async def check(instance: TestInstance, world: World) -> None:
        kind = large if loader is load else large_in_thread
        zoo = await instance.run(zoo_of(kind, limit=-1, max_memory_bytes=100_000_000).bind(world))
        for name in ("a", "b", "c", "d"):
            await zoo.name.remote(name)
        sizes = await zoo.models.remote()
        assert list(sizes) == ["b", "c", "d"]
        assert all(28_000_000 < size < 40_000_000 for size in sizes.values()), sizes
        assert world.said == ["close a"]

    with caplog.at_level(logging.INFO):
        run(check)
    assert any("has loaded 'a' in 0." in text and " MB" in text for text in caplog.messages)


# ---- what routers hear and ask for


class Ear:
    """Stands for a router's connection."""

    peer = "router"

    def __init__(self, zoo: Any) -> None:
        self.heard: list[str] = []
        self.board = zoo

    def send(self, stream: int, kind: int, payload: bytes = b"") -> None:
        import msgspec

        from headrace.wire.frames import ModelsInfo

        info = msgspec.msgpack.decode(payload, type=ModelsInfo)
        for word in ("ready", "loading", "gone"):
            self.heard += [f"{word} {model}" for model in getattr(info, word)]


class Told(Zoo):
    """Whose board can be listened to."""

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str) -> Any:
        return await load(self, model_id)

    async def listen(self, ears: list[Ear]) -> None:
        replica = current_replica()
        assert replica is not None
        board: Any = replica.models
        ears.append(Ear(board))
        board.links.add(ears[-1])


class ToldTwice(Told):
    @serve.multiplexed(max_num_models_per_replica=1)
    def other(self, model_id: str) -> Any:
        return load_in_thread(self, model_id)

    async def name_by_other(self, model: str) -> str:
        return (await self.other(model)).name


EARS: list[Ear] = []


async def listening(zoo: DeploymentHandle) -> Ear:
    replica = current_replica()
    assert replica is None
    await zoo.hear.remote()
    return EARS.pop()


async def _hear(self: Told) -> None:
    await self.listen(EARS)


Told.hear = _hear  # type: ignore[attr-defined]


def test_routers_hear_what_is_loaded() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Told).bind(world))
        ear = await listening(zoo)
        for name in ("a", "b", "c"):
            await zoo.name.remote(name)
        world.errors["d"] = OSError()
        with pytest.raises(OSError):  # noqa: PT011
            await zoo.name.remote("d")
        assert ear.heard == [
            *("loading a", "ready a", "loading b", "ready b"),
            *("gone a", "loading c", "ready c", "gone b", "loading d", "gone d"),
        ]

    run(check)


def test_of_several_functions_routers_hear_as_of_one() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(ToldTwice).bind(world))
        ear = await listening(zoo)
        await zoo.name.remote("a")
        await zoo.name_by_other.remote("a")
        await zoo.name_by_other.remote("b")
        await zoo.name.remote("c")
        await zoo.name.remote("d")
        await world.until(lambda: "ready d" in ear.heard)
        assert ear.heard.count("ready a") == 1
        assert ear.heard.index("gone a") > ear.heard.index("ready c")

    run(check)


def test_a_hint_loads_before_anybody_asks() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Told).bind(world))
        ear = await listening(zoo)
        ear.board.wanted("a")
        ear.board.wanted("a")
        await world.until(lambda: "ready a" in ear.heard)
        assert await zoo.name.remote("a") == "a"
        assert world.said == ["load a"]
        call = zoo.hold.remote("a")
        await world.heard("hold a")
        ear.board.wanted("b")
        await world.until(lambda: "ready b" in ear.heard)
        ear.board.wanted("c")  # in the place of b, which is idle
        await world.until(lambda: "ready c" in ear.heard)
        assert world.said == ["load a", "hold a", "load b", "close b", "load c"]
        await zoo.let_go.remote()
        assert await call

    run(check)


def test_a_hint_that_fails_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Told).bind(world))
        ear = await listening(zoo)
        world.errors[NOWHERE] = LookupError("no file")
        ear.board.wanted(NOWHERE)
        await world.until(lambda: f"gone {NOWHERE}" in ear.heard)
        ear.board.wanted("")  # an id that no request could have
        assert await zoo.name.remote("a") == "a"

    run(check)
    assert len([text for text in errors_of(caplog) if NOWHERE in text]) == 1


def test_of_several_functions_that_load_a_hint_goes_to_the_one_that_did_before() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(ToldTwice).bind(world))
        ear = await listening(zoo)
        ear.board.wanted("x")
        await zoo.name_by_other.remote("x")
        await zoo.name_by_other.remote("y")
        assert world.said == ["load x", "close x", "load y"]
        ear.board.wanted("x")
        await world.heard("load x", 2)
        await world.until(lambda: ear.heard.count("ready x") == 2)
        assert await zoo.name_by_other.remote("x") == "x"

    run(check)
