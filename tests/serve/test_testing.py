"""headrace.serve.testing: an application in the event loop of a test, and what it survives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from starlette.requests import Request

from headrace import runtime, serve
from headrace.serve.in_process import InProcess
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
class Page:
    def __init__(self, title: str) -> None:
        self.title = title

    async def __call__(self, request: Request) -> list[str]:
        return [self.title, request.url.path.removeprefix(request.scope["root_path"]).rstrip("/")]


@serve.deployment
class Looking:
    def __init__(self, source: Any) -> None:
        self.source = source

    def __call__(self) -> Any:
        return self.source.lookup()


@serve.deployment
class Tripler:
    def triple(self, number: int) -> int:
        return number * 3


def run(test: Callable[[TestInstance], Awaitable[None]], **machine: float) -> None:
    async def body() -> None:
        async with asyncio.timeout(60), TestInstance(**machine) as instance:  # type: ignore[arg-type]
            await test(instance)

    asyncio.run(body())


def test_of_two_that_overlap_the_first_may_end_first() -> None:
    async def body() -> None:
        before = runtime.installed()
        first, second = TestInstance(), TestInstance()
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        handle = await second.run(Doubler.bind())
        assert await handle.remote(4) == 8
        await second.__aexit__(None, None, None)
        assert runtime.installed() is before

    asyncio.run(body())


def test_one_that_fails_as_it_begins_leaves_nothing() -> None:
    instance = InProcess(f"lost-{os.getpid()}", cpus=1, gpus=0)

    async def body() -> None:
        async with instance.engine:
            instance.engine.lose("the machine is gone")
            with pytest.raises(InstanceError, match="the machine is gone"):
                await instance.begin()

    asyncio.run(body())
    assert not list(Path("/tmp").glob(f"hr-*/{instance.name}"))


def test_one_that_cannot_begin_leaves_nothing() -> None:
    name = f"long-{os.getpid()}" * 30  # the path of a socket has no room for it
    with pytest.raises(InstanceError, match="is too long") as caught:
        asyncio.run(InProcess(name, cpus=1, gpus=0).begin())
    folder = str(caught.value).partition(f"/{name}")[0].rpartition(" ")[2]
    assert folder.startswith("/tmp/")
    assert not Path(folder).exists()


def test_an_application_answers_and_composes() -> None:
    async def test(instance: TestInstance) -> None:
        handle = await instance.run(Front.bind(Doubler.bind()))
        assert await handle.remote(20) == 41
        status = await instance.status()
        assert status.applications["default"].status == "RUNNING"
        assert await instance.processes() == ["Doubler#1@default", "Front#2@default"]
        await instance.delete("default")
        assert await instance.processes() == []
        await instance.delete("default")

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


def test_http_under_prefixes_and_from_several_clients() -> None:
    async def test(instance: TestInstance) -> None:
        await instance.run(Page.bind("one"), route_prefix="/one")
        await instance.run(Page.bind("two"), name="two", route_prefix="/two")
        async with instance.http_client() as client, instance.http_client(base_url="http://localhost/two") as other:
            got = await asyncio.gather(client.get("/one/a"), client.get("/two"), other.get("/b"), client.get("/three"))
        assert [each.status_code for each in got] == [200, 200, 200, 404]
        assert [each.json() for each in got[:3]] == [["one", "/a"], ["two", ""], ["two", "/b"]]
        assert await instance.processes() == ["Page#1@default", "Page#1@two", "ingress#0"]
        # Of two with one route, the later has it.
        await instance.run(Page.bind("three"), name="three", route_prefix="/one")
        async with instance.http_client() as client:
            assert (await client.get("/one")).json() == ["three", ""]

    run(test)


def test_a_crash_under_http_fails_no_request() -> None:
    async def test(instance: TestInstance) -> None:
        await instance.run(Page.options(num_replicas=2).bind("up"))
        async with instance.http_client(timeout=30) as client:
            assert (await client.get("/")).status_code == 200
            requests = [asyncio.create_task(client.get(f"/{n}")) for n in range(60)]
            for id in ("Page#1@default", "Page#2@default"):
                await requests[0]
                instance.engine.crash(id)
            got = [await request for request in requests]
        assert [each.json() for each in got] == [["up", f"/{n}"] for n in range(60)]

    run(test)


def test_an_ingress_that_dies_is_started_again() -> None:
    async def test(instance: TestInstance) -> None:
        await instance.run(Page.bind("up"))
        async with instance.http_client() as client:
            assert (await client.get("/")).status_code == 200
            instance.engine.crash("ingress#0")
        while (await instance.status()).proxies["ingress#0"].restarts == 0:
            await asyncio.sleep(0.001)
        async with instance.http_client() as client:
            assert (await client.get("/")).status_code == 200

    run(test)


def test_an_ingress_that_cannot_be_started_is_told() -> None:
    async def test(instance: TestInstance) -> None:
        await instance.run(Page.bind("up"))
        for _ in range(3):
            instance.engine.fail_next_start(InstanceError("no more processes"))
        async with instance.http_client() as client:
            with pytest.raises(InstanceError, match="no more processes"):
                await client.get("/")

    run(test)


def test_mocks_are_the_tests_own_and_two_of_them_are_not_one() -> None:
    async def test(instance: TestInstance) -> None:
        for word in ("one", "two"):
            mock = MagicMock()
            mock.lookup.return_value = word
            handle = await instance.run(Looking.bind(mock))
            assert await handle.remote() == word
            mock.lookup.assert_called_once_with()

    run(test)


def test_what_did_not_change_serves_on_in_the_next_run() -> None:
    async def test(instance: TestInstance) -> None:
        await instance.run(Front.bind(Doubler.bind()))
        first = set(await instance.processes())
        handle = await instance.run(Front.options(num_replicas=2).bind(Doubler.bind()))
        assert first < set(await instance.processes())
        instance.engine.crash("Front#2@default")  # made in the first run, made again of what that was given
        while "Front#2@default" in (living := await instance.processes()) or len(living) < 3:
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*[handle.remote(1) for _ in range(8)]) == [3] * 8

    run(test)


def test_two_instances_at_once_are_two() -> None:
    async def test(instance: TestInstance) -> None:
        one = await instance.run(Doubler.bind(3))
        async with TestInstance() as other:
            two = await other.run(Front.bind(Doubler.bind(5)))
            assert (await one.remote(1), await two.remote(1)) == (3, 6)
        assert await one.remote(2) == 6
        with pytest.raises(InstanceError, match=r"this handle belongs to.*has ended"):
            two.remote(1)

    run(test)


def test_before_its_block_there_is_nothing_to_ask() -> None:
    async def test() -> None:
        with pytest.raises(InstanceError, match="has not begun"):
            await TestInstance().status()

    asyncio.run(test())
    assert issubclass(InstanceError, HeadraceError)
