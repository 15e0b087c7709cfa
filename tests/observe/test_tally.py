"""What is told of counts: what has changed, all of it, and nothing of what is gone."""

from __future__ import annotations

from headrace.observe.tally import Tallies
from headrace.spec.counts import Example, Mirrored


def test_only_what_has_changed_is_told_and_the_whole_of_it() -> None:
    tallies = Tallies()
    one, other = tallies.of("app", 1, "Model"), tallies.of("app", 2, "Model")
    assert tallies.changed() == []
    one.requests += 1
    one.latency[7] += 1
    (told,) = tallies.changed()
    assert (told.app, told.revision, told.deployment) == ("app", 1, "Model")
    assert (told.requests, told.errors, told.latency) == (1, 0, {7: 1})
    assert tallies.changed() == []
    one.requests += 1
    one.errors += 1
    other.requests += 1
    assert [(told.requests, told.errors) for told in tallies.changed()] == [(2, 1), (1, 0)]


def test_who_has_forgotten_is_told_everything_but_nothing_of_nothing() -> None:
    tallies = Tallies()
    tallies.of("app", 1, "Model").requests = 3
    tallies.of("app", 1, "Idle")
    assert len(tallies.changed()) == 1
    tallies.untold()
    assert [told.requests for told in tallies.changed()] == [3]


def test_a_failure_is_an_error_by_its_status() -> None:
    tally = Tallies().of("app", 1, "Model")
    for status in (400, 404, 429, 499):
        tally.failed(status)
    assert (tally.requests, tally.errors) == (4, 0)
    for status in (408, 500, 503, 504):
        tally.failed(status)
    assert (tally.requests, tally.errors) == (8, 4)
    tally.broke(500)
    tally.broke(499)
    assert (tally.requests, tally.errors) == (8, 5)


def test_revisions_that_are_gone_are_told_once_more_and_applications_not() -> None:
    tallies = Tallies()
    for key in (("app", 1, "Model"), ("app", 2, "Model"), ("other", 1, "Model")):
        tallies.of(*key).requests = 5
    tallies.keep([("app", 2, "Model")], ["app"])
    assert sorted((told.app, told.revision) for told in tallies.changed()) == [("app", 1), ("app", 2)]
    assert tallies.changed() == []
    again = tallies.of("app", 1, "Model")
    assert again.requests == 0


def test_mirrored_requests_are_told_as_they_are_then() -> None:
    tally = Tallies().of("app", 2, "Model")
    counts = tally.mirrored = Mirrored()
    assert tally.tell().mirrored == Mirrored()
    assert not tally.changed
    counts.skipped += 1
    assert tally.changed
    counts.examples = (Example(request_id="r", primary="1", shadow="2"),)
    told = tally.tell().mirrored
    counts.skipped += 1
    assert told == Mirrored(skipped=1, examples=counts.examples)
