"""Draws what became of requests over time as SVG: stacked areas for each server, side by side, with a line of capacity,
or with lines where something changed.

In: courses, as `arrivals.course` makes them, and a line of words for each. Out: the text of a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.arrivals import KINDS

# Told apart by lightness too.
COLOURS = dict(zip(KINDS, ("#0b3c5d", "#3a9d6a", "#e8a33d", "#c9ccd1", "#8b2f3a"), strict=True))
PANEL_WIDTH, PANEL_HEIGHT = 300, 220
LEFT, TOP, GAP, BELOW = 64, 66, 28, 74
FONT = 'font-family="system-ui, sans-serif"'


@dataclass(frozen=True)
class Panel:
    """One server: its name, one line on what happened, and requests a second of each kind (of KINDS) in each bin, from
    the bottom up.
    """

    title: str
    words: str
    course: Mapping[str, Sequence[float]]


def draw(
    title: str,
    panels: Sequence[Panel],
    seconds: float,
    capacity: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """The picture. All panels share one scale; a mark is a moment, and what changed then."""
    width = LEFT + len(panels) * (PANEL_WIDTH + GAP)
    height = TOP + PANEL_HEIGHT + BELOW
    room = 1.15 if marks else 1.05  # for their words
    top = room * max(max(map(sum, zip(*panel.course.values(), strict=True))) for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {FONT} font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text transform="translate(16 {TOP + PANEL_HEIGHT / 2}) rotate(-90)" text-anchor="middle">requests/s</text>',
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({LEFT + place * (PANEL_WIDTH + GAP)} {TOP})">')
        parts += _areas(panel, top)
        if capacity is not None:
            parts += _capacity(capacity, top, with_word=place == 0)
        parts += _marks(marks, seconds)
        parts += _axes(seconds, top, with_scale=place == 0)
        parts.append("</g>")
    parts += _legend(list(panels[0].course), height - 18)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _y(value: float, top: float) -> float:
    return round(PANEL_HEIGHT * (1 - value / top), 1)


def _areas(panel: Panel, top: float) -> list[str]:
    parts = [
        f'<text y="-22" font-weight="600">{escape(panel.title)}</text>',
        f'<text y="-7" fill="#555" font-size="11">{escape(panel.words)}</text>',
    ]
    bins = len(next(iter(panel.course.values())))
    step = PANEL_WIDTH / bins
    below = [0.0] * bins
    for kind, heights in panel.course.items():
        above = [low + height for low, height in zip(below, heights, strict=True)]
        if any(heights):
            parts.append(f'<path d="{_area(below, above, step, top)}" fill="{COLOURS[kind]}"/>')
        below = above
    return parts


def _capacity(capacity: float, top: float, *, with_word: bool) -> list[str]:
    y = _y(capacity, top)
    parts = [f'<line x2="{PANEL_WIDTH}" y1="{y}" y2="{y}" stroke="#000" stroke-dasharray="4 3"/>']
    if with_word:
        parts.append(f'<text x="4" y="{y - 4}" font-size="11">capacity</text>')
    return parts


def _marks(marks: Sequence[tuple[float, str]], seconds: float) -> list[str]:
    parts = []
    for moment, words in marks:
        x = round(PANEL_WIDTH * moment / seconds, 1)
        parts.append(f'<line x1="{x}" x2="{x}" y2="{PANEL_HEIGHT}" stroke="#000" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{x + 4}" y="11" font-size="11">{escape(words)}</text>')
    return parts


def _axes(seconds: float, top: float, *, with_scale: bool) -> list[str]:
    parts = [f'<path d="M0 0V{PANEL_HEIGHT}H{PANEL_WIDTH}" fill="none" stroke="#555"/>']
    for value in _ticks(top) if with_scale else ():
        parts.append(f'<text x="-6" y="{_y(value, top) + 4}" text-anchor="end" fill="#555">{value:g}</text>')
    for value in _ticks(seconds):
        x = round(PANEL_WIDTH * value / seconds, 1)
        words = f"{value:g} s" if value == 0 else f"{value:g}"
        parts.append(f'<text x="{x}" y="{PANEL_HEIGHT + 16}" text-anchor="middle" fill="#555">{words}</text>')
    return parts


def _area(below: Sequence[float], above: Sequence[float], step: float, top: float) -> str:
    """Steps along the top from left to right, and along the bottom back."""
    there = [f"{round(place * step, 1)},{_y(value, top)}" for i, value in enumerate(above) for place in (i, i + 1)]
    back = [f"{round(place * step, 1)},{_y(value, top)}" for i, value in enumerate(below) for place in (i, i + 1)]
    return "M" + " L".join([*there, *reversed(back)]) + "Z"


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to the top, five at most."""
    step = 1e-6
    factors = (2, 2.5, 2)  # 1, 2, 5, 10, ...
    turn = 0
    while top / step > 5:
        step *= factors[turn % 3]
        turn += 1
    count = int(top / step + 1e-9)
    return [round(number * step, 9) for number in range(count + 1)]


def _legend(kinds: Sequence[str], y: float) -> list[str]:
    parts, x = [], LEFT
    for kind in kinds:
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 17}" y="{y}">{escape(kind)}</text>')
        x += 40 + 7 * len(kind)
    return parts
