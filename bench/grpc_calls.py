"""gRPC on Headrace beside grpcio's own asyncio server: the same service, the same load, one environment.

In: the section's entrants. Out: `GRPC`: unary calls a second by h2load (in C, so that it is the server that is
measured), and what a client in Python sees, which is its own limit before it is the server's.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import msgspec

from bench import load
from bench.calls import figures_in
from bench.peers import APPS, ENVIRONMENTS, WEB, Peer
from bench.results import Measured
from bench.section import Column, Section
from bench.server import PeerFailed, Server, costed, running

CONNECTIONS, STREAMS = 4, 8
CLIENT_TIMEOUT_S = 60.0
GENERATED = ENVIRONMENTS / WEB / "generated"  # what protoc made of echo.proto
METHOD = "/bench.Echo/Say"
PATHS = {"PYTHONPATH": f"{GENERATED}:{APPS}"}


class Wire(msgspec.Struct):
    """One call and its answer as they go over the wire, in hexadecimal."""

    request: str
    reply: str


def measure(peer: Peer, seconds: float) -> Measured:
    """Unary calls at 1 and 32 at once by h2load; a Python client's median latency, calls at 32, streamed replies."""
    generate(peer)
    wires: list[Wire] = []

    def ready(server: subprocess.Popen[bytes], where: Server) -> None:
        wires.append(msgspec.json.decode(client(peer, "check", where.port), type=Wire))
        if server.poll() is not None:
            raise PeerFailed(f"ended with status {server.returncode}")

    with running(peer, ready=ready) as server, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        body, reply_bytes = Path(folder) / "request", len(wires[0].reply) // 2
        body.write_bytes(bytes.fromhex(wires[0].request))

        def run(connections: int, streams: int, seconds: float) -> load.Load:
            return load.run_h2load(server.url + METHOD, connections, streams, seconds, body, reply_bytes)

        run(CONNECTIONS, STREAMS, 1)  # warms caches and connections; not counted
        one = costed(lambda: run(1, 1, seconds), "one at a time")
        many = costed(lambda: run(CONNECTIONS, STREAMS, seconds), f"{CONNECTIONS * STREAMS} at once")
        figures = msgspec.json.decode(client(peer, "measure", server.port, min(seconds, 1.0)), type=dict[str, float])
    figures |= {"rate_1": one.rate, "mean_1": one.p50_us, "rate_32": many.rate, "cpu_32": many.cpu_us}
    return Measured(figures)


def client(peer: Peer, what: str, port: int, seconds: float = 0.0) -> str:
    """What the client in Python prints. It ends by itself, unlike the server beside it."""
    command = [peer.python, str(APPS / "grpc_client.py"), what, str(port), str(seconds)]
    try:
        done = subprocess.run(
            command,
            env=os.environ | PATHS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CLIENT_TIMEOUT_S + seconds * 3,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"the client's {what} was not done within {CLIENT_TIMEOUT_S:.0f} s") from None
    return figures_in(done.stdout, "grpc_client.py", done.returncode)


def generate(peer: Peer) -> None:
    """Make the modules of echo.proto, with the environment's own protoc."""
    GENERATED.mkdir(parents=True, exist_ok=True)
    command = [peer.python, "-m", "grpc_tools.protoc", "-I", str(APPS)]
    command += [f"--python_out={GENERATED}", f"--grpc_python_out={GENERATED}", "echo.proto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerFailed(f"protoc: {done.stderr.strip()[-200:]}")


def script(name: str) -> tuple[str, ...]:
    return ("{python}", f"{{apps}}/{name}", "{port}")


GRPC = Section(
    "grpc",
    "gRPC",
    "Unary calls with a message of 19 bytes by h2load over 4 connections with 8 calls each, and by a client in Python; "
    "replies a second of streams of a hundred. The handler does the same on both (`bench/apps/grpc_*.py`).",
    (
        Peer("headrace", "Headrace", (*script("grpc_headrace.py"), "{second_port}"), WEB, env=PATHS),
        Peer("grpcio", "grpcio's asyncio server", script("grpc_grpcio.py"), WEB, env=PATHS, package="grpcio"),
    ),
    (
        Column("rate_32", "32 at once/s"),
        Column("cpu_32", "CPU a call", " µs"),
        Column("rate_1", "1 at once/s"),
        Column("p50_us", "Python client, p50", " µs"),
        Column("python_32", "Python client, 32 at once/s"),
        Column("stream_items", "streamed replies/s, 32 streams"),
    ),
    measure,
    compare="rate_32",
)
