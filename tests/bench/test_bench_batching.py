"""What the bench makes of batches, steps in load, hedges and many models: its arithmetic, without servers."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import batching, multiplexing, objective
from bench.arrivals import KINDS, NEVER, Arrival, Outcome, stepped
from bench.batching import BATCHING, OF_ONE_SCRIPT, question_of
from bench.objective import LIMIT_S, TIMES, figures_of, phases, picture, request, schedule, series_of
from bench.results import Entry, Measured
from bench.server import SUM_SCRIPT
from bench.settling import Phase, look

PHASE = Phase("step", 1.0, 2.0)


def outcomes_every_ms(late: Sequence[bool]) -> list[Outcome]:
    """A request each millisecond from the beginning of PHASE, in time or not."""
    return [
        Outcome(Arrival(PHASE.begins_s + number / 1000, False), 200, 0.020 if missed else 0.001)
        for number, missed in enumerate(late)
    ]


def batches_of(outcomes: Sequence[Outcome], size: int) -> list[list[float]]:
    dues = [outcome.arrival.due_s for outcome in outcomes]
    return [dues[start : start + size] for start in range(0, len(dues), size)]


def test_a_phase_without_misses_has_settled_at_once() -> None:
    outcomes = outcomes_every_ms([False] * 900)
    seen = look(PHASE, outcomes, batches_of(outcomes, 10), 0.010)
    assert (seen.missed, seen.settled_after, seen.batches, seen.batch) == (0.0, 0, 90, 10.0)
    assert (seen.p50_s, seen.p99_s) == (0.001, 0.001)


def test_it_settles_with_the_batch_after_which_at_most_one_in_a_hundred_misses() -> None:
    outcomes = outcomes_every_ms([True] * 100 + [False] * 800)
    seen = look(PHASE, outcomes, batches_of(outcomes, 10), 0.010)
    assert seen.missed == pytest.approx(100 / 900)
    assert seen.missed_late == 0.0
    assert seen.settled_after == 10, "with one batch more it would be ten of 810"


def test_what_misses_to_the_end_never_settles() -> None:
    outcomes = outcomes_every_ms([number % 20 == 19 for number in range(980)])
    seen = look(PHASE, outcomes, batches_of(outcomes, 20), 0.010)
    assert seen.missed_late == pytest.approx(0.05, abs=0.01)
    assert seen.settled_after == seen.batches == 49


def test_what_the_next_step_makes_late_is_not_held_against_this_one() -> None:
    outcomes = outcomes_every_ms([number >= 980 for number in range(1000)])
    assert look(PHASE, outcomes, batches_of(outcomes, 10), 0.010).missed == 0


def test_requests_without_an_answer_miss_and_have_no_latency() -> None:
    outcomes = outcomes_every_ms([False] * 10)
    outcomes += [Outcome(Arrival(1.5, False), 503, 0.0001), Outcome(Arrival(1.6, False), NEVER, 3.0)]
    seen = look(PHASE, outcomes, batches_of(outcomes[:10], 5), 0.010)
    assert seen.missed == pytest.approx(2 / 12)
    assert seen.p99_s == 0.001


def test_a_phase_without_requests_says_so() -> None:
    seen = look(PHASE, [], [], 0.010)
    assert (seen.missed, seen.batches, seen.settled_after) == (0.0, 0, 0)
    assert math.isnan(seen.p50_s)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(1, 20))
def test_from_where_it_has_settled_few_miss_and_before_more(late: list[bool], size: int) -> None:
    outcomes = outcomes_every_ms(late)
    batches = batches_of(outcomes, size)
    seen = look(PHASE, outcomes, batches, 0.010)
    assert seen.batches == len(batches)
    shares = [sum(late[start:]) / len(late[start:]) for start in range(0, len(late), size)]
    assert all(share > 0.01 for share in shares[: seen.settled_after])
    assert seen.settled_after == len(batches) or shares[seen.settled_after] <= 0.01


def test_arrivals_step_when_they_should() -> None:
    arrivals = stepped([(100.0, 10.0), (1000.0, 5.0)], 3)
    dues = [arrival.due_s for arrival in arrivals]
    assert dues == sorted(dues)
    assert dues[-1] < 15
    assert sum(due < 10 for due in dues) == pytest.approx(1000, rel=0.1)
    assert sum(due >= 10 for due in dues) == pytest.approx(5000, rel=0.1)
    assert arrivals == stepped([(100.0, 10.0), (1000.0, 5.0)], 3)


def test_the_objectives_phases_fill_the_run_and_its_load_steps_with_the_second() -> None:
    parts = phases(10.0)
    assert parts[0].begins_s == 0
    assert parts[-1].ends_s == pytest.approx(10.0)
    assert all(one.ends_s == other.begins_s for one, other in itertools.pairwise(parts))
    dues = [arrival.due_s for arrival in schedule(10.0)]

    def rate(phase: Phase) -> float:
        return sum(phase.begins_s <= due < phase.ends_s for due in dues) / (phase.ends_s - phase.begins_s)

    assert rate(parts[1]) / rate(parts[0]) == pytest.approx(TIMES, rel=0.15)
    assert rate(parts[2]) == pytest.approx(rate(parts[1]), rel=0.1)


def test_a_request_says_exactly_when_it_was_due() -> None:
    arrival = Arrival(0.1 + 0.2, False)
    head, _, body = request(arrival, 0.0).partition(b"\r\n\r\n")
    assert json.loads(body)["due"] == arrival.due_s
    assert b"content-length: %d" % len(body) in head


def test_the_objectives_figures_and_picture_come_from_a_run() -> None:
    seconds = 8.0
    due = [arrival.due_s for arrival in schedule(seconds)][::20]
    dear = phases(seconds)[2]
    outcomes = [
        Outcome(Arrival(when, False), 200, 2 * LIMIT_S if dear.begins_s <= when < dear.ends_s else 0.001)
        for when in due
    ]
    figures = figures_of(outcomes, [[when] for when in due], seconds)
    assert {column.figure for column in objective.OBJECTIVE.columns} <= set(figures)
    assert figures["load_settled_after"] == 0
    assert figures["cost_missed"] == 1
    assert figures["cost_settled_after"] == figures["cost_batches"]
    measured = Measured(figures, series_of(outcomes, seconds))
    assert tuple(measured.series) == KINDS[1:]
    drawn = picture({"headrace": Entry("By <objective>", "", [measured]), "other": Entry("None", "", [], ["oh"])})
    assert drawn is not None
    words = [one.text for one in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"By <objective>", "load × 4", "cost × 3", "late"} <= set(words)
    assert "capacity" not in words
    assert picture({}) is None


def test_each_is_asked_what_its_route_takes() -> None:
    scripts = {}
    for peer in BATCHING.entrants:
        question, script = question_of(peer)
        sent = re.findall(r"wrk.body = '(.*)'", script.read_text())[0]
        assert json.loads(sent) == json.loads(question.body or b"")
        scripts[peer.name] = script
    assert scripts["bentoml"] == scripts["bentoml-60s"] == OF_ONE_SCRIPT
    assert scripts["headrace"] == scripts["mosec"] == SUM_SCRIPT
    assert question_of(BATCHING.entrants[0])[0].right(b'{"y": 10.0}')


def test_the_batching_peers_are_all_but_ours() -> None:
    assert set(batching.PEERS) == {peer.name for peer in BATCHING.entrants if not peer.name.startswith("headrace")}


def test_popularity_falls_by_zipfs_law() -> None:
    shares = multiplexing.zipf(200, 1.1)
    assert sum(shares) == pytest.approx(1)
    assert shares[0] / shares[9] == pytest.approx(10**1.1)
    wanted = multiplexing.skewed(1000.0, 10.0, ["a", "b", "c"], 1)
    counts = [list(wanted.values()).count(name) for name in "abc"]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] / counts[1] == pytest.approx(2**1.1, rel=0.15)


def test_replicas_with_a_model_are_those_that_have_not_dropped_it() -> None:
    seen = [
        ("loaded", "m", "1"),
        ("loaded", "m", "2"),
        ("loaded", "n", "3"),
        ("dropped", "m", "1"),
        ("loaded", "m", "4"),
        ("dropped", "m", "4"),
        ("loaded", "m", "4"),
    ]
    assert multiplexing.replicas_with("m", seen) == 2
    assert multiplexing.replicas_with("n", seen) == 1
    assert multiplexing.replicas_with("o", seen) == 0


def test_a_busy_load_has_the_hot_model_the_cold_and_each_new_one_once() -> None:
    wanted = multiplexing.busy_load(10.0, ["c0", "c1"], ["n0", "n1", "n2"], 1)
    names = list(wanted.values())
    assert names.count(multiplexing.HOT) == pytest.approx(10 * multiplexing.HOT_RATE, rel=0.1)
    assert names.count("c0") + names.count("c1") == pytest.approx(10 * multiplexing.COLD_RATE, rel=0.2)
    assert [name for name in names if name.startswith("n")] == ["n0", "n1", "n2"]
    assert all(0 < arrival.due_s < 10 for arrival in wanted)
