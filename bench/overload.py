"""What is left of a server at twice its capacity: `python -m bench.overload [--seconds 10] [--times 2] [--seed 1]`.

A model takes 10 ms and four calls at a time, so 400 a second. Requests come in an open loop (Poisson) at a multiple of
that; each is worth something for 50 ms from when it was due; one in ten has a high priority. In: the arguments. Out: a
table of what was answered in time, and a picture in `bench/results/`; as the section `overload` of `python -m bench`,
its figures.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import arrivals, plot, processes, table
from bench.arrivals import Arrival
from bench.environments import EnvironmentFailed, make_environment, version
from bench.fastapi_apps import headrace_run, uvicorn
from bench.open_loop import OpenLoop
from bench.peers import BENCH, WEB, Peer
from bench.results import Entry, Measured
from bench.section import Column, Drawing, Section
from bench.server import PeerFailed, Question, running

SERVICE_S = 0.010  # as the applications have it
AT_ONCE = 4
CAPACITY = AT_ONCE / SERVICE_S
DEADLINE_S = 5 * SERVICE_S
HIGH_SHARE = 0.1
BIN_S = 0.25
QUESTION = Question("/", b"{}", lambda body: bool(json.loads(body) == {"done": True}), "done")
WITH_DEADLINES = "headrace"


@dataclass(frozen=True)
class Offer:
    """How much is sent: `times` the capacity, for so many seconds, by the dice of `seed`."""

    seconds: float = 10.0
    times: float = 2.0
    seed: int = 1


def request(headers: Mapping[str, str]) -> bytes:
    """The bytes of one request."""
    lines = ["POST / HTTP/1.1", "host: bench", "content-type: application/json", "content-length: 2"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", "{}"]).encode()


def request_for(peer: Peer, arrival: Arrival, lag_s: float) -> bytes:
    """The request as this entrant gets it, sent so much later than it was due: its time is what is left of it."""
    if peer.name != WITH_DEADLINES:
        return request({})
    headers = {"x-request-timeout-seconds": f"{max(0.001, DEADLINE_S - lag_s):.4f}"}
    if arrival.high:
        headers["x-request-priority"] = "5"
    return request(headers)


def measure_offer(peer: Peer, offer: Offer) -> Measured:
    """One run against one entrant, started for it."""
    schedule = arrivals.poisson(offer.times * CAPACITY, offer.seconds, HIGH_SHARE, offer.seed)
    with running(peer, QUESTION) as server:
        made = functools.partial(request_for, peer)
        warm = arrivals.poisson(CAPACITY / 2, 0.5, HIGH_SHARE, offer.seed)
        asyncio.run(OpenLoop(server.port, warm, made).run())  # not counted
        loop = OpenLoop(server.port, schedule, made)
        outcomes = asyncio.run(loop.run())
    assert len(outcomes) == len(schedule), f"{len(schedule)} requests have {len(outcomes)} outcomes"
    figures = arrivals.summary(outcomes, offer.seconds, CAPACITY, DEADLINE_S)
    figures["sent_late_p99_ms"] = arrivals.quantile(loop.lags_s, 0.99) * 1e3
    return Measured(figures, arrivals.course(outcomes, offer.seconds, DEADLINE_S, BIN_S))


def measure(peer: Peer, seconds: float) -> Measured:
    """A round of the section."""
    return measure_offer(peer, Offer(seconds=max(3.0, min(10.0, 3 * seconds))))


def picture(entries: Mapping[str, Entry]) -> str | None:
    """The section's last round as SVG; None when nothing of it was measured."""
    panels, seconds = [], 0.0
    for entry in entries.values():
        if not entry.rounds or not entry.rounds[-1].series:
            continue
        measured = entry.rounds[-1]
        share = measured.figures["in_time_share"]
        words = f"in time: {share:.0%} of capacity"
        if "high_in_time_share" in measured.figures:
            words += f", {100 * measured.figures['high_in_time_share']:.3g}% of high priority"
        panels.append(plot.Panel(entry.title, words, measured.series))
        seconds = BIN_S * len(next(iter(measured.series.values())))
    if not panels:
        return None
    return plot.draw(
        f"What became of requests, by when they were due (in time: {DEADLINE_S * 1e3:g} ms)", panels, seconds, CAPACITY
    )


OVERLOAD = Section(
    "overload",
    "At twice the capacity",
    f"A model that takes {SERVICE_S * 1e3:g} ms and {AT_ONCE} calls at a time ({CAPACITY:g}/s); Poisson arrivals at "
    f"twice that, in an open loop, time counted from when a request was due; an answer is in time within "
    f"{DEADLINE_S * 1e3:g} ms. One request in ten has a high priority.",
    (
        Peer(WITH_DEADLINES, "Headrace, deadlines and priorities", headrace_run("overload_headrace:app"), WEB),
        Peer("headrace-without", "Headrace, without them", headrace_run("overload_headrace:app"), WEB),
        Peer("fastapi", "FastAPI on uvicorn", uvicorn("overload_fastapi:app"), WEB, package="fastapi"),
    ),
    (
        Column("in_time", "in time/s"),
        Column("in_time_share", "of capacity", " %", 100),
        Column("high_in_time_share", "high priority in time", " %", 100),
        Column("late", "late/s"),
        Column("refused", "refused/s"),
        Column("unanswered", "unanswered/s"),
        Column("p50_ms", "answered, p50", " ms"),
        Column("p99_ms", "p99", " ms"),
        Column("high_p99_ms", "high priority, p99", " ms"),
    ),
    measure,
    picture=frozenset({"headrace-without", "fastapi"}),
    once=True,
    drawing=Drawing("overload.svg", picture),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.overload", description="What is left of a server in overload."
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long requests come (default 10)")
    parser.add_argument("--times", type=float, default=2.0, help="how many times the capacity (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="of the dice for arrivals (default 1)")
    options = parser.parse_args()
    if options.seconds <= 0 or options.times <= 0:
        parser.error("--seconds and --times must be above 0")
    processes.become_subreaper()
    offer = Offer(options.seconds, options.times, options.seed)
    entries: dict[str, Entry] = {}
    for peer in OVERLOAD.entrants:
        entries[peer.name] = entry = Entry(peer.title, version(peer))
        try:
            make_environment(peer)
            entry.rounds.append(measure_offer(peer, offer))
        except (EnvironmentFailed, PeerFailed) as error:
            entry.errors.append(str(error))
            print(f"{peer.title}: {error}", flush=True)
    print(table.section_table(OVERLOAD, entries))
    for entry in entries.values():
        for measured in entry.rounds:
            print(f"{entry.title}: 99 in 100 requests were sent within {measured.figures['sent_late_p99_ms']:.1f} ms")
    if drawn := picture(entries):
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%S")
        path = BENCH / "results" / f"{now}-overload.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawn)
        print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    ours = entries[WITH_DEADLINES].rounds
    return int(not ours or ours[-1].figures["in_time_share"] < 0.9 or ours[-1].figures["high_in_time_share"] < 1)


if __name__ == "__main__":
    sys.exit(main())
