"""Turns a run into markdown, and puts it between the markers of the documents.

In: `Results`. Out: tables as text; `write_between` changes a file between `<!-- bench:begin -->` and
`<!-- bench:end -->`, and nothing else in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench.budgets import Verdict, judge
from bench.calls import CallRound
from bench.results import Entry, PeerResults, Results
from bench.section import Section

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NONE = "–"
LEFT, RIGHT = "---", "---:"


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits at most, thousands apart; a dash for what was not measured."""
    if value is None:
        return NONE
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}{unit}" if rounded >= 1000 else f"{rounded:g}{unit}"


def ratio(value: float | None, reference: float | None) -> str:
    """Value over reference, with a ×."""
    return NONE if value is None or not reference else number(value / reference, " ×")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column to the left, the others to the right."""
    ruler = [LEFT] + [RIGHT] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ruler, *rows])


def name_of(peer: PeerResults | Entry) -> str:
    return f"{peer.title} ({peer.version})" if peer.version else peer.title


def http_table(results: Results) -> str:
    """No-op JSON over HTTP, a row a peer, and at 32 connections how many times Headrace's rate is of theirs."""
    header = [
        "server",
        "1 conn./s",
        "p50",
        "32 conn./s",
        "p50",
        "128 conn./s",
        "p50",
        "CPU a request",
        "Headrace makes",
    ]
    ours = results.http("headrace", lambda seen: seen.loads[32].rate)
    rows = []
    for name, peer in results.peers.items():
        cells = [name_of(peer)]
        for connections in (1, 32, 128):
            cells.append(number(results.http(name, lambda seen, c=connections: seen.loads[c].rate)))
            cells.append(number(results.http(name, lambda seen, c=connections: seen.loads[c].p50_us), " µs"))
        cells.append(number(results.http(name, lambda seen: seen.loads[32].cpu_us), " µs"))
        theirs = results.http(name, lambda seen: seen.loads[32].rate)
        cells.append("" if name == "headrace" else ratio(ours, theirs))
        rows.append(cells)
    return markdown(header, rows)


def cost_table(results: Results) -> str:
    """Start time and memory, a row a peer."""
    header = ["server", "command to first 200", "memory, idle (PSS)", "processes"]
    rows = [
        [
            name_of(peer),
            number(results.http(name, lambda seen: seen.start_s), " s"),
            number(results.http(name, lambda seen: seen.memory_mb), " MB"),
            number(results.http(name, lambda seen: seen.processes)),
        ]
        for name, peer in results.peers.items()
    ]
    return markdown(header, rows)


def calls_table(results: Results) -> str:
    """Handle calls, a row a figure, a column a framework that has handles."""
    names = [name for name, peer in results.peers.items() if peer.calls]
    figures: list[tuple[str, Callable[[CallRound], float], str]] = [
        ("call from a coroutine in a replica, in sequence, p50", lambda seen: seen.sequence_us, " µs"),
        ("call by `.result()` from a script, in sequence, p50", lambda seen: seen.result_us, " µs"),
        ("calls from a coroutine in a replica, 64 at once", lambda seen: seen.at_once_per_s, "/s"),
        ("1 MB array as an argument, from a replica, p50", lambda seen: seen.array_1mb_us / 1000, " ms"),
        ("10 MB array as an argument, from a replica, p50", lambda seen: seen.array_10mb_us / 1000, " ms"),
        ("10 MB array as an argument, by `.result()`, p50", lambda seen: seen.driver_array_10mb_us / 1000, " ms"),
    ]
    rows = [[what, *(number(results.call(name, figure), unit) for name in names)] for what, figure, unit in figures]
    return markdown(["handle calls", *(name_of(results.peers[name]) for name in names)], rows)


def section_table(section: Section, entries: Mapping[str, Entry]) -> str:
    """A section, a row an entrant, and how many times Headrace's figure is of theirs where the section compares."""
    found = Results("", "", "", 1, 1.0, sections={section.name: dict(entries)})
    ours = found.figure(section.name, "headrace", section.compare)
    rows = []
    for name, entry in entries.items():
        cells = [name_of(entry)]
        for column in section.columns:
            value = found.figure(section.name, name, column.figure)
            cells.append(number(None if value is None else value * column.scale, column.unit))
        if section.compare:
            cells.append("" if name == "headrace" else ratio(ours, found.figure(section.name, name, section.compare)))
        rows.append(cells)
    header = ["", *(column.title for column in section.columns)]
    if section.compare:
        title = next(column.title for column in section.columns if column.figure == section.compare)
        header.append(f"Headrace makes ({title})" if len(section.columns) > 1 else "Headrace makes")
    return markdown(header, rows)


