"""Hedged calls, where one replica of four stalls now and then, and where all are slow: the section `hedging`.

In: the section's entrants. Out: `HEDGING`: latencies of independent requests without and with hedging, and how many
calls more the replicas have for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from bench import arrivals
from bench.arrivals import Arrival, Outcome
from bench.batching import headrace
from bench.open_loop import OpenLoop
from bench.peers import Peer
from bench.results import Measured
from bench.section import Column, Section
from bench.server import PeerFailed, Question, ask, running

REPLICAS, AT_ONCE, SERVICE_S, STALL = 4, 4, 0.010, 20  # as the application has it
CAPACITY = REPLICAS * AT_ONCE / SERVICE_S
SHARE = 0.4  # of it, that is asked
SEED = 1
QUESTION = Question("/", None, lambda body: bool(json.loads(body) == {"done": True}), "done")


def begun(port: int) -> tuple[int, int]:
    """How many calls the replicas have begun, and of how many requests."""
    status, body = ask(port, "/calls")
    if status != 200:
        raise PeerFailed(f"/calls: {status} {body[:100]!r}")
    calls, requests = json.loads(body)
    return calls, requests


def offer(port: int, name: str, seconds: float, patience_s: float = 3.0) -> tuple[Sequence[Outcome], float]:
    """Independent requests; what came of them, and how many calls more than requests the replicas began, as a share.

    `name` makes the requests' keys differ from those of other offers.
    """

    def get(arrival: Arrival, lag_s: float) -> bytes:
        return f"GET /?{name}{arrival.due_s} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()

    calls_before, requests_before = begun(port)
    schedule = arrivals.poisson(SHARE * CAPACITY, seconds, 0.0, SEED)
    outcomes = asyncio.run(OpenLoop(port, schedule, get, patience_s=patience_s).run())
    calls, requests = begun(port)
    return outcomes, (calls - calls_before) / max(1, requests - requests_before) - 1


def measure(peer: Peer, seconds: float) -> Measured:
    """Stalls of one replica, then all of them slow: at the same rate, far more than they can do then."""
    figures: dict[str, float] = {}
    with running(peer, QUESTION) as server:
        offer(server.port, "first", 1.0)  # not counted: latencies are learned
        outcomes, figures["extra"] = offer(server.port, "stalls", max(4.0, min(30.0, 8 * seconds)))
        took_s = [one.took_s for one in outcomes if one.status == 200]
        if len(took_s) < 0.99 * len(outcomes):
            raise PeerFailed(f"{len(outcomes) - len(took_s)} of {len(outcomes)} requests failed")
        for share, name in ((0.5, "p50_ms"), (0.99, "p99_ms"), (0.999, "p999_ms")):
            figures[name] = arrivals.quantile(took_s, share) * 1e3
        ask(server.port, "/slow")
        offer(server.port, "becoming-slow", 1.0, 0.5)  # not counted
        _, figures["slow_extra"] = offer(server.port, "slow", 2.0, 0.5)
    return Measured(figures)


HEDGING = Section(
    "hedging",
    "One replica of four stalls",
    f"A model of {SERVICE_S * 1e3:g} ms in {REPLICAS} replicas, {AT_ONCE} calls at a time each; one of them takes "
    f"{STALL} times as long for 2 % of its calls. Poisson arrivals at {SHARE:.0%} of what the replicas can do "
    f"({SHARE * CAPACITY:g}/s), in an open loop. Then every call of every replica takes {STALL} times as long.",
    (
        headrace("headrace", "Headrace, hedge=True", "hedging_app:app"),
        headrace("headrace-without", "Headrace, without", "hedging_app:without"),
    ),
    (
        Column("p50_ms", "p50", " ms"),
        Column("p99_ms", "p99", " ms"),
        Column("p999_ms", "p99.9", " ms"),
        Column("extra", "calls more", " %", 100),
        Column("slow_extra", "all slow: calls more", " %", 100),
    ),
    measure,
)
