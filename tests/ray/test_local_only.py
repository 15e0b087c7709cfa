"""What is said of tests that run on a cluster or do not is said of all, and of none that is not there."""

from __future__ import annotations

from pathlib import Path

from local_only import LOCAL_ONLY, NOT_YET, ON_RAY

ROOT = Path(__file__).parents[2]


def test_every_end_to_end_test_and_example_is_spoken_of() -> None:
    files = {
        str(path.relative_to(ROOT))
        for folder in ("e2e", "examples")
        for path in (ROOT / "tests" / folder).glob("test_*")
    }
    whole = {name for name in (*LOCAL_ONLY, *NOT_YET) if "::" not in name}
    assert files == whole | set(ON_RAY)
    assert not whole & set(ON_RAY)


def test_single_tests_that_are_left_out_are_there() -> None:
    for name in (*LOCAL_ONLY, *NOT_YET):
        file, separator, test = name.partition("::")
        if separator:
            assert file in ON_RAY
            assert f"def {test}" in (ROOT / file).read_text(), name
