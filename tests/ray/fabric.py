"""A network between nodes that can be cut: a process that stands in all connections of Headrace's from node to node.

In: for each node the address at which the others reach it (ours, which it advertises by HEADRACE_NODE_ADDRESS) and the
one at which it listens; on standard input a line for each change: `cut HOST [in|out]`, `restore HOST`, `delay HOST
SECONDS`. Out: bytes, carried both ways. Whatever comes to a node that is cut off stays where it is until the cut ends,
ends of connections and new connections too, as with a cable that was drawn: nobody is told anything.

Which node a connection comes from cannot be seen at its address, for on one machine all come from 127.0.0.1: it is
looked up in /proc, by the HEADRACE_HOME of the process that has it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import marks

WATERMARK_BYTES = 1 << 20


@dataclass
class Place:
    """A node, as the network sees it. `into` and `out_of` say whether something gets through at present."""

    host: str  # where it listens
    outside: str  # where the others reach it
    home: str
    into: bool = True
    out_of: bool = True
    delay_s: float = 0.0


class Pipe(asyncio.Protocol):
    """One end of a connection that is carried: what comes in here goes out at `other`, when there is a way."""

    def __init__(self, network: Network, source: Place | None, target: Place | None) -> None:
        self.network, self.source, self.target = network, source, target
        self.other: Pipe | None = None
        self.transport: asyncio.Transport | None = None
        self.held: list[bytes | None] = []  # None: the end
        self.due = 0.0
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=WATERMARK_BYTES)

    def data_received(self, data: bytes) -> None:
        self.pass_on(data)

    def eof_received(self) -> bool:
        self.pass_on(None)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.pass_on(None)
        self.transport = None

    def pass_on(self, data: bytes | None) -> None:
        delay_s = max((place.delay_s for place in (self.source, self.target) if place is not None), default=0.0)
        if self.held or self.other is None or not self.open():
            self.held.append(data)
            if self.transport is not None and not self.transport.is_closing():
                self.transport.pause_reading()  # the sender fills its window, and waits
        elif delay_s or self.due:
            loop = asyncio.get_running_loop()
            self.due = max(loop.time() + delay_s, self.due)
            loop.call_at(self.due, self.deliver, data)
        else:
            self.deliver(data)

    def open(self) -> bool:
        if self.source is self.target:
            return True
        return (self.source is None or self.source.out_of) and (self.target is None or self.target.into)

    def deliver(self, data: bytes | None) -> None:
        if not self.open():
            self.held.append(data)
            return
        transport = self.other.transport if self.other is not None else None
        if transport is None or transport.is_closing():
            return
        if data is None:
            self.ended = True
            assert self.other is not None
            if self.transport is None or self.other.ended:  # gone for good, not only silent from now on
                transport.close()
                self.network.pipes -= {self, self.other}
            elif transport.can_write_eof():
                transport.write_eof()
        else:
            transport.write(data)

    def release(self) -> None:
        """There may be a way now."""
        if self.other is None or not self.open():
            return
        held, self.held = self.held, []
        for data in held:
            self.deliver(data)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.held:
            self.other.transport.resume_reading()


class Network:
    """All places, and what is carried between them."""

    def __init__(self, places: list[Place], ports: tuple[int, int]) -> None:
        self.places = places
        self.ports = ports
        self.pipes: set[Pipe] = set()
        self.changed = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.homes: dict[str, Place] = {place.home: place for place in places}

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for place in self.places:
            for port in range(self.ports[0], self.ports[1] + 1):
                await loop.create_server(
                    lambda place=place, port=port: Newcomer(self, place, port), place.outside, port
                )

    def place(self, host: str) -> Place:
        return next(place for place in self.places if place.host == host)

    def change(self, words: list[str]) -> None:
        place = self.place(words[1])
        if words[0] == "cut":
            way = words[2] if len(words) > 2 else "both"
            place.into, place.out_of = way == "out", way == "in"
        elif words[0] == "restore":
            place.into = place.out_of = True
        elif words[0] == "delay":
            place.delay_s = float(words[2])
        else:
            raise ValueError(words)
        self.changed.set()
        self.changed = asyncio.Event()
        for pipe in list(self.pipes):
            pipe.release()

    def whose(self, near: tuple[str, int], far: tuple[str, int]) -> Place | None:
        """The node whose process has the end `near` of the connection to `far`."""
        inode = inode_of(near, far)
        if inode is None:
            return None
        name = f"socket:[{inode}]"
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                place = self.homes.get(marks.home(int(entry.name)))
                if place is not None and name in map(os.readlink, (entry / "fd").iterdir()):
                    return place
            except OSError:
                continue
        return None

    def carry(self, near: Newcomer) -> None:
        task = asyncio.get_running_loop().create_task(self.connect(near))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, near: Newcomer) -> None:
        """Carry a connection on, as soon as there is a way."""
        assert near.transport is not None
        assert near.target is not None
        ends = near.transport.get_extra_info("peername"), near.transport.get_extra_info("sockname")
        near.source = self.whose(*ends)
        far = Pipe(self, near.target, near.source)
        while not (near.open() and far.open()):
            await self.changed.wait()
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, near.target.host, near.port)
        except OSError:
            near.transport.abort()
            return
        near.other, far.other = far, near
        self.pipes |= {near, far}
        near.release()


class Newcomer(Pipe):
    """The end of the node that has connected."""

    def __init__(self, network: Network, target: Place, port: int) -> None:
        super().__init__(network, None, target)
        self.port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.network.carry(self)


def inode_of(near: tuple[str, int], far: tuple[str, int]) -> str | None:
    """The inode of the socket at `near` that is connected to `far`. Other addresses have ports of the same number."""
    ends = [f"{socket.inet_aton(host)[::-1].hex().upper()}:{port:04X}" for host, port in (near, far)]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1:3] == ends:
            return words[9]
    return None


async def serve(places: list[Place], ports: tuple[int, int]) -> None:
    network = Network(places, ports)
    await network.listen()
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    while line := await lines.readline():
        network.change(line.decode().split())
        print("done", flush=True)


class Fabric:
    """The network, in a process of its own. Use as a context manager. `nodes` are (host, outside, home) of each."""

    def __init__(self, hosts: Iterable[tuple[str, str, Path]], ports: tuple[int, int]) -> None:
        self.order = json.dumps(
            {"hosts": [(host, outside, str(home)) for host, outside, home in hosts], "ports": ports}
        )

    def __enter__(self) -> Fabric:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.order], env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer("ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def cut(self, host: str, way: str = "both") -> None:
        """Nothing gets to the node any more (`in`), nothing from it (`out`), or neither."""
        self._say(f"cut {host} {way}")

    def restore(self, host: str) -> None:
        """All goes through again, what was held up too."""
        self._say(f"restore {host}")

    def delay(self, host: str, seconds: float) -> None:
        """What goes to the node or comes from it takes this long on its way."""
        self._say(f"delay {host} {seconds}")

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self._answer("done")

    def _answer(self, expected: str) -> None:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().strip()
        assert answer == expected, f"the network said {answer!r} (exit status {self.process.poll()})"


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    asyncio.run(serve([Place(*each) for each in order["hosts"]], tuple(order["ports"])))
