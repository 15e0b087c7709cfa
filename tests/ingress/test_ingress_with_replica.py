"""The HTTP side with the real router and a real replica's server behind it, over sockets, in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
from door_harness import Client, Response, response_head, run

from headrace.ingress.connection import ClientConnection
from headrace.ingress.door import Door
from headrace.ingress.exchange import Exchange
from headrace.ingress.listener import Listener
from headrace.replica.incoming import Incoming
from headrace.replica.server import Server
from headrace.router import Router
from headrace.spec.config import HTTPOptions
from headrace.spec.snapshot import ApplicationEntry, DeploymentEntry, ReplicaEntry, RevisionEntry, Snapshot
from headrace.wire.frames import HTTP, MORE, ErrorInfo

TEXT = response_head(200, (b"content-type", b"text/plain"))


class Stage:
    """An ingress and one replica, whose calls `handle` answers."""

    def __init__(
        self, directory: Path, limit: int = 100, queue: int = 1000, options: HTTPOptions | None = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.address = f"unix:{directory}/r.sock"
        self.limit = limit
        self.calls: list[Incoming] = []
        self.handle: Callable[[Incoming], None] = lambda incoming: incoming.reply(b"{}", flags=HTTP)
        self.server = Server(self.loop, "Model#0", limit, self._start)
        self.router = Router(self.loop, "ingress#0", "ingress")
        self.door = Door(self.loop, self.router, options or HTTPOptions())
        self.listener = Listener(self.loop, lambda: ClientConnection(self.door))
        entry = DeploymentEntry(
            key="k",
            app="app",
            name="Model",
            max_ongoing_requests=limit,
            max_queued_requests=queue,
            replicas=(ReplicaEntry("Model#0", self.address),),
        )
        revision = RevisionEntry(number=1, weight=1.0, deployments={"Model": "k"})
        self.snapshot = Snapshot(
            version=1,
            applications={
                "app": ApplicationEntry(name="app", route_prefix="/", ingress="Model", revisions=(revision,))
            },
            deployments={"k": entry},
        )

    def _start(self, incoming: Incoming) -> None:
        self.calls.append(incoming)
        self.handle(incoming)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.listener.port))


@contextlib.asynccontextmanager
async def stage(directory: Path, **given: object) -> AsyncIterator[tuple[Stage, httpx.AsyncClient]]:
    s = Stage(directory, **given)  # type: ignore[arg-type]
    await s.server.listen(s.address)
    s.router.update(s.snapshot)
    s.door.update(s.snapshot)
    await s.listener.open("127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.listener.port}", timeout=15) as client:
        try:
            yield s, client
        finally:
            await s.listener.leave()
            await s.door.drain(0)
            await s.router.close()
            s.server.close()


def test_small_requests_and_many_at_once(tmp_path: Path):
    async def main():
        async with stage(tmp_path) as (s, _):
            s.handle = lambda incoming: incoming.reply(b'{"n":%b}' % incoming.body, flags=HTTP)

            async def ask(first: int) -> list[Response]:
                raw = await s.connect()
                answers = []
                for i in range(first, first + 10):
                    await raw.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n%4d" % i)
                    answers.append(await raw.response())
                raw.writer.close()
                return answers

            answered = await asyncio.gather(*(ask(first) for first in range(0, 1000, 10)))
            responses = [response for answers in answered for response in answers]
            assert [json.loads(response.body)["n"] for response in responses] == list(range(1000))
            assert {call.meta.app for call in s.calls} == {"app"}
            assert {r.headers["x-request-id"] for r in responses} == {call.meta.request_id for call in s.calls}

    run(main())


def test_large_bodies_both_ways(tmp_path: Path):
    async def main():
        async with stage(tmp_path) as (s, client):

            async def answer(incoming: Incoming) -> None:
                body = incoming.body
                if incoming.flags & MORE:
                    while part := await incoming.read():
                        body += part
                incoming.reply(body[::-1], TEXT, HTTP)

            tasks = []
            s.handle = lambda incoming: tasks.append(s.loop.create_task(answer(incoming)))
            for size in (0, 60_000, 66_000, 700_000, 5_000_000):
                body = bytes(range(256)) * (size // 256)
                response = await client.post("/up", content=body)
                assert response.content == body[::-1]
                assert response.headers["content-type"] == "text/plain"

    run(main())


def test_a_request_with_a_large_body_leaves_nothing_for_the_collector(tmp_path: Path):
    """Its body is up to a megabyte, and the collector of an ingress runs seldom."""

    async def main():
        async with stage(tmp_path) as (s, _):

            async def answer(incoming: Incoming) -> None:
                while await incoming.read():
                    pass
                incoming.reply(b"{}", flags=HTTP)

            tasks = []
            s.handle = lambda incoming: tasks.append(s.loop.create_task(answer(incoming)))
            raw = await s.connect()
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    await raw.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000))
                    assert (await raw.response()).status == 200
                await s.until(lambda: not any(isinstance(each, Exchange) for each in gc.get_objects()))
            finally:
                gc.enable()
            raw.writer.close()

    run(main())


def test_a_stream_arrives_part_by_part_and_stops_when_the_client_leaves(tmp_path: Path):
    async def main():
        async with stage(tmp_path) as (s, client):
            s.handle = lambda incoming: incoming.start_reply(b"first\n", TEXT, HTTP)
            async with client.stream("GET", "/s") as response:
                lines = response.aiter_lines()
                assert await anext(lines) == "first"
                s.calls[0].write(b"second\n")
                assert await anext(lines) == "second"
            await s.until(lambda: s.calls[0].cancelled)
            s.calls[0].end()
            await s.until(lambda: s.server.ongoing == 0)

    run(main())


def test_a_slow_reader_holds_back_the_replica(tmp_path: Path):
    async def main():
        async with stage(tmp_path) as (s, _):
            written = 0

            async def pour(incoming: Incoming) -> None:
                nonlocal written
                incoming.start_reply(b"", TEXT, HTTP)
                for _ in range(1000):
                    written += 20_000
                    if not incoming.write(b"p" * 20_000):
                        await incoming.drained()
                incoming.end()

            tasks = []
            s.handle = lambda incoming: tasks.append(s.loop.create_task(pour(incoming)))
            client = await s.connect()
            await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            await s.until(lambda: any(c.writing_paused for c in s.door.connections))
            assert written < 20_000_000
            # Chunks of 20,000 bytes, each with its size before and CRLF after it.
            await client.reader.readuntil(b"\r\n\r\n")
            received = 0
            while received < 20_000_000:
                received += len(await client.reader.read(1 << 20))
            assert len(tasks) == 1
            await tasks[0]
            client.writer.close()

    run(main())


def test_errors_of_user_code_and_of_the_queue(tmp_path: Path):
    async def main():
        async with stage(tmp_path, limit=1, queue=2) as (s, client):
            s.handle = lambda incoming: incoming.fail(ErrorInfo("ValueError", "secret", "Traceback secret", 500))
            response = await client.get("/", headers={"x-request-id": "r1"})
            assert (response.status_code, response.text) == (500, "Internal Server Error\nrequest id: r1\n")
            s.handle = lambda incoming: None
            asked = [asyncio.ensure_future(client.get("/")) for _ in range(8)]
            await s.until(lambda: sum(task.done() for task in asked) >= 5)
            refused = [task.result() for task in asked if task.done()]
            assert {response.status_code for response in refused} == {503}
            assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
            s.handle = lambda incoming: incoming.reply(b"1", flags=HTTP)
            s.calls[-1].reply(b"1", flags=HTTP)
            rest = await asyncio.gather(*(task for task in asked if task not in refused))
            assert sorted(response.status_code for response in rest) == [200] * 3 + [503] * 5

    run(main())


def test_a_client_that_leaves_cancels_the_call_in_the_replica(tmp_path: Path):
    async def main():
        async with stage(tmp_path) as (s, _):
            s.handle = lambda incoming: None
            client = await s.connect()
            await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            await s.until(lambda: len(s.calls) == 1)
            client.writer.close()
            await s.until(lambda: s.calls[0].cancelled)
            s.calls[0].reply(b"")
            await s.until(lambda: s.server.ongoing == 0)

    run(main())


def test_a_request_that_takes_too_long_is_408_and_cancelled_in_the_replica(tmp_path: Path):
    async def main():
        async with stage(tmp_path, options=HTTPOptions(request_timeout_s=0.1)) as (s, client):
            s.handle = lambda incoming: None
            assert (await client.get("/")).status_code == 408
            await s.until(lambda: s.calls[0].cancelled)
            assert 0 < s.calls[0].meta.remaining_s < 0.11
            s.calls[0].reply(b"")

    run(main())
