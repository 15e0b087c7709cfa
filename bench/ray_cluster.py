"""Headrace and Ray Serve in turns on one Ray cluster: `python -m bench.ray_cluster [--rounds 3] [--budgets] ...`.

In: the arguments. Out: a table on the terminal and in `bench/results/`, in docs/benchmarks.md too with `--write-docs`;
status 1 when a budget is missed in `--budgets`, 2 when nothing could be measured. The cluster (`apps/cluster_nodes.py`)
has two nodes and stays for the whole run; `apps/cluster_serve.py` is what each serves on it, the same file on both.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue

import msgspec

from bench import load, results, table
from bench.__main__ import commit, machine
from bench.budgets import Budget, Verdict
from bench.environments import EnvironmentFailed, make_environment, version
from bench.fastapi_apps import MESSAGE_QUESTION, MESSAGE_SCRIPT
from bench.instance import free_port
from bench.peers import APPS, BENCH, CLUSTER, RAY_ENV, RAY_FAST_ENV, Peer
from bench.results import Entry, Measured, Results
from bench.section import Column, Section
from bench.server import SUM_SCRIPT, PeerFailed, check_answer, sum_question

CONNECTIONS = (1, 32)
PATIENCE_S = 120.0  # for a cluster, or for what is served, to be up
BEGIN, END = "<!-- cluster:begin -->", "<!-- cluster:end -->"


class Script:
    """A script of `bench/apps` that runs, and the lines that it says."""

    def __init__(self, peer: Peer, name: str, *arguments: str, env: Mapping[str, str]) -> None:
        self.name = name
        self.last = "nothing said"
        self.lines: Queue[str | None] = Queue()
        self.process = subprocess.Popen(
            [peer.python, str(APPS / name), *arguments],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put(None)

    def says(self, word: str) -> str:
        """What follows the word on the line that begins with it. Raises PeerFailed when it does not come."""
        while True:
            try:
                line = self.lines.get(timeout=PATIENCE_S)
            except Empty:
                raise PeerFailed(f"{self.name}: no {word} within {PATIENCE_S:.0f} s; {self.last[:300]}") from None
            if line is None:
                raise PeerFailed(f"{self.name}: status {self.process.wait()}: {self.last[:300]}")
            if line.startswith(word):
                return line.removeprefix(word).strip()
            self.last = line or self.last

    def tell(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Let it end by itself, which takes what it serves down; kill it when it does not."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(peer: Peer, home: Path) -> dict[str, str]:
    """What the scripts get: of this process's environment only what every program needs."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TERM", "TMPDIR") if name in os.environ}
    path = f"{Path(peer.python).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", "HEADRACE_HOME": str(home), **peer.env}


@contextmanager
def cluster(peer: Peer, home: Path) -> Iterator[str]:
    """The address of a cluster that is there meanwhile."""
    nodes = Script(peer, "cluster_nodes.py", env=environment(peer, home) | RAY_ENV)
    try:
        yield nodes.says("CLUSTER")
    finally:
        nodes.end()


def measure(peer: Peer, address: str, home: Path, seconds: float) -> Measured:
    """Serve on the cluster, load it over HTTP from here, have it measure its own calls, end it."""
    port = free_port()
    script = Script(peer, "cluster_serve.py", peer.calls, address, str(port), str(seconds), env=environment(peer, home))
    try:
        script.says("SERVING")
        figures: dict[str, float] = {}
        for name, question, body in (
            ("noop", sum_question("/noop"), SUM_SCRIPT),
            ("composed", replace(MESSAGE_QUESTION, path="/composed/"), MESSAGE_SCRIPT),
        ):
            check_answer(port, question)
            url = f"http://127.0.0.1:{port}{question.path}"
            load.run_wrk(url, 32, 1, body)  # not counted
            for connections in CONNECTIONS:
                seen = load.run_wrk(url, connections, seconds, body)
                if seen.failed > seen.requests // 100:
                    raise PeerFailed(f"{seen.failed} of {seen.requests} requests failed at {connections} connections")
                figures[f"{name}_rate_{connections}"] = seen.rate
                figures[f"{name}_p50_{connections}"] = seen.p50_us
        script.tell()
        figures |= msgspec.json.decode(script.says("FIGURES"), type=dict[str, float])
        return Measured(figures)
    finally:
        script.end()


DEFAULT, FAST = "ray", "ray-fast"
ENTRANTS = (
    Peer("headrace", "Headrace", (), CLUSTER, calls="headrace", package="headrace"),
    Peer(DEFAULT, "Ray Serve, default", (), CLUSTER, calls="ray", env=RAY_ENV, package="ray"),
    Peer(FAST, "Ray Serve, throughput flags and HAProxy", (), CLUSTER, calls="ray", env=RAY_FAST_ENV, package="ray"),
)
SECTION = Section(
    "ray-cluster",
    "On a Ray cluster of two nodes",
    "",
    ENTRANTS,
    (
        Column("noop_rate_1", "no-op, 1 conn./s"),
        Column("noop_p50_1", "p50", " µs"),
        Column("noop_rate_32", "32 conn./s"),
        Column("composed_rate_1", "10 KB through two, 1 conn./s"),
        Column("composed_rate_32", "32 conn./s"),
        Column("call_us", "call, p50", " µs"),
        Column("calls", "64 at once/s"),
        Column("far_call_us", "call to the other node, p50", " µs"),
        Column("far_calls", "64 at once/s"),
        Column("far_array_us", "10 MB array to it, p50", " ms", 1e-3),
    ),
    lambda peer, seconds: Measured({}),
    compare="noop_rate_32",
)


