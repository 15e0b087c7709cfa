"""Applications that misbehave, for the tests of what an instance makes of it. What they wait for is a file."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from headrace import serve

FOLDER = Path(os.environ.get("CHAOS_FOLDER", "."))


def wait_for_file(name: str) -> None:
    while not (FOLDER / name).exists():
        time.sleep(0.005)


@serve.deployment(num_replicas=2)
class Model:
    """Echoes what came. `/block` holds up the loop, `/leak` leaves threads behind, `/stream` answers 50 MB."""

    async def __call__(self, request: Request) -> Any:
        path = request.url.path
        if path == "/block":
            (FOLDER / "blocked").touch()
            wait_for_file("unblock")  # on the loop: nothing else runs in this process meanwhile
        elif path == "/leak":
            for _ in range(50):
                threading.Thread(target=wait_for_file, args=("never",)).start()
        elif path == "/slow":
            (FOLDER / f"slow-{request.query_params['n']}").touch()
            await file_there("go")
        elif path == "/stream":
            return StreamingResponse(parts(), headers={"x-pid": str(os.getpid())})
        body = await request.body()
        return {"n": number_of(body), "crc": zlib.crc32(body), "pid": os.getpid()}


async def file_there(name: str) -> None:
    while not (FOLDER / name).exists():
        await asyncio.sleep(0.005)


async def parts() -> Any:
    for _ in range(50):
        yield bytes(1_000_000)


def number_of(body: bytes) -> int:
    return int(body[: body.index(b"}")].rpartition(b" ")[2]) if b"}" in body else 0


app = Model.bind()


@serve.deployment
class Segfaults:
    """Its constructor takes the process down."""

    def __init__(self) -> None:
        ctypes.string_at(0)

    async def __call__(self, request: Request) -> str:
        return "never"


segfaults = Segfaults.bind()


@serve.deployment(start_timeout_s=1.0, max_constructor_retry_count=1)
class Hangs:
    """Its constructor never ends."""

    def __init__(self) -> None:
        wait_for_file("never")

    async def __call__(self, request: Request) -> str:
        return "never"


hangs = Hangs.bind()


@serve.deployment
class Starts:
    """Its constructor waits for a file, and says that it does."""

    def __init__(self) -> None:
        (FOLDER / f"starting-{os.getpid()}").touch()
        wait_for_file("start")

    async def __call__(self, request: Request) -> str:
        return "started"


starts = Starts.bind()


@serve.deployment(num_replicas=2)
class Crashes:
    """Dies soon after it is ready, for as long as there is the file `crash`."""

    def __init__(self) -> None:
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        wait_for_file("crash")
        time.sleep(0.05)
        os.abort()

    async def __call__(self, request: Request) -> str:
        return "alive"


crashes = Crashes.bind()
