"""One server from its command to its end: start, first right answer, what it costs while it is loaded, stop.

In: a peer whose environment stands. Out: `HttpRound` for the no-op model, `running` and `loaded` for every other
measurement; PeerFailed with the reason, and the server's last words, when it does not start, does not answer rightly,
or answers errors under load.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import load, processes
from bench.peers import Peer

REQUEST = b'{"x": [1.0,2.0,3.0,4.0]}'
ANSWER = {"y": 10.0}
SUM_SCRIPT = load.SCRIPTS / "post.lua"  # sends the same request
CONNECTIONS = (1, 32, 128)
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 20.0


class PeerFailed(Exception):
    """The peer could not be measured. The message is the reason."""


@dataclass(frozen=True)
class Question:
    """A request, and whether the body of its answer is right. `answer` is the right one in words."""

    path: str
    body: bytes | None  # None: a GET
    right: Callable[[bytes], bool]
    answer: str


def sum_question(path: str) -> Question:
    """The no-op model's."""
    return Question(path, REQUEST, lambda body: bool(json.loads(body) == ANSWER), json.dumps(ANSWER))


class LoadFigures(msgspec.Struct):
    """One load: requests a second, median latency, server CPU of all processes for each request, failed requests."""

    rate: float
    p50_us: float
    cpu_us: float
    failed: int


class HttpRound(msgspec.Struct):
    """What one round saw of one peer. `loads` is by number of connections; memory is that of the idle server."""

    start_s: float
    memory_mb: float
    processes: int
    loads: dict[int, LoadFigures]


def measure_http(peer: Peer, seconds: float) -> HttpRound:
    """Start the peer, check its answer, load it with 1, 32 and 128 connections for `seconds` each, stop it."""
    with running(peer, sum_question(peer.path)) as server:
        pids = processes.descendants()
        memory_mb = processes.pss_mb(pids)
        url = server.url + peer.path
        load.run_wrk(url, 32, 1, SUM_SCRIPT)  # warms caches and connections; not counted
        loads = {connections: loaded(url, connections, seconds, SUM_SCRIPT) for connections in CONNECTIONS}
        return HttpRound(server.start_s, memory_mb, len(pids), loads)


def environment_of(peer: Peer, folder: Path) -> dict[str, str]:
    """The environment variables of the peer's processes: what every server gets, a home of its own, and the peer's."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TERM", "TMPDIR") if name in os.environ}
    path = f"{Path(peer.python).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    homes = {"HEADRACE_HOME": str(folder / "headrace"), "BENTOML_HOME": str(folder / "bentoml")}
    return {**kept, **homes, "PATH": path, "PYTHONUNBUFFERED": "1", **peer.env}


@dataclass(frozen=True)
class Server:
    """One that runs: the seconds from its command to its first right answer, and where it listens."""

    start_s: float
    port: int
    second_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


Ready = Callable[[subprocess.Popen[bytes], Server], None]


@contextmanager
def running(peer: Peer, question: Question | None = None, ready: Ready | None = None) -> Iterator[Server]:
    """The peer's server, once it answers the question rightly, or once `ready` (for no HTTP) has come back."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder) / "log.txt"
        port, second_port = peer.port or _free_port(), _free_port()
        _check_free(port)
        with log.open("wb") as output:
            began = time.perf_counter()
            server = subprocess.Popen(
                peer.command_line(port, second_port),
                cwd=peer.working_folder,
                env=environment_of(peer, Path(folder)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                if question is not None:
                    _wait_for_answer(server, port, question)
                if ready is not None:
                    ready(server, Server(0.0, port, second_port))
                yield Server(time.perf_counter() - began, port, second_port)
            except (PeerFailed, load.LoadFailed) as error:
                raise PeerFailed(f"{error}{_last_words(log)}") from None
            finally:
                processes.stop_all(server.pid, STOP_GRACE_S)


def _check_free(port: int) -> None:
    """Raises PeerFailed when something listens on the port already: its figures would be taken for the peer's."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise PeerFailed(f"port {port} is taken by another process")


def _wait_for_answer(server: subprocess.Popen[bytes], port: int, question: Question) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    seen = "nothing listened"
    while time.monotonic() < end:
        if server.poll() is not None:
            raise PeerFailed(f"ended with status {server.returncode} before it answered")
        try:
            status, body = ask(port, question.path, question.body)
        except (OSError, http.client.HTTPException) as error:
            seen = f"{type(error).__name__}: {error}"
            time.sleep(0.005)
            continue
        if status == 200:
            if not question.right(body):
                raise PeerFailed(f"answers {body[:100]!r} at {question.path}, where {question.answer} is right")
            return
        seen = f"status {status}: {body[:100]!r}"
        time.sleep(0.005)
    raise PeerFailed(f"did not answer within {START_TIMEOUT_S:.0f} s ({seen})")


def check_answer(port: int, question: Question) -> None:
    """Raises PeerFailed when the running server does not answer the question rightly."""
    try:
        status, body = ask(port, question.path, question.body)
    except (OSError, http.client.HTTPException) as error:
        raise PeerFailed(f"{question.path}: {type(error).__name__}: {error}") from None
    if status != 200 or not question.right(body):
        raise PeerFailed(f"answers {status} {body[:100]!r} at {question.path}, where {question.answer} is right")


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of one request: a POST of JSON, or a GET without a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        headers = {} if body is None else {"content-type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def loaded(url: str, connections: int, seconds: float, script: Path | None = None) -> LoadFigures:
    """What wrk sees, and what the server's processes use meanwhile. Raises PeerFailed when one in a hundred fails."""
    return costed(lambda: load.run_wrk(url, connections, seconds, script), f"at {connections} connections")


def costed(run: Callable[[], load.Load], where: str) -> LoadFigures:
    """A load, with the CPU time that all processes below this one but the load's own took for each request."""
    before = processes.cpu_s(processes.descendants())
    seen = run()
    after = processes.cpu_s(processes.descendants())
    if seen.requests == 0:
        raise PeerFailed(f"answered nothing {where}")
    if seen.failed > seen.requests // 100:
        raise PeerFailed(f"{seen.failed} of {seen.requests} requests failed {where}")
    used_s = sum(time_s - before.get(pid, 0.0) for pid, time_s in after.items())
    return LoadFigures(seen.rate, seen.p50_us, used_s * 1e6 / seen.requests, seen.failed)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"; it last said: {lines[-1][:200]}" if lines else ""
