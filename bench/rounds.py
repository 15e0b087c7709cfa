"""The rounds of a run: each goes through all that was chosen, one server at a time; a slow minute hits all alike.

In: a `Choice`. Out: `Results`, filled as it goes; a line on the terminal for each measurement. What cannot be installed
or measured is in the results with its reason.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from bench import processes
from bench.calls import measure_calls
from bench.environments import EnvironmentFailed, make_environment, version
from bench.load import LoadFailed
from bench.peers import Peer
from bench.results import Entry, PeerResults, Results
from bench.section import Section
from bench.server import PeerFailed, measure_http


@dataclass(frozen=True)
class Choice:
    """What is measured: `peers` with the no-op model over HTTP and by handles, and who takes part in which section."""

    peers: tuple[Peer, ...]
    http: bool
    calls: bool
    sections: tuple[tuple[Section, tuple[Peer, ...]], ...]

    @property
    def entrants(self) -> Iterable[Peer]:
        """Everyone whose environment is needed."""
        yield from self.peers
        for _, entrants in self.sections:
            yield from entrants


def measure(choice: Choice, into: Results) -> None:
    """All rounds. This process becomes a subreaper, and stays one."""
    processes.become_subreaper()
    run(choice, into)


def run(choice: Choice, into: Results) -> None:
    """All rounds, where this process need not be the parent of what servers let go of."""
    broken = make_environments(choice.entrants)
    for peer in choice.peers:
        into.peers[peer.name] = found = PeerResults(peer.title, version(peer))
        found.errors = [broken[peer.folder]] * into.rounds if peer.folder in broken else []
    for section, entrants in choice.sections:
        into.sections[section.name] = {peer.name: Entry(peer.title, version(peer)) for peer in entrants}
        for peer in entrants:
            if peer.folder in broken:
                into.sections[section.name][peer.name].errors = [broken[peer.folder]] * into.rounds
    for number in range(1, into.rounds + 1):
        label = f"round {number}/{into.rounds}"
        for peer in choice.peers:
            if peer.folder not in broken:
                measure_peer(peer, into.peers[peer.name], label, into.seconds, http=choice.http, calls=choice.calls)
        for section, entrants in choice.sections:
            for peer in entrants if number == 1 or not section.once else ():
                if peer.folder not in broken:
                    measure_entrant(section, peer, into.sections[section.name][peer.name], label, into.seconds)


def make_environments(peers: Iterable[Peer]) -> dict[str | None, str]:
    """Make each environment once; the reasons of those that could not be made, by folder."""
    broken: dict[str | None, str] = {}
    made: set[str | None] = set()
    for peer in peers:
        if peer.folder in made:
            continue
        made.add(peer.folder)
        try:
            make_environment(peer)
        except EnvironmentFailed as error:
            broken[peer.folder] = str(error)
            print(f"{peer.title}: {error}", flush=True)
    return broken


def measure_peer(peer: Peer, into: PeerResults, label: str, seconds: float, *, http: bool, calls: bool) -> None:
    """One round of the no-op model and of handle calls."""
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
    except Exception as error:  # half an hour of figures is not lost to a round that broke
        into.errors.append(reason(error))
        print(f"{label}  {peer.title}: failed: {into.errors[-1]}", flush=True)


def measure_entrant(section: Section, peer: Peer, into: Entry, label: str, seconds: float) -> None:
    """One round of one entrant of a section."""
    try:
        measured = section.measure(peer, seconds)
    except Exception as error:  # as above
        into.errors.append(reason(error))
        print(f"{label}  {section.name}, {peer.title}: failed: {into.errors[-1]}", flush=True)
        return
    into.rounds.append(measured)
    figures = ", ".join(f"{name} {value:,.4g}" for name, value in measured.figures.items())
    print(f"{label}  {section.name}, {peer.title}: {figures}", flush=True)


def reason(error: Exception) -> str:
    """Why a round failed, in a line. What was not foreseen is printed whole."""
    if isinstance(error, PeerFailed | LoadFailed):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
