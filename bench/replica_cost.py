"""What the replica adds to a call: microseconds from `Invoker.start` to the reply, without a socket.

    python bench/replica_cost.py [calls in flight]

Each line is the best of seven rounds, in CPU time of all threads: task, request, handler, JSON of the result.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec
import uvloop

from headrace.context import ReplicaContext
from headrace.replica.invoke import Invoker
from headrace.replica.threads import ThreadPool
from headrace.wire import payload
from headrace.wire.frames import HTTP, CallMeta, ErrorInfo, HttpHead

ROUNDS, CALLS = 7, 20_000
HEAD = HttpHead("POST", b"/", "", [(b"host", b"a.test")], "1.1", "http", ("127.0.0.1", 1), ("127.0.0.1", 8000))


class Burst:
    """Counts the calls of one burst that are still open."""

    def __init__(self) -> None:
        self.left = 0
        self.over = asyncio.Event()

    def begin(self, calls: int) -> None:
        self.left = calls
        self.over.clear()

    def one_less(self) -> None:
        self.left -= 1
        if not self.left:
            self.over.set()


class Incoming:
    """A call as the server makes it, with the server's own cost left out."""

    __slots__ = ("body", "buffers", "burst", "cancelled", "flags", "meta", "on_cancel")

    def __init__(self, meta: CallMeta, flags: int, body: bytes, burst: Burst) -> None:
        self.meta = meta
        self.flags = flags
        self.body = body
        self.buffers = ()
        self.burst = burst
        self.cancelled = False
        self.on_cancel = None

    def reply(self, payload: bytes, meta: bytes = b"", flags: int = 0) -> None:
        self.burst.one_less()

    def answer(self, result: payload.Payload) -> None:
        self.burst.one_less()

    def fail(self, error: ErrorInfo) -> None:
        raise SystemExit(f"the call failed: {error}")


class Model:
    async def __call__(self, request: Any) -> Any:
        return {"ok": True}

    async def body(self, request: Any) -> Any:
        return {"bytes": len(await request.body())}

    async def json(self, request: Any) -> Any:
        return {"y": sum((await request.json())["x"])}

    async def path(self, request: Any) -> Any:
        return {"path": request.url.path, "x": request.query_params.get("x")}

    def plain(self, request: Any) -> Any:
        return {"ok": True}

    async def add(self, a: int, b: int) -> int:
        return a + b

    def add_in_thread(self, a: int, b: int) -> int:
        return a + b


CASES = [
    ("HTTP, no-op, coroutine", "__call__", HTTP),
    ("HTTP, reads the body", "body", HTTP),
    ("HTTP, JSON in and out", "json", HTTP),
    ("HTTP, looks at path and query", "path", HTTP),
    ("HTTP, no-op, in a thread", "plain", HTTP),
    ("handle, coroutine", "add", 0),
    ("handle, in a thread", "add_in_thread", 0),
]


async def cost_s(method: str, flags: int, in_flight: int) -> float:
    """Seconds for each call."""
    loop = asyncio.get_running_loop()
    replica = ReplicaContext(app_name="bench", deployment="Model", replica_id="Model#0")
    threads = ThreadPool(loop, in_flight)
    invoker = Invoker(loop, Model(), replica, threads)
    head = msgspec.Raw(msgspec.msgpack.encode(HEAD if flags & HTTP else None))
    meta = CallMeta("0123456789abcdef", "bench", 1, 1, "bench/Model@0", method, http=head)
    body = b'{"x":[1,2,3]}' if flags & HTTP else payload.encode(((1, 2), {})).data
    burst = Burst()
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(CALLS // in_flight):
            burst.begin(in_flight)
            for _ in range(in_flight):
                invoker.start(Incoming(meta, flags, body, burst))  # type: ignore[arg-type]
            await burst.over.wait()
        best = min(best, (time.process_time() - begin) / (CALLS // in_flight * in_flight))
    threads.close()
    return best


async def main(in_flight: int) -> None:
    for label, method, flags in CASES:
        print(f"{label:32} {await cost_s(method, flags, in_flight) * 1e6:6.2f} us")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 32))
