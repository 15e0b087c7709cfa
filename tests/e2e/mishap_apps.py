"""Applications in which calls wait, begin, end badly, or do not end when they should. What they wait for is a file."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from headrace import serve

SLICE_S = 0.1  # for which other processes, of which there may be many, have the processor
FOLDER = Path(os.environ.get("MISHAP_FOLDER", "."))


@serve.deployment(num_replicas=2, max_ongoing_requests=1, max_queued_requests=20)
class Narrow:
    """Each replica one at a time; a call lasts until there is the file that it names. It notes whom it worked for."""

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.hold(request.query_params["until"], request.query_params.get("who", ""))

    async def hold(self, until: str, who: str = "") -> dict[str, Any]:
        if who:
            (FOLDER / f"began-{who}").touch()
        while not (FOLDER / until).exists():
            await asyncio.sleep(0.005)
        return {"pid": os.getpid()}


narrow = Narrow.bind()


@serve.deployment(max_ongoing_requests=2000, max_queued_requests=-1, graceful_shutdown_timeout_s=2)
class Odd:
    """Methods that end badly, and counts of what began, ended, or began too late."""

    def __init__(self, label: str = "first") -> None:
        self.label = label
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def note(self, what: str) -> None:
        """Count it, from any thread."""
        with self.lock:
            self.counts[what] += 1

    async def __call__(self, request: Request) -> Any:
        kind = request.url.path.rpartition("/")[2]
        match kind:
            case "late":
                return await self.late()
            case "upload":
                size = 0
                async for part in request.stream():
                    size += len(part)
                    if size > 1_900_000:
                        (FOLDER / f"uploading-{os.getpid()}").touch()
                return size
            case "label":
                return self.label
        return StreamingResponse(getattr(self, kind)())

    async def numbers(self) -> AsyncIterator[bytes]:
        """For ever."""
        self.note("began")
        try:
            yield b"%d\n" % os.getpid()
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            self.note("ended")

    async def swallows(self) -> AsyncIterator[bytes]:
        """Does not take its cancellation for an answer."""
        self.note("swallows began")
        try:
            while True:
                yield b"x"
                try:
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    self.note("swallowed")
        finally:
            self.note("swallows ended")

    def deaf(self) -> Iterator[bytes]:
        """In a thread: yields nothing and looks at nothing, until its file is there."""
        self.note("deaf began")
        while not (FOLDER / "heard").exists():
            time.sleep(0.005)
        self.note("deaf ended")
        yield b"late"

    async def raises_at_the_end(self) -> AsyncIterator[bytes]:
        self.note("raises began")
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.001)
        finally:
            raise KeyError("while it cleaned up")

    async def raises_when_cancelled(self) -> None:
        self.note("raises began")
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("while it cleaned up")

    async def forever(self) -> None:
        self.note("began")
        try:
            await asyncio.Event().wait()
        finally:
            self.note("ended")

    async def late(self) -> str:
        deadline = serve.get_request_context().deadline
        # It was in time when it was looked at; this process may have lost the processor since.
        late = deadline is not None and time.monotonic() > deadline + SLICE_S
        self.note("late" if late else "in time")
        return "done"

    async def count(self) -> tuple[dict[str, int], int]:
        """What was counted, and how many tasks there are beside this one."""
        return dict(self.counts), len(asyncio.all_tasks()) - 1


odd = Odd.bind()


def odd_again() -> serve.Application:
    """The next revision."""
    return Odd.bind("second")
