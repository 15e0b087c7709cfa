"""One call to every replica: who is called, what comes back, and what when some of them fail, hang or die."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headrace import serve
from headrace.handle.broadcast import DeploymentBroadcastResponse
from headrace.serve.testing import LocalTesting, TestInstance
from headrace.spec.errors import (
    ApplicationNotFound,
    DeploymentNotFound,
    DeploymentUnavailableError,
    GeneratorError,
    LoopBlockedError,
    MethodNotFound,
    OptionTypeError,
    PayloadError,
    ReplicaDiedError,
    RequestCancelledError,
    RequestTimeoutError,
)


class Shared:
    """What a test and its replicas both see."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.seen: list[tuple[str, Any]] = []
        self.ended: list[str] = []


@serve.deployment(num_replicas=3, max_ongoing_requests=1, max_queued_requests=1)
class Model:
    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.name = serve.get_replica_context().replica_id

    async def note(self, *args: Any, **kwargs: Any) -> str:
        self.shared.seen.append((self.name, (args, kwargs)))
        return self.name

    async def hold(self) -> str:
        self.shared.seen.append((self.name, "holds"))
        try:
            await self.shared.go.wait()
        finally:
            self.shared.ended.append(self.name)
        return self.name

    async def some_fail(self, numbers: str) -> str:
        if self.name[-1] in numbers:
            raise KeyError(self.name)
        return self.name

    async def stream(self) -> Any:
        yield 1


NAMES = ["Model#1", "Model#2", "Model#3"]


def run(check: Callable[[TestInstance, Any, Shared], Awaitable[None]], deployment: Any = Model) -> None:
    async def test() -> None:
        shared = Shared()
        async with TestInstance() as instance, asyncio.timeout(30):
            await check(instance, await instance.run(deployment.bind(shared), route_prefix=None), shared)

    asyncio.run(test())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_every_replica_is_called_once_with_the_arguments() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        response = handle.broadcast("note", 1, [2], threshold=0.5)
        assert sorted(await response) == NAMES
        assert response.replica_ids == await response
        assert sorted(shared.seen) == [(name, ((1, [2]), {"threshold": 0.5})) for name in NAMES]
        assert response.done()
        assert not response.cancelled()
        assert "done of 3" in repr(response)
        assert sorted(await handle.options(method_name="other").broadcast("note")) == NAMES

    run(check)


def test_it_waits_for_room_however_many_wait() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        holding = [handle.hold.remote() for _ in range(4)]  # one waits, and no more may
        await until(lambda: len(shared.seen) == 3)
        responses = [handle.broadcast("note", i) for i in range(3)]
        assert [response.done() for response in responses] == [False] * 3
        waiting = [asyncio.ensure_future(response.results_async()) for response in responses]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        shared.go.set()
        assert [sorted(await one) for one in waiting] == [NAMES] * 3
        assert len([await one for one in holding]) == 4

    run(check)


def test_an_error_is_raised_when_all_have_ended_or_takes_its_place() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        response = handle.broadcast("some_fail", "13")
        with pytest.raises(KeyError, match="Model#1") as caught:
            await response
        assert caught.value.__notes__ == ["This came of the call to replica Model#1."]
        with pytest.raises(KeyError, match="Model#1"):
            await response
        results = await response.results_async(return_exceptions=True)
        assert [type(result) for result in results] == [KeyError, str, KeyError]
        with pytest.raises(MethodNotFound):
            await handle.broadcast("missing")
        with pytest.raises(GeneratorError):
            await handle.broadcast("stream")

    run(check)


def test_a_replica_that_dies_fails_alone() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        response = handle.broadcast("hold")
        waiting = asyncio.ensure_future(response.results_async(return_exceptions=True))
        await until(lambda: len(shared.seen) == 3)
        instance.engine.crash("Model#2@default")
        await until(lambda: shared.ended == ["Model#2"])
        shared.go.set()
        results = await waiting
        assert [results[0], results[2]] == ["Model#1", "Model#3"]
        assert isinstance(results[1], ReplicaDiedError)

    run(check)


def test_the_time_is_that_of_the_handle_or_of_who_waits() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        (held,) = [handle.hold.remote()]
        await until(lambda: shared.seen)
        results = await handle.options(timeout_s=0.2).broadcast("note").results_async(return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["RequestTimeoutError", "str", "str"]
        with pytest.raises(RequestTimeoutError):
            await handle.options(timeout_s=0.05).broadcast("note")
        response = handle.broadcast("note")
        with pytest.raises(TimeoutError, match="the calls go on"):
            await response.results_async(timeout_s=0.05)
        assert not response.done()
        shared.go.set()
        assert sorted(await response.results_async(timeout_s=10)) == NAMES
        assert await held
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout_s"):
                await response.results_async(timeout_s=wrong)

    run(check)


def test_cancelling_ends_the_work_everywhere() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        response = handle.broadcast("hold")
        await until(lambda: len(shared.seen) == 3)
        response.cancel()
        assert response.cancelled()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: len(shared.ended) == 3)

        shared.seen.clear()
        waiting = asyncio.ensure_future(handle.broadcast("hold").results_async())
        await until(lambda: len(shared.seen) == 3)
        waiting.cancel()
        await until(lambda: len(shared.ended) == 6)

        shared.seen.clear()
        response = handle.broadcast("hold")
        one, other = (asyncio.ensure_future(response.results_async()) for _ in range(2))
        await until(lambda: len(shared.seen) == 3)
        one.cancel()
        await asyncio.wait([one])
        shared.go.set()
        assert sorted(await other) == NAMES
        response.cancel()
        assert sorted(await response) == NAMES
        with pytest.raises(RuntimeError, match="await"):
            response.results()

    run(check)


