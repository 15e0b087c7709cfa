"""Batches by an objective, beside fixed ones, when requests become four times as many and dearer: section `objective`.

The model of `batch_model.py` again, twice as slow; requests come in an open loop, and each is in time when it is
answered within a limit from when it was due. In: the section's entrants. Out: `OBJECTIVE`: after how many batches
requests are in time again after a step, what missed, and a course in time as a picture.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence

from bench import arrivals, load, plot
from bench.arrivals import KINDS, Arrival, Outcome
from bench.batching import headrace
from bench.open_loop import OpenLoop
from bench.peers import Peer
from bench.results import Entry, Measured
from bench.section import Column, Drawing, Section
from bench.server import PeerFailed, Question, ask, running
from bench.settling import Phase, look

LIMIT_S = 0.080  # from when a request was due to its answer
TARGET_S = 0.070  # what the batches are told: the rest is for the way
RATE, TIMES = 400.0, 4  # requests a second, and how many times as many after the first step
DEARER = 3  # times the cost of a batch after the second step
PARTS = (0.15, 0.25, 0.4, 0.2)  # of the time: few, many, many and dear, many and cheap again
BIN_S = 0.1
SEED = 1
IDLE = "headrace-idle"  # a row of the table, but not in the picture: it looks like that of the objective
QUESTION = Question("/", b'{"x": [1, 2], "due": -1}', lambda body: bool(json.loads(body) == {"y": 3}), "3")
WARM_SCRIPT = load.SCRIPTS / "post_due.lua"


def phases(seconds: float) -> tuple[Phase, ...]:
    """The parts of a run, each named after the step that it begins with."""
    names = ("base", "load", "cost", "back")
    found, begins_s = [], 0.0
    for name, part in zip(names, PARTS, strict=True):
        found.append(Phase(name, begins_s, begins_s + part * seconds))
        begins_s = found[-1].ends_s
    return tuple(found)


def schedule(seconds: float) -> list[Arrival]:
    """RATE in the first phase, TIMES as many in the others."""
    first, *others = phases(seconds)
    steps = [(RATE, first.ends_s), (TIMES * RATE, seconds - first.ends_s)]
    assert others
    return arrivals.stepped(steps, SEED)


def request(arrival: Arrival, lag_s: float) -> bytes:
    """The request, which says when it was due, so that the model can tell which batch it was in."""
    body = json.dumps({"x": [1.0, 2.0, 3.0, 4.0], "due": arrival.due_s}).encode()
    head = "POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


async def course(port: int, seconds: float) -> list[Outcome]:
    """One run: the steps in load are in the schedule, those in cost are told to the model beforehand.

    Both sides read the same clock, that of the machine since its start.
    """
    _, _, dear, back = phases(seconds)
    began = asyncio.get_running_loop().time() + 1.0
    steps = [[began + dear.begins_s, DEARER], [began + back.begins_s, 1]]
    await asyncio.to_thread(tell, port, {"steps": steps})
    return await OpenLoop(port, schedule(seconds), request).run(began)


def tell(port: int, what: Mapping[str, object]) -> bytes:
    """The answer to something else than a request for the model. A server that was swamped is given time."""
    end = time.monotonic() + 30
    while True:
        try:
            status, body = ask(port, "/", json.dumps(what).encode())
        except TimeoutError:
            status, body = 0, b"no answer within 5 s"
        if status == 200:
            return body
        if time.monotonic() > end:
            raise PeerFailed(f"{next(iter(what))}: {status} {body[:100]!r}")
        time.sleep(0.1)


def measure(peer: Peer, seconds: float) -> Measured:
    """One run of ten seconds (less in a quick one) against one entrant."""
    seconds = max(5.0, min(20.0, 10 * seconds))
    with running(peer, QUESTION) as server:
        load.run_wrk(server.url + "/", 32, 1, WARM_SCRIPT)  # not counted; its requests were due before all others
        outcomes = asyncio.run(course(server.port, seconds))
        batches = json.loads(tell(server.port, {"batches": True}))
    return Measured(figures_of(outcomes, batches, seconds), series_of(outcomes, seconds))


def figures_of(outcomes: Sequence[Outcome], batches: Sequence[Sequence[float]], seconds: float) -> dict[str, float]:
    """What each phase came to, by names that begin alike."""
    figures: dict[str, float] = {}
    for phase in phases(seconds):
        seen = look(phase, outcomes, batches, LIMIT_S)
        figures |= {
            f"{phase.name}_missed": seen.missed,
            f"{phase.name}_missed_late": seen.missed_late,
            f"{phase.name}_p50_ms": seen.p50_s * 1e3,
            f"{phase.name}_p99_ms": seen.p99_s * 1e3,
            f"{phase.name}_batches": seen.batches,
            f"{phase.name}_batch": seen.batch,
            f"{phase.name}_settled_after": seen.settled_after,
        }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def series_of(outcomes: Sequence[Outcome], seconds: float) -> dict[str, list[float]]:
    """Requests a second of each kind; none has a high priority here."""
    found = arrivals.course(outcomes, seconds, LIMIT_S, BIN_S)
    return {kind: found[kind] for kind in KINDS[1:]}


def picture(entries: Mapping[str, Entry]) -> str | None:
    """The section's last round as SVG; None when nothing of it was measured."""
    panels, seconds = [], 0.0
    for name, entry in entries.items():
        if name == IDLE or not entry.rounds or not entry.rounds[-1].series:
            continue
        figures, series = entry.rounds[-1].figures, entry.rounds[-1].series
        words = f"missed: {figures['load_missed']:.1%} at the first step, {figures['cost_missed']:.1%} at the second"
        panels.append(plot.Panel(entry.title, words, series))
        seconds = BIN_S * len(next(iter(series.values())))
    if not panels:
        return None
    _, many, dear, back = phases(seconds)
    marks = [(many.begins_s, f"load × {TIMES}"), (dear.begins_s, f"cost × {DEARER}"), (back.begins_s, "cost ÷ 3")]
    title = f"What became of requests, by when they were due (in time: {LIMIT_S * 1e3:g} ms)"
    return plot.draw(title, panels, seconds, marks=marks)


