"""Traffic: which revision a request belongs to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.traffic import Split, draw_revision, own_revision, sticky_draw
from headrace.spec.snapshot import ApplicationEntry, RevisionEntry


def test_revisions_get_their_share() -> None:
    random = Random(1)
    counts = Counter(draw_revision([(1, 0.9), (2, 0.1)], random.random()) for _ in range(10_000))
    assert counts[2] == pytest.approx(1000, abs=120)
    assert counts[1] + counts[2] == 10_000


def test_weights_need_not_add_up_to_one() -> None:
    assert draw_revision([(1, 30.0), (2, 10.0)], 0.24) == 2
    assert draw_revision([(1, 30.0), (2, 10.0)], 0.26) == 1


def test_a_revision_without_weight_gets_nothing() -> None:
    assert {draw_revision([(1, 1.0), (2, 0.0), (3, 0.0)], i / 100) for i in range(100)} == {1}
    assert draw_revision([(1, 0.0)], 0.5) is None
    assert draw_revision([], 0.5) is None


def test_a_sticky_key_stays_where_it_is() -> None:
    weights = [(1, 0.5), (2, 0.5)]
    for i in range(50):
        assert len({draw_revision(weights, draw / 10, f"user{i}") for draw in range(10)}) == 1


def test_sticky_keys_spread_by_weight() -> None:
    counts = Counter(draw_revision([(1, 0.9), (2, 0.1)], 0.0, f"user{i}") for i in range(10_000))
    assert counts[2] == pytest.approx(1000, abs=120)


def test_experiments_of_different_applications_are_independent() -> None:
    in_both = sum(sticky_draw(f"user{i}", "a") < 0.1 and sticky_draw(f"user{i}", "b") < 0.1 for i in range(10_000))
    assert in_both == pytest.approx(100, abs=50)


def test_the_place_of_a_key_is_the_same_in_every_process_and_release() -> None:
    assert sticky_draw("user-1") == pytest.approx(0.4604815393, abs=1e-9)


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
def test_when_weight_moves_to_the_newer_revision_no_key_goes_back(key: str, before: int, after: int) -> None:
    before, after = sorted((before, after))
    was = draw_revision([(1, 100.0 - before), (2, float(before))], 0.0, key)
    now = draw_revision([(1, 100.0 - after), (2, float(after))], 0.0, key)
    assert was is not None
    assert now is not None
    assert now >= was


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_has_weight(weights: list[float], draw: float) -> None:
    chosen = draw_revision(list(enumerate(weights, 1)), draw)
    if chosen is None:
        assert sum(weights) == 0
    else:
        assert weights[chosen - 1] > 0


@pytest.mark.parametrize(
    ("weights", "own", "expected"),
    [
        ({1: 0.0}, 1, 1),  # the first deploy: nobody has the traffic yet
        ({1: 1.0}, 1, 0),
        ({1: 1.0, 2: 0.0}, 2, 2),  # it starts while an older one has the traffic
        ({1: 0.0, 2: 1.0}, 1, 1),  # it ends while a newer one has it
        ({2: 1.0}, 1, 0),  # its revision is forgotten
    ],
)
def test_a_replica_keeps_to_its_revision_until_it_has_the_traffic(
    weights: dict[int, float], own: int, expected: int
) -> None:
    revisions = tuple(RevisionEntry(number=n, weight=w, deployments={"D": f"a/D@{n}"}) for n, w in weights.items())
    entry = ApplicationEntry(name="a", route_prefix="/", ingress="D", revisions=revisions)
    assert own_revision(entry, "D", own) == expected


def test_a_replica_that_revisions_share_draws_once_one_of_them_has_weight() -> None:
    shared = {"Shared": "a/Shared@1"}
    revisions = (
        RevisionEntry(number=1, weight=1.0, deployments={"D": "a/D@1"} | shared),
        RevisionEntry(number=2, weight=0.0, deployments={"D": "a/D@2"} | shared),
    )
    entry = ApplicationEntry(name="a", route_prefix="/", ingress="D", revisions=revisions)
    assert own_revision(entry, "Shared", 2) == 0
    assert own_revision(entry, "D", 2) == 2


def test_a_replica_that_leaves_is_not_listed_and_keeps_to_its_revision() -> None:
    revisions = (
        RevisionEntry(number=1, weight=0.0, deployments={"Callee": "a/Callee@1"}),
        RevisionEntry(number=2, weight=1.0, deployments={"D": "a/D@2"}),
    )
    entry = ApplicationEntry(name="a", route_prefix="/", ingress="D", revisions=revisions)
    assert own_revision(entry, "D", 1) == 1


@given(
    st.lists(st.sampled_from([0.0, 1e-18, 0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=5),
    st.text(st.characters(exclude_categories=()), max_size=20),
)
def test_a_key_is_where_its_place_is(weights: list[float], key: str) -> None:
    split = Split(enumerate(weights, 1), "app")
    assert split.of(key) == split.at(sticky_draw(key, "app"))
