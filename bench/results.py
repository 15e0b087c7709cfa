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


class Results(msgspec.Struct):
    """One run. `peers` is by name, in the order of the tables; `when` is an ISO date in UTC."""

    when: str
    machine: str
    commit: str
    rounds: int
    seconds: float
    peers: dict[str, PeerResults] = {}

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


def read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)
