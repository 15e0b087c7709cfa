"""What ends elsewhere than in the router is counted too: times that are over at the door and handles, bad responses."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import Response, StreamingResponse

from headrace import serve
from headrace.serve.testing import TestInstance
from headrace.spec.errors import RequestCancelledError, RequestTimeoutError


@serve.deployment
class Model:
    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def __call__(self, request: Any) -> Any:
        how = request.query_params["how"]
        if how == "slow":
            self.asked.set()
            await asyncio.sleep(60)
        if how == "raises":
            raise RuntimeError("broken")
        if how == "stream breaks":
            return StreamingResponse(broken_off())
        if how == "stream":
            return StreamingResponse(iter([b"1", b"2"]))
        if how == "bad head":
            return Response(b"", headers={"x-bad": "a\r\nb"})
        return Response(how, status_code=int(how))

    async def wait(self) -> None:
        self.asked.set()
        await asyncio.sleep(60)

    async def until_asked(self) -> None:
        await self.asked.wait()
        self.asked.clear()


async def broken_off() -> Any:
    yield b"1"
    await asyncio.sleep(0.05)
    raise RuntimeError("broken off")


async def until_counted(instance: TestInstance, requests: int, errors: int, helpers: int = 0) -> None:
    """Until the ledger says so: `helpers` calls of the test itself are counted as well."""
    ledger = instance._instance._begun.controller.ledger
    async with asyncio.timeout(20):
        while True:
            total = ledger.totals("app", 1, "Model")
            if (total.requests - helpers, total.errors) == (requests, errors):
                return
            assert total.requests - helpers <= requests, total
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("how", "errors"),
    [
        ("200", 0),
        ("404", 0),
        ("499", 0),
        ("500", 1),
        ("503", 1),
        ("raises", 1),
        ("stream", 0),
        ("stream breaks", 1),
        ("bad head", 1),
    ],
)
def test_answers_over_http(how: str, errors: int) -> None:
    async def test() -> None:
        async with TestInstance() as instance, instance.http_client() as http:
            await instance.run(Model.bind(), "app")
            try:
                await http.get("/", params={"how": how})
            except httpx.RemoteProtocolError:
                assert how == "stream breaks"
            await until_counted(instance, 1, errors)

    asyncio.run(test())


def test_a_time_that_is_over_is_an_error_and_a_client_that_leaves_is_nothing() -> None:
    async def test() -> None:
        async with TestInstance() as instance, instance.http_client() as http:
            handle = await instance.run(Model.bind(), "app")
            late = await http.get("/", params={"how": "slow"}, headers={"x-request-timeout-seconds": "0.05"})
            assert late.status_code == 408
            await handle.until_asked.remote()
            await until_counted(instance, 1, 1, helpers=1)

            with pytest.raises(RequestTimeoutError):
                await handle.options(method_name="wait", timeout_s=0.05).remote()
            await handle.until_asked.remote()
            await until_counted(instance, 2, 2, helpers=2)

            leaving = asyncio.create_task(http.get("/", params={"how": "slow"}))
            await handle.until_asked.remote()
            leaving.cancel()
            cancelled = handle.wait.remote()
            await handle.until_asked.remote()
            cancelled.cancel()
            with pytest.raises(RequestCancelledError):
                await cancelled
            assert (await http.get("/", params={"how": "200"})).status_code == 200
            await until_counted(instance, 3, 2, helpers=4)

    asyncio.run(test())


def test_counts_go_on_when_the_controller_is_not_reached_for_a_while() -> None:
    """The connection breaks and comes back: what was counted meanwhile is reported, and nothing twice."""

    async def test() -> None:
        async with TestInstance() as instance, instance.http_client() as http:
            await instance.run(Model.bind(), "app")
            await http.get("/", params={"how": "200"})
            await until_counted(instance, 1, 0)
            for channel in list(instance._instance._begun.controller.server._sessions):
                channel.abort()
            await http.get("/", params={"how": "500"})
            await until_counted(instance, 2, 1)

    asyncio.run(test())
