"""What stands between the processes of a node and the controller in tests: a way that can be cut, and an agent."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from headrace.wire.control import Hello, NodeReport
from headrace.wire.link import ControlLink

REPORT_S = 0.1


class Way:
    """A socket at which the controller's can be reached, byte for byte, unless it is cut."""

    def __init__(self, path: Path, to: Path) -> None:
        self.path = path
        self._to = to
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._carry, str(self.path))

    def cut(self) -> None:
        """End all that goes over it, and take nothing new."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                there_reader, there_writer = await asyncio.open_unix_connection(str(self._to))
                self._writers.add(there_writer)
                await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
                self._writers.discard(there_writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
        finally:
            writer.close()


class Agent:
    """Says that its node is there, unless it is to be quiet."""

    def __init__(self, node: str, way: Way) -> None:
        self.node = node
        self.quiet = False
        hello = Hello(role="node", id=f"node-{node}", pid=0, node=node)
        self.link = ControlLink(str(way.path), hello, lambda _: None, on_connect=self._report)
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._tasks = [asyncio.create_task(self.link.run()), asyncio.create_task(self._go_on())]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._report()

    def _report(self) -> None:
        if not self.quiet:
            self.link.send(NodeReport(id=self.node, host=f"host-{self.node}"))
