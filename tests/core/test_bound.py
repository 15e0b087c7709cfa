"""Lines of calls that wait for certain replicas alone."""

from __future__ import annotations

from headrace.core.bound import BoundLines, to_model, to_replica

CAT, DOG = to_model("cat"), to_model("dog")


def lines_of(*calls: tuple[str, object, float]) -> BoundLines[str]:
    lines: BoundLines[str] = BoundLines()
    for name, key, since in calls:
        lines.put(key, name, since, 0)  # type: ignore[arg-type]
    return lines


def test_a_replica_and_a_model_of_the_same_name_are_two_keys() -> None:
    assert to_model("a") != to_replica("a")


def test_calls_leave_in_the_order_of_their_line() -> None:
    lines = lines_of(("one", CAT, 1.0), ("two", DOG, 2.0), ("three", CAT, 3.0))
    assert [lines.take(CAT), lines.take(CAT), lines.take(CAT), lines.take(DOG)] == ["one", "three", None, "two"]
    assert (lines.count, list(lines)) == (0, [])


def test_what_comes_back_goes_first() -> None:
    lines = lines_of(("one", CAT, 1.0), ("two", CAT, 2.0))
    taken = lines.take(CAT)
    assert taken is not None
    lines.put(CAT, taken, 1.0, 0, back=True)
    assert lines.take(CAT) == "one"


def test_the_foremost_of_those_that_are_served() -> None:
    lines = lines_of(("one", CAT, 1.0), ("two", DOG, 2.0))
    assert lines.foremost(lambda key: True) == (CAT, 1.0)
    assert lines.foremost(lambda key: key == DOG) == (DOG, 2.0)
    assert lines.foremost(lambda key: False) is None
    assert lines.waiting(lambda key: True) == 2


def test_a_call_is_discarded_once() -> None:
    lines = lines_of(("one", CAT, 1.0))
    assert lines.discard("one")
    assert not lines.discard("one")
    assert CAT not in lines


def test_who_gives_way_is_the_youngest_of_the_longest_line_that_has_such() -> None:
    lines = lines_of(("one", CAT, 1.0), ("two", CAT, 2.0), ("three", DOG, 3.0))
    assert lines.take_lowest(below=0) is None
    assert lines.take_lowest(below=1) == "two"
    assert lines.take_lowest(None) == "one"
    assert lines.take_lowest(None) == "three"
    assert lines.take_lowest(None) is None
