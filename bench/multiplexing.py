"""Two hundred small models, and a hot one among cold ones: the sections `multiplexing` and `hot-model`.

The models are those of `apps/ridge.py`. In: the sections' entrants. Out: `MULTIPLEXING`: how long the first answer of
each model takes, the memory of all, latencies under skewed load; `HOT_MODEL`: how many replicas load a model that one
of them is too few for, and what requests for loaded models notice of others being loaded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import random
import time
from collections.abc import Mapping, Sequence

from bench import arrivals, load, processes
from bench.arrivals import Arrival, Outcome
from bench.batching import headrace
from bench.fastapi_apps import uvicorn
from bench.open_loop import OpenLoop
from bench.peers import WEB, Peer
from bench.results import Measured
from bench.section import Column, Section
from bench.server import PeerFailed, Question, Server, ask, running

MODELS = 200
KEPT = 80  # by each of three replicas
SKEW = 1.1  # the k-th model is asked for as often as 1/k**SKEW
RATE = 400.0
PROCESSES = 8  # of one model each are measured, for an estimate of MODELS
SEED = 1
BODY = json.dumps({"x": [0.5] * 100}).encode()
HEADER = "serve_multiplexed_model_id"

HOT = "hot"
HOT_RATE = 600.0  # half as many again as one replica of the busy deployment answers
COLD_RATE, COLD_MODELS = 50.0, 60
NEW_RATE = 5.0  # models that nobody has asked for before, each 200 ms to load


def right(body: bytes) -> bool:
    return isinstance(json.loads(body)["y"], int)


NONE_LOADED = Question("/loads", None, lambda body: bool(json.loads(body) == []), "no models")
ANSWER = Question("/", BODY, right, "a number")


def first_answers(port: int, models: Sequence[str]) -> list[float]:
    """The seconds to the first answer of each, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    took_s = []
    for model in models:
        began = time.perf_counter()
        connection.request("POST", "/", BODY, {"content-type": "application/json", HEADER: model})
        response = connection.getresponse()
        body = response.read()
        took_s.append(time.perf_counter() - began)
        if response.status != 200 or not right(body):
            raise PeerFailed(f"model {model}: {response.status} {body[:100]!r}")
    connection.close()
    return took_s


def zipf(count: int, skew: float) -> list[float]:
    """How often each of so many is asked for, the first the most often; 1 in all."""
    weights = [1 / rank**skew for rank in range(1, count + 1)]
    return [weight / sum(weights) for weight in weights]


def skewed(rate: float, seconds: float, names: Sequence[str], seed: int) -> dict[Arrival, str]:
    """Independent arrivals, and the model that each asks for."""
    chance, shares = random.Random(seed), zipf(len(names), SKEW)
    schedule = arrivals.poisson(rate, seconds, 0.0, seed)
    return dict(zip(schedule, chance.choices(names, shares, k=len(schedule)), strict=True))


def ask_models(port: int, wanted: Mapping[Arrival, str]) -> list[Outcome]:
    """Ask for each arrival's model when it is due. Raises PeerFailed when more than one request in a hundred fails."""

    def request(arrival: Arrival, lag_s: float) -> bytes:
        head = f"POST / HTTP/1.1\r\nhost: bench\r\n{HEADER}: {wanted[arrival]}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY

    schedule = sorted(wanted, key=lambda arrival: arrival.due_s)
    outcomes = asyncio.run(OpenLoop(port, schedule, request).run())
    failed = sum(one.status != 200 for one in outcomes)
    if failed > len(outcomes) / 100:
        raise PeerFailed(f"{failed} of {len(outcomes)} requests failed")
    return outcomes


def notes(server: Server) -> list[tuple[str, str, str]]:
    """What the replicas have loaded and dropped: what, model, process."""
    status, body = ask(server.port, "/loads")
    if status != 200:
        raise PeerFailed(f"/loads: {status} {body[:100]!r}")
    return [(what, model, process) for what, model, process in json.loads(body)]


def replicas_with(model: str, seen: Sequence[tuple[str, str, str]]) -> int:
    """How many processes have the model, after all this."""
    held = set[str]()
    for what, of, process in seen:
        if of == model:
            (held.add if what == "loaded" else held.discard)(process)
    return len(held)


