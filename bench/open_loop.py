"""An open loop over HTTP: each request is sent when it is due, whether or not those before it were answered.

In: a port, a schedule, and what makes the bytes of a request from how much later than due it is sent. Out: an `Outcome`
for each arrival, whose time counts from when it was due, so that a slow sender cannot flatter the server. A connection
carries one request at a time; there are as many as it takes, up to a limit, beyond which requests wait here (and their
time runs on).
"""

from __future__ import annotations

import asyncio
import gc
import resource
import selectors
from collections import deque
from collections.abc import Callable, Sequence

import httptools

from bench.arrivals import NEVER, Arrival, Outcome

MOST_CONNECTIONS = 4000
PATIENCE_S = 3.0


class Connection(asyncio.Protocol):
    """One connection, with at most one request on it."""

    def __init__(self, loop: OpenLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self.arrival: Arrival | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._loop.idle(self)

    def ask(self, arrival: Arrival) -> None:
        assert self.transport is not None
        self.arrival = arrival
        self.transport.write(self._loop.request(arrival))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        assert self.transport is not None
        arrival, self.arrival = self.arrival, None
        if arrival is None:
            return  # an answer that nobody asked for: its connection is about to be closed
        keeps = self._parser.should_keep_alive()
        self._loop.settle(arrival, self._parser.get_status_code())
        if keeps:
            self._parser = httptools.HttpResponseParser(self)
            self._loop.idle(self)
        else:
            self.transport.close()

    def connection_lost(self, error: BaseException | None) -> None:
        arrival, self.arrival = self.arrival, None
        if arrival is not None:
            self._loop.settle(arrival, NEVER)
        self._loop.lost(self)


class OpenLoop:
    """One run of a schedule. `lags_s` are how much later than due each request could be sent; what is under way
    `patience_s` after the last one was sent counts as never answered.
    """

    def __init__(
        self,
        port: int,
        schedule: Sequence[Arrival],
        request: Callable[[Arrival, float], bytes],
        *,
        patience_s: float = PATIENCE_S,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        self._request = request
        self.lags_s: list[float] = []
        self._patience_s = patience_s
        self._most = most_connections
        self._port = port
        self._schedule = schedule
        self._outcomes: list[Outcome] = []
        self._idle: list[Connection] = []  # the last used first: few connections while few suffice
        self._waiting: deque[Arrival] = deque()
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._began = 0.0
        self._done = asyncio.Event()

    async def run(self, began: float | None = None) -> list[Outcome]:
        """Send everything, wait for the answers, and close all connections.

        The schedule begins at the reading `began` of the loop's clock, by default soon.
        """
        raise_limit_of_files()
        clock = asyncio.get_running_loop().time
        gc.disable()  # a collection of the sender is no latency of the server
        try:
            self._began = clock() + 0.1 if began is None else began
            for arrival in self._schedule:
                while (left := self._began + arrival.due_s - clock()) > 0:  # noqa: ASYNC110  # a timer may be early
                    await asyncio.sleep(left)
                self._send(arrival)
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._done.wait()
            except TimeoutError:
                pass  # what is under way stays unanswered
        finally:
            gc.enable()
        return self._close()

    def _send(self, arrival: Arrival) -> None:
        if self._idle:
            self._idle.pop().ask(arrival)
            return
        self._waiting.append(arrival)
        if len(self._open) + len(self._opening) < self._most:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def request(self, arrival: Arrival) -> bytes:
        """The bytes of the request, which is sent now."""
        lag_s = self._now() - arrival.due_s
        self.lags_s.append(lag_s)
        return self._request(arrival, lag_s)

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        except OSError:
            if self._waiting:
                self.settle(self._waiting.popleft(), NEVER)  # refused at the door

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    def idle(self, connection: Connection) -> None:
        """The connection can take a request."""
        self._open.add(connection)
        if self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def settle(self, arrival: Arrival, status: int) -> None:
        """The request has ended."""
        self._outcomes.append(Outcome(arrival, status, self._now() - arrival.due_s))
        if len(self._outcomes) == len(self._schedule):
            self._done.set()

    def _close(self) -> list[Outcome]:
        """End all connections; what was under way on them, or still waited for one, was not answered."""
        for task in self._opening:
            task.cancel()
        outcomes, took_s = self._outcomes, self._now()
        under_way = [connection.arrival for connection in self._open if connection.arrival is not None]
        for arrival in [*under_way, *self._waiting]:
            outcomes.append(Outcome(arrival, NEVER, took_s - arrival.due_s))
        for connection in list(self._open):
            connection.arrival = None
            if connection.transport is not None:
                connection.transport.abort()
        self._outcomes = []
        return outcomes


def run_exact(loop: OpenLoop) -> list[Outcome]:
    """Run it to its end, each request sent to within some tens of microseconds of when it is due.

    asyncio's own timers are rounded up to whole milliseconds, as those of epoll are. For what needs few connections:
    select takes no descriptor above 1,023.
    """
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(loop.run())


def raise_limit_of_files() -> None:
    """As many descriptors as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
