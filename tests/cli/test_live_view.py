"""The view of a rollout: what it shows, that it never is too wide, and that it is redrawn in its place."""

import io
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from terminals import Glass

from headrace.cli.live import LEAST_WIDTH, Painter, cells, duration, percent, summary, view
from headrace.cli.terminal import Style
from headrace.spec.counts import Mirrored
from headrace.spec.status import CheckStatus, RolloutOutcome, RolloutStatus

PLAIN = Style(False)
CANARY = RolloutStatus(
    app="shop",
    revision=7,
    baseline=6,
    strategy="canary",
    stage="watching",
    step=1,
    steps=3,
    weights={7: 0.25, 6: 0.75},
    ready=1.0,
    since=1000.0,
    next_at=1060.0,
    reason="goes on in 48 s, if all is well",
    requests={7: 3210, 6: 9812},
    errors={7: 12},
    checks=(
        CheckStatus(check="error_rate", says="pass", text="error rate 0.37 % against 0.32 % of the baseline"),
        CheckStatus(check="clicks", says="fail", text="0.11 against 0.19"),
        CheckStatus(check="latency", says="hold", text="100 more to see"),
    ),
)


def changed(**fields):
    return msgspec.structs.replace(CANARY, **fields)


def test_a_canary():
    assert view(CANARY, 1012.0, 80, PLAIN) == [
        "shop · revision 7 · canary · step 2 of 3 · watching",
        "  7 ████████░░░░░░░░░░░░░░░░░░░░░░░░ 25 %  3,210 requests, 12 failed (0.37%)",
        "  6 ████████████████████████░░░░░░░░ 75 %  9,812 requests, 0 failed",
        "  goes on in 48 s at the earliest",
        "  ✓ error rate 0.37 % against 0.32 % of the baseline",
        "  ✗ clicks  0.11 against 0.19",
        "  … latency  100 more to see",
    ]


def test_a_shadow_and_what_differed():
    status = changed(
        strategy="shadow",
        steps=1,
        weights={6: 1.0},
        requests={},
        shadow=0.5,
        mirrored=Mirrored(sent=100, compared=80, differed=2, failed=3, skipped=7),
        checks=(),
    )
    lines = view(status, 1012.0, 80, PLAIN)
    assert lines[0] == "shop · revision 7 · shadow · watching"
    assert "  shadow 50 % · 2 of 80 answers differ (2.50%) · 3 failed, 7 skipped" in lines


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"paused": True}, "waits for `headrace rollout resume shop` (for 12 s)"),
        ({"next_at": 0.0, "reason": "waits for somebody to promote or resume it"}, "promote or resume it (for 12 s)"),
        ({"stage": "moving", "ready": 0.5, "next_at": 0.0}, "step 2 of 3 · starting"),
        ({"stage": "retreating"}, "rolling back"),
        ({"stage": "finishing", "next_at": 0.0}, "taking all of the traffic"),
        ({"outcome": "PROMOTED"}, "canary · promoted"),
        ({"outcome": "ROLLED_BACK", "reason": "too slow\nand worse"}, "  and worse"),
        ({"outcome": "FAILED", "reason": "no:\nTraceback\n  frame\nValueError: no model"}, "  ValueError: no model"),
        ({"stage": "one that a later version has"}, "one that a later version has"),
        ({"outcome": "ANOTHER"}, "ANOTHER"),
    ],
)
def test_what_it_waits_for(fields, text):
    assert any(text in line for line in view(changed(**fields), 1012.0, 100, PLAIN))


def test_colours_take_no_room_and_say_nothing_by_themselves():
    coloured = view(CANARY, 1012.0, 80, Style(True))
    assert "\x1b[32m" in "".join(coloured)
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in coloured] == view(CANARY, 1012.0, 80, PLAIN)


def test_a_terminal_without_other_characters():
    status = changed(checks=(CheckStatus(check="a", says="pass", text="x" * 200),))
    assert all(line.isascii() for line in view(status, 1012.0, 60, Style(False, ascii=True)))


