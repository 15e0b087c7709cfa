"""What a run of the bench found, as it is written to disk, and the medians that the tables are made of.

In: rounds as they are measured. Out: `Results`, JSON in `bench/results/`; medians, None where nothing was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.calls import CallRound
from bench.server import HttpRound


class PeerResults(msgspec.Struct):
    """All rounds of one peer. `errors` holds the reason of each round that failed."""

    title: str
    version: str
    http: list[HttpRound] = []
    calls: list[CallRound] = []
    errors: list[str] = []


class Measured(msgspec.Struct):
    """What one round of a section saw of one entrant: figures by name, and courses in time where it has some."""

    figures: dict[str, float]
    series: dict[str, list[float]] = {}


class Entry(msgspec.Struct):
    """All rounds of one entrant of a section. `errors` holds the reason of each round that failed."""

    title: str
    version: str
    rounds: list[Measured] = []
    errors: list[str] = []


class Results(msgspec.Struct):
    """One run. `peers` (the no-op model and handle calls) is by name, in the order of the tables; `sections` is by the
    section's name and then the entrant's; `when` is an ISO date in UTC.
    """

    when: str
    machine: str
    commit: str
    rounds: int
    seconds: float
    peers: dict[str, PeerResults] = {}
    sections: dict[str, dict[str, Entry]] = {}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    def http(self, peer: str, figure: Callable[[HttpRound], float]) -> float | None:
        """The median over the peer's rounds of a figure of its HTTP measurement."""
        found = self.peers.get(peer)
        return statistics.median(map(figure, found.http)) if found and found.http else None

    def call(self, peer: str, figure: Callable[[CallRound], float]) -> float | None:
        """The median over the peer's rounds of a figure of its handle measurement."""
        found = self.peers.get(peer)
        return statistics.median(map(figure, found.calls)) if found and found.calls else None

    @property
    def measured_sections(self) -> list[str]:
        """The sections in which anything was measured."""
        return [name for name, entries in self.sections.items() if any(entry.rounds for entry in entries.values())]

    def figure(self, section: str, entrant: str, name: str) -> float | None:
        """The median over the entrant's rounds of a figure of the section."""
        found = self.sections.get(section, {}).get(entrant)
        values = [measured.figures[name] for measured in found.rounds if name in measured.figures] if found else []
        return statistics.median(values) if values else None


def read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)
