"""The search example with and without batches: `python -m bench.search [--rounds 3] [--seconds 5] [--write-docs]`.

The same application twice (`examples/search/`, and `apps/search_unbatched.py`, whose model takes one query at a time),
interleaved: at its limit, with so many connections by wrk; at a few requests a second, and at more, as they come by a
Poisson process. In: the arguments. Out: a table on the terminal, JSON in `bench/results/`, the table in the example's
README with `--write-docs`; status 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode

from bench import arrivals, processes, results, table
from bench.__main__ import commit, machine
from bench.arrivals import Arrival, Outcome
from bench.load import LoadFailed, run_wrk
from bench.open_loop import OpenLoop
from bench.peers import BENCH, LISTEN, Peer
from bench.results import Entry, Measured
from bench.section import Column, Section
from bench.server import PeerFailed, Question, ask, loaded, running

EXAMPLE = BENCH.parent / "examples" / "search"
CONNECTIONS = 64
FEW, MORE = 5.0, 25.0  # requests a second
SEED = 1

# As people type them: between one word and a sentence.
QUERIES = (
    "dinosaurs",
    "sad love story",
    "books about the sea",
    "funny book for a long train ride",
    "who done it in a country house",
    "how to cook for twelve people without going mad",
    "something like Jane Austen but with ghosts",
    "philosophy for beginners",
    "a man who wakes up and is somebody or something else",
    "the first world war seen by an ordinary soldier",
    "a present for my grandfather who likes birds, gardens and bad weather",
    "russian",
    "pirates and treasure",
    "why are some nations rich and others poor",
    "a child alone in a big old house",
    "women who want more than a husband",
    "people trapped in the ice for months",
    "robots",
    "poems one can learn by heart",
    "stories to read aloud to a six year old at bedtime, not too scary, with animals that can talk",
    "life in a small town where everybody knows everything about everybody",
    "chess",
    "the fall of an empire",
    "a scientist who goes too far",
    "how do bees find their way",
    "revolution in Paris",
    "a swindler and his victims",
    "travels in Africa",
    "an unhappy marriage, and what comes of it",
    "dreams",
    "a diary by somebody who was really there",
    "I want to understand relativity but I was never any good at mathematics",
)
PATHS = tuple(f"/search?{urlencode({'q': query})}" for query in QUERIES)

WRK_SCRIPT = """
local paths, at = {{{paths}}}, 0
request = function()
  at = at % #paths + 1
  return wrk.format("GET", paths[at])
