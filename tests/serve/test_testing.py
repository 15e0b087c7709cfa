"""headrace.serve.testing: an application in the event loop of a test, and what it survives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from headrace import serve
from headrace.serve.testing import TestInstance
from headrace.spec.errors import DeployFailedError, HeadraceError, InstanceError, ResourcesShortError


@serve.deployment
class Doubler:
    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def __call__(self, number: int) -> int:
        return number * self.factor


@serve.deployment
class Front:
    def __init__(self, doubler: serve.handle.DeploymentHandle) -> None:
        self.doubler = doubler

    async def __call__(self, number: int) -> int:
        return await self.doubler.remote(number) + 1


@serve.deployment
class Broken:
    def __init__(self) -> None:
        raise ValueError("no such model")


@serve.deployment
class Eager:
    """Calls another deployment while it is being constructed."""

    def __init__(self, other: serve.handle.DeploymentHandle, method: str = "__call__") -> None:
        self.learned = other.options(method_name=method).remote(20).result(timeout_s=30)

    def __call__(self) -> int:
        return self.learned


@serve.deployment
class AsyncEager:
    async def __init__(self, other: serve.handle.DeploymentHandle) -> None:
        self.learned = await other.remote(21)

    def __call__(self) -> int:
        return self.learned


@serve.deployment
class Tripler:
    def triple(self, number: int) -> int:
        return number * 3


def run(test: Callable[[TestInstance], Awaitable[None]], **machine: float) -> None:
    async def body() -> None:
        async with asyncio.timeout(60), TestInstance(**machine) as instance:  # type: ignore[arg-type]
            await test(instance)

    asyncio.run(body())


def test_an_application_answers_and_composes() -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(Front.bind(Doubler.bind()))
        assert await handle.remote(20) == 41
        status = await instance.status()
        assert status.applications["default"].status == "RUNNING"
        assert await instance.processes() == ["Doubler#1@default", "Front#2@default"]
        await instance.delete("default")
        assert await instance.processes() == []

    run(test)


@pytest.mark.parametrize(("eager", "learned"), [(Eager, 40), (AsyncEager, 42)])
def test_a_constructor_may_call_what_it_is_given(eager: serve.Deployment, learned: int) -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(eager.bind(Doubler.bind()))
        assert await handle.remote() == learned

    run(test)


def test_a_constructor_calls_its_own_revision_while_another_has_the_traffic() -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(Eager.bind(Doubler.bind()))
        assert await handle.remote() == 40
        # Of a deployment that the revision with the traffic does not have, and of one that it has in another form.
        handle = await instance.run(Eager.bind(Tripler.bind(), "triple"))
        assert await handle.remote() == 60
        handle = await instance.run(Eager.bind(Doubler.bind(5)))
        assert await handle.remote() == 100

    run(test)


def test_a_crash_under_calls_fails_none_of_them() -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(Doubler.options(num_replicas=2).bind())
        first = await instance.processes()
        calls = [handle.remote(n) for n in range(200)]
        instance.engine.crash(first[0])
        assert await asyncio.gather(*calls) == [2 * n for n in range(200)]
        while first[0] in (living := await instance.processes()) or len(living) < 2:
            await asyncio.sleep(0.001)
        assert await handle.remote(4) == 8

    run(test)


def test_a_constructor_that_raises_fails_the_deploy_with_its_traceback() -> None:
    async def test(instance: TestInstance) -> None:
        with pytest.raises(DeployFailedError, match=r"ValueError: no such model"):
            await instance.run(Broken.bind())
        handle = await instance.run(Doubler.bind(3), name="other")
        assert await handle.remote(2) == 6

    run(test)


def test_a_machine_that_is_too_small_is_told() -> None:
    async def test(instance: TestInstance) -> None:
        with pytest.raises(ResourcesShortError, match="asks for 4 CPU, the machine has 2"):
            await instance.run(Doubler.options(ray_actor_options={"num_cpus": 4}).bind())

    run(test, cpus=2.0)


def test_several_instances_one_after_another_leave_nothing() -> None:
    async def test(instance: TestInstance) -> None:
        assert await (await instance.run(Doubler.bind())).remote(1) == 2

    for _ in range(3):
        run(test)


def test_before_its_block_there_is_nothing_to_ask() -> None:
    async def test() -> None:
        with pytest.raises(InstanceError, match="has not begun"):
            await TestInstance().status()

    asyncio.run(test())
    assert issubclass(InstanceError, HeadraceError)
