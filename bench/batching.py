"""A model that batches, at 20 requests a second and at its limit, beside who batches too: the section `batching`.

The model (`apps/batch_model.py`) takes 2 ms and 0.05 ms for each vector of a batch, without CPU, in every server. In:
the section's entrants. Out: `BATCHING`: latencies of a few independent requests, and answers a second under many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import arrivals, load, processes
from bench.arrivals import Arrival, Outcome
from bench.load import LoadFailed
from bench.open_loop import OpenLoop, run_exact
from bench.peers import APPS, LISTEN, RAY_ENV, RAY_FAST_ENV, Peer
from bench.results import Measured
from bench.section import Column, Section
from bench.server import ANSWER, REQUEST, SUM_SCRIPT, PeerFailed, Question, Server, ask, running, sum_question

RATE = 20.0  # where nearly every request finds the model idle
CONNECTIONS = (128, 512)  # at its limit; the better of them counts
MOST = max(CONNECTIONS)
SIZES = (8, 16, 32, 64, 128, 256)  # of the fixed batches, of which the best counts
SEED = 1
FIXED = "headrace-fixed"
OF_ONE = {"bentoml", "bentoml-60s"}  # their route takes a batch, so a request is a batch of one
OF_ONE_SCRIPT = load.SCRIPTS / "post_of_one.lua"
OF_ONE_BODY = b'{"x": [[1.0,2.0,3.0,4.0]]}'
SHARED = {"PYTHONPATH": str(APPS)}  # batch_model


@dataclass(frozen=True)
class Full:
    """A server at its limit: right answers a second, the share of failed ones, the CPU time of all its processes."""

    rate: float
    failed_share: float
    cpu_us: float


def question_of(peer: Peer) -> tuple[Question, Path]:
    """What the entrant is asked, by hand and by wrk."""
    if peer.name not in OF_ONE:
        return sum_question(peer.path), SUM_SCRIPT
    right = [ANSWER["y"]]
    question = Question(peer.path, OF_ONE_BODY, lambda body: bool(json.loads(body) == right), json.dumps(right))
    return question, OF_ONE_SCRIPT


def a_few(port: int, question: Question, seconds: float) -> Sequence[Outcome]:
    """Independent requests, RATE of them a second. Raises PeerFailed when more than half of them fail."""
    body = question.body or b""
    lines = ["POST " + question.path + " HTTP/1.1", "host: bench", "content-type: application/json"]
    request = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body

    def the_same(arrival: Arrival, lag_s: float) -> bytes:
        return request

    outcomes = run_exact(OpenLoop(port, arrivals.poisson(RATE, seconds, 0.0, SEED), the_same))
    failed = sum(outcome.status != 200 for outcome in outcomes)
    if failed > len(outcomes) / 2:
        raise PeerFailed(f"{failed} of {len(outcomes)} requests failed at {RATE:g}/s")
    return outcomes


def full(url: str, script: Path, seconds: float, connections: int) -> Full:
    """So many connections, each with a request under way at any time."""
    before = processes.cpu_s(processes.descendants())
    seen = load.run_wrk(url, connections, seconds, script)
    after = processes.cpu_s(processes.descendants())
    used_s = sum(time_s - before.get(pid, 0.0) for pid, time_s in after.items())
    asked = max(1, seen.requests)
    failed_share = min(1.0, seen.failed / asked)
    return Full(seen.rate * (1 - failed_share), failed_share, used_s * 1e6 / asked)


def at_its_limit(url: str, script: Path, seconds: float) -> Full:
    """The better of CONNECTIONS. Raises LoadFailed when wrk can tell nothing of any of them."""
    found, reason = [], LoadFailed("")
    for connections in CONNECTIONS:
        try:
            found.append(full(url, script, seconds, connections))
        except LoadFailed as error:  # a slow server answers none of so many in the time
            reason = error
        time.sleep(0.2)
    if not found:
        raise reason
    return max(found, key=lambda one: one.rate)


def best_of_sizes(server: Server, seconds: float) -> tuple[Full, int]:
    """At its limit with batches of each of the fixed sizes; the best, and its size, which is left set."""
    found = []
    for size in SIZES:
        set_size(server, size)
        found.append((full(server.url + "/", SUM_SCRIPT, seconds, MOST), size))
    best, size = max(found, key=lambda one: one[0].rate)
    set_size(server, size)
    return best, size


def set_size(server: Server, size: int) -> None:
    status, body = ask(server.port, "/", json.dumps({"size": size}).encode())
    if status != 200:
        raise PeerFailed(f"the size of batches could not be set: {status} {body[:100]!r}")


def measure(peer: Peer, seconds: float) -> Measured:
    """A few requests, then as many as it answers."""
    question, script = question_of(peer)
    figures: dict[str, float] = {}
    with running(peer, question) as server:
        url = server.url + peer.path
        load.run_wrk(url, 32, 1, script)  # warms caches and connections; not counted
        if peer.name == FIXED:
            best, figures["size"] = best_of_sizes(server, seconds)
        time.sleep(0.5)  # what wrk has left behind is answered
        outcomes = a_few(server.port, question, max(4.0, 4 * seconds))
        took_s = [outcome.took_s for outcome in outcomes if outcome.status == 200]
        figures["failed_of_few"] = 1 - len(took_s) / len(outcomes)
        figures["p50_ms"] = arrivals.quantile(took_s, 0.5) * 1e3
        figures["p99_ms"] = arrivals.quantile(took_s, 0.99) * 1e3
        if peer.name != FIXED:
            best = at_its_limit(url, script, seconds)
    figures |= {"full": best.rate, "failed_share": best.failed_share, "cpu_us": best.cpu_us}
    return Measured(figures)


def headrace(name: str, title: str, target: str, **env: str) -> Peer:
    command = ("{bin}/headrace", "run", target, "--app-dir", "bench/apps", *LISTEN)
    return Peer(name, title, command, None, env=env)


MOSEC = ("{python}", "batching.py", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning")
BENTOML = ("{bin}/bentoml", "serve", "batching:Model", *LISTEN)
BENTOML_ENV = {
    **SHARED,
    "BENTOML_DO_NOT_TRACK": "True",
    "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
}
SCRIPT = ("{python}", "batching.py", "{port}")
PEERS = ("mosec", "litserve", "bentoml", "bentoml-60s", "ray", "ray-fast")

BATCHING = Section(
    "batching",
    "A model that batches",
    "A batch of n takes 2 ms + 0.05 ms × n of waiting, as for an accelerator (`bench/apps/batch_model.py`), and one "
    f"batch at a time; JSON over HTTP. At {RATE:g}/s requests come when a Poisson process says; at its limit wrk keeps "
    f"{CONNECTIONS[0]} or {CONNECTIONS[1]} connections busy, and the better counts. Errors are no answers. Headrace's "
    "batches are at most 256, a row has 32 as the peers have; fixed sizes are waited for up to 10 ms, and the row is "
    f"that of the best of {', '.join(map(str, SIZES))}.",
    (
        headrace("headrace", "Headrace", "batching_headrace:app"),
        headrace("headrace-32", "Headrace, batches of at most 32", "batching_headrace:app", BENCH_MAX_BATCH="32"),
        headrace(FIXED, "Headrace, the best fixed size", "batching_headrace:fixed"),
        headrace("headrace-bare", "Headrace, without batches", "batching_headrace:bare"),
        Peer("mosec", "Mosec, 32, 10 ms", MOSEC, "mosec", path="/inference", env=SHARED),
        Peer("litserve", "LitServe, 32, 10 ms", SCRIPT, "litserve", path="/predict", env=SHARED),
        Peer(
            "bentoml",
            "BentoML, 32, 10 ms",
            BENTOML,
            "bentoml",
            path="/total",
            env={**BENTOML_ENV, "BENCH_MAX_LATENCY_MS": "10"},
        ),
        Peer(
            "bentoml-60s",
            "BentoML, 32, its own 60 s",
            BENTOML,
            "bentoml",
            path="/total",
            env={**BENTOML_ENV, "BENCH_MAX_LATENCY_MS": "60000"},
        ),
        Peer("ray", "Ray Serve, default, 32, 10 ms", SCRIPT, "ray", env={**RAY_ENV, **SHARED}),
        Peer("ray-fast", "Ray Serve, throughput flags, 32, 10 ms", SCRIPT, "ray", env={**RAY_FAST_ENV, **SHARED}),
    ),
    (
        Column("p50_ms", f"{RATE:g}/s: p50", " ms"),
        Column("p99_ms", "p99", " ms"),
        Column("failed_of_few", "errors", " %", 100),
        Column("full", "at its limit/s"),
        Column("failed_share", "errors", " %", 100),
        Column("cpu_us", "CPU a request", " µs"),
    ),
    measure,
    picture=frozenset({"ray"}),
    compare="full",
)
assert json.loads(REQUEST) == {"x": json.loads(OF_ONE_BODY)["x"][0]}