end
"""


def answers(body: bytes) -> bool:
    return len(json.loads(body)["books"]) == 5


def batch_sizes(port: int) -> tuple[int, int]:
    """How many texts the model has embedded so far, in how many batches."""
    try:
        status, body = ask(port, "/counts")
    except (OSError, HTTPException) as error:
        raise PeerFailed(f"/counts: {type(error).__name__}: {error}") from None
    if status != 200:
        raise PeerFailed(f"/counts answers {status} {body[:100]!r}")
    counts = json.loads(body)
    return counts["texts"], counts["batches"]


def in_open_loop(port: int, rate: float, seconds: float) -> Sequence[Outcome]:
    """Independent requests, `rate` of them a second. Raises PeerFailed when more than one in a hundred fails."""
    schedule = arrivals.poisson(rate, seconds, 0.0, SEED)
    paths = {arrival: PATHS[number % len(PATHS)] for number, arrival in enumerate(schedule)}

    def request(arrival: Arrival, lag_s: float) -> bytes:
        return f"GET {paths[arrival]} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()

    outcomes = asyncio.run(OpenLoop(port, schedule, request).run())
    failed = sum(outcome.status != 200 for outcome in outcomes)
    if failed > len(outcomes) / 100:
        raise PeerFailed(f"{failed} of {len(outcomes)} requests failed at {rate:g}/s")
    return outcomes


def measure(peer: Peer, seconds: float) -> Measured:
    """At its limit, then at the two rates, for twice as long."""
    with (
        running(peer, Question(PATHS[0], None, answers, "five books")) as server,
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
    ):
        script.write(WRK_SCRIPT.format(paths=", ".join(f'"{path}"' for path in PATHS)))
        script.flush()
        run_wrk(server.url, CONNECTIONS, 1, Path(script.name))  # warms caches and connections; not counted
        texts, batches = batch_sizes(server.port)
        full = loaded(server.url, CONNECTIONS, seconds, Path(script.name))
        more_texts, more_batches = batch_sizes(server.port)
        figures = {
            "full": full.rate,
            "full_cpu_ms": full.cpu_us / 1e3,
            "batch": (more_texts - texts) / max(1, more_batches - batches),
        }
        for name, rate in (("few", FEW), ("more", MORE)):
            took_s = [outcome.took_s for outcome in in_open_loop(server.port, rate, 2 * seconds)]
            figures[f"{name}_p50_ms"] = arrivals.quantile(took_s, 0.5) * 1e3
            figures[f"{name}_p99_ms"] = arrivals.quantile(took_s, 0.99) * 1e3
    return Measured(figures)


WITHOUT, WITH = "without", "with"
RUN = ("{bin}/headrace", "run")
SEARCH = Section(
    "search",
    "Search with and without batches",
    "",
    (
        Peer(
            WITHOUT,
            "one query at a time",
            (*RUN, "search_unbatched:app", "--app-dir", "{apps}", *LISTEN),
            None,
            env={"PYTHONPATH": str(EXAMPLE)},
        ),
        Peer(WITH, "`@serve.batch(max_batch_size=32)`", (*RUN, "search:app", "--app-dir", str(EXAMPLE), *LISTEN), None),
    ),
    (
        Column("full", f"searches/s, {CONNECTIONS} connections"),
        Column("batch", "queries a batch"),
        Column("full_cpu_ms", "CPU a search", " ms"),
        Column("few_p50_ms", f"p50 at {FEW:g}/s", " ms"),
        Column("few_p99_ms", "p99", " ms"),
        Column("more_p50_ms", f"p50 at {MORE:g}/s", " ms"),
        Column("more_p99_ms", "p99", " ms"),
    ),
    measure,
)


def run(rounds: int, seconds: float) -> results.Results:
    """All rounds of both, in turns."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entries = {peer.name: Entry(peer.title, "") for peer in SEARCH.entrants}
    for number in range(1, rounds + 1):
        for peer in SEARCH.entrants:
            print(f"round {number} of {rounds}: {peer.title}", flush=True)
            try:
                entries[peer.name].rounds.append(measure(peer, seconds))
            except (PeerFailed, LoadFailed) as error:
                print(f"  {error}", flush=True)
                entries[peer.name].errors.append(str(error))
    return results.Results(now, machine(), commit(), rounds, seconds, sections={SEARCH.name: entries})


def report(found: results.Results) -> str:
    parts = [table.section_table(SEARCH, found.sections[SEARCH.name]), table.how(found)]
    if reasons := table.failures(found):
        parts.append(reasons)
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.search", description="Search with and without batches.")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds a figure (default 5)")
    parser.add_argument("--write-docs", action="store_true", help="put the table into examples/search/README.md")
    parser.add_argument("--again", type=Path, metavar="JSON", help="measure nothing: the table of an earlier run")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds must be 1 or more, --seconds above 0")
    if options.again:
        found = results.read(options.again)
    else:
        if not (EXAMPLE / "shop.sqlite").exists() or not (EXAMPLE / "vectors.npz").exists():
            subprocess.run([sys.executable, str(EXAMPLE / "prepare.py")], check=True)
        processes.become_subreaper()
        found = run(options.rounds, options.seconds)
        path = BENCH / "results" / f"search-{found.when.replace(':', '')}.json"
        found.write(path)
        print(f"written: {path.relative_to(BENCH.parent)}")
    print(f"\n{report(found)}")
    if options.write_docs:
        table.write_between(EXAMPLE / "README.md", report(found))
    return 0 if found.measured_sections else 2


if __name__ == "__main__":
    sys.exit(main())
