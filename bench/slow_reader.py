"""Streams against readers that stop reading: `python -m bench.slow_reader [--minutes 1]`.

Six endless streams, over HTTP (small chunks, chunks of 1 MB) and by handles (small items, arrays of 1 MB, a plain
generator, small items by way of a third deployment), are read a little, and then not at all. What all processes of the
instance hold in heaps and shared memory must stay flat, and nothing be made, for all that time; then every stream must
go on where it stood. In: the minutes. Out: a verdict with its figures and the course of memory, status 1 when it is not
kept; as the section `slow-reader` of `python -m bench`, its figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.peers import Peer
from bench.results import Measured
from bench.section import Column, Section
from bench.server import PeerFailed, Question, ask, running

ALLOWED_MB = 5.0  # what idle processes may gain; an unbounded stream gains it within a second
SETTLE_S = 5.0
SAMPLE_S = 1.0
TIMEOUT_S = 30.0
SMALL_BYTES, LARGE_BYTES = 13, 1_000_000  # a chunk of each HTTP stream, as apps/slow_reader_app.py makes them
MORE_ITEMS = 100


@dataclass(frozen=True)
class Sample:
    """What each process holds in MB, and what each stream had made, so many seconds after the readers stopped."""

    at_s: float
    memory_mb: dict[str, float]
    made: dict[str, int]

    @property
    def total_mb(self) -> float:
        return sum(self.memory_mb.values())


@dataclass(frozen=True)
class Watched:
    """What was seen, what it means, and which stream did not go on afterwards, "" when all did."""

    samples: list[Sample]
    verdict: Verdict
    problem: str


@dataclass(frozen=True)
class Verdict:
    """How much memory grew, and how many items each stream made that nobody wanted."""

    growth_mb: float
    made: dict[str, int]

    @property
    def kept(self) -> bool:
        return self.growth_mb <= ALLOWED_MB and not any(self.made.values())

    def __str__(self) -> str:
        grew = f"memory grew by {self.growth_mb:.1f} MB ({ALLOWED_MB:g} MB are allowed)"
        if not any(self.made.values()):
            return f"{'kept' if self.kept else 'NOT KEPT'}: {grew}; no stream made anything while nobody read"
        made = ", ".join(f"{kind}: {count}" for kind, count in self.made.items() if count)
        return f"NOT KEPT: {grew}; items were made while nobody read ({made})"


def judge(samples: Sequence[Sample]) -> Verdict:
    """The samples are those after everything has settled. The first ones say what memory was; its highest counts."""
    begin = statistics.median(sample.total_mb for sample in samples[: max(1, min(5, len(samples) // 3))])
    highest = max(sample.total_mb for sample in samples)
    made = {kind: samples[-1].made[kind] - before for kind, before in samples[0].made.items()}
    return Verdict(highest - begin, made)


class HttpReader:
    """A client that reads a response's chunks when it is told to, and checks their numbers."""

    def __init__(self, port: int, path: str, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._path = path
        self._number = 0
        self._buffer = b""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        self._head = b""
        self._rest = b""  # of the last chunk that the server sent: it may cut and join ours as it likes

    def take(self, count: int) -> None:
        """Read so many more chunks. Raises PeerFailed when they are not the next ones."""
        if not self._head:
            self._head = self._until(b"\r\n\r\n")
            if not self._head.startswith(b"HTTP/1.1 200"):
                raise PeerFailed(f"{self._path}: {self._head[:100]!r}")
        wanted = count * self._chunk_bytes
        body = self._rest
        while len(body) < wanted:
            size = int(self._until(b"\r\n").split(b";")[0], 16)
            if size == 0:
                raise PeerFailed(f"{self._path} ended after {self._number} chunks")
            body += self._exactly(size + 2)[:-2]
        body, self._rest = body[:wanted], body[wanted:]
        for start in range(0, wanted, self._chunk_bytes):
            if int(body[start : start + 12]) != self._number:
                raise PeerFailed(f"{self._path}: chunk {self._number} arrived as {body[start : start + 12]!r}")
            self._number += 1

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._receive()
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def _exactly(self, size: int) -> bytes:
        parts = [self._buffer]
        have = len(self._buffer)
        while have < size:
            self._buffer = b""
            self._receive()
            parts.append(self._buffer)
            have += len(self._buffer)
        data = b"".join(parts)
        self._buffer = data[size:]
        return data[:size]

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise PeerFailed(f"{self._path}: nothing came after chunk {self._number}: {error!r}") from None
        if not data:
            raise PeerFailed(f"{self._path}: the server closed the connection after chunk {self._number}")
        self._buffer += data

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def stalled(port: int) -> Iterator[list[HttpReader]]:
    """All streams begun, and no longer read."""
    readers = [HttpReader(port, "/small", SMALL_BYTES), HttpReader(port, "/large", LARGE_BYTES)]
    try:
        for reader in readers:
            reader.take(3)
        steer(port, "/start")
        yield readers
    finally:
        for reader in readers:
            reader.close()


def steer(port: int, path: str) -> bytes:
    """One request to the application. Raises PeerFailed when it is not answered 200."""
    try:
        status, body = ask(port, path)
    except OSError as error:
        raise PeerFailed(f"{path}: {error!r}") from None
    if status != 200:
        raise PeerFailed(f"{path}: {status} {body[:200]!r}")
    return body


def sample(port: int, began: float) -> Sample:
    made = json.loads(steer(port, "/made"))
    memory_mb: dict[str, float] = {}
    for pid in processes.descendants():
        name = name_of(pid)
        memory_mb[name] = memory_mb.get(name, 0.0) + processes.held_mb([pid])
    return Sample(time.monotonic() - began, dict(sorted(memory_mb.items())), made)


def name_of(pid: int) -> str:
    """What an instance calls its process; that of the script and of the keeper is by their command lines."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    if found := re.search(rb"(?:^|\0)HEADRACE_PROCESS_ID=([^\0]+)", environment):
        return found[1].decode()
    return "keeper" if b"keeper" in command else "script"


def watch(peer: Peer, seconds: float) -> Watched:
    """Stall the streams of an instance for so long, sample it each second, and let them go on at the end.

    This process must be a subreaper. Raises PeerFailed when the instance does not start, or its streams do not.
    """
    counts = Question("/made", None, lambda body: body.startswith(b"{"), "counts")
    with running(peer, counts) as server, stalled(server.port) as readers:
        began = time.monotonic()
        samples: list[Sample] = []
        while (due := len(samples) * SAMPLE_S) <= seconds:
            time.sleep(max(0.0, began + due - time.monotonic()))
            samples.append(sample(server.port, began))
        verdict = judge([one for one in samples if one.at_s >= min(SETTLE_S, seconds / 2)])
        try:
            for reader in readers:
                reader.take(MORE_ITEMS)
            steer(server.port, f"/more?count={MORE_ITEMS}")
        except PeerFailed as error:
            return Watched(samples, verdict, str(error))
    return Watched(samples, verdict, "")


def measure(peer: Peer, seconds: float) -> Measured:
    """A round of the section."""
    watched = watch(peer, max(10.0, min(60.0, 15 * seconds)))
    if watched.problem:
        raise PeerFailed(f"a stream did not go on: {watched.problem}")
    last, verdict = watched.samples[-1], watched.verdict
    figures = {
        "seconds": last.at_s,
        "memory_mb": last.total_mb,
        "growth_mb": max(0.0, verdict.growth_mb),
        "made_meanwhile": float(sum(verdict.made.values())),
        "made": float(sum(last.made.values())),
    }
    return Measured(figures, {"memory, MB": [round(one.total_mb, 2) for one in watched.samples]})


HEADRACE = Peer("headrace", "Headrace", ("{python}", "{apps}/slow_reader_app.py", "{port}"), None)
SLOW_READER = Section(
    "slow-reader",
    "Streams that nobody reads",
    "Six endless streams (over HTTP and by handles, small items and 1 MB, coroutines and threads, one by way of a "
    "third deployment) whose readers stop; afterwards each went on where it stood. The long run is "
    "`python -m bench.slow_reader --minutes 10`.",
    (HEADRACE,),
    (
        Column("seconds", "stalled for", " s"),
        Column("memory_mb", "heaps and shared memory", " MB"),
        Column("growth_mb", "grew by", " MB"),
        Column("made", "items made before"),
        Column("made_meanwhile", "items made meanwhile"),
    ),
    measure,
    once=True,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slow_reader", description="Streams that nobody reads.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long nobody reads (default 1)")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error("--minutes must be above 0")
    processes.become_subreaper()
    try:
        watched = watch(HEADRACE, options.minutes * 60)
    except PeerFailed as error:
        print(f"NOT KEPT: {error}")
        return 1
    last = watched.samples[-1]
    print(course(watched.samples))
    print(f"made before: {', '.join(f'{kind} {count}' for kind, count in last.made.items())}")
    print(f"{watched.verdict}")
    if watched.problem:
        print(f"NOT KEPT: after {last.at_s:.0f} s a stream did not go on: {watched.problem}")
        return 1
    print(f"after {last.at_s:.0f} s every stream went on where it stood")
    return int(not watched.verdict.kept)


def course(samples: Sequence[Sample]) -> str:
    """Memory over time (PSS without files), a row for each of at most twenty samples, a column for each process."""
    step = max(1, -(-len(samples) // 20))
    chosen = list(samples[::step])
    if chosen[-1] is not samples[-1]:
        chosen.append(samples[-1])
    names = list(dict.fromkeys(name for one in chosen for name in one.memory_mb))
    widths = [max(9, len(name)) for name in names]
    lines = ["      s  total MB  " + "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))]
    for one in chosen:
        cells = [f"{one.memory_mb.get(name, 0.0):{width}.1f}" for name, width in zip(names, widths, strict=True)]
        lines.append(f"{one.at_s:7.0f}  {one.total_mb:8.1f}  " + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
