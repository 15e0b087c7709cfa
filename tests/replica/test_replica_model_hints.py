"""What routers hear of a replica's models, and what they would like it to load."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from model_zoo import NOWHERE, World, Zoo, errors_of, load, load_in_thread, run

from headrace import serve
from headrace.context import current_replica
from headrace.handle import DeploymentHandle
from headrace.replica.board import ModelBoard
from headrace.serve.testing import TestInstance
from headrace.wire.frames import ModelsInfo


class Ear:
    """Stands for a router's connection."""

    peer = "router"

    def __init__(self, board: ModelBoard) -> None:
        self.heard: list[str] = []
        self.board = board
        board.links.add(self)  # type: ignore[arg-type]

    def send(self, stream: int, kind: int, payload: bytes = b"") -> None:
        info = msgspec.msgpack.decode(payload, type=ModelsInfo)
        for word in ("ready", "loading", "gone"):
            self.heard += [f"{word} {model}" for model in getattr(info, word)]


class Told(Zoo):
    """Whose board can be listened to."""

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str) -> Any:
        return await load(self, model_id)

    async def listen(self) -> None:
        replica = current_replica()
        assert replica is not None
        assert isinstance(replica.models, ModelBoard)
        self.world.ears.append(Ear(replica.models))


class ToldTwice(Told):
    @serve.multiplexed(max_num_models_per_replica=1)
    def other(self, model_id: str) -> Any:
        return load_in_thread(self, model_id)

    async def name_by_other(self, model: str) -> str:
        return (await self.other(model)).name


async def listening(zoo: DeploymentHandle, world: World) -> Ear:
    await zoo.listen.remote()
    return world.ears.pop()  # type: ignore[no-any-return]


def test_routers_hear_what_is_loaded() -> None:
    async def check(instance: TestInstance, world: World) -> None:
        zoo = await instance.run(serve.deployment(Told).bind(world))
        ear = await listening(zoo, world)
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
        ear = await listening(zoo, world)
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
        ear = await listening(zoo, world)
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
        ear = await listening(zoo, world)
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
        ear = await listening(zoo, world)
        ear.board.wanted("x")
        await zoo.name_by_other.remote("x")
        await zoo.name_by_other.remote("y")
        assert world.said == ["load x", "close x", "load y"]
        ear.board.wanted("x")
        await world.heard("load x", 2)
        await world.until(lambda: ear.heard.count("ready x") == 2)
        assert await zoo.name_by_other.remote("x") == "x"

    run(check)
