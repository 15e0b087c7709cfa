"""The budgets that the project holds itself to, and whether a run met them.

In: `Results`. Out: `Verdict`s, in the order of the design; a budget whose figures are missing is not met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import batching
from bench.results import Results

Figure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Budget:
    """One promise: `figure` of a run is at least, or at most, `limit` (in `unit`)."""

    what: str
    figure: Figure
    limit: float
    unit: str
    at_least: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a budget: the figure (None: not measured) and whether it is met."""

    budget: Budget
    figure: float | None
    met: bool


def _rate(peer: str, connections: int) -> Figure:
    return lambda results: results.http(peer, lambda seen: seen.loads[connections].rate)


def _p50(peer: str, connections: int) -> Figure:
    return lambda results: results.http(peer, lambda seen: seen.loads[connections].p50_us)


def _ratio(over: Figure, under: Figure) -> Figure:
    def figure(results: Results) -> float | None:
        a, b = over(results), under(results)
        return None if a is None or not b else a / b

    return figure


def _noop(against: str, title: str, limit: float) -> Budget:
    what = f"no-op JSON over HTTP, 32 connections: requests/s against {title}"
    return Budget(what, _ratio(_rate("headrace", 32), _rate(against, 32)), limit, " ×", True)


def _of(section: str, entrant: str, name: str) -> Figure:
    return lambda results: results.figure(section, entrant, name)


def _best(*figures: Figure) -> Figure:
    """The highest of those that were measured."""

    def figure(results: Results) -> float | None:
        values = [value for one in figures if (value := one(results)) is not None]
        return max(values) if values else None

    return figure


def _least(*figures: Figure) -> Figure:
    """The lowest of those that were measured."""

    def figure(results: Results) -> float | None:
        values = [value for one in figures if (value := one(results)) is not None]
        return min(values) if values else None

    return figure


def _against(section: str, entrant: str, name: str, what: str, limit: float) -> Budget:
    return Budget(what, _ratio(_of(section, "headrace", name), _of(section, entrant, name)), limit, " ×", True)


def _stream(name: str, what: str) -> Budget:
    return _against("http-streams", "fastapi", name, f"StreamingResponse of 100 chunks, {what}: against uvicorn", 1.0)


def _of_batching_peers(name: str) -> list[Figure]:
    return [_of("batching", peer, name) for peer in batching.PEERS]


def _percent(figure: Figure) -> Figure:
    def percent(results: Results) -> float | None:
        value = figure(results)
        return None if value is None else 100 * value

    return percent


