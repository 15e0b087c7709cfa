"""How a rollout goes, as lines for a terminal, redrawn in place; and as single lines for a log.

In: a RolloutStatus and the time. Out: lines no wider than asked, and a painter that puts them where the last ones were.
`view` and `summary` are pure. What others wrote (reasons, names) is shown without its control characters.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from typing import IO

from headrace.cli.failures import gist
from headrace.cli.terminal import Style
from headrace.spec.status import CheckStatus, RolloutOutcome, RolloutStatus

DEFAULT_WIDTH = 80
LEAST_WIDTH = 16
WIDEST_BAR = 32
MOST_REASON_LINES = 3
_STAGES = {
    "moving": "moving traffic",
    "watching": "watching",
    "finishing": "taking all of the traffic",
    "retreating": "rolling back",
    "ended": "ended",
}
_OUTCOMES = {
    RolloutOutcome.PROMOTED: "promoted",
    RolloutOutcome.FAILED: "failed",
    RolloutOutcome.ROLLED_BACK: "rolled back",
    RolloutOutcome.SUPERSEDED: "superseded",
}
_SAYS = {"hold": "needs more requests"}
_ASCII = str.maketrans({"·": "-", "…": "~"})
_UP = "\x1b[{}F"  # to the beginning of the line so many lines up
_CLEAR_BELOW = "\x1b[J"

Paint = Callable[[str], str]
Segment = tuple[str, Paint]
Line = list[Segment]


def view(status: RolloutStatus, now: float, width: int, style: Style) -> list[str]:
    """The rollout as lines of at most `width` columns; `now` is in seconds since the epoch."""
    width = max(width, LEAST_WIDTH)
    lines: list[Line] = [_head(status, style)]
    if status.weights:
        lines += _weights(status, width, style)
    if status.mirrored is not None or status.shadow:
        lines.append(_shadow(status, style))
    if not status.outcome:
        lines.append([("  ", _as_it_is), (_next(status, now), style.dim)])
    lines += [_check(check.says, _told(check), style) for check in status.checks]
    if status.outcome:
        reason = [_clean(line) for line in status.reason.strip().splitlines() if line.strip()]
        if len(reason) > MOST_REASON_LINES:  # of a traceback: how it begins, and what was raised
            reason = [*reason[: MOST_REASON_LINES - 2], "…", reason[-1]]
        lines += [[("  ", _as_it_is), (line, _as_it_is)] for line in reason]
    drawn = [_cut(line, width) for line in lines]
    return [line.translate(_ASCII) for line in drawn] if style.ascii else drawn


def summary(status: RolloutStatus) -> str:
    """The rollout in one line, the same as long as nothing worth telling happens."""
    if status.outcome:
        reason = _clean(in_one_line(status.reason))
        return f"{_title(status)}: {_outcome(status)}{f': {reason}' if reason else ''}"
    shares = ", ".join(f"{number}: {percent(weight)}" for number, weight in _newest_first(status.weights))
    parts = [_stage(status), f"weights {shares}" if shares else ""]
    parts += [f"{_clean(check.check)} {_SAYS.get(check.says, _clean(check.says))}" for check in status.checks]
    return f"{_title(status)}: {' · '.join(part for part in parts if part)}"


def in_one_line(reason: str) -> str:
    """A reason in one line: of an error of several lines, how it begins and what was raised."""
    first, _, rest = reason.strip().partition("\n")
    return f"{first} {gist(rest)}" if rest else first


def stage_of(status: RolloutStatus) -> str:
    """What the rollout does now, or how it ended, in a few words."""
    return _outcome(status) if status.outcome else _stage(status)


class Painter:
    """Puts lines on a terminal in the place of those before, and other lines above them."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._shown: list[str] = []

    def width(self) -> int:
        """Columns that may be used: one less than there are, so that no line wraps."""
        return self._size()[0] - 1

    def paint(self, lines: Sequence[str]) -> None:
        """Show these in the place of the last ones: as many as the terminal has room for."""
        lines = list(lines[: max(1, self._size()[1] - 1)])
        if lines == self._shown:
            return
        self._write(self._back() + "".join(f"{line}\n" for line in lines))
        self._shown = lines

    def say(self, line: str) -> None:
        """A line that stays, above what is painted."""
        self._write(self._back() + f"{line}\n" + "".join(f"{each}\n" for each in self._shown))

    def leave(self) -> None:
        """What is painted stays; the next lines come below it."""
        self._shown = []

    def _back(self) -> str:
        """To where the first of the shown lines begins; a terminal that became narrower has wrapped some of them."""
        columns = self._size()[0]
        rows = sum(max(1, -(-cells(_bare(line)) // columns)) for line in self._shown)
        return f"{_UP.format(rows) if rows else ''}{_CLEAR_BELOW if rows else ''}"

    def _size(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return DEFAULT_WIDTH, 24
        return size.columns or DEFAULT_WIDTH, size.lines or 24  # some terminals do not know

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def cells(text: str) -> int:
    """How many columns the text takes."""
    return sum(_cells_of(character) for character in text)


def duration(seconds: float) -> str:
    """`45 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    for unit, size, smaller, part in (("min", 60, "s", 1), ("h", 3600, "min", 60), ("d", 86400, "h", 3600)):
        if left < size * {"min": 60, "h": 24, "d": 10**9}[unit]:
            rest = left % size // part
            return f"{left // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError(left)


# --- lines ----------------------------------------------------------------------------------------------------------


def _head(status: RolloutStatus, style: Style) -> Line:
    paint = _as_it_is
    if status.outcome:
        paint = style.good if status.outcome == RolloutOutcome.PROMOTED else style.bad
    elif status.stage == "retreating":
        paint = style.bad
    return [(_title(status), style.strong), (" · ", _as_it_is), (stage_of(status), paint)]


def _title(status: RolloutStatus) -> str:
    strategy = _clean(status.strategy).replace("_", " ")
    return f"{_clean(status.app)} · revision {status.revision}{f' · {strategy}' if strategy else ''}"


def _stage(status: RolloutStatus) -> str:
    stage = _STAGES.get(status.stage, _clean(status.stage))
    if status.stage in ("moving", "finishing") and status.ready < 1:
        stage = "starting"
    if status.steps > 1 and status.stage in ("moving", "watching"):
        stage = f"step {min(status.step + 1, status.steps)} of {status.steps} · {stage}"
    return f"paused · {stage}" if status.paused else stage


def _outcome(status: RolloutStatus) -> str:
    known = status.outcome in RolloutOutcome.__members__
    return _OUTCOMES[RolloutOutcome(status.outcome)] if known else _clean(status.outcome)


def _weights(status: RolloutStatus, width: int, style: Style) -> list[Line]:
    """A bar for each revision; figures are left out before bars are, where there is no room for both."""
    rows = _newest_first(status.weights)
    names = [f"  {number}" for number, _ in rows]
    shares = [percent(weight) for _, weight in rows]
    figures = [_figures(status, number) for number, _ in rows]
    left = max(map(cells, names))
    middle = max(map(cells, shares))
    right = max(map(cells, figures))
    room = width - left - middle - 2
    if right and room - right - 2 < 8:
        figures, right = [""] * len(rows), 0
    bar = min(WIDEST_BAR, room - (right + 2 if right else 0))
    lines: list[Line] = []
    for (number, weight), name, share, figure in zip(rows, names, shares, figures, strict=True):
        full = _full(weight, bar)
        paint = style.good if number == status.revision else _as_it_is
        filled, empty = ("#", "-") if style.ascii else ("█", "░")
        lines.append(
            [
                (name.rjust(left) + " ", _as_it_is),
                (filled * full, paint),
                (empty * (bar - full), style.dim),
                (" " + share.rjust(middle), _as_it_is),
                (f"  {figure}" if figure else "", style.dim),
            ]
        )
    return lines


def _full(weight: float, bar: int) -> int:
    """Cells of the bar: something for whatever has a weight, and not all for what has not all."""
    full = round(weight * bar)
    if weight > 0:
        full = max(1, full)
    if weight < 1:
        full = min(bar - 1, full)
    return max(0, min(bar, full))


def _figures(status: RolloutStatus, number: int) -> str:
    requests = status.requests.get(number)
    if requests is None:
        return ""
    errors = status.errors.get(number, 0)
    share = f" ({errors / requests:.2%})" if errors and requests else ""
    return f"{requests:,} request{'s' * (requests != 1)}, {errors:,} failed{share}"


def _shadow(status: RolloutStatus, style: Style) -> Line:
    seen = status.mirrored
    text = f"  shadow {percent(status.shadow)}"
    if seen is None:
        return [(text, _as_it_is)]
    compared = f"{seen.differed:,} of {seen.compared:,} answers differ"
    if seen.compared:
        compared += f" ({seen.differed / seen.compared:.2%})"
    return [
        (f"{text} · ", _as_it_is),
        (compared, style.bad if seen.differed else _as_it_is),
        (f" · {seen.failed:,} failed, {seen.skipped:,} skipped", style.dim),
    ]


def _next(status: RolloutStatus, now: float) -> str:
    """What it waits for."""
    since = f" (for {duration(now - status.since)})" if status.since and now >= status.since else ""
    if status.paused:
        return f"waits for `headrace rollout resume {_clean(status.app)}`{since}"
    if status.next_at > now:
        return f"goes on in {duration(status.next_at - now)} at the earliest"
    reason = _clean(in_one_line(status.reason))
    return f"{reason or _STAGES.get(status.stage, 'under way')}{since}"


def _check(says: str, text: str, style: Style) -> Line:
    marks = {"pass": "ok", "fail": "x", "hold": "."} if style.ascii else {"pass": "✓", "fail": "✗", "hold": "…"}
    paint = {"pass": style.good, "fail": style.bad}.get(says, style.dim)
    return [("  ", _as_it_is), (marks.get(says, "?"), paint), (f" {text}", _as_it_is)]


def _told(check: CheckStatus) -> str:
    """The figures of a check, which mostly begin with what is checked."""
    name, text = _clean(check.check), _clean(check.text)
    return text if text.startswith(name.replace("_", " ")) else f"{name}  {text}"


def _newest_first(weights: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(weights.items(), reverse=True)


def percent(share: float) -> str:
    """`25 %`, `2.5 %`; what is nearly nothing or nearly all does not look as if it were."""
    percent = share * 100
    text = f"{percent:.0f}" if abs(percent - round(percent)) < 0.005 else f"{percent:.1f}"
    if text in ("0", "0.0") and share > 0:
        text = "<0.1"
    if text in ("100", "100.0") and share < 1:
        text = ">99.9"
    return f"{text} %"


# --- text -----------------------------------------------------------------------------------------------------------


def _as_it_is(text: str) -> str:
    return text


def _clean(text: str) -> str:
    """Without what would move the cursor or colour the rest."""
    return "".join(character if character.isprintable() else " " for character in text)


def _cut(line: Line, width: int) -> str:
    """The line in its colours, of at most `width` columns: what is too long ends with dots."""
    if sum(cells(text) for text, _ in line) <= width:
        return "".join(paint(text) if text else "" for text, paint in line)
    room = width - 1
    shown: list[str] = []
    for text, paint in line:
        kept = ""
        for character in text:
            if cells(character) > room:
                break
            kept += character
            room -= cells(character)
        if kept:
            shown.append(paint(kept))
        if kept != text:
            break
    return "".join(shown) + "…"


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _bare(line: str) -> str:
    """The line without its colours."""
    text, rest = "", line
    while rest:
        before, escape, rest = rest.partition("\x1b[")
        text += before
        if escape:
            rest = rest.partition("m")[2]
    return text
