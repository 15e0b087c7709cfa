"""What a request costs in the ingress's own Python: bytes into a connection, a reply from a router that does nothing.

No socket and no replica: a fake transport and a fake router, whose own cost is measured and taken off. Three kinds of
request: `same` (a client that repeats its head, as most do), `other` (every head differs by its request id), `get`.
Run: python bench/ingress_cost.py [--profile KIND]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

from headrace.ingress.connection import ClientConnection
from headrace.ingress.door import Door
from headrace.router import Call
from headrace.spec.config import HTTPOptions
from headrace.spec.snapshot import ApplicationEntry, RevisionEntry, Snapshot
from headrace.wire.frames import HTTP

BODY = b'{"x": [1, 2, 3, 4]}'
REPLY = b'{"y":10}'
POST = (
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: bench\r\nAccept: */*\r\n%b"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)
GET = b"GET /items/7?q=1 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\n\r\n"


class NoTransport:
    """Takes what is written and forgets it."""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1234)


class EchoRouter:
    """Answers within submit."""

    def submit(self, call: Call) -> None:
        call.on_reply(HTTP, b"", REPLY)


class NoCall:
    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None: ...


def connection() -> ClientConnection:
    loop = asyncio.new_event_loop()
    door = Door(loop, EchoRouter(), HTTPOptions())  # type: ignore[arg-type]
    entry = ApplicationEntry(
        name="default",
        route_prefix="/",
        ingress="Model",
        revisions=(RevisionEntry(number=1, weight=1.0, deployments={"Model": "k"}),),
    )
    door.update(Snapshot(version=1, applications={"default": entry}))
    client = ClientConnection(door)
    client.connection_made(NoTransport())  # type: ignore[arg-type]
    door.stop()
    return client


def requests(kind: str, n: int) -> list[bytes]:
    if kind == "get":
        return [GET] * n
    if kind == "same":
        return [POST % (b"", len(BODY), BODY)] * n
    return [POST % (b"X-Request-Id: %032d\r\n" % i, len(BODY), BODY) for i in range(n)]


def seconds(receive: Callable[[bytes], None], data: list[bytes]) -> float:
    start = time.process_time()
    for piece in data:
        receive(piece)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=["same", "other", "get"])
    parser.add_argument("-n", type=int, default=50_000)
    arguments = parser.parse_args()
    if arguments.profile:
        profile = cProfile.Profile()
        receive, data = connection().data_received, requests(arguments.profile, arguments.n)
        profile.runcall(seconds, receive, data)
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)
        return
    router, call, transport = EchoRouter(), NoCall(), NoTransport()

    def nothing(data: bytes) -> None:
        router.submit(call)  # type: ignore[arg-type]
        transport.write(data)

    for kind in ("same", "other", "get"):
        data = requests(kind, arguments.n)
        receive = connection().data_received
        rounds = [(seconds(receive, data) - seconds(nothing, data)) / arguments.n * 1e6 for _ in range(5)]
        print(f"{kind:6} {statistics.median(rounds):6.2f} us  (least {min(rounds):.2f})")


if __name__ == "__main__":
    main()
