"""An open-loop load over keep-alive connections that checks each answer: nothing lost, nothing answered to another.

In: a port, a rate. Out: `Tally`. A request is due at its time whether or not those before it were answered; how late it
was answered counts from there.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """What became of the requests. `failures` holds a line for each that was not answered 200 with its own number,
    `broken` counts those of them whose connection broke, `late` those that took longer than `late_s`.
    """

    sent: int = 0
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    broken: int = 0
    late: int = 0
    slowest_s: float = 0.0
    by: Counter[str] = field(default_factory=Counter)  # answers by the replica's pid


def plain_body(number: int) -> bytes:
    """A small request with its number."""
    return b'{"n": %d}' % number


def check_number(number: int, body: bytes, answer: dict[str, Any]) -> str:
    """What is wrong with the answer, "" for nothing."""
    return "" if answer["n"] == number else f"got the answer of {answer['n']}"


class Client(asyncio.Protocol):
    """One connection: one request at a time, each with a number that its answer must echo."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.number = -1
        self.body = b""
        self.due = 0.0
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.load.idle.append(self)

    def ask(self, number: int, due: float) -> None:
        assert self.transport is not None
        self.number, self.due = number, due
        self.body = body = self.load.body(number)
        head = b"POST %b HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % (self.load.path.encode(), len(body))
        self.transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not separator:
            return
        lines = head.lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        if len(rest) < length:
            return
        self.buffer = bytearray(rest[length:])
        self.settle(int(lines[0].split()[1]), rest[:length])
        self.load.idle.append(self)

    def settle(self, status: int, body: bytes) -> None:
        number, self.number = self.number, -1
        load, tally = self.load, self.load.tally
        took_s = asyncio.get_running_loop().time() - self.due
        tally.slowest_s = max(tally.slowest_s, took_s)
        tally.late += took_s > load.late_s
        if status != 200:
            tally.failures.append(f"request {number} ({len(self.body)} bytes): {status} {body[:200]!r}")
            return
        answer = json.loads(body)
        wrong = load.check(number, self.body, answer)
        if wrong:
            tally.failures.append(f"request {number} {wrong}")
            return
        tally.answered += 1
        tally.by[str(answer["pid"])] += 1

    def connection_lost(self, error: BaseException | None) -> None:
        if self in self.load.idle:
            self.load.idle.remove(self)
        if self.number >= 0:
            self.load.tally.failures.append(f"request {self.number}: its connection broke ({error!r})")
            self.load.tally.broken += 1
            self.number = -1
        if not self.load.stopped:
            self.load.reconnect()


class Load:
    """`rate` requests a second to `path`, until `stop`. `body` makes a request, `check` says what is wrong with its
    answer.
    """

    def __init__(
        self,
        port: int,
        rate: int,
        path: str = "/",
        connections: int = 40,
        *,
        body: Callable[[int], bytes] = plain_body,
        check: Callable[[int, bytes, dict[str, Any]], str] = check_number,
        late_s: float = 1.0,
    ) -> None:
        self.port, self.rate, self.path, self.connections = port, rate, path, connections
        self.body, self.check, self.late_s = body, check, late_s
        self.tally = Tally()
        self.idle: deque[Client] = deque()  # the one that was idle longest is next, so that all are used
        self.stopped = False
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        for _ in range(self.connections):
            await self._connect()
        self._task = asyncio.create_task(self._run())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(200):
            try:
                await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port)
                return
            except OSError:
                await asyncio.sleep(0.01)

    def reconnect(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while not self.stopped:
            due = int((loop.time() - begin) * self.rate)
            while self.tally.sent < due and self.idle:
                number = self.tally.sent
                self.idle.popleft().ask(number, begin + number / self.rate)
                self.tally.sent += 1
            await asyncio.sleep(0.002)

    async def until_answered(self, more: int, limit_s: float = 60) -> None:
        """Until `more` requests have been answered from now on."""
        goal = self.tally.answered + more
        async with asyncio.timeout(limit_s):
            while self.tally.answered < goal:  # noqa: ASYNC110  # the tally knows no events
                await asyncio.sleep(0.005)

    async def stop(self) -> Tally:
        """Send no more, wait for what is under way, and tell."""
        self.stopped = True
        assert self._task is not None
        await self._task
        try:
            async with asyncio.timeout(30):
                while self.tally.answered + len(self.tally.failures) < self.tally.sent:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        except TimeoutError:
            lost = self.tally.sent - self.tally.answered - len(self.tally.failures)
            self.tally.failures.append(f"{lost} requests were never answered")
        for client in list(self.idle):
            assert client.transport is not None
            client.transport.close()
        return self.tally
