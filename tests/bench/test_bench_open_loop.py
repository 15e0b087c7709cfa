"""The open loop against real servers: what counts as answered, late or never, and that it does not wait for answers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from bench.arrivals import NEVER, Arrival, Outcome
from bench.open_loop import OpenLoop, run_exact

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"

Answer = Callable[[bytes], Awaitable[bytes]]


def get(arrival: Arrival, lag_s: float) -> bytes:
    return b"GET /high HTTP/1.1\r\n\r\n" if arrival.high else b"GET /low HTTP/1.1\r\n\r\n"


class Server:
    """Answers each request by `answer`, and counts connections."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                reply = await self.answer(await reader.readuntil(b"\r\n\r\n"))
                writer.write(reply)
                if not reply or reply is CLOSING:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.close()


def running(answer: Answer) -> AbstractAsyncContextManager[tuple[Server, int]]:
    @asynccontextmanager
    async def context():  # type: ignore[no-untyped-def]
        server = Server(answer)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        async with listening:
            yield server, listening.sockets[0].getsockname()[1]

    return context()


def schedule(count: int, gap_s: float = 0.001) -> list[Arrival]:
    return [Arrival(number * gap_s, number % 10 == 0) for number in range(count)]


def statuses(outcomes: list[Outcome]) -> set[int]:
    return {outcome.status for outcome in outcomes}


def test_each_arrival_has_one_outcome_and_its_kind_of_request() -> None:
    async def main() -> None:
        async def answer(request: bytes) -> bytes:
            return BUSY if b"/high" in request else OK

        async with running(answer) as (_, port):
            arrivals = schedule(200)
            outcomes = await OpenLoop(port, arrivals, get).run()
        assert sorted(outcome.arrival.due_s for outcome in outcomes) == [arrival.due_s for arrival in arrivals]
        assert statuses([outcome for outcome in outcomes if outcome.arrival.high]) == {503}
        assert statuses([outcome for outcome in outcomes if not outcome.arrival.high]) == {200}

    asyncio.run(main())


def test_requests_are_sent_although_none_is_answered() -> None:
    async def main() -> None:
        come: list[bytes] = []
        all_there = asyncio.Event()

        async def answer(request: bytes) -> bytes:
            come.append(request)
            if len(come) == 50:
                all_there.set()
            await all_there.wait()  # nobody is answered before everybody has asked
            return OK

        async with running(answer) as (server, port):
            outcomes = await OpenLoop(port, schedule(50), get).run()
        assert statuses(outcomes) == {200}
        assert server.connections == 50
        first = min(outcomes, key=lambda outcome: outcome.arrival.due_s)
        assert first.took_s >= 0.049, "it waited for the last"

    asyncio.run(main())


def test_a_connection_is_used_again_unless_the_server_closes_it() -> None:
    async def main(reply: bytes) -> int:
        async def answer(request: bytes) -> bytes:
            return reply

        async with running(answer) as (server, port):
            outcomes = await OpenLoop(port, schedule(30, 0.005), get).run()
        assert statuses(outcomes) == {200}
        return server.connections

    assert asyncio.run(main(OK)) < 30
    assert asyncio.run(main(CLOSING)) == 30


def test_a_connection_that_breaks_is_a_request_without_an_answer() -> None:
    async def main() -> None:
        async def answer(request: bytes) -> bytes:
            return b"" if b"/high" in request else OK

        async with running(answer) as (_, port):
            outcomes = await OpenLoop(port, schedule(50), get).run()
        assert statuses([outcome for outcome in outcomes if outcome.arrival.high]) == {NEVER}
        assert statuses([outcome for outcome in outcomes if not outcome.arrival.high]) == {200}

    asyncio.run(main())


def test_a_server_that_is_not_there_answers_nothing() -> None:
    async def main() -> None:
        async with running(lambda request: asyncio.sleep(0, OK)) as (_, port):
            pass
        outcomes = await OpenLoop(port, schedule(20), get).run()
        assert len(outcomes) == 20
        assert statuses(outcomes) == {NEVER}

    asyncio.run(main())


def test_what_is_never_answered_is_waited_for_in_vain_and_counted() -> None:
    async def main() -> None:
        async def answer(request: bytes) -> bytes:
            if b"/high" in request:
                await asyncio.Event().wait()
            return OK

        async with running(answer) as (_, port):
            loop = OpenLoop(port, schedule(20), get, patience_s=0.05)
            outcomes = await loop.run()
            assert len(outcomes) == 20
            unanswered = [outcome for outcome in outcomes if outcome.status == NEVER]
            assert [outcome.arrival.high for outcome in unanswered] == [True, True]
            assert len(loop.lags_s) == 20

    asyncio.run(main())


def test_exact_timers_need_no_loop_around_them() -> None:
    """The server's loop runs in a thread, as `run_exact` makes its own."""
    ports: queue.Queue[int] = queue.Queue()
    over = threading.Event()

    async def serve() -> None:
        async with running(lambda request: asyncio.sleep(0, OK)) as (_, port):
            ports.put(port)
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        outcomes = run_exact(OpenLoop(ports.get(timeout=60), schedule(30), get))
    finally:
        over.set()
        thread.join()
    assert len(outcomes) == 30
    assert statuses(outcomes) == {200}


def test_a_schedule_begins_when_it_is_told_to() -> None:
    async def main() -> None:
        async with running(lambda request: asyncio.sleep(0, OK)) as (_, port):
            clock = asyncio.get_running_loop().time
            began = clock() + 0.2
            outcomes = await OpenLoop(port, schedule(5), get).run(began)
            assert clock() >= began + 0.004
            assert statuses(outcomes) == {200}
            assert max(outcome.took_s for outcome in outcomes) >= 0

    asyncio.run(main())


def test_beyond_the_limit_of_connections_requests_wait_for_one() -> None:
    async def main() -> None:
        async def answer(request: bytes) -> bytes:
            await asyncio.sleep(0.01)
            return OK

        async with running(answer) as (server, port):
            outcomes = await OpenLoop(port, schedule(40), get, most_connections=4).run()
        assert statuses(outcomes) == {200}
        assert server.connections <= 4
        assert max(outcome.took_s for outcome in outcomes) > 0.05, "their time runs on"

    asyncio.run(main())
