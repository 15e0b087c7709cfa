"""A section of the bench: one workload, who runs it, how a round of it is measured, and what its table shows.

In: nothing; each section's module builds its own. Out: `Section`, which the runner, the budgets and the tables read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.peers import Peer
from bench.results import Entry, Measured


@dataclass(frozen=True)
class Column:
    """A column of the table: a figure by name, multiplied by `scale` into `unit`."""

    figure: str
    title: str
    unit: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Drawing:
    """A picture of a section: the name of its file, and what makes it of the entries, None where nothing is seen."""

    file: str
    draw: Callable[[Mapping[str, Entry]], str | None]


@dataclass(frozen=True)
class Section:
    """`measure` takes an entrant whose environment stands, and seconds for each figure; it raises PeerFailed.

    `picture` names the entrants that no budget needs. One that is `once` is measured in the first round alone: it
    looks at a course in time, or varies little. `compare` is the figure of the last column: how many times theirs
    Headrace makes. `note` stands under the title, `drawing` below the table.
    """

    name: str
    title: str
    note: str
    entrants: tuple[Peer, ...]
    columns: tuple[Column, ...]
    measure: Callable[[Peer, float], Measured]
    picture: frozenset[str] = frozenset()
    once: bool = False
    compare: str = ""
    drawing: Drawing | None = None
