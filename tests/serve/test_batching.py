"""`@serve.batch` where it is written: what it takes, what it makes of functions and methods, how they are called."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import weakref
from typing import Any

import cloudpickle
import pytest
from batched_models import Model, all_of, doubled, on_loop

from bench.instance import wait_for
from headrace import serve
from headrace.serve.batching import BoundBatched
from headrace.serve.graph import resolved_max_ongoing
from headrace.spec.batching import least_ongoing
from headrace.spec.errors import HeadraceError
from headrace.spec.method import options_of
from headrace.spec.options import DeploymentOptions

# ---- calls on a loop


@pytest.mark.parametrize("name", ["double", "triple"])
def test_calls_that_come_together_share_batches(name: str) -> None:
    model = Model()

    async def work() -> Any:
        return await asyncio.gather(*[getattr(model, name)(i) for i in range(10)])

    factor = {"double": 2, "triple": 3}[name]
    assert on_loop(work) == [i * factor for i in range(10)]
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_call_waits_for_its_batch_before_it_is_awaited() -> None:
    model = Model()

    async def work() -> Any:
        first, second = model.double(1), model.double(2)
        assert repr(first) == "<batched call of Model.double, to be awaited: waiting>"
        return await first, await second

    assert on_loop(work) == (2, 4)
    assert model.batches == [[1, 2]]


def test_a_call_can_be_made_a_task_of_and_be_awaited_twice() -> None:
    async def work() -> Any:
        model = Model()
        task = asyncio.create_task(model.double(1))
        async with asyncio.TaskGroup() as group:
            other = group.create_task(model.double(2))
        call = model.double(3)
        return await task, other.result(), await call, await call, await asyncio.wait_for(model.double(4), 60)

    assert on_loop(work) == (2, 4, 6, 6, 8)


@pytest.mark.parametrize("name", ["count", "count_in_thread"])
def test_each_reader_of_a_generator_gets_its_own_values(name: str) -> None:
    model = Model()

    async def work() -> Any:
        return await asyncio.gather(*[all_of(getattr(model, name)(end)) for end in (0, 3, 5)])

    assert on_loop(work) == [[], [0, 1, 2], [0, 1, 2, 3, 4]]
    assert model.batches == [[0, 3, 5]]


def test_each_parameter_is_a_list_and_calls_alike_share_a_batch() -> None:
    model = Model()

    async def work() -> Any:
        return await asyncio.gather(
            model.weigh(1, 2), model.weigh(3, factors=4), model.weigh(5, 6, plus=7), model.weigh(factors=1, items=9)
        )

    assert on_loop(work) == [2, 12, 37, 9]
    assert model.batches == [([1, 3, 9], [2, 4, 1], None), ([5], [6], [7])]


def test_arguments_that_do_not_fit_are_an_error_of_the_call() -> None:
    model = Model()

    async def work() -> None:
        with pytest.raises(TypeError, match="too many positional arguments"):
            model.double(1, 2)
        with pytest.raises(TypeError, match=r"Model.double: missing a required argument: 'items'"):
            model.double()
        with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
            model.weigh(1, 2, other=2)
        with pytest.raises(TypeError, match="missing a required argument: 'factors'"):
            model.weigh(1, plus=2)

    on_loop(work)


def test_static_and_class_methods() -> None:
    async def work() -> Any:
        model = Model()
        return await asyncio.gather(
            model.negative(1),
            Model.negative(2),
            Model.positive(-3),
            model.positive(-4),
            Model.named(5),
            model.named(6),
            Model.double(model, 7),
        )

    assert on_loop(work) == [-1, -2, 3, 4, "Model 5 of 2", "Model 6 of 2", 14]


def test_functions() -> None:
    async def work() -> Any:
        return await asyncio.gather(*[doubled(i) for i in range(3)])

    assert on_loop(work) == [(0, 3), (2, 3), (4, 3)]


# ---- calls where no loop runs


def test_where_no_loop_runs_a_plain_function_is_called_with_a_batch_of_one() -> None:
    model = Model()
    assert model.triple(2) == 6
    assert model.weigh(2, 3, plus=1) == 7
    assert model.positive(-1) == 1
    assert list(model.count_in_thread(3)) == [0, 1, 2]
    assert model.batches == [[2], ([2], [3], [1]), [3]]


def test_where_no_loop_runs_yet_a_call_waits_for_one() -> None:
    model = Model()
    assert asyncio.run(model.double(2)) == 4
    assert asyncio.run(all_of(model.count(2))) == [0, 1]
    assert asyncio.run(doubled(4)) == (8, 1)


def test_one_after_the_other_on_many_loops() -> None:
    model = Model()

    async def work() -> Any:
        return await asyncio.gather(model.double(1), model.triple(2), all_of(model.count_in_thread(1)))

    for _ in range(20):
        assert asyncio.run(work()) == [2, 6, [0]]
    state = type(model).double._state(model)
    assert len(state.batches) == 1, "those of closed loops are forgotten"


def test_two_loops_at_once_have_batches_of_their_own() -> None:
    model = Model()
    results: dict[int, Any] = {}

    def in_thread(number: int) -> None:
        async def work() -> Any:
            return await asyncio.gather(*[model.double(number * 10 + i) for i in range(4)])

        results[number] = asyncio.run(work())

    threads = [threading.Thread(target=in_thread, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [2 * (number * 10 + i) for i in range(4)] for number in range(3)}
    assert sorted(model.batches) == [[number * 10 + i for i in range(4)] for number in range(3)]


def test_errors_of_batches_of_one() -> None:
    @serve.batch
    def bad(items: list[Any]) -> Any:
        if items[0] == "short":
            return []
        if items[0] == "slot":
            return [ValueError("of the slot")]
        raise KeyError("of the function")

    with pytest.raises(HeadraceError, match="was called with a batch of 1, and gave 0 results"):
        bad("short")
    with pytest.raises(ValueError, match="of the slot"):
        bad("slot")
    with pytest.raises(KeyError, match="of the function"):
        bad("function")


# ---- instances and classes


def test_each_instance_has_batches_and_settings_of_its_own() -> None:
    one, two = Model(), Model()
    one.double.set_max_batch_size(2)

    async def work() -> None:
        await asyncio.gather(*[model.double(i) for i in range(4) for model in (one, two)])

    on_loop(work)
    assert one.batches == [[0, 1], [2, 3]]
    assert two.batches == [[0, 1, 2, 3]]
    assert one.double.batch_options.max_batch_size == one.double._get_max_batch_size() == 2
    assert two.double._get_max_batch_size() == Model.double._get_max_batch_size() == 4


def test_a_subclass_overrides_with_or_without_batches() -> None:
    class Batched(Model):
        @serve.batch
        async def double(self, items: list[int]) -> Any:
            return [await value + len(items) * 100 for value in [super(Batched, self).double(item) for item in items]]

    class Single(Model):
        async def double(self, item: int) -> int:
            return await super().double(item) + 1

    async def work() -> Any:
        batched, single = Batched(), Single()
        values = await asyncio.gather(*[model.double(i) for i in range(2) for model in (batched, single)])
        return values, batched.batches, single.batches

    assert on_loop(work) == ([200, 1, 202, 3], [[0, 1]], [[0, 1]])


def test_a_decorator_above_calls_the_function_with_the_instance() -> None:
    def plus_one(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(self: Any, item: int) -> int:
            return await function(self, item) + 1

        return wrapper

    class Wrapped:
        @plus_one
        @serve.batch
        async def double(self, items: list[int]) -> list[int]:
            assert isinstance(self, Wrapped)
            return [item * 2 for item in items]

    async def work() -> Any:
        return await asyncio.gather(Wrapped().double(1), Wrapped().double(2))

    assert on_loop(work) == [3, 5]


def test_instances_that_are_hard_to_keep_apart() -> None:
    class Slotted:
        __slots__ = ("n",)

        def __init__(self, n: int) -> None:
            self.n = n

        @serve.batch
        def add(self, items: list[int]) -> list[int]:
            return [item + self.n for item in items]

    class Alike(Model):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"{name} of what is not there")

    async def work() -> Any:
        slotted = [Slotted(n) for n in range(3)]
        alike = [Alike(), Alike()]
        values = await asyncio.gather(*[s.add(10) for s in slotted], *[a.double(i) for i, a in enumerate(alike)])
        return values, [a.batches for a in alike]

    assert on_loop(work) == ([10, 11, 12, 0, 2], [[[0]], [[1]]])


def test_an_instance_goes_when_nobody_else_holds_it() -> None:
    model = Model()
    gone = weakref.ref(model)

    async def work(used: Model) -> None:
        await asyncio.gather(used.double(1), used.triple(1), all_of(used.count(1)), all_of(used.count_in_thread(1)))

    asyncio.run(work(model))
    states = [Model.double._states, Model.triple._states]
    del model
    # A thread that has just delivered its results still has them in hand.
    wait_for(lambda: gc.collect() >= 0 and gone() is None, "it is gone", 20)
    assert not any(gone in [state.owner for state in each.values()] for each in states)


def test_threads_of_batches_end_with_their_instance() -> None:
    before = set(threading.enumerate())
    model = Model()

    async def work(used: Model) -> int:
        return await used.triple(1)

    asyncio.run(work(model))
    started = set(threading.enumerate()) - before
    assert [thread.name for thread in started] == ["headrace-batch-0"]
    del model
    gc.collect()
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


def test_what_looks_at_a_batched_method_sees_the_function() -> None:
    model = Model()
    assert model.triple.__name__ == "triple"
    assert model.triple.__doc__ == Model.triple.__doc__ == "Three times each."
    assert list(inspect.signature(model.triple).parameters) == ["items"]
    assert list(inspect.signature(Model.triple).parameters) == ["self", "items"]
    assert list(inspect.signature(doubled).parameters) == ["items"]
    assert inspect.isroutine(doubled)
    assert model.triple == model.triple
    assert model.triple != Model().triple
    assert hash(model.triple) == hash(model.triple)
    assert len({model.triple, model.triple, model.double}) == 2
    assert repr(Model.triple) == "<batched Model.triple>"
    assert repr(model.triple).startswith("<batched Model.triple of <")
    assert repr(doubled) == "<batched doubled>"
    with pytest.raises(AttributeError):
        model.triple.nothing  # noqa: B018


def test_marks_of_a_method_hold_on_either_side() -> None:
    class Marked:
        @serve.batch
        @serve.method(repeatable=False)
        def below(self, items: list[int]) -> list[int]:
            return items

        @serve.method(repeatable=False)
        @serve.batch
        def above(self, items: list[int]) -> list[int]:
            return items

        @staticmethod
        @serve.batch(max_batch_size=40, max_concurrent_batches=2)
        def static(items: list[int]) -> list[int]:
            return items

    assert {name: said.repeatable for name, said in options_of(Marked).items()} == {"below": False, "above": False}
    assert least_ongoing(Marked) == 160
    assert resolved_max_ongoing(Marked, DeploymentOptions()) == 160
    assert least_ongoing(doubled) == 16
    assert resolved_max_ongoing(doubled, DeploymentOptions()) == 100


def test_what_has_no_name_can_be_batched() -> None:
    class Adds:
        def __call__(self, items: list[int]) -> list[int]:
            return [item + 1 for item in items]

    def power(items: list[int], exponent: int) -> list[int]:
        return [item**exponent for item in items]

    added, squared = serve.batch(Adds()), serve.batch(functools.partial(power, exponent=2))
    assert (added(1), squared(3)) == (2, 9)

    async def work() -> Any:
        return await asyncio.gather(added(1), squared(3), squared(4))

    assert on_loop(work) == [2, 9, 16]
    assert "Adds" in repr(added)


# ---- pickles and copies


BY_VALUE = """
import asyncio, pickle, sys
from headrace import serve

