"""Code that replicas import in tests."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

EVENTS: list[Any] = []
RELEASE = threading.Event()


class Echo:
    def __init__(self, greeting: str = "hello", *, other: Any = None) -> None:
        self.greeting = greeting
        self.other = other
        self.thread = threading.current_thread().name

    async def __call__(self, request: Any) -> Any:
        return {"greeting": self.greeting, "body": (await request.body()).decode()}

    async def add(self, a: Any, b: Any) -> Any:
        return a + b

    def process(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "cwd": str(Path.cwd()),
            "path": sys.path,
            "variable": os.environ.get("DEPLOYED_VARIABLE"),
            "own": os.environ.get("DEPLOYED_OWN"),
            "thread": self.thread,
        }

    async def forward(self, value: Any) -> Any:
        return await self.other.add.remote(value, value)

    def block(self) -> str:
        EVENTS.append("blocks")
        print("begun")
        RELEASE.wait(30)
        return "released"

    async def wait(self) -> str:
        EVENTS.append("waits")
        while not RELEASE.is_set():
            await asyncio.sleep(0.001)
        return "released"

    async def wait_and_tell(self, kind: str, megabytes: int) -> Any:
        await self.wait()
        size = megabytes * 1_000_000
        return np.zeros(size, dtype=np.uint8) if kind == "array" else b"x" * size

    async def spin(self) -> None:
        print("begun")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pass

    def crash(self) -> None:
        ctypes.string_at(0)

    def linger(self) -> None:
        threading.Thread(target=RELEASE.wait, args=(30,), daemon=False).start()
        print("begun")

    def nested(self) -> None:
        self._deeper()

    def _deeper(self) -> None:
        raise LookupError("found nothing")


class AsyncInit:
    async def __init__(self, value: int) -> None:
        await asyncio.sleep(0)
        self.value = value

    async def __call__(self) -> int:
        return self.value

    async def __del__(self) -> None:
        await asyncio.sleep(0)
        EVENTS.append(("deleted", self.value))


class StuckAsyncInit:
    async def __init__(self) -> None:
        EVENTS.append("constructing")
        try:
            await asyncio.Event().wait()
        finally:
            EVENTS.append("interrupted")

    def __del__(self) -> None:
        EVENTS.append("deleted")


class StuckInit:
    def __init__(self) -> None:
        EVENTS.append("constructing")
        RELEASE.wait(30)
        EVENTS.append("constructed")

    def __del__(self) -> None:
        EVENTS.append("deleted")


class Configured:
    def __init__(self) -> None:
        self.configs: list[Any] = []

    def reconfigure(self, config: Any) -> None:
        if config == "bad":
            raise ValueError("this will not do")
        self.configs.append((config, threading.current_thread() is threading.main_thread()))

    def seen(self) -> list[Any]:
        return self.configs

    def __del__(self) -> None:
        EVENTS.append("deleted")


class AsyncConfigured(Configured):
    async def reconfigure(self, config: Any) -> None:
        await asyncio.sleep(0)
        super().reconfigure(config)


class Fails:
    def __init__(self, kind: str = "ValueError") -> None:
        self._load(kind)

    def _load(self, kind: str) -> None:
        if kind == "SystemExit":
            sys.exit(3)
        raise ValueError("no such model: weights.bin")


class FailsAsync:
    async def __init__(self) -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt("at once")

    def __del__(self) -> None:
        EVENTS.append("deleted")


class BadDel(Echo):
    def __del__(self) -> None:
        EVENTS.append("deleted")
        raise RuntimeError("cannot close")


class SlowDel(Echo):
    async def __del__(self) -> None:
        EVENTS.append("deleting")
        await asyncio.Event().wait()


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1

    def __call__(self) -> int:
        return self.value

    def __del__(self) -> None:
        EVENTS.append("deleted")


class Nosy:
    def __init__(self) -> None:
        from headrace.context import get_replica_context

        context = get_replica_context()
        self.seen = (context.replica_id, context.deployment, context.app_name, context.servable_object)

    async def look(self) -> Any:
        from headrace.context import get_replica_context

        return self.seen, get_replica_context().servable_object is self


def function(request: Any) -> str:
    return f"called with {request.method}"


not_code = 7
