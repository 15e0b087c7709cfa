"""An overloaded deployment with callers of two kinds: what waits over all of them, who is refused, who goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from headrace import serve
from headrace.serve.testing import TestInstance
from headrace.spec.errors import BackPressureError, RequestTimeoutError


@serve.deployment(
    max_ongoing_requests=1,
    max_queued_requests=4,
    backpressure_config={"status_code": 429, "retry_after_s": 7},
)
class OneAtATime:
    """Answers when the test lets it, and notes in which order it was asked."""

    def __init__(self, go: asyncio.Event, seen: list[str]) -> None:
        self.go = go
        self.seen = seen

    async def __call__(self, request: Any) -> str:
        name: str = request if isinstance(request, str) else request.query_params["name"]
        self.seen.append(name)
        await self.go.wait()
        return name


async def outcome(response: Awaitable[Any]) -> Any:
    try:
        return await response
    except (BackPressureError, RequestTimeoutError) as error:
        return error


def test_handles_and_http_share_the_places_and_the_urgent_goes_first() -> None:
    async def test() -> None:
        go, seen = asyncio.Event(), list[str]()
        async with TestInstance() as instance, asyncio.timeout(30):
            handle = await instance.run(OneAtATime.bind(go, seen))
            calls = [asyncio.ensure_future(outcome(handle.remote("first")))]
            while not seen:
                await asyncio.sleep(0)
            calls += [asyncio.ensure_future(outcome(handle.remote(name))) for name in ("second", "third")]
            calls += [asyncio.ensure_future(outcome(handle.options(priority=5).remote("urgent")))]
            assert isinstance(await outcome(handle.options(timeout_s=0.05).remote("late")), RequestTimeoutError)
            async with instance.http_client(timeout=30) as client:
                requests = {asyncio.ensure_future(client.get(f"/?name=http{i}")) for i in range(3)}
                while sum(request.done() for request in requests) < 2:
                    await asyncio.wait([r for r in requests if not r.done()], return_when=asyncio.FIRST_COMPLETED)
                refused = [request.result() for request in requests if request.done()]
                assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "7")}
                go.set()
                assert [await call for call in calls] == ["first", "second", "third", "urgent"]
                assert sorted([(await request).status_code for request in requests]) == [200, 429, 429]
        assert seen[:2] == ["first", "urgent"]
        assert "late" not in seen

    asyncio.run(test())