def target(name: str, title: str, app: str) -> Peer:
    return headrace(name, title, f"batching_objective:{app}", BENCH_TARGET_S=str(TARGET_S))


OBJECTIVE = Section(
    "objective",
    "Batches by an objective, when load and cost step",
    f"A batch of n takes 4 ms + 0.1 ms × n. Poisson arrivals in an open loop: {RATE:g}/s, then {TIMES} times as many; "
    f"then each batch costs {DEARER} times as much, then as before. In time is an answer within {LIMIT_S * 1e3:g} ms "
    f"of when its request was due; the objective is {TARGET_S * 1e3:g} ms. Settled: the batches after a step from "
    "which on, to the next, at most 1 % of requests miss.",
    (
        target("headrace", "Headrace, target_latency_s", "app"),
        target("headrace-filled", "the same, and waiting as long as it allows", "filled"),
        target("headrace-fixed", "Headrace, fixed: 32, up to 10 ms", "fixed"),
        target(IDLE, "Headrace, no objective", "idle"),
    ),
    (
        Column("base_p50_ms", "before: p50", " ms"),
        Column("base_batch", "a batch"),
        Column("load_missed", f"load × {TIMES}: missed", " %", 100),
        Column("load_settled_after", "settled after batches"),
        Column("load_p99_ms", "p99", " ms"),
        Column("load_batch", "a batch"),
        Column("cost_missed", f"cost × {DEARER}: missed", " %", 100),
        Column("cost_settled_after", "settled after batches"),
        Column("cost_p99_ms", "p99", " ms"),
        Column("cost_batch", "a batch"),
        Column("back_settled_after", "back: settled after batches"),
    ),
    measure,
    picture=frozenset({IDLE}),
    once=True,
    drawing=Drawing("batching-objective.svg", picture),
)