def budgets_table(results: Results) -> str:
    """The project's own budgets, with what the run found."""
    return verdicts_table(judge(results))


def verdicts_table(verdicts: Iterable[Verdict]) -> str:
    """What became of budgets."""
    rows = []
    for verdict in verdicts:
        budget = verdict.budget
        limit = f"{'≥' if budget.at_least else '≤'} {number(budget.limit, budget.unit)}"
        state = "not measured" if verdict.figure is None else "met" if verdict.met else "**missed**"
        rows.append([budget.what, limit, number(verdict.figure, budget.unit), state])
    return markdown(["what", "budget", "found", ""], rows)


def failures(results: Results) -> str:
    """A line for each peer that failed in some rounds or in all, with the reason; "" when none did."""
    lines = []
    for peer in results.peers.values():
        if peer.errors:
            good = results.rounds - len(peer.errors)
            state = f"measured in {good} of {results.rounds} rounds" if peer.http or peer.calls else "not measured"
            lines.append(f"- {name_of(peer)}: {state}: {peer.errors[-1]}")
    for name, entries in results.sections.items():
        for entry in entries.values():
            if entry.errors:
                total = len(entry.rounds) + len(entry.errors)
                state = f"measured in {len(entry.rounds)} of {total} rounds" if entry.rounds else "not measured"
                lines.append(f"- {name}, {name_of(entry)}: {state}: {entry.errors[-1]}")
    return "\n".join(lines)


def how(results: Results) -> str:
    """One line that says what the figures are figures of."""
    return (
        f"Medians of {results.rounds} interleaved round{'s' * (results.rounds != 1)}, {results.seconds:g} s a figure, "
        f"on {results.machine}, wrk beside it; {results.when[:10]}, commit {results.commit}."
    )


def report(results: Results, sections: Mapping[str, Section], pictures: Mapping[str, str] | None = None) -> str:
    """All tables of a run. `sections` says what the sections' figures are, `pictures` where a section's picture is."""
    parts = []
    if "headrace" in results.peers or any("headrace" in entries for entries in results.sections.values()):
        parts += ["## Budgets", budgets_table(results)]
    if any(peer.http for peer in results.peers.values()):
        parts += ["## No-op JSON over HTTP", http_table(results), "## Start and memory", cost_table(results)]
    if any(peer.calls for peer in results.peers.values()):
        parts += ["## Handle calls", calls_table(results)]
    for name, entries in results.sections.items():
        section = sections[name]
        parts += [f"## {section.title}", section.note, section_table(section, entries)]
        if pictures and name in pictures:
            parts.append(f"![{section.title}]({pictures[name]})")
    if reasons := failures(results):
        parts += ["## Not measured, or not in every round", reasons]
    return "\n\n".join([how(results), *parts]) + "\n"


def short(results: Results) -> str:
    """The README's table: rate and CPU at 32 connections, handle call, start, memory."""
    header = ["no-op model", "requests/s", "CPU a request", "handle call", "start", "memory"]
    rows = []
    for name, peer in results.peers.items():
        rows.append(
            [
                peer.title,
                number(results.http(name, lambda seen: seen.loads[32].rate)),
                number(results.http(name, lambda seen: seen.loads[32].cpu_us), " µs"),
                number(results.call(name, lambda seen: seen.sequence_us), " µs"),
                number(results.http(name, lambda seen: seen.start_s), " s"),
                number(results.http(name, lambda seen: seen.memory_mb), " MB"),
            ]
        )
    return f"{markdown(header, rows)}\n\n{how(results)}\n"


def write_between(path: Path, text: str, begins: str = BEGIN, ends: str = END) -> None:
    """Replace what stands between the markers of the file by the text. ValueError when it has no markers."""
    before, begin, rest = path.read_text().partition(begins)
    _, end, after = rest.partition(ends)
    if not begin or not end:
        raise ValueError(f"{path} has no {begins} and {ends}")
    path.write_text(f"{before}{begins}\n{text.strip()}\n{ends}{after}")
