"""What is said of tests that run on a cluster or do not is said of all, and of none that is not there."""

from __future__ import annotations

from pathlib import Path

from local_only import LOCAL_ONLY, LONG, ON_RAY, reason

ROOT = Path(__file__).parents[2]
FOLDERS = ("e2e", "examples", "moving", "patterns", "rpc")


def test_every_test_with_processes_is_spoken_of() -> None:
    files = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / "tests" / folder).glob("test_*")}
    assert set(ON_RAY) <= files
    assert all(reason(file) is None for file in ON_RAY)
    assert [file for file in files - set(ON_RAY) if reason(file) is None] == []
    whole = [name for name in (*LOCAL_ONLY, *LONG) if "::" not in name]
    assert [name for name in whole if not any(file.startswith(name) for file in files)] == []


def test_single_tests_that_are_left_out_are_there() -> None:
    for name in (*LOCAL_ONLY, *LONG):
        file, separator, test = name.partition("::")
        if separator:
            assert file in ON_RAY
            named = test.rpartition("::")[2].partition("[")[0]
            text = (ROOT / file).read_text()
            assert f"def {named}" in text or f"class {named}" in text, name


def test_what_is_left_out_for_its_time_is_what_the_long_run_runs() -> None:
    assert all(reason(name) == why and reason(name, long=True) is None for name, why in LONG.items())
    assert all(reason(name) == reason(name, long=True) == why for name, why in LOCAL_ONLY.items())
    assert all(reason(file, long=True) for file in ON_RAY)
