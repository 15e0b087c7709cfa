"""Members of patterns that do what a test says: answer, fail, hold back their answers, hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from headrace import serve
from headrace.serve.testing import TestInstance


class Puppet:
    """What a member does, and what has become of its calls. All in the event loop of the test.

    `answer` is given to each call, or called with its arguments; `error` is raised instead. With `held`, calls wait
    until `release`.
    """

    def __init__(self, answer: Any = None, *, error: Exception | None = None, held: bool = False) -> None:
        self.answer = answer
        self.error = error
        self.began: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []
        self.seen: Any = None
        self._released = asyncio.Event()
        if not held:
            self._released.set()

    def release(self) -> None:
        self._released.set()

    async def play(self, *args: Any, **kwargs: Any) -> Any:
        what = args[0] if args else kwargs
        self.began.append(what)
        self.seen = serve.get_request_context()
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled.append(what)
            raise
        self.ended.append(what)
        if self.error is not None:
            raise self.error
        return self.answer(*args, **kwargs) if callable(self.answer) else self.answer


@serve.deployment
class Member:
    def __init__(self, puppet: Puppet) -> None:
        self.puppet = puppet

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.puppet.play(*args, **kwargs)

    async def predict(self, *args: Any, **kwargs: Any) -> Any:
        return ["predicted", await self.puppet.play(*args, **kwargs)]


def bound(name: str, puppet: Puppet, **options: Any) -> serve.Application:
    return Member.options(name=name, **options).bind(puppet)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for the condition; the test's own limit of time ends it."""
    while not condition():
        await asyncio.sleep(0.001)


def run(test: Callable[[TestInstance], Awaitable[None]]) -> None:
    async def body() -> None:
        async with asyncio.timeout(60), TestInstance() as instance:
            await test(instance)

    asyncio.run(body())
