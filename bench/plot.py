"""Draws what became of requests over time as SVG: stacked areas for each server, side by side, with a line of capacity.

In: courses, as `arrivals.course` makes them, and a line of words for each. Out: the text of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

# In the order of arrivals.KINDS, from the bottom up; told apart by lightness too.
COLOURS = ("#0b3c5d", "#3a9d6a", "#e8a33d", "#c9ccd1", "#8b2f3a")
PANEL_WIDTH, PANEL_HEIGHT = 300, 220
LEFT, TOP, GAP, BELOW = 64, 66, 28, 74
FONT = 'font-family="system-ui, sans-serif"'


@dataclass(frozen=True)
class Panel:
    """One server: its name, one line on what happened, and requests a second of each kind in each bin."""

    title: str
    words: str
    course: Mapping[str, Sequence[float]]


def draw(title: str, panels: Sequence[Panel], seconds: float, capacity: float) -> str:
    """The picture. All panels share one scale."""
    width = LEFT + len(panels) * (PANEL_WIDTH + GAP)
    height = TOP + PANEL_HEIGHT + BELOW
    top = 1.05 * max(max(map(sum, zip(*panel.course.values(), strict=True))) for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {FONT} font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text transform="translate(16 {TOP + PANEL_HEIGHT / 2}) rotate(-90)" text-anchor="middle">requests/s</text>',
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({LEFT + place * (PANEL_WIDTH + GAP)} {TOP})">')
        parts += _panel(panel, seconds, capacity, top, with_scale=place == 0)
        parts.append("</g>")
    parts += _legend(list(panels[0].course), height - 18)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, seconds: float, capacity: float, top: float, *, with_scale: bool) -> list[str]:
    def y(value: float) -> float:
        return round(PANEL_HEIGHT * (1 - value / top), 1)

    parts = [
        f'<text y="-22" font-weight="600">{escape(panel.title)}</text>',
        f'<text y="-7" fill="#555" font-size="11">{escape(panel.words)}</text>',
    ]
    bins = len(next(iter(panel.course.values())))
    step = PANEL_WIDTH / bins
    below = [0.0] * bins
    for colour, heights in zip(COLOURS, panel.course.values(), strict=True):
        above = [low + height for low, height in zip(below, heights, strict=True)]
        if any(heights):
            parts.append(f'<path d="{_area(below, above, step, y)}" fill="{colour}"/>')
        below = above
    parts.append(
        f'<line x2="{PANEL_WIDTH}" y1="{y(capacity)}" y2="{y(capacity)}" stroke="#000" stroke-dasharray="4 3"/>'
    )
    if with_scale:
        parts.append(f'<text x="4" y="{y(capacity) - 4}" font-size="11">capacity</text>')
        for value in _ticks(top):
            parts.append(f'<text x="-6" y="{y(value) + 4}" text-anchor="end" fill="#555">{value:g}</text>')
    parts.append(f'<path d="M0 0V{PANEL_HEIGHT}H{PANEL_WIDTH}" fill="none" stroke="#555"/>')
    for value in _ticks(seconds):
        x = round(PANEL_WIDTH * value / seconds, 1)
        words = f"{value:g} s" if value == 0 else f"{value:g}"
        parts.append(f'<text x="{x}" y="{PANEL_HEIGHT + 16}" text-anchor="middle" fill="#555">{words}</text>')
    return parts


def _area(below: Sequence[float], above: Sequence[float], step: float, y: Callable[[float], float]) -> str:
    """Steps along the top from left to right, and along the bottom back."""
    there = [f"{round(place * step, 1)},{y(value)}" for i, value in enumerate(above) for place in (i, i + 1)]
    back = [f"{round(place * step, 1)},{y(value)}" for i, value in enumerate(below) for place in (i, i + 1)]
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
    for kind, colour in zip(kinds, COLOURS, strict=True):
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{y}">{escape(kind)}</text>')
        x += 40 + 7 * len(kind)
    return parts