def quantiles_ms(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """p50 and p99 of those that were answered."""
    took_s = [one.took_s for one in outcomes if one.status == 200]
    return arrivals.quantile(took_s, 0.5) * 1e3, arrivals.quantile(took_s, 0.99) * 1e3


def measure_many(peer: Peer, seconds: float) -> Measured:
    """All models one after the other, the memory of everything then, and a skewed load."""
    if peer.name == "fastapi":
        return measure_processes(peer)
    names = [f"m{number}" for number in range(MODELS)]
    figures: dict[str, float] = {}
    with running(peer, NONE_LOADED) as server:
        took_s = first_answers(server.port, names)
        figures["first_p50_ms"] = arrivals.quantile(took_s, 0.5) * 1e3
        figures["first_p99_ms"] = arrivals.quantile(took_s, 0.99) * 1e3
        figures["memory_mb"] = processes.pss_mb(processes.descendants())
        before = len(notes(server))
        outcomes = ask_models(server.port, skewed(RATE, max(3.0, min(20.0, 4 * seconds)), names, SEED))
        figures["p50_ms"], figures["p99_ms"] = quantiles_ms(outcomes)
        figures["loads"] = sum(what == "loaded" for what, _, _ in notes(server)[before:])
    return Measured(figures)


def measure_processes(peer: Peer) -> Measured:
    """What a process takes to its first answer, and MODELS of them in memory, by some of them."""
    with running(peer, ANSWER) as server:
        figures = {"first_p50_ms": server.start_s * 1e3}
    several = dataclasses.replace(peer, env={**peer.env, "WEB_CONCURRENCY": str(PROCESSES)})
    with running(several, ANSWER) as server:
        load.run_wrk(server.url + "/", 4 * PROCESSES, 1)  # until all have come up; a GET, which is refused
        figures["memory_mb"] = processes.pss_mb(processes.descendants()) / PROCESSES * MODELS
    return Measured(figures)


def busy_load(seconds: float, cold: Sequence[str], new: Sequence[str], seed: int) -> dict[Arrival, str]:
    """The hot model, the cold ones, and each of the new ones once."""
    wanted = dict.fromkeys(arrivals.poisson(HOT_RATE, seconds, 0.0, seed), HOT)
    wanted |= skewed(COLD_RATE, seconds, cold, seed + 1)
    wanted |= {Arrival((number + 0.5) * seconds / len(new), False): name for number, name in enumerate(new)}
    return wanted


def measure_hot(peer: Peer, seconds: float) -> Measured:
    """The hot model among cold ones, without and with others being loaded meanwhile."""
    seconds = max(3.0, min(20.0, 5 * seconds))
    cold = [f"m{number}" for number in range(COLD_MODELS)]
    new = [f"slow{number}" for number in range(round(NEW_RATE * seconds))]
    figures: dict[str, float] = {}
    with running(peer, NONE_LOADED) as server:
        first_answers(server.port, [HOT, *cold])
        ask_models(server.port, busy_load(2.0, cold, [], SEED))  # not counted: the hot model spreads
        figures["replicas"] = replicas_with(HOT, notes(server))
        for name, extra, seed in (("quiet", list[str](), 11), ("loading", new, 21)):
            wanted = busy_load(seconds, cold, extra, seed)
            outcomes = ask_models(server.port, wanted)
            there = [one for one in outcomes if wanted[one.arrival] not in extra]
            figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"] = quantiles_ms(there)
        figures["slowed"] = figures["loading_p99_ms"] / figures["quiet_p99_ms"]
    return Measured(figures)


def many(name: str, title: str, replicas: int, kept: int) -> Peer:
    return headrace(name, title, "multiplexing_app:app", BENCH_REPLICAS=str(replicas), BENCH_MODELS=str(kept))


MULTIPLEXING = Section(
    "multiplexing",
    "Two hundred small models",
    f"{MODELS} models of 100 KB that take 20 ms to load (`bench/apps/ridge.py`): the first answer of each, the memory "
    f"of all processes with all models loaded, then Poisson arrivals at {RATE:g}/s in an open loop for models by "
    f"Zipf's law (exponent {SKEW}). Three replicas keep {KEPT} each. For a process a model: the first answer from its "
    f"command on, and {MODELS} times the memory of one of {PROCESSES}.",
    (
        many("headrace", "Headrace, one replica", 1, MODELS),
        many("headrace-three", f"Headrace, three replicas of {KEPT} models", 3, KEPT),
        Peer("fastapi", "FastAPI, a process a model", uvicorn("multiplexing_fastapi:app"), WEB, package="fastapi"),
    ),
    (
        Column("first_p50_ms", "first answer, p50", " ms"),
        Column("first_p99_ms", "p99", " ms"),
        Column("memory_mb", "memory (PSS)", " MB"),
        Column("p50_ms", "skewed load: p50", " ms"),
        Column("p99_ms", "p99", " ms"),
        Column("loads", "loads meanwhile"),
    ),
    measure_many,
    once=True,
)

HOT_MODEL = Section(
    "hot-model",
    "A hot model among cold ones",
    f"Three replicas of at most {KEPT} models, four calls of 10 ms at a time each: {HOT_RATE:g} requests a second for "
    f"one model, {COLD_RATE:g} for {COLD_MODELS} others by Zipf's law; then the same while {NEW_RATE:g} more models a "
    "second are asked for once, that take 200 ms to load. Latencies are those of requests for models that are loaded.",
    (headrace("headrace", "Headrace", "multiplexing_app:busy", BENCH_REPLICAS="3", BENCH_MODELS=str(KEPT)),),
    (
        Column("replicas", "replicas with the hot model"),
        Column("quiet_p50_ms", "p50", " ms"),
        Column("quiet_p99_ms", "p99", " ms"),
        Column("loading_p50_ms", "while others load: p50", " ms"),
        Column("loading_p99_ms", "p99", " ms"),
        Column("slowed", "p99 grows", " ×"),
    ),
    measure_hot,
)
