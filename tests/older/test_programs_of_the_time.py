"""Programs as articles, talks and the documentation of 2020 and 2021 show them run, and answer as they did."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.stem for program in PROGRAMS])
def test_a_program_of_the_time(program: Path, tmp_path: Path) -> None:
    port = str(free_port())
    script = tmp_path / program.name
    script.write_text(program.read_text().replace("8000", port))
    (tmp_path / "seen").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    env |= {"HEADRACE_HOME": str(tmp_path / "h"), "SEEN": str(tmp_path / "seen")}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if " | " not in line]  # what replicas print has their name
    assert told == program.with_suffix(".txt").read_text().splitlines(), done.stderr
