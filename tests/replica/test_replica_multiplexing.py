"""Models of a replica are loaded once, whatever loaders and those who wait for them do."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from model_zoo import Model, World, Zoo, both_kinds, errors_of, load, load_in_thread, run, zoo_of

from headrace import serve
from headrace.context import current_replica, get_request_context
from headrace.serve.testing import TestInstance
from headrace.spec.errors import ModelLoadError, OptionTypeError, RequestCancelledError, RequestTimeoutError


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
    assert any(re.search(r"has loaded 'a' in [0-9.]+ .*MB", text) for text in caplog.messages), caplog.messages
