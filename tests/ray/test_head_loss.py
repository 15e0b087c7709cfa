"""The loss of the head, where the GCS is backed by Redis: what was kept is there, and what was to be kept meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_state_outlives_the_gcs_and_what_is_kept_meanwhile_comes_later() -> None:
    program = Path(__file__).with_name("head_loss.py")
    environment = os.environ | {"PYTHONPATH": str(program.parents[2])}  # for bench
    run = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=110, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert "does not answer" in told.pop("asked while away")
    assert "another controller" in told.pop("superseded")
    assert told == {
        "read at once": "away",
        "answers by its handle": True,
        "refused when back": False,
        "found by its name": True,
        "nodes alive": [True],
        "set aside": None,
        "written while away": "away",
        "applications are as they were": True,
        "pack": "a pack",
        "of another instance": [],
    }
