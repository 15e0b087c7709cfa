"""Applications as users write them, for tests/e2e/test_users.py."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from headrace import serve

DIARY = Path(os.environ.get("USERS_DIARY", "/dev/null"))


def note(line: str) -> None:
    with DIARY.open("a") as file:
        file.write(line + "\n")


class ModelError(Exception):
    """An error with an attribute, and with a constructor that pickle alone would not get right."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> Any:
        return ModelError, (self.code, str(self))


@serve.deployment(user_config={})
class Base:
    """Has every hook, each written down in the diary."""

    async def __init__(self, offset: int) -> None:
        await asyncio.sleep(0)
        self.offset = offset
        self.config: Any = None
        note("init")

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.config = config
        note(f"reconfigure {config}")

    async def __del__(self) -> None:
        await asyncio.sleep(0)
        note("del")

    def __call__(self, number: int) -> int:
        return number + self.offset

    def who(self) -> tuple[int, Any]:
        return os.getpid(), self.config

    async def for_ever(self) -> None:
        note("for ever")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            note("cancelled")
            raise

    def fail(self) -> None:
        raise ModelError(7, "no such class")


@serve.deployment
class Left:
    def __init__(self, parts: dict[str, list[Any]]) -> None:
        (self.base,) = parts["models"]

    async def __call__(self, number: int) -> int:
        return int(await self.base.remote(number))


@serve.deployment
class Right:
    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self, number: int) -> int:
        return int(self.base.remote(number).result())

    async def fail(self) -> None:
        await self.base.fail.remote()


@serve.deployment
class Front:
    """Answers by what `?what=` says; its other methods are called by handles."""

    def __init__(self, left: Any, *, right: Any, base: Any) -> None:
        self.left, self.right, self.base = left, right, base

    async def __call__(self, request: Request) -> Any:
        what = request.query_params.get("what")
        if what == "for ever":
            return await self.base.for_ever.remote()
        if what == "length":
            length = 0
            async for part in request.stream():
                length += len(part)
            return {"length": length}
        if what == "stream":
            return StreamingResponse((f"{number}\n" for number in range(3)), media_type="text/plain")
        return {"path": request.url.path}

    async def diamond(self, number: int) -> list[int]:
        left = self.left.remote(number)
        return [await left, await self.right.remote(left)]

    async def fail(self) -> None:
        await self.right.fail.remote()

    def block(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"


def graph(user_config: dict[str, Any] | None = None) -> serve.Application:
    """A diamond: both sides share one Base."""
    base = Base.options(user_config=user_config or {}).bind(10)
    return Front.bind(Left.bind({"models": [base]}), right=Right.bind(base), base=base)


app = graph()


@serve.deployment
def hello(request: Request) -> str:
    return f"hello from {request.url.path}"
