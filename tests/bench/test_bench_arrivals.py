"""The arithmetic of overload: schedules of arrivals, what came of them, and the picture of it."""

from __future__ import annotations

import itertools
import math
import statistics
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import arrivals, plot
from bench.arrivals import KINDS, NEVER, Arrival, Outcome, course, poisson, quantile, summary
from bench.overload import OVERLOAD, picture, request_for
from bench.results import Entry, Measured

outcomes_of_any_kind = st.lists(
    st.builds(
        Outcome,
        st.builds(Arrival, st.floats(0, 10, exclude_max=True), st.booleans()),
        st.sampled_from([200, 408, 503, NEVER]),
        st.floats(0, 20),
    )
)


def outcome(status: int, took_s: float, *, high: bool = False, due_s: float = 0.0) -> Outcome:
    return Outcome(Arrival(due_s, high), status, took_s)


def test_arrivals_are_poisson() -> None:
    schedule = poisson(rate=500, seconds=60, high_share=0.1, seed=7)
    dues = [arrival.due_s for arrival in schedule]
    assert dues == sorted(dues)
    assert dues[0] > 0
    assert dues[-1] < 60
    gaps = [late - early for early, late in itertools.pairwise(dues)]
    assert len(schedule) == pytest.approx(30_000, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05), "as in an exponential distribution"
    assert sum(arrival.high for arrival in schedule) / len(schedule) == pytest.approx(0.1, abs=0.01)


def test_a_schedule_depends_on_its_seed_alone() -> None:
    assert poisson(100, 3, 0.5, 1) == poisson(100, 3, 0.5, 1)
    assert poisson(100, 3, 0.5, 1) != poisson(100, 3, 0.5, 2)


def test_quantiles_are_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert math.isnan(quantile([], 0.5))


def test_a_summary_counts_against_the_capacity() -> None:
    seen = [
        outcome(200, 0.04, high=True),
        outcome(200, 0.05),
        outcome(200, 0.051),  # late
        outcome(408, 0.01),
        outcome(503, 0.02, high=True),
        outcome(NEVER, 3.0),
    ]
    figures = summary(seen, seconds=2.0, capacity=2.0, deadline_s=0.05)
    assert figures["offered"] == 3
    assert figures["in_time_share"] == 0.5
    assert figures["high_in_time_share"] == 0.5
    assert (figures["late"], figures["refused"], figures["unanswered"]) == (0.5, 1, 0.5)
    assert (figures["p50_ms"], figures["high_p99_ms"], figures["refused_p99_ms"]) == (50, 40, 20)


def test_what_cannot_be_told_is_left_out() -> None:
    figures = summary([outcome(503, 0.01)], seconds=1.0, capacity=1.0, deadline_s=1.0)
    assert "p50_ms" not in figures
    assert "high_in_time_share" not in figures
    assert figures["in_time"] == 0


@settings(deadline=None)
@given(outcomes_of_any_kind, st.floats(0.3, 10))
def test_a_course_has_every_request_once(seen: list[Outcome], seconds: float) -> None:
    seen = [one for one in seen if one.arrival.due_s < seconds]
    found = course(seen, seconds, deadline_s=0.05, bin_s=0.25)
    assert tuple(found) == KINDS
    bins = {len(heights) for heights in found.values()}
    assert bins == {math.ceil(seconds / 0.25)}
    last_s = seconds - (bins.pop() - 1) * 0.25
    counted = sum(height * 0.25 for heights in found.values() for height in heights[:-1])
    counted += sum(heights[-1] * last_s for heights in found.values())
    assert counted == pytest.approx(len(seen))


def test_only_headrace_with_deadlines_is_told_them() -> None:
    low, high = Arrival(1.0, high=False), Arrival(1.0, high=True)
    told, untold, peer = OVERLOAD.entrants
    assert b"x-request-timeout-seconds: 0.0500\r\n" in request_for(told, low, 0.0)
    assert b"priority" not in request_for(told, low, 0.0)
    assert b"\r\nx-request-priority: 5\r\n" in request_for(told, high, 0.0)
    assert b"x-request-timeout-seconds: 0.0350\r\n" in request_for(told, high, 0.015), "what is left of its time"
    assert b"x-request-timeout-seconds: 0.0010\r\n" in request_for(told, high, 5.0)
    assert request_for(untold, high, 0.0) == request_for(peer, low, 0.01)
    assert b"x-request" not in request_for(untold, high, 0.0)


def test_the_picture_shows_each_entrant_and_is_well_formed() -> None:
    seen = [outcome(200, 0.01 * number, high=number % 10 == 0, due_s=number / 100) for number in range(100)]
    measured = Measured(summary(seen, 1.0, 50.0, 0.05), course(seen, 1.0, 0.05, 0.25))
    entries = {"a": Entry("Ours <&>", "", [measured]), "b": Entry("Failed", "", [], ["it did"])}
    drawn = picture(entries)
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Ours <&>" in words
    assert "Failed" not in words
    assert set(arrivals.KINDS) <= set(words)
    assert picture({"b": entries["b"]}) is None


def test_areas_are_stacked_without_gaps() -> None:
    panel = plot.Panel("", "", {kind: [float(place + 1)] * 2 for place, kind in enumerate(KINDS)})
    root = ElementTree.fromstring(plot.draw("", [panel], 1.0, 10.0))
    areas = [element.get("d") or "" for element in root.iter("{http://www.w3.org/2000/svg}path") if element.get("fill")]
    heights = [{point.split(",")[1] for point in area.strip("MZ").split(" L")} for area in areas if " L" in area]
    assert len(heights) == len(KINDS)
    for low, high in itertools.pairwise(heights):
        assert len(low & high) == 1, "the top of one is the bottom of the next"


@given(st.floats(0.1, 1e6))
def test_ticks_are_few_and_round(top: float) -> None:
    ticks = plot._ticks(top)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] <= top * (1 + 1e-6)
