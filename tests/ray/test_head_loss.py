"""The loss of the head, where the GCS is backed by Redis: requests go on, and all that was kept is there afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    program = Path(__file__).with_name("head_loss.py")
    environment = os.environ | {"PYTHONPATH": str(program.parents[2])}  # for bench
    run = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=150, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    told: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return told


def test_requests_go_on_and_a_deploy_waits_for_the_gcs(told: dict[str, Any]) -> None:
    assert "no Ray cluster answers" in told["traffic"].pop("deployed while away")
    assert told["traffic"] == {
        "lost": [],
        "unanswered": 0,
        "applications": {"default": "RUNNING", "second": "RUNNING"},
    }


def test_the_state_outlives_the_gcs_and_what_is_kept_meanwhile_comes_later(told: dict[str, Any]) -> None:
    told = told["state"]
    assert "does not answer" in told.pop("asked while away")
    assert "another controller" in told.pop("superseded")
    assert told == {
        "read at once": "away",
        "answers by its handle": True,
        "refused when back": False,
        "found by its name": True,
        "nodes alive": [True, True],
        "set aside": None,
        "written while away": "away",
        "applications are as they were": True,
        "pack": "a pack",
        "of another instance": [],
    }
