"""FastAPI applications behind Headrace, each beside who serves the same today: uvicorn, and Ray Serve.

In: the sections' entrants. Out: `ASGI`, `COMPOSED` and `HTTP_STREAMS`: requests a second, median latencies, and the
servers' CPU time for each request.
"""

from __future__ import annotations

import json

from bench import load
from bench.peers import APPS, LISTEN, RAY_ENV, RAY_FAST_ENV, UVICORN_OPTIONS, WEB, Peer
from bench.results import Measured
from bench.section import Column, Section
from bench.server import SUM_SCRIPT, LoadFigures, Question, check_answer, loaded, running, sum_question

FASTEST = ("--loop", "uvloop", "--http", "httptools")
CONNECTIONS = (1, 32)
MESSAGE = "".join(chr(97 + number % 26) for number in range(10_000))  # as scripts/message.lua makes it
MESSAGE_SCRIPT = load.SCRIPTS / "message.lua"
MESSAGE_QUESTION = Question(
    "/",
    json.dumps({"text": MESSAGE}).encode(),
    lambda body: bool(json.loads(body) == {"text": MESSAGE}),
    "the message of 10 KB",
)
CHUNKS = b"".join(b"chunk %02d of a hundred\n" % number for number in range(100))  # as apps/web_app.py makes them


def chunks_question(path: str) -> Question:
    return Question(path, None, lambda body: body == CHUNKS, "a hundred chunks")


def web_peer(name: str, title: str, command: tuple[str, ...], package: str = "") -> Peer:
    return Peer(name, title, command, WEB, package=package)


def headrace_run(target: str) -> tuple[str, ...]:
    return ("{bin}/headrace", "run", target, "--app-dir", "{apps}", *LISTEN)


def uvicorn(target: str) -> tuple[str, ...]:
    return ("{bin}/uvicorn", target, "--app-dir", "{apps}", *LISTEN, *UVICORN_OPTIONS, *FASTEST)


def put(into: Measured, figures: LoadFigures, suffix: str) -> None:
    """Note a load's figures under names that end alike."""
    into.figures[f"rate{suffix}"] = figures.rate
    into.figures[f"p50{suffix}"] = figures.p50_us
    into.figures[f"cpu{suffix}"] = figures.cpu_us


def measure_asgi(peer: Peer, seconds: float) -> Measured:
    """The route with a pydantic body that is a coroutine at 1 and 32 connections, the plain function at 32."""
    measured = Measured({})
    with running(peer, sum_question("/")) as server:
        check_answer(server.port, sum_question("/plain"))
        load.run_wrk(server.url + "/", 32, 1, SUM_SCRIPT)  # warms caches and connections; not counted
        for connections in CONNECTIONS:
            put(measured, loaded(server.url + "/", connections, seconds, SUM_SCRIPT), f"_{connections}")
        put(measured, loaded(server.url + "/plain", 32, seconds, SUM_SCRIPT), "_plain")
    return measured


def measure_composed(peer: Peer, seconds: float) -> Measured:
    """The message through both deployments, at 1 and 32 connections."""
    measured = Measured({})
    with running(peer, MESSAGE_QUESTION) as server:
        load.run_wrk(server.url + "/", 32, 1, MESSAGE_SCRIPT)  # not counted
        for connections in CONNECTIONS:
            put(measured, loaded(server.url + "/", connections, seconds, MESSAGE_SCRIPT), f"_{connections}")
    return measured


def measure_http_streams(peer: Peer, seconds: float) -> Measured:
    """Whole responses of a hundred chunks, made without and with an await between, at 1 and 32 connections."""
    measured = Measured({})
    with running(peer, chunks_question("/chunks")) as server:
        check_answer(server.port, chunks_question("/chunks-awaiting"))
        for path, kind in (("/chunks", "ready"), ("/chunks-awaiting", "awaiting")):
            load.run_wrk(server.url + path, 32, 1)  # not counted
            for connections in CONNECTIONS:
                put(measured, loaded(server.url + path, connections, seconds), f"_{kind}_{connections}")
    return measured


ASGI = Section(
    "asgi",
    "A FastAPI application",
    "The same file with a pydantic body (`bench/apps/web_app.py`) behind Headrace and on one uvicorn worker with "
    "uvloop and httptools, in one environment.",
    (
        web_peer("headrace", "Headrace, `@serve.ingress`", headrace_run("web_headrace:app")),
        web_peer("fastapi", "uvicorn, one worker", uvicorn("web_app:app"), "uvicorn"),
    ),
    (
        Column("rate_1", "1 conn./s"),
        Column("p50_1", "p50", " µs"),
        Column("rate_32", "32 conn./s"),
        Column("p50_32", "p50", " µs"),
        Column("cpu_32", "CPU a request", " µs"),
        Column("rate_plain", "`def` route, 32 conn./s"),
    ),
    measure_asgi,
    compare="rate_32",
)

COMPOSED = Section(
    "composed",
    "A 10 KB message through a FastAPI ingress to a second deployment",
    "JSON with a pydantic body in, a handle call with the text, JSON back; one replica of each, the same file on both "
    "(`bench/apps/composed.py`).",
    (
        web_peer("headrace", "Headrace", headrace_run("composed:app")),
        Peer(
            "ray",
            "Ray Serve, default",
            ("{python}", "{apps}/run_ray.py", "{port}", "composed"),
            "ray",
            env={**RAY_ENV, "PYTHONPATH": str(APPS)},
        ),
        Peer(
            "ray-fast",
            "Ray Serve, throughput flags and HAProxy",
            ("{python}", "{apps}/run_ray.py", "{port}", "composed"),
            "ray",
            env={**RAY_FAST_ENV, "PYTHONPATH": str(APPS)},
        ),
    ),
    (
        Column("rate_1", "1 conn./s"),
        Column("p50_1", "p50", " µs"),
        Column("rate_32", "32 conn./s"),
        Column("p50_32", "p50", " µs"),
        Column("cpu_32", "CPU a request", " µs"),
    ),
    measure_composed,
    picture=frozenset({"ray"}),
    compare="rate_32",
)

HTTP_STREAMS = Section(
    "http-streams",
    "Streams of a hundred small chunks over HTTP",
    "Responses a second, each a `StreamingResponse` of a hundred chunks of 23 bytes in a FastAPI application, the "
    "same file on both; and a handler that is itself a generator. Awaiting: with `await asyncio.sleep(0)` before each.",
    (
        web_peer("headrace", "Headrace, `@serve.ingress`", headrace_run("web_headrace:app")),
        web_peer("headrace-generator", "Headrace, a generator as the handler", headrace_run("web_headrace:generator")),
        web_peer("fastapi", "uvicorn, one worker", uvicorn("web_app:app"), "uvicorn"),
    ),
    (
        Column("rate_ready_1", "1 conn./s"),
        Column("rate_ready_32", "32 conn./s"),
        Column("cpu_ready_32", "CPU a response", " µs"),
        Column("rate_awaiting_1", "awaiting, 1 conn./s"),
        Column("rate_awaiting_32", "awaiting, 32 conn./s"),
        Column("cpu_awaiting_32", "CPU a response", " µs"),
    ),
    measure_http_streams,
    picture=frozenset({"headrace-generator"}),
    compare="rate_ready_32",
)
