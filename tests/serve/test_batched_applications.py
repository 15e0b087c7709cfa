"""Applications with batches, by `serve.testing` and in local testing mode: web frameworks, models, many replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from batched_models import on_loop
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from headrace import serve
from headrace.serve.testing import TestInstance
from headrace.spec.errors import BatchError, HeadraceError, OptionError

app = FastAPI()


@serve.deployment
@serve.ingress(app)
class Web:
    """Routes that call batched methods: async ones, plain ones in threads, streams."""

    @serve.batch(max_batch_size=16)
    def predict(self, items: list[int]) -> list[Any]:
        return [{"double": item * 2, "of": len(items)} for item in items]

    @serve.batch
    async def words(self, counts: list[int]) -> Any:
        for i in range(max(counts)):
            yield [f"{i} " if i < count else StopIteration for count in counts]

    @app.get("/async/{item}")
    async def by_loop(self, item: int) -> Any:
        return await self.predict(item)

    @app.get("/plain/{item}")
    def by_thread(self, item: int) -> Any:
        return self.predict(item)

    @app.get("/words/{count}")
    async def stream(self, count: int) -> StreamingResponse:
        return StreamingResponse(self.words(count), media_type="text/plain")


routes = FastAPI()


@serve.deployment
@serve.ingress(routes)
class Routes:
    """Routes that are batched themselves."""

    @routes.get("/async")
    @serve.batch(max_batch_size=16)
    async def by_loop(self, item: int, factor: int) -> Any:  # of one request, for FastAPI; lists in here
        return [{"product": each * by, "of": len(item)} for each, by in zip(item, factor, strict=True)]

    @routes.get("/plain")
    @serve.batch(max_batch_size=16)
    def by_thread(self, item: int) -> Any:
        return [{"item": each} for each in item]

    @routes.get("/wrong")
    @serve.batch
    def nothing(self, item: int) -> Any:
        pass


@routes.get("/function")
@serve.batch(max_batch_size=16)
async def of_the_module(item: int) -> Any:
    return [{"item": each} for each in item]


@serve.deployment
class Embedder:
    """Called by handle; a batch of it calls another deployment."""

    def __init__(self, scale: Any, fail_at: int = -1) -> None:
        self.scale = scale
        self.fail_at = fail_at
        self.sizes: list[int] = []
        self.embed.set_max_batch_size(4)

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.embed.set_max_batch_size(config["size"])

    @serve.batch(max_batch_size=32)
    @serve.method(repeatable=False)
    async def embed(self, items: list[int]) -> list[Any]:
        self.sizes.append(len(items))
        factor = await self.scale.remote(len(items))
        return [item * factor if item != self.fail_at else ValueError(f"not {item}") for item in items]

    async def seen(self) -> tuple[list[int], int]:
        return self.sizes, self.embed.batch_options.max_batch_size


@serve.deployment
class Scale:
    def __call__(self, count: int) -> int:
        return 10


@serve.deployment
@serve.batch(max_batch_size=4)
async def function(requests: list[Any]) -> list[Any]:
    return [{"path": request.url.path, "of": len(requests)} for request in requests]


@serve.deployment(num_replicas=2)
@serve.batch(max_batch_size=64)
def placed(items: list[int]) -> list[Any]:
    replica = serve.get_replica_context().replica_id
    return [(item, replica) for item in items]


@serve.deployment
class Models:
    """A model per id, in batches that are split by it."""

    def __init__(self) -> None:
        self.loads: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def load(self, model_id: str) -> Any:
        self.loads.append(model_id)
        return lambda items: [f"{model_id} {item}" for item in items]

    @serve.batch(max_batch_size=8)
    async def __call__(self, items: list[int]) -> list[str]:
        model = await self.load(serve.get_multiplexed_model_id())
        return [*model(items)]

    async def seen(self) -> list[str]:
        return self.loads


def test_routes_may_be_batched_themselves() -> None:
    async def check() -> None:
        async with TestInstance() as instance:
            await instance.run(Routes.bind())
            async with instance.http_client() as http:
                answers = await asyncio.gather(*[http.get(f"/async?item={i}&factor=3") for i in range(8)])
                assert [answer.json()["product"] for answer in answers] == [i * 3 for i in range(8)]
                assert max(answer.json()["of"] for answer in answers) > 1
                for path in ("/plain", "/function"):
                    assert (await http.get(f"{path}?item=7")).json() == {"item": 7}
                assert (await http.get("/plain?item=x")).status_code == 422
                assert (await http.get("/wrong?item=1")).status_code == 500
                parameters = (await http.get("/openapi.json")).json()["paths"]["/plain"]["get"]["parameters"]
                assert [parameter["name"] for parameter in parameters] == ["item"]

    asyncio.run(check())


def test_routes_of_fastapi_share_batches() -> None:
    async def work() -> None:
        async with TestInstance() as instance:
            await instance.run(Web.bind())
            async with instance.http_client() as http:
                answers = await asyncio.gather(*[http.get(f"http://test/async/{i}") for i in range(16)])
                assert [answer.json()["double"] for answer in answers] == [i * 2 for i in range(16)]
                assert max(answer.json()["of"] for answer in answers) > 1
                answers = await asyncio.gather(*[http.get(f"http://test/plain/{i}") for i in range(16)])
                assert [answer.json()["double"] for answer in answers] == [i * 2 for i in range(16)]
                texts = await asyncio.gather(*[http.get(f"http://test/words/{i}") for i in range(4)])
                assert [answer.text for answer in texts] == ["", "0 ", "0 1 ", "0 1 2 "]

    on_loop(work)


def test_a_batch_calls_another_deployment_and_an_error_in_a_slot_is_one_callers() -> None:
    async def work() -> None:
        async with TestInstance() as instance:
            handle = await instance.run(Embedder.options(user_config={"size": 6}).bind(Scale.bind(), 3))
            calls = [handle.embed.remote(i) for i in range(12)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [r for i, r in enumerate(results) if i != 3] == [i * 10 for i in range(12) if i != 3]
            assert isinstance(results[3], ValueError)
            sizes, largest = await handle.seen.remote()
            assert largest == 6, "as its configuration says"
            assert sum(sizes) == 12
            assert 1 < max(sizes) <= 6

    on_loop(work)


def test_functions_are_batched_over_http_and_by_handle() -> None:
    async def work() -> None:
        async with TestInstance() as instance:
            await instance.run(function.bind(), route_prefix="/f")
            async with instance.http_client() as http:
                answers = await asyncio.gather(*[http.get(f"http://test/f/{i}") for i in range(8)])
                assert [answer.json()["path"] for answer in answers] == [f"/f/{i}" for i in range(8)]
                assert all(1 <= answer.json()["of"] <= 4 for answer in answers)

    on_loop(work)


def test_replicas_in_one_process_have_batches_of_their_own() -> None:
    async def work() -> None:
        async with TestInstance() as instance:
            handle = await instance.run(placed.bind())
            results = await asyncio.gather(*[handle.remote(i) for i in range(64)])
            assert [item for item, _ in results] == list(range(64))
            assert len({replica for _, replica in results}) == 2

    on_loop(work)


def test_batches_of_many_models() -> None:
    async def work() -> None:
        async with TestInstance() as instance:
            handle = await instance.run(Models.bind())
            calls = [handle.options(multiplexed_model_id=f"m{i % 2}").remote(i) for i in range(12)]
            assert await asyncio.gather(*calls) == [f"m{i % 2} {i}" for i in range(12)]
            assert sorted(await handle.seen.remote()) == ["m0", "m1"]

    on_loop(work)


def test_local_testing_mode(headrace_local: Any, caplog: pytest.LogCaptureFixture) -> None:
    handle = headrace_local.run(Web.bind())
    responses = [handle.predict.remote(i) for i in range(8)]
    assert [response.result()["double"] for response in responses] == [i * 2 for i in range(8)]
    assert list(handle.options(stream=True).words.remote(2)) == ["0 ", "1 "]
    assert headrace_local.http.get("http://test/words/3").text == "0 1 2 "
    wrong = headrace_local.run(_Wrong.bind(), name="wrong", route_prefix="/wrong")
    with pytest.raises(BatchError, match=r"_Wrong.short was called with a batch of 1, and gave 0 results"):
        wrong.short.remote(1).result()
    answer = headrace_local.http.get("http://test/wrong")
    assert answer.status_code == 500
    assert "gave None" in caplog.text


@serve.deployment
class _Wrong:
    @serve.batch
    async def short(self, items: list[int]) -> list[int]:
        return []

    @serve.batch
    async def __call__(self, requests: list[Any]) -> None:
        return None


def test_a_client_that_reads_slowly_is_waited_for_and_one_that_leaves_is_not() -> None:
    made = []

    @serve.deployment
    class Endless:
        @serve.batch(max_batch_size=4)
        async def stream(self, items: list[int]) -> AsyncIterator[list[int]]:
            try:
                i = 0
                while True:
                    i += 1
                    made.append(i)
                    yield [i] * len(items)
                    await asyncio.sleep(0)
            finally:
                made.append(-1)

    async def work() -> None:
        async with TestInstance() as instance:
            handle = (await instance.run(Endless.bind())).options(stream=True)
            one, two = handle.stream.remote(1), handle.stream.remote(2)
            assert [await anext(one) for _ in range(3)] == [1, 2, 3]
            assert await anext(two) == 1
            while len(made) < 256:
                await asyncio.sleep(0)
            count = -1
            while count != len(made):
                count = len(made)
                await asyncio.sleep(0.01)
            assert count < 600, "nobody reads: it waits"
            one.cancel()
            assert [await anext(two) for _ in range(2000)] == list(range(2, 2002))
            two.cancel()
            while made[-1] != -1:
                await asyncio.sleep(0)

    on_loop(work)


def test_max_ongoing_requests_make_room_for_batches() -> None:
    class Big:
        @serve.batch(max_batch_size=300, max_concurrent_batches=2)
        def predict(self, items: list[int]) -> list[int]:
            return items

        def __call__(self, request: Any) -> int:
            return 1

    async def work() -> None:
        async with TestInstance() as instance:
            handle = await instance.run(serve.deployment(Big).bind())
            results = await asyncio.gather(*[handle.predict.remote(i) for i in range(1000)])
            assert results == list(range(1000))

    on_loop(work)


def test_names_of_the_module() -> None:
    from headrace.serve import batching

    assert serve.batch is batching.batch
    assert batching.__all__ == ["batch"]
    assert issubclass(BatchError, HeadraceError)
    with pytest.raises(OptionError):
        serve.batch(max_batch_size=-1)