@dataclass(frozen=True)
class Ratio:
    """A promise against Ray Serve: how many times its default's figure, and its best's, Headrace's is."""

    what: str
    figure: str
    default: float
    best: float | None
    lower: bool = False  # is better


RATIOS = (
    Ratio("no-op JSON over HTTP, 32 connections: requests/s", "noop_rate_32", 10, 2),
    Ratio("handle calls, 64 at once: calls/s", "calls", 10, 2),
    Ratio("handle calls to the other node, 64 at once: calls/s", "far_calls", 10, 2),
    Ratio("10 KB through FastAPI to a deployment on the other node: requests/s", "composed_rate_32", 10, 2),
    Ratio("10 MB array to the other node: p50", "far_array_us", 2, None, lower=True),
)


def judge(found: Results) -> list[Verdict]:
    """What became of each promise."""
    verdicts = []
    for ratio in RATIOS:
        ours = found.figure(SECTION.name, "headrace", ratio.figure)
        default, fast = (found.figure(SECTION.name, name, ratio.figure) for name in (DEFAULT, FAST))
        for title, limit, theirs in (
            ("its default", ratio.default, [default]),
            ("the better of its modes", ratio.best, [default, fast]),
        ):
            if limit is None:
                continue
            known = [value for value in theirs if value]
            times = None
            if ours and known:
                times = min(known) / ours if ratio.lower else ours / max(known)
            budget = Budget(f"{ratio.what}, against Ray Serve, {title}", lambda _: None, limit, " ×", True)
            verdicts.append(Verdict(budget, times, times is not None and times >= limit))
    return verdicts


def run(rounds: int, seconds: float, entrants: tuple[Peer, ...]) -> Results:
    """All rounds of all, in turns, on one cluster."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entries = {peer.name: Entry(peer.title, version(peer)) for peer in entrants}
    make_environment(entrants[0])
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder, cluster(entrants[0], Path(folder)) as address:
        for number in range(1, rounds + 1):
            first = (number - 1) % len(entrants)  # who comes after whom is to make no difference
            for peer in entrants[first:] + entrants[:first]:
                try:
                    measured = measure(peer, address, Path(folder), seconds)
                except (PeerFailed, load.LoadFailed) as error:
                    entries[peer.name].errors.append(str(error))
                    print(f"round {number}/{rounds}  {peer.title}: failed: {error}", flush=True)
                    continue
                entries[peer.name].rounds.append(measured)
                told = ", ".join(f"{name} {value:,.4g}" for name, value in measured.figures.items())
                print(f"round {number}/{rounds}  {peer.title}: {told}", flush=True)
    return Results(now, machine(), commit(), rounds, seconds, sections={SECTION.name: entries})


def report(found: Results) -> str:
    """The tables."""
    parts = [table.how(found), table.verdicts_table(judge(found))]
    parts.append(table.section_table(SECTION, found.sections[SECTION.name]))
    if reasons := table.failures(found):
        parts.append(reasons)
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ray_cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds a figure (default 1.5)")
    parser.add_argument("--only", default="", help=f"who: {','.join(peer.name for peer in ENTRANTS)}")
    parser.add_argument("--budgets", action="store_true", help="status 1 if a budget is missed")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--again", type=Path, metavar="JSON", help="measure nothing: the tables of an earlier run")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    if unknown := set(names) - {peer.name for peer in ENTRANTS}:
        parser.error(f"--only {unknown.pop()}: there are {', '.join(peer.name for peer in ENTRANTS)}")
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds must be 1 or more, --seconds above 0")
    if options.again:
        found = results.read(options.again)
    else:
        try:
            found = run(options.rounds, options.seconds, tuple(p for p in ENTRANTS if not names or p.name in names))
        except (EnvironmentFailed, PeerFailed) as error:
            sys.exit(f"bench.ray_cluster: {error}")
        path = BENCH / "results" / f"ray-cluster-{found.when.replace(':', '')}.json"
        found.write(path)
        path.with_suffix(".md").write_text(report(found))
        print(f"\nwritten: {path.relative_to(BENCH.parent)} and beside it")
    print(f"\n{report(found)}")
    if options.write_docs:
        table.write_between(BENCH.parent / "docs" / "benchmarks.md", report(found), BEGIN, END)
    if not found.measured_sections:
        return 2
    return int(options.budgets and not all(verdict.met for verdict in judge(found)))


if __name__ == "__main__":
    sys.exit(main())