class Model:
    @serve.batch(max_batch_size=2, bucket_fn=lambda item: item % 2)
    async def double(self, items):
        return [(item * 2, len(items)) for item in items]

    @staticmethod
    @serve.batch
    def plain(items):
        return items

@serve.batch(max_batch_size=7)
async def function(items):
    return [len(items) for _ in items]

async def use(cls, function):
    model = cls()
    return await asyncio.gather(*[model.double(i) for i in range(4)], function(1), cls.plain(5))

asyncio.run(use(Model, function))
if __name__ == "__main__":
    import cloudpickle
    sys.stdout.buffer.write(cloudpickle.dumps((use, Model, function)))
"""


def test_a_class_travels_by_value_also_after_its_use() -> None:
    made = subprocess.run([sys.executable, "-c", BY_VALUE], capture_output=True, check=True, timeout=60).stdout
    use, cls, function = pickle.loads(made)
    assert cls.__module__ == "__main__"
    assert function.batch_options.max_batch_size == 7
    assert asyncio.run(use(cls, function)) == [(0, 2), (2, 2), (4, 2), (6, 2), 1, 5]


def test_what_a_module_has_is_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(doubled)) is doubled
    assert pickle.loads(cloudpickle.dumps(Model.triple)) is Model.triple
    assert pickle.loads(pickle.dumps(Model.negative)) is Model.negative
    assert copy.deepcopy(doubled) is doubled


def test_instances_are_copied_without_their_batches() -> None:
    model = Model()
    model.double.set_max_batch_size(2)

    async def work(used: Model) -> None:
        await asyncio.gather(*[used.double(i) for i in range(4)])

    asyncio.run(work(model))
    for copied in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert vars(copied) == vars(model)
        copied.batches = []
        asyncio.run(work(copied))
        assert copied.batches == [[0, 1, 2, 3]]
    method = pickle.loads(pickle.dumps(model.double))
    assert isinstance(method, BoundBatched)
    assert method.__self__ is not model
    assert method.__self__.batches == model.batches


# ---- context


def test_variables_of_one_request_do_not_reach_the_batch() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    class Reads:
        @serve.batch
        async def on_loop(self, items: list[int]) -> list[str]:
            variable.set(f"of the batch {variable.get()}")
            return [variable.get() for _ in items]

        @serve.batch
        def in_thread(self, items: list[int]) -> list[str]:
            return [variable.get() for _ in items]

    async def work() -> Any:
        variable.set("of the caller")
        reads = Reads()
        found = await reads.on_loop(1), await reads.on_loop(1), await reads.in_thread(1)
        return found, variable.get()

    assert on_loop(work) == (("of the batch unset", "of the batch unset", "unset"), "of the caller")