WORDS = st.text(st.characters(), max_size=60)
SHARES = st.dictionaries(st.integers(1, 2**31), st.floats(0, 1), max_size=6)
STATUSES = st.builds(
    RolloutStatus,
    app=WORDS,
    revision=st.integers(0, 2**31),
    strategy=WORDS,
    stage=st.sampled_from(["moving", "watching", "finishing", "retreating", "ended"]) | WORDS,
    step=st.integers(0, 9),
    steps=st.integers(0, 9),
    paused=st.booleans(),
    weights=SHARES,
    ready=st.floats(0, 1),
    since=st.floats(0, 2e9),
    next_at=st.floats(0, 2e9),
    outcome=st.sampled_from(["", *RolloutOutcome]) | WORDS,
    reason=WORDS,
    checks=st.lists(
        st.builds(CheckStatus, check=WORDS, says=st.sampled_from(["pass", "x"]), text=WORDS), max_size=3
    ).map(tuple),
    requests=st.dictionaries(st.integers(1, 9), st.integers(0, 10**12)),
)


@settings(max_examples=50, deadline=None)
@given(STATUSES, st.integers(0, 200))
def test_no_line_is_too_wide_nor_moves_the_cursor(status, width):
    lines = view(status, 1e9, width, PLAIN)
    assert max(map(cells, lines)) <= max(width, LEAST_WIDTH)
    assert all(character.isprintable() for line in [*lines, summary(status)] for character in line)


@given(st.floats(0, 1), st.integers(8, 40))
def test_what_is_not_all_or_nothing_does_not_look_so(weight, width):
    line = view(changed(weights={7: weight}, requests={}), 0.0, width + 20, PLAIN)[1]
    full, empty = line.count("█"), line.count("░")
    assert (full > 0) == (weight > 0)
    assert (empty > 0) == (weight < 1)
    assert ("100 %" in percent(weight)) == (weight == 1)
    assert percent(weight).startswith("0 %") == (weight == 0)


def test_a_line_for_a_log_stays_the_same_while_only_time_passes():
    assert summary(CANARY) == summary(changed(since=2000.0, next_at=3000.0, requests={7: 9000}))
    assert summary(CANARY) == (
        "shop · revision 7 · canary: step 2 of 3 · watching · weights 7: 25 %, 6: 75 % · error_rate pass · clicks fail "
        "· latency needs more requests"
    )
    failed = changed(outcome="FAILED", reason="it did not come up:\nTraceback\n  frame\nValueError: no model\n")
    assert summary(failed) == "shop · revision 7 · canary: failed: it did not come up: ValueError: no model"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (12000, "3 h 20 min"),
        (9e7, "1041 d 16 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def painted(*steps):
    """What a terminal of 80 columns shows after all of it."""
    stream = io.StringIO()
    painter = Painter(stream)
    for step in steps:
        painter.say(step) if isinstance(step, str) else painter.paint(step)
    glass = Glass(80)
    glass.feed(stream.getvalue())
    return glass.rows[:-1]


def test_views_are_painted_over_each_other_and_lines_stay_above():
    assert painted(["a", "b", "c"], ["d"]) == ["d"]
    assert painted("first", ["a", "b"], "second", ["c", "b"], "third") == ["first", "second", "third", "c", "b"]
    assert painted(["a"], ["a"]) == ["a"]


def test_more_lines_than_there_are_rows():
    assert len(painted([str(number) for number in range(100)], ["x"] * 99)) == 23


def test_a_view_that_was_left_is_not_painted_over():
    stream = io.StringIO()
    painter = Painter(stream)
    painter.paint(["a"])
    painter.leave()
    painter.paint(["b"])
    assert stream.getvalue() == "a\nb\n"


def test_a_stream_that_cannot_say_all_characters():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Painter(stream).say("a → b")
    assert stream.buffer.getvalue() == b"a ? b\n"
