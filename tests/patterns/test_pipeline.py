"""patterns.pipeline: stages one after the other, many requests in them at once, and whose error it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from puppets import Puppet, bound, run, until

from headrace import patterns, serve
from headrace.serve.testing import TestInstance
from headrace.spec.errors import BackPressureError, RequestCancelledError, RequestTimeoutError


def test_each_stage_gets_what_the_one_before_answered() -> None:
    async def test(instance: TestInstance) -> None:
        words = Puppet(lambda text, sep: text.split(sep))
        count = Puppet(len)
        app = patterns.pipeline(bound("Words", words), bound("Count", count), lambda n: {"words": n})
        handle = await instance.run(app)
        assert await handle.remote("a-b-c", sep="-") == {"words": 3}
        assert count.began == [["a", "b", "c"]]

    run(test)


def test_functions_may_stand_anywhere_and_be_async() -> None:
    async def twice(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def test(instance: TestInstance) -> None:
        plus = bound("Plus", Puppet(lambda n: n + 1))
        handle = await instance.run(patterns.pipeline(twice, twice, plus, twice, plus))
        assert await handle.remote(10) == 83

    run(test)


def test_requests_are_in_different_stages_at_once() -> None:
    async def test(instance: TestInstance) -> None:
        first, second = Puppet(lambda x: x), Puppet(lambda x: x, held=True)
        app = patterns.pipeline(bound("First", first), bound("Second", second, max_ongoing_requests=1))
        handle = await instance.run(app)
        responses = [handle.remote(n) for n in range(20)]
        # The second stage works on one and holds it; the first has done all of them meanwhile.
        await until(lambda: len(first.ended) == 20 and second.began)
        assert len(second.began) == 1
        second.release()
        assert await asyncio.gather(*responses) == list(range(20))

    run(test)


def test_more_than_a_hundred_requests_are_under_way_in_one_replica() -> None:
    async def test(instance: TestInstance) -> None:
        held = Puppet(lambda x: x, held=True)
        handle = await instance.run(patterns.pipeline(bound("Held", held, max_ongoing_requests=500)))
        responses = [handle.remote(n) for n in range(300)]
        await until(lambda: len(held.began) == 300)
        held.release()
        assert await asyncio.gather(*responses) == list(range(300))

    run(test)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_error_of_a_stage_is_that_of_the_request_and_names_it(place: int) -> None:
    async def test(instance: TestInstance) -> None:
        stages = [Puppet(lambda x: x) for _ in range(3)]
        stages[place].error = LookupError("no such word")
        app = patterns.pipeline(*(bound(f"S{n}", stage) for n, stage in enumerate(stages)))
        handle = await instance.run(app)
        with pytest.raises(LookupError, match="no such word") as caught:
            await handle.remote("x")
        assert caught.value.__notes__ == [f"It is the error of stage {place + 1} of 3 of Pipeline: S{place}"]
        assert [len(stage.began) for stage in stages] == [1] * (place + 1) + [0] * (2 - place)

    run(test)


def test_the_error_of_a_function_names_it_too() -> None:
    def label(answer: Any) -> Any:
        return answer["label"]

    async def test(instance: TestInstance) -> None:
        handle = await instance.run(patterns.pipeline(bound("Model", Puppet({})), label))
        with pytest.raises(KeyError, match="label") as caught:
            await handle.remote("x")
        assert caught.value.__notes__ == ["It is the error of stage 2 of 2 of Pipeline: label"]

    run(test)


def test_an_overloaded_stage_refuses_the_request() -> None:
    async def test(instance: TestInstance) -> None:
        held = Puppet(held=True)
        model = bound("Model", held, max_ongoing_requests=1, max_queued_requests=1)
        handle = await instance.run(patterns.pipeline(bound("Pre", Puppet(lambda x: x)), model))
        responses = [handle.remote(n) for n in range(4)]  # one is worked on, one waits, two are too many
        await until(lambda: sum(response.done() for response in responses) == 2)
        held.release()
        ends = await asyncio.gather(*responses, return_exceptions=True)
        assert [type(end) for end in ends if end is not None] == [BackPressureError] * 2
        assert len(held.ended) == 2

    run(test)


def test_a_client_that_leaves_stops_the_stage_that_works_and_the_next_never_begins() -> None:
    async def test(instance: TestInstance) -> None:
        hanging, after = Puppet(held=True), Puppet()
        handle = await instance.run(patterns.pipeline(bound("Hanging", hanging), bound("After", after)))
        response = handle.remote("x")
        await until(lambda: hanging.began)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: hanging.cancelled == ["x"])
        assert after.began == []

    run(test)


def test_the_deadline_of_the_request_stops_a_hanging_stage() -> None:
    async def test(instance: TestInstance) -> None:
        hanging = Puppet(held=True)
        handle = await instance.run(patterns.pipeline(bound("Pre", Puppet(lambda x: x)), bound("Hanging", hanging)))
        with pytest.raises(RequestTimeoutError):
            await handle.options(timeout_s=0.3).remote("x")
        await until(lambda: hanging.cancelled == ["x"])

    run(test)


def test_the_time_of_a_stage_begins_with_its_own_call() -> None:
    async def test(instance: TestInstance) -> None:
        slow, hanging = Puppet(lambda x: x, held=True), Puppet(held=True)
        app = patterns.pipeline(bound("Slow", slow), patterns.member(bound("Hanging", hanging), timeout_s=0.3))
        handle = await instance.run(app)
        response = handle.remote("x")
        await until(lambda: slow.began)
        now = asyncio.get_running_loop().time
        over = now() + 0.3
        await until(lambda: now() > over)
        slow.release()
        with pytest.raises(RequestTimeoutError, match="Hanging") as caught:
            await response
        assert caught.value.__notes__ == ["It is the error of stage 2 of 2 of Pipeline: Hanging"]
        assert hanging.began == ["x"]
        await until(lambda: hanging.cancelled == ["x"])

    run(test)


def test_stages_are_called_by_the_method_that_is_named() -> None:
    async def test(instance: TestInstance) -> None:
        inner = patterns.pipeline(bound("Inner", Puppet(lambda x: x)))  # a pattern is called as it is
        app = patterns.pipeline(
            inner,
            patterns.member(inner, timeout_s=30),
            bound("Model", Puppet(lambda x: x)),
            patterns.member(bound("Plain", Puppet(lambda x: x)), method="__call__"),
            method="predict",
        )
        handle = await instance.run(app)
        assert await handle.remote("x") == ["predicted", "x"]

    run(test)


def test_the_model_id_and_the_priority_of_a_request_go_along() -> None:
    async def test(instance: TestInstance) -> None:
        first, second = Puppet(lambda x: x), Puppet(lambda x: x)
        handle = await instance.run(patterns.pipeline(bound("First", first), bound("Second", second)))
        await handle.options(multiplexed_model_id="cats", priority=3).remote("x")
        for stage in (first, second):
            assert (stage.seen.model_id, stage.seen.priority) == ("cats", 3)

    run(test)


def test_a_stage_may_be_a_handle_to_another_application() -> None:
    async def test(instance: TestInstance) -> None:
        shared = await instance.run(bound("Shared", Puppet(lambda x: x + 1)), name="shared", route_prefix=None)
        handle = await instance.run(patterns.pipeline(shared, shared))
        assert await handle.remote(1) == 3

    run(test)


def test_options_are_those_of_its_own_deployment() -> None:
    async def test(instance: TestInstance) -> None:
        app = patterns.pipeline(bound("Model", Puppet(1)), options={"name": "Shop", "num_replicas": 2})
        await instance.run(app)
        found = (await instance.status()).applications["default"].deployments
        assert set(found) == {"Shop", "Model"}
        assert len([each for each in await instance.processes() if each.startswith("Shop")]) == 2

    run(test)


def test_it_is_bound_into_other_deployments_as_any_application() -> None:
    @serve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, x: int) -> Any:
            return {"inner": await self.inner.remote(x)}

    async def test(instance: TestInstance) -> None:
        app = Front.bind(patterns.pipeline(bound("Model", Puppet(lambda x: x + 1)), lambda x: x * 10))
        assert await (await instance.run(app)).remote(1) == {"inner": 20}

    run(test)
