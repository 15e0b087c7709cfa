"""A deployment with many models, for tests: its loaders wait and fail as a test wants, and say what happened."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from headrace import serve
from headrace.context import current_replica
from headrace.core.models import Models
from headrace.serve.testing import TestInstance

NOWHERE = "nowhere"  # a model that no loader finds


class World:
    """What happened, and what loaders wait for. On the loop of the test, which is that of the replicas."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shut: dict[str, asyncio.Event] = {}  # loads of these models wait
        self.shut_thread: dict[str, threading.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.threads: set[str] = set()
        self.ears: list[Any] = []  # that listen to replicas

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
