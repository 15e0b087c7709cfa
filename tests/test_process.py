"""A process of ours ends like any other, only sooner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BODY = """
import atexit, gc, sys, threading, time
assert not gc.isenabled()

def late():
    time.sleep(0.2)
    print("thread", flush=True)

def main():
    assert gc.isenabled()
    threading.Thread(target=late).start()
    atexit.register(print, "first registered")
    atexit.register(print, "last registered")
    {end}
"""


def said(folder: Path, end: str) -> tuple[int, list[str], str]:
    (folder / "body.py").write_text(BODY.format(end=end))
    done = subprocess.run(
        [sys.executable, "-c", "from headrace import process; process.run('body')"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.split("\n"), done.stderr


@pytest.mark.parametrize(
    ("end", "status"), [("return 0", 0), ("return 3", 3), ("sys.exit(4)", 4), ("sys.exit()", 0), ("sys.exit('no')", 1)]
)
def test_threads_and_functions_at_the_exit_come_to_their_end(tmp_path: Path, end: str, status: int) -> None:
    assert said(tmp_path, end)[:2] == (status, ["thread", "last registered", "first registered", ""])


def test_an_error_is_told_as_ever(tmp_path: Path) -> None:
    status, output, error = said(tmp_path, "raise KeyError('gone')")
    assert status == 1
    assert error.endswith("KeyError: 'gone'\n")
    assert "last registered" in output


def test_a_function_at_the_exit_that_fails_is_told_and_keeps_nobody(tmp_path: Path) -> None:
    status, output, error = said(tmp_path, "atexit.register(lambda: 1 / 0); return 0")
    assert status == 0
    assert "ZeroDivisionError" in error
    assert output == ["thread", "last registered", "first registered", ""]


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    status, _, error = said(tmp_path, "print('x' * 10); sys.stdout.close(); return 0")
    assert (status, "ValueError" in error) == (0, True), "the functions at the exit print, too"