BUDGETS = (
    _noop("fastapi", "FastAPI on uvicorn", 4.0),
    _noop("mosec32", "Mosec with batches of 32", 1.1),
    _noop("uvicorn", "uvicorn with a bare ASGI function", 1.0),
    _noop("nohop", "the handler without a hop", 0.45),
    Budget(
        "the same, one connection: p50 against the handler without a hop",
        _ratio(_p50("headrace", 1), _p50("nohop", 1)),
        1.6,
        " ×",
        False,
    ),
    Budget(
        "server CPU for each such request, all processes (32 connections)",
        lambda results: results.http("headrace", lambda seen: seen.loads[32].cpu_us),
        25.0,
        " µs",
        False,
    ),
    Budget(
        "handle call in sequence from a coroutine in a replica: p50",
        lambda results: results.call("headrace", lambda seen: seen.sequence_us),
        100.0,
        " µs",
        False,
    ),
    Budget(
        "handle call in sequence by .result() from a script: p50",
        lambda results: results.call("headrace", lambda seen: seen.result_us),
        150.0,
        " µs",
        False,
    ),
    Budget(
        "handle calls, 64 at once: calls/s",
        lambda results: results.call("headrace", lambda seen: seen.at_once_per_s),
        25_000.0,
        "/s",
        True,
    ),
    Budget(
        "10 MB array as an argument, same host: p50",
        lambda results: results.call("headrace", lambda seen: seen.array_10mb_us / 1000),
        1.0,
        " ms",
        False,
    ),
    Budget(
        "start: `headrace run` to the first 200",
        lambda results: results.http("headrace", lambda seen: seen.start_s),
        1.0,
        " s",
        False,
    ),
    Budget(
        "memory of an idle instance with a no-op model, all processes (PSS)",
        lambda results: results.http("headrace", lambda seen: seen.memory_mb),
        150.0,
        " MB",
        False,
    ),
    _against("asgi", "fastapi", "rate_32", "FastAPI application, 32 connections: requests/s against uvicorn", 0.9),
    Budget(
        "10 KB through a FastAPI ingress to a second deployment, 32 connections: requests/s against Ray Serve's best",
        _ratio(
            _of("composed", "headrace", "rate_32"),
            _best(_of("composed", "ray", "rate_32"), _of("composed", "ray-fast", "rate_32")),
        ),
        5.0,
        " ×",
        True,
    ),
    Budget(
        "streams of 100 items, handle to handle, one at a time: items/s",
        _of("streams", "headrace", "items_1"),
        100_000.0,
        "/s",
        True,
    ),
    _stream("rate_ready_1", "made without await, 1 connection"),
    _stream("rate_ready_32", "made without await, 32 connections"),
    _stream("rate_awaiting_1", "an await between them, 1 connection"),
    _stream("rate_awaiting_32", "an await between them, 32 connections"),
    _against("grpc", "grpcio", "rate_32", "gRPC unary, 32 at once: calls/s against grpcio's asyncio server", 0.8),
    Budget(
        "twice the capacity with deadlines: answered in time, of capacity",
        _percent(_of("overload", "headrace", "in_time_share")),
        90.0,
        " %",
        True,
    ),
    Budget(
        "the same: high priority answered in time",
        _percent(_of("overload", "headrace", "high_in_time_share")),
        100.0,
        " %",
        True,
    ),
    Budget(
        "streams that nobody reads: memory of all processes grows by",
        _of("slow-reader", "headrace", "growth_mb"),
        5.0,
        " MB",
        False,
    ),
    Budget(
        "streams that nobody reads: items made meanwhile",
        _of("slow-reader", "headrace", "made_meanwhile"),
        0.0,
        "",
        False,
    ),
    Budget(
        "a model that batches, 20 requests/s: p50 against the same without batches",
        _ratio(_of("batching", "headrace", "p50_ms"), _of("batching", "headrace-bare", "p50_ms")),
        1.1,
        " ×",
        False,
    ),
    Budget(
        "the same: p50 against the best of Mosec, LitServe, BentoML and Ray Serve",
        _ratio(_of("batching", "headrace", "p50_ms"), _least(*_of_batching_peers("p50_ms"))),
        1.0,
        " ×",
        False,
    ),
    Budget(
        "at its limit: answers/s against the best fixed size",
        _ratio(_of("batching", "headrace", "full"), _of("batching", "headrace-fixed", "full")),
        0.95,
        " ×",
        True,
    ),
    Budget(
        "at its limit: answers/s against the best of the four, in batches of 32",
        _ratio(_of("batching", "headrace", "full"), _best(*_of_batching_peers("full"))),
        1.0,
        " ×",
        True,
    ),
    Budget(
        "the same with batches of at most 32",
        _ratio(_of("batching", "headrace-32", "full"), _best(*_of_batching_peers("full"))),
        1.0,
        " ×",
        True,
    ),
    Budget(
        "target_latency_s, load × 4: batches until misses settle",
        _of("objective", "headrace", "load_settled_after"),
        100.0,
        "",
        False,
    ),
    Budget(
        "target_latency_s, a batch's cost × 3: batches until misses settle",
        _of("objective", "headrace", "cost_settled_after"),
        100.0,
        "",
        False,
    ),
    Budget(
        "one replica of four stalls: p99.9 without hedging against with it",
        _ratio(_of("hedging", "headrace-without", "p999_ms"), _of("hedging", "headrace", "p999_ms")),
        5.0,
        " ×",
        True,
    ),
    Budget("the same: calls more", _percent(_of("hedging", "headrace", "extra")), 5.0, " %", False),
    Budget("all replicas slow: calls more", _percent(_of("hedging", "headrace", "slow_extra")), 0.5, " %", False),
    Budget(
        "200 small models in one replica: memory against a FastAPI process each",
        _ratio(_of("multiplexing", "headrace", "memory_mb"), _of("multiplexing", "fastapi", "memory_mb")),
        0.05,
        " ×",
        False,
    ),
    Budget("replicas with a model that one is too few for", _of("hot-model", "headrace", "replicas"), 2.0, "", True),
    Budget(
        "requests for loaded models while others load: p99 against without loads",
        _of("hot-model", "headrace", "slowed"),
        1.5,
        " ×",
        False,
    ),
    Budget(
        "all requests mirrored to a shadow twice as slow: p50 against without",
        _of("shadow", "headrace", "p50_ratio"),
        1.05,
        " ×",
        False,
    ),
    Budget("the same: p99 against without", _of("shadow", "headrace", "p99_ratio"), 1.15, " ×", False),
)

PEERS_NEEDED = ("headrace", "nohop", "uvicorn", "fastapi", "mosec32")


def judge(results: Results) -> list[Verdict]:
    """Each budget held against the run."""
    verdicts = []
    for budget in BUDGETS:
        figure = budget.figure(results)
        met = figure is not None and (figure >= budget.limit if budget.at_least else figure <= budget.limit)
        verdicts.append(Verdict(budget, figure, met))
    return verdicts
