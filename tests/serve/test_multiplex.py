"""`@serve.multiplexed`: what it decorates, whose models are whose, and the doors by which a model id comes."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import cloudpickle
import pytest
from fastapi import FastAPI

from headrace import serve
from headrace.serve.multiplex import Multiplexed
from headrace.serve.testing import LocalTesting
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.multiplexing import is_multiplexed, loaders_of

LOADED: list[str] = []


@pytest.fixture(autouse=True)
def nothing_loaded() -> None:
    LOADED.clear()


class Model:
    def __init__(self, name: str) -> None:
        LOADED.append(name)
        self.name = name


class Both:
    """Loaders of both kinds."""

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str) -> Model:
        """Load it."""
        await asyncio.sleep(0)
        return Model(model_id)

    @serve.multiplexed
    def get_plainly(self, name: str, /) -> Model:
        return Model(name)


@serve.multiplexed
async def get_of_module(model_id: str) -> Model:
    return Model(model_id)


async def uses_the_module(request: Any) -> str:
    return (await get_of_module(serve.get_multiplexed_model_id())).name


class Static:
    @staticmethod
    @serve.multiplexed
    async def one(model_id: str) -> Model:
        return Model(model_id)

    @serve.multiplexed
    @staticmethod
    async def two(model_id: str) -> Model:
        return Model(model_id)

    @classmethod
    @serve.multiplexed
    async def three(cls, model_id: str) -> Model:
        return Model(f"{cls.__name__} {model_id}")


# ---- what it decorates


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_num_models_per_replica": 0}, OptionError, "max_num_models_per_replica=0 must be a whole number from 1"),
        ({"max_num_models_per_replica": -2}, OptionError, "or -1 for any number"),
        ({"max_num_models_per_replica": 2.0}, OptionTypeError, "not float"),
        ({"max_num_models_per_replica": True}, OptionTypeError, "not bool"),
        ({"max_num_models_per_replica": None}, OptionTypeError, "not NoneType"),
        ({"max_memory_bytes": 0}, OptionError, "max_memory_bytes=0 must be a whole number of bytes from 1 on"),
        ({"max_memory_bytes": "2GB"}, OptionTypeError, "max_memory_bytes='2GB'"),
        ({"memory_fn": 3}, OptionTypeError, "memory_fn=3 must be a function"),
        (
            {"max_num_models": 3},
            OptionTypeError,
            "multiplexed has no 'max_num_models': did you mean 'max_num_models_per",
        ),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=r"^multiplexed") as raised:
        serve.multiplexed(**options)
    assert text in str(raised.value)


def no_argument() -> None: ...
def three(self: Any, model_id: str, more: int) -> None: ...
def any_number(*model_ids: str) -> None: ...
def by_name(*, model_id: str) -> None: ...
def generator(model_id: str) -> Iterator[str]:
    yield model_id


async def async_generator(model_id: str) -> Any:
    yield model_id


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_argument, "no_argument() must take a model id alone: (self, model_id) as a method"),
        (three, "must take a model id alone"),
        (any_number, "must take a model id alone"),
        (by_name, "must take a model id alone"),
        (generator, "generator is a generator"),
        (async_generator, "is a generator"),
        (Model, "decorates a function or method"),
        (3, "decorates a function or method"),
        (serve.deployment(Model), "decorates a function or method"),
        (get_of_module, "is multiplexed already"),
    ],
)
def test_what_cannot_load_models(function: Any, text: str) -> None:
    with pytest.raises(OptionTypeError) as raised:
        serve.multiplexed(max_num_models_per_replica=3)(function)
    assert text in str(raised.value)


def test_it_looks_like_the_function() -> None:
    assert Both.get_model.__name__ == "get_model"
    assert Both.get_model.__doc__ == "Load it."
    assert list(inspect.signature(Both.get_model).parameters) == ["self", "model_id"]
    assert list(inspect.signature(Both().get_model).parameters) == ["model_id"]
    assert repr(Both.get_model) == "<multiplexed Both.get_model>"
    both = Both()
    assert both.get_model == both.get_model
    assert both.get_model != Both().get_model
    assert len({both.get_model, both.get_model}) == 1
    assert repr(both.get_model) == "<models of Both.get_model: 0 of 2 loaded>"


def test_which_deployments_load_models() -> None:
    class Plain:
        async def get_model(self, model_id: str) -> Model:
            return Model(model_id)

    class Inherits(Both): ...

    async def captures(request: Any) -> Any:
        return await inner("a")

    class Calls:
        async def __call__(self, request: Any) -> Any:
            return [await get_of_module(name) for name in "ab"]

    class Store:
        def __init__(self) -> None:
            self.both = Both()

    @serve.multiplexed
    def inner(model_id: str) -> Model:
        return Model(model_id)

    for target in (Both, Static, Inherits, uses_the_module, captures, Calls, Store):
        assert is_multiplexed(target), target
    assert not is_multiplexed(Plain)
    assert not is_multiplexed(no_argument)
    assert not is_multiplexed(len)
    assert [type(found).__name__ for found in loaders_of(Static)] == ["staticmethod", "classmethod", "staticmethod"]


# ---- outside of a replica


def test_on_any_loop_and_in_any_thread_without_a_replica() -> None:
    both = Both()

    async def use(name: str) -> str:
        first, second = await asyncio.gather(both.get_model(name), both.get_plainly(name))
        assert (await both.get_model(model_id=name)) is first
        assert first is not second
        return first.name

    assert asyncio.run(use("a")) == "a"
    assert asyncio.run(use("a")) == "a"  # on another loop, the same models
    assert asyncio.run(both.get_model("c")).name == "c"
    assert both.get_plainly("b").name == "b"
    assert LOADED == ["a", "a", "c", "b"]
    assert list(both.get_model.models) == ["a", "c"]
    assert list(both.get_plainly.models) == ["a", "b"]
    with pytest.raises(TypeError, match=r"Both\.get_model: missing a required argument"):
        both.get_model()
    with pytest.raises(TypeError, match="too many positional"):
        both.get_model("a", "b")
    with pytest.raises(TypeError, match="is called with an instance and a model id"):
        Both.get_model()


def test_a_load_dies_with_its_loop_and_the_next_begins_anew() -> None:
    never = asyncio.Event()

    class Slow:
        waits: ClassVar[bool] = True

        @serve.multiplexed
        async def get_model(self, model_id: str) -> str:
            if self.waits:
                await never.wait()
            return model_id

    slow = Slow()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow.get_model("a"), 0.01)

    asyncio.run(give_up())
    Slow.waits = False
    assert asyncio.run(slow.get_model("a")) == "a"


def test_many_threads_wait_for_one_load() -> None:
    let_in, asked = threading.Event(), threading.Semaphore(0)

    class Slow:
        @serve.multiplexed
        def get_model(self, model_id: str) -> Model:
            asked.release()
            let_in.wait(30)
            return Model(model_id)

    slow, got = Slow(), []
    threads = [threading.Thread(target=lambda: got.append(slow.get_model("a"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    asked.acquire()
    let_in.set()
    for thread in threads:
        thread.join(30)
    assert len(got) == 6
    assert len(set(map(id, got))) == 1
    assert LOADED == ["a"]


@pytest.mark.parametrize("model_id", ["", None, 3, b"a"])
def test_what_is_no_model_id(model_id: Any) -> None:
    with pytest.raises((OptionError, OptionTypeError), match=r"Both\.get_model: the model id .* (empty|must be a str)"):
        Both().get_model(model_id)


# ---- whose models


def test_each_instance_has_its_own() -> None:
    one, other = Both(), Both()
    assert one.get_plainly("a") is one.get_plainly("a")
    assert one.get_plainly("a") is not other.get_plainly("a")
    assert Both.get_plainly(one, "a") is one.get_plainly("a")


def test_functions_and_static_methods_have_theirs() -> None:
    assert asyncio.run(get_of_module("x")) is asyncio.run(get_of_module("x"))
    assert get_of_module.models == {"x": None}  # type: ignore[attr-defined]
    for call in (Static.one, Static().one, Static.two, Static().two):
        assert asyncio.run(call("a")).name == "a"
    assert asyncio.run(Static.three("a")) is asyncio.run(Static().three("a"))
    assert LOADED == ["x", "a", "a", "Static a"]


def test_subclasses_that_call_what_they_override() -> None:
    class Wrapped(Both):
        @serve.multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> Any:
            return ["wrapped", await super().get_model(model_id)]

    wrapped = Wrapped()
    assert asyncio.run(wrapped.get_model("a"))[1].name == "a"
    assert list(wrapped.get_model.models) == ["a"]
    assert list(super(Wrapped, wrapped).get_model.models) == ["a"]


def test_copies_and_pickles_of_an_instance_have_none() -> None:
    both = Both()
    model = both.get_plainly("a")
    for copied in (copy.copy(both), copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert copied.get_plainly.models == {}
        assert copied.get_plainly("a") is not model
        assert both.get_plainly("a") is model


class Slots:
    __slots__ = ("x",)

    @serve.multiplexed
    def get_model(self, model_id: str) -> Model:
        return Model(model_id)


class SlotsWithReference(Slots):
    __slots__ = ("__weakref__",)


class Unhashable(Both):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize("kind", [Slots, SlotsWithReference])
def test_instances_without_a_dict(kind: Any) -> None:
    one, other = kind(), kind()
    assert one.get_model("a") is one.get_model("a")
    assert one.get_model("a") is not other.get_model("a")


def test_instances_that_are_equal_to_all() -> None:
    one, other = Unhashable(), Unhashable()
    assert one.get_plainly("a") is not other.get_plainly("a")


def test_models_go_with_their_instance() -> None:
    both, slots = Both(), SlotsWithReference()
    seen = [weakref.ref(both.get_plainly("a")), weakref.ref(slots.get_model("a"))]
    both.get_plainly("b").owner = both  # type: ignore[attr-defined]  # a model may know whose it is
    del both, slots
    while any(reference() is not None for reference in seen):  # the threads that loaded them are about to end
        gc.collect()


def test_it_travels_by_value_and_by_name() -> None:
    assert pickle.loads(pickle.dumps(get_of_module)) is get_of_module
    assert pickle.loads(pickle.dumps(Both.get_model)) is Both.get_model

    class Local(Both):
        @serve.multiplexed(max_num_models_per_replica=7, memory_fn=lambda model: 5)
        def mine(self, model_id: str) -> str:
            return model_id

    found = cloudpickle.loads(cloudpickle.dumps(Local))
    assert isinstance(vars(found)["mine"], Multiplexed)
    again = found()
    assert again.mine("a") == "a"
    assert repr(again.mine).endswith("Local.mine: 1 of 7 loaded: 'a' 5 B>")


# ---- the doors


class Doors:
    @serve.multiplexed
    async def get_model(self, model_id: str) -> Model:
        return Model(model_id)

    async def __call__(self, request: Any) -> str:
        return (await self.get_model(serve.get_multiplexed_model_id())).name

    def plain(self) -> str:
        return self.get_model(serve.get_multiplexed_model_id()).name

    async def stream(self) -> Any:
        yield (await self.get_model(serve.get_multiplexed_model_id())).name
        yield serve.get_multiplexed_model_id()

    @serve.batch(max_batch_size=4)
    async def together(self, items: list[int]) -> list[str]:
        model = await self.get_model(serve.get_multiplexed_model_id())
        return [f"{model.name}{item} of {len(items)}" for item in items]

    @serve.batch(max_batch_size=4)
    def together_plainly(self, items: list[int]) -> list[str]:
        model = self.get_model(serve.get_multiplexed_model_id())
        return [f"{model.name}{item}" for item in items]


def test_by_header_and_by_handle(headrace_local: LocalTesting) -> None:
    doors = headrace_local.run(serve.deployment(Doors).bind())
    http = headrace_local.http
    assert http.get("/", headers={"serve_multiplexed_model_id": "h"}).text == "h"
    of_model = doors.options(multiplexed_model_id="m")
    assert of_model.plain.remote().result() == "m"
    assert list(of_model.options(stream=True).stream.remote()) == ["m", "m"]
    assert http.get("/").status_code == 500
    with pytest.raises(OptionError, match="the request names no model"):
        doors.plain.remote().result()
    assert LOADED == ["h", "m"]


def test_in_a_batch_it_is_that_of_all(headrace_local: LocalTesting) -> None:
    doors = headrace_local.run(serve.deployment(Doors).bind())
    for method in ("together", "together_plainly"):
        calls = [
            doors.options(multiplexed_model_id=name, method_name=method).remote(n) for n in (1, 2) for name in "ab"
        ]
        assert [call.result()[:2] for call in calls] == ["a1", "b1", "a2", "b2"]
    assert sorted(LOADED) == ["a", "b"]


def test_by_fastapi(headrace_local: LocalTesting) -> None:
    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Routes(Doors):
        @app.get("/async")
        async def in_async(self) -> str:
            return (await self.get_model(serve.get_multiplexed_model_id())).name

        @app.get("/plain")
        def in_thread(self) -> str:
            return self.get_model(serve.get_multiplexed_model_id()).name

    headrace_local.run(Routes.bind())
    for path in ("/async", "/plain"):
        assert headrace_local.http.get(path, headers={"serve_multiplexed_model_id": "f"}).json() == "f"
    assert LOADED == ["f"]


def test_by_a_function_and_its_module(headrace_local: LocalTesting) -> None:
    headrace_local.run(serve.deployment(uses_the_module).bind())
    for name in ("a", "a", "b"):
        assert headrace_local.http.get("/", headers={"serve_multiplexed_model_id": name}).text == name
    assert LOADED == ["a", "b"]


def test_each_replica_has_its_own(headrace_local: LocalTesting) -> None:
    functions = headrace_local.run(serve.deployment(uses_the_module, num_replicas=2).bind())  # type: ignore[call-arg]
    del functions
    names = {headrace_local.http.get("/", headers={"serve_multiplexed_model_id": "a"}).text for _ in range(20)}
    assert names == {"a"}
    assert len(LOADED) <= 2
