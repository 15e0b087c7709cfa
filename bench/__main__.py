"""The bench's command line: `python -m bench [--rounds 5] [--seconds 2] [--only a,b] [--quick] [--budgets] ...`.

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
from collections.abc import Iterable
from pathlib import Path

from bench import budgets, results, rounds, table
from bench.peers import BENCH, PEERS, Peer
from bench.sections import SECTIONS

ROOT = BENCH.parent
HTTP, CALLS = "noop", "calls"  # the sections that PEERS take part in
PICTURE = frozenset({"ray", "mosec", "litserve", "bentoml"})  # of PEERS: those that no budget needs, nor Ray's best
SECTION_NAMES = (HTTP, CALLS, *SECTIONS)
ENTRANT_NAMES = tuple(
    dict.fromkeys(peer.name for peer in (*PEERS, *(one for section in SECTIONS.values() for one in section.entrants)))
)


def main() -> int:
    options = parse_arguments()
    if options.again:
        found = results.read(Path(options.again))
    else:
        if shutil.which("wrk") is None:
            sys.exit("bench: wrk is not installed: apt-get install wrk")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        found = results.Results(now, machine(), commit(), options.rounds, options.seconds)
        choice = choose(options.only, http=options.http, calls=options.calls, least=options.budgets or options.quick)
        if options.budgets:
            choice = only_budgets(choice)
        rounds.measure(choice, found)
        written = write(found)
        print(f"\nwritten: {written.relative_to(ROOT)} and beside it", flush=True)
    print()
    print(table.budgets_table(found) if options.budgets else table.report(found, SECTIONS))
    if options.budgets and (reasons := table.failures(found)):
        print(f"\n{reasons}")
    if options.write_docs:
        write_docs(found)
    if not any(peer.http or peer.calls for peer in found.peers.values()) and not found.measured_sections:
        return 2
    return int(options.budgets and not all(verdict.met for verdict in budgets.judge(found)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures Headrace beside its peers.")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds a figure (default 2)")
    parser.add_argument(
        "--only",
        default="",
        help=f"sections ({','.join(SECTION_NAMES)}), peers ({','.join(ENTRANT_NAMES)}), or both, separated by commas",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of one second a figure, without what is there for the picture"
    )
    parser.add_argument("--budgets", action="store_true", help="only what the budgets need; status 1 if one is missed")
    parser.add_argument("--no-http", dest="http", action="store_false", help="leave out the no-op model over HTTP")
    parser.add_argument("--no-calls", dest="calls", action="store_false", help="leave out the handle calls")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into README and docs/benchmarks.md")
    parser.add_argument("--again", metavar="JSON", help="measure nothing: make the tables of an earlier run's results")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds must be 1 or more, --seconds above 0")
    options.only = [name for name in options.only.split(",") if name]
    for name in options.only:
        if name not in SECTION_NAMES and name not in ENTRANT_NAMES:
            parser.error(
                f"--only {name}: there is no such section or peer; there are the sections "
                f"{', '.join(SECTION_NAMES)} and the peers {', '.join(ENTRANT_NAMES)}"
            )
    return options


def choose(only: Iterable[str], *, http: bool = True, calls: bool = True, least: bool = False) -> rounds.Choice:
    """What `only` names: all sections if it names none of them, all peers if it names none of those.

    `least` leaves out who is there for the picture alone, unless named.
    """
    sections = {name for name in only if name in SECTION_NAMES} or set(SECTION_NAMES)
    named = {name for name in only if name in ENTRANT_NAMES}

    def takes_part(peer: Peer, picture: frozenset[str]) -> bool:
        return peer.name in named if named else not (least and peer.name in picture)

    http, calls = http and HTTP in sections, calls and CALLS in sections
    peers = [peer for peer in PEERS if takes_part(peer, PICTURE) and (http or (calls and peer.calls))]
    chosen = []
    for section in SECTIONS.values():
        entrants = tuple(peer for peer in section.entrants if takes_part(peer, section.picture))
        if section.name in sections and entrants:
            chosen.append((section, entrants))
    return rounds.Choice(tuple(peers), http, calls, tuple(chosen))


def only_budgets(choice: rounds.Choice) -> rounds.Choice:
    """The choice without the peers that no budget needs."""
    peers = tuple(peer for peer in choice.peers if peer.name in budgets.PEERS_NEEDED)
    return rounds.Choice(peers, choice.http, choice.calls, choice.sections)


def write(found: results.Results) -> Path:
    """The results as JSON, and beside it the tables and the pictures; the path of the JSON."""
    path = BENCH / "results" / f"{found.when.replace(':', '')}.json"
    found.write(path)
    pictures = draw(found, path.parent, f"{path.stem}-")
    path.with_suffix(".md").write_text(table.report(found, SECTIONS, pictures))
    return path


def write_docs(found: results.Results) -> None:
    """Put tables and pictures where the documents have them."""
    pictures = draw(found, ROOT / "docs")
    table.write_between(ROOT / "docs" / "benchmarks.md", table.report(found, SECTIONS, pictures))
    table.write_between(ROOT / "README.md", table.short(found))


def draw(found: results.Results, folder: Path, prefix: str = "") -> dict[str, str]:
    """Draw what can be drawn of the run; the files' names by section, for documents beside them."""
    pictures = {}
    for name, entries in found.sections.items():
        drawing = SECTIONS[name].drawing
        drawn = drawing.draw(entries) if drawing is not None else None
        if drawing is not None and drawn is not None:
            (folder / f"{prefix}{drawing.file}").write_text(drawn)
            pictures[name] = f"{prefix}{drawing.file}"
    return pictures


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
