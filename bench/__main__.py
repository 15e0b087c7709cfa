"""The bench's command line: `python -m bench [--rounds 5] [--seconds 3] [--only a,b] [--quick] [--budgets] ...`.

In: the arguments. Out: tables on the terminal and in `bench/results/`, in the documents too with `--write-docs`; status
1 when a budget is missed in `--budgets`, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from bench import budgets, processes, results, table
from bench.calls import measure_calls
from bench.environments import EnvironmentFailed, make_environment, version
from bench.peers import BENCH, PEERS, Peer
from bench.server import PeerFailed, measure_http

ROOT = BENCH.parent
NAMES = [peer.name for peer in PEERS]


def main() -> int:
    options = parse_arguments()
    if options.again:
        found = results.read(Path(options.again))
    else:
        if shutil.which("wrk") is None:
            sys.exit("bench: wrk is not installed: apt-get install wrk")
        chosen = [peer for peer in PEERS if peer.name in options.only]
        found = measure(chosen, options.rounds, options.seconds, http=options.http, calls=options.calls)
        path = BENCH / "results" / f"{found.when.replace(':', '')}.json"
        found.write(path)
        path.with_suffix(".md").write_text(table.report(found))
        print(f"\nwritten: {path.relative_to(ROOT)} and .md", flush=True)
    print()
    print(table.budgets_table(found) if options.budgets else table.report(found))
    if options.budgets and (reasons := table.failures(found)):
        print(f"\n{reasons}")
    if options.write_docs:
        table.write_between(ROOT / "docs" / "benchmarks.md", table.report(found))
        table.write_between(ROOT / "README.md", table.short(found))
    if not any(peer.http or peer.calls for peer in found.peers.values()):
        return 2
    return int(options.budgets and not all(verdict.met for verdict in budgets.judge(found)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures Headrace beside its peers.")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds a figure (default 3)")
    parser.add_argument("--only", default="", help=f"peers, separated by commas: {','.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="one round of one second a figure")
    parser.add_argument("--budgets", action="store_true", help="only what the budgets need; status 1 if one is missed")
    parser.add_argument("--no-http", dest="http", action="store_false", help="leave the HTTP measurements out")
    parser.add_argument("--no-calls", dest="calls", action="store_false", help="leave the handle measurements out")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into README and docs/benchmarks.md")
    parser.add_argument("--again", metavar="JSON", help="measure nothing: make the tables of an earlier run's results")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds must be 1 or more, --seconds above 0")
    named = [name for name in options.only.split(",") if name]
    for name in named:
        if name not in NAMES:
            parser.error(f"--only {name}: there is no such peer; there are {', '.join(NAMES)}")
    options.only = named or (list(budgets.PEERS_NEEDED) if options.budgets else NAMES)
    return options


def measure(chosen: list[Peer], rounds: int, seconds: float, *, http: bool, calls: bool) -> results.Results:
    """All rounds over the chosen peers. One that cannot be installed or measured is in the results with its reason."""
    processes.become_subreaper()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = results.Results(now, machine(), commit(), rounds, seconds)
    ready = []
    for peer in chosen:
        found.peers[peer.name] = results.PeerResults(peer.title, version(peer))
        try:
            make_environment(peer)
            ready.append(peer)
        except EnvironmentFailed as error:
            found.peers[peer.name].errors = [str(error)] * rounds
            print(f"{peer.title}: {error}", flush=True)
    for number in range(1, rounds + 1):
        for peer in ready:
            measure_once(peer, found.peers[peer.name], f"round {number}/{rounds}", seconds, http=http, calls=calls)
    return found


def measure_once(peer: Peer, into: results.PeerResults, label: str, seconds: float, *, http: bool, calls: bool) -> None:
    """One round of one peer, with a line on the terminal for each of its parts."""
    try:
        if http:
            seen = measure_http(peer, seconds)
            into.http.append(seen)
            rates = ", ".join(f"{load.rate:,.0f}/s at {connections}" for connections, load in seen.loads.items())
            print(f"{label}  {peer.title}: {rates}; start {seen.start_s:.2f} s, {seen.memory_mb:.0f} MB", flush=True)
        if calls and peer.calls:
            called = measure_calls(peer, min(seconds, 1.0))
            into.calls.append(called)
            print(
                f"{label}  {peer.title}: call {called.sequence_us:,.0f} µs, {called.at_once_per_s:,.0f}/s at 64, "
                f"10 MB {called.array_10mb_us / 1000:.2f} ms",
                flush=True,
            )
    except PeerFailed as error:
        into.errors.append(str(error))
        print(f"{label}  {peer.title}: failed: {error}", flush=True)


def machine() -> str:
    """The machine in words: cores, their kind, kernel, Python."""
    kinds = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    cores = len(os.sched_getaffinity(0))
    kind = f" ({kinds[0]})" if kinds else ""
    return f"{cores} cores{kind}, Linux {platform.release()}, Python {platform.python_version()}"


def commit() -> str:
    """The commit that is measured, with a + when the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
