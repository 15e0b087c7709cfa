"""Shadow traffic: what requests wait longer when all are mirrored to a revision that is twice as slow: `shadow`.

In: the section's entrant. Out: `SHADOW`: latencies of independent requests without and with the shadow, in turns in
one instance, and the medians over the turns of how they compare.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence

from bench import arrivals
from bench.arrivals import Arrival
from bench.instance import wait_for
from bench.open_loop import OpenLoop
from bench.peers import Peer
from bench.results import Measured
from bench.section import Column, Section
from bench.server import PeerFailed, Question, ask, running

RATE = 200.0
ROUNDS = 10
REPORTED_S = 1.5  # no news for so long: there is none
QUESTION = Question("/", None, lambda body: bool(json.loads(body) == {"done": True}), "done")
SHARES = ((0.5, "p50"), (0.99, "p99"))


def offer(port: int, seconds: float, seed: int) -> Sequence[float]:
    """The seconds that each of the requests took. Raises PeerFailed when one is not answered."""

    def get(arrival: Arrival, lag_s: float) -> bytes:
        return b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n"

    outcomes = asyncio.run(OpenLoop(port, arrivals.poisson(RATE, seconds, 0.0, seed), get).run())
    took_s = [one.took_s for one in outcomes if one.status == 200]
    if len(took_s) < len(outcomes):
        raise PeerFailed(f"{len(outcomes) - len(took_s)} of {len(outcomes)} requests failed")
    return took_s


def told(control_port: int, path: str = "/") -> list[int]:
    """What the control port tells."""
    status, body = ask(control_port, path)
    if status != 200:
        raise PeerFailed(f"the shadow: {status} {body[:100]!r}")
    counts: list[int] = json.loads(body)
    return counts


def settled(control_port: int) -> list[int]:
    """What became of mirrored requests, when all that there were are counted: ingresses report now and then."""
    counts = told(control_port)[1:]
    since = time.monotonic()
    while time.monotonic() < since + REPORTED_S:
        time.sleep(0.1)
        before, counts = counts, told(control_port)[1:]
        if counts != before:
            since = time.monotonic()
    return counts


def listens(control_port: int) -> bool:
    """Whether both revisions are deployed."""
    try:
        return bool(told(control_port))
    except ConnectionRefusedError:
        return False


def turn(port: int, control_port: int, shadow: bool, seconds: float, seed: int) -> tuple[Sequence[float], list[int]]:
    """Requests with or without the shadow, and what became of those that were mirrored."""
    told(control_port, "/on" if shadow else "/off")
    wait_for(lambda: told(control_port)[0] == 1 + shadow, "the shadow is there, or gone")
    offer(port, 0.5, 0)  # not counted: connections open
    before = settled(control_port)
    took_s = offer(port, seconds, seed)
    return took_s, [late - early for early, late in zip(before, settled(control_port), strict=True)]


def measure(peer: Peer, seconds: float) -> Measured:
    """The same arrivals without and with the shadow, one after the other, in alternating order."""
    seen: dict[str, list[float]] = {}
    mirrored = [0] * 5
    with running(peer, QUESTION) as server:
        wait_for(lambda: listens(server.second_port), "both revisions are deployed")
        for number in range(ROUNDS):
            times: dict[bool, Sequence[float]] = {}
            for shadow in (False, True) if number % 2 == 0 else (True, False):
                times[shadow], counts = turn(server.port, server.second_port, shadow, max(2.0, 2 * seconds), number + 1)
                if shadow:
                    mirrored = [sum(pair) for pair in zip(mirrored, counts, strict=True)]
            for share, name in SHARES:
                without, with_it = (arrivals.quantile(times[shadow], share) * 1e3 for shadow in (False, True))
                seen.setdefault(f"{name}_ms", []).append(without)
                seen.setdefault(f"{name}_shadowed_ms", []).append(with_it)
                seen.setdefault(f"{name}_ratio", []).append(with_it / without)
    figures = {name: statistics.median(values) for name, values in seen.items()}
    sent, skipped, failed, compared, differed = mirrored
    figures["mirrored"] = sent / max(1, sent + skipped)
    figures["differed"] = (failed + differed) / max(1, compared + failed)
    return Measured(figures)


SHADOW = Section(
    "shadow",
    "A shadow twice as slow",
    f"A model that waits 5 ms, and a shadow of all its requests that waits 10 ms. Poisson arrivals at {RATE:g}/s, in "
    f"an open loop; {ROUNDS} turns without and with the shadow, in one instance; the ratios are medians over turns.",
    (
        Peer(
            "headrace",
            "Headrace",
            ("{python}", "{apps}/shadow_app.py", "{port}", "{second_port}"),
            None,
        ),
    ),
    (
        Column("p50_ms", "p50", " ms"),
        Column("p50_shadowed_ms", "with the shadow", " ms"),
        Column("p50_ratio", "ratio", " ×"),
        Column("p99_ms", "p99", " ms"),
        Column("p99_shadowed_ms", "with the shadow", " ms"),
        Column("p99_ratio", "ratio", " ×"),
        Column("mirrored", "mirrored", " %", 100),
    ),
    measure,
    once=True,
)