def test_replicas_beyond_the_share_of_this_process_are_called_too() -> None:
    @serve.deployment(num_replicas=22)
    class Many:
        def __init__(self, shared: Shared) -> None:
            self.name = serve.get_replica_context().replica_id

        async def who(self) -> str:
            return self.name

    @serve.deployment
    class Front:
        def __init__(self, many: Any) -> None:
            self.many = many

        async def all(self) -> list[str]:
            names: list[str] = await self.many.broadcast("who")
            return names

    async def test() -> None:
        async with TestInstance(cpus=100) as instance, asyncio.timeout(30):
            handle = await instance.run(Front.options(num_replicas=8).bind(Many.bind(Shared())), route_prefix=None)
            assert len(set(await handle.all.remote())) == 22

    asyncio.run(test())


def test_in_a_request_it_belongs_to_that() -> None:
    @serve.deployment
    class Front:
        def __init__(self, model: Any) -> None:
            self.model = model

        async def all(self, method: str) -> list[str]:
            results: list[str] = await self.model.broadcast(method)
            return results

        def all_from_a_thread(self) -> list[str]:
            results: list[str] = self.model.broadcast("note").results(timeout_s=10)
            return results

        async def leave(self) -> None:
            self.model.broadcast("hold")

    async def test() -> None:
        shared = Shared()
        async with TestInstance() as instance, asyncio.timeout(30):
            handle = await instance.run(Front.bind(Model.bind(shared)), route_prefix=None)
            assert sorted(await handle.all.remote("note")) == NAMES
            assert sorted(await handle.all_from_a_thread.remote()) == NAMES
            shared.seen.clear()
            response = handle.options(timeout_s=30).all.remote("hold")
            await until(lambda: len(shared.seen) == 3)
            response.cancel()
            await until(lambda: len(shared.ended) == 3)

    asyncio.run(test())


def test_who_has_no_replica_is_told_so() -> None:
    @serve.deployment
    class Broken:
        def __init__(self, shared: Shared) -> None:
            raise OSError("no disk")

    async def test() -> None:
        async with TestInstance() as instance, asyncio.timeout(30):
            with pytest.raises(serve.exceptions.DeployFailedError):
                await instance.run(Broken.options(max_constructor_retry_count=1).bind(Shared()), route_prefix=None)
            handle = await instance.run(Model.bind(Shared()), name="good", route_prefix=None)
            for make, error in [
                (("Broken", "default"), DeploymentUnavailableError),
                (("Modle", "good"), DeploymentNotFound),
                (("Model", "nowhere"), ApplicationNotFound),
            ]:
                with pytest.raises(error):
                    await type(handle)(*make, runtime=handle._runtime).broadcast("note")

    asyncio.run(test())


def test_what_cannot_be_sent_or_named_is_an_error_at_once() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        with pytest.raises(PayloadError, match="argument 0"):
            handle.broadcast("note", (i for i in ()))
        for wrong in (None, "", 3):
            with pytest.raises(OptionTypeError, match="the name of a method"):
                handle.broadcast(wrong)
        response = handle.broadcast("note")
        with pytest.raises(PayloadError, match="pass on its results"):
            pickle.dumps(response)
        await response

    run(check)


def test_a_response_among_the_arguments_is_resolved_once_for_all() -> None:
    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        assert sorted(await handle.broadcast("note", handle.note.remote("first"))) == NAMES
        got = [args for _, (args, _) in shared.seen[1:]]
        assert got == [(shared.seen[0][0],)] * 3

    run(check)


class Undecodable:
    def __reduce__(self) -> Any:
        return (_refuse, ())


def _refuse() -> None:
    raise LookupError("not here")


def test_a_result_that_cannot_be_read_is_an_error_of_its_replica() -> None:
    class Odd(Model.func_or_class):  # type: ignore[misc, name-defined]
        async def odd(self) -> Any:
            return Undecodable() if self.name.endswith("2") else self.name

    async def check(instance: TestInstance, handle: Any, shared: Shared) -> None:
        results = await handle.broadcast("odd").results_async(return_exceptions=True)
        assert [type(result) for result in results] == [str, PayloadError, str]

    run(check, Model.options(func_or_class=Odd))


def test_from_a_plain_script() -> None:
    with contextlib.closing(LocalTesting()) as local:
        handle = local.run(Model.bind(Shared()))
        response = handle.broadcast("note", 1)
        assert isinstance(response, DeploymentBroadcastResponse)
        assert sorted(response.results(timeout_s=10)) == NAMES
        assert sorted(handle.broadcast("some_fail", "2").results(return_exceptions=True), key=str)[1:] == [
            "Model#1",
            "Model#3",
        ]
        held = handle.broadcast("hold")
        with pytest.raises(TimeoutError, match="the call goes on"):
            held.results(timeout_s=0.05)
        held.cancel()
        with pytest.raises(RequestCancelledError):
            held.results()

        async def on_a_loop() -> list[str]:
            with pytest.raises(LoopBlockedError):
                handle.broadcast("note").results()
            names: list[str] = await handle.broadcast("note")
            return names

        assert sorted(asyncio.run(on_a_loop())) == NAMES
