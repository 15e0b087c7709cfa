"""The loss of the head, where the GCS is backed by Redis: requests go on, and all that was kept is there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("head_loss.py", "new_head.py")
ENDS_S = 280


@pytest.fixture(scope="module")
def all_told() -> dict[str, Any]:
    """What the programs tell, which run beside each other: they wait more than they work."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here.parents[1])}  # for bench
    with contextlib.ExitStack() as stack:
        running = {}
        for name in PROGRAMS:
            argv = [sys.executable, str(here / name)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            running[name] = stack.enter_context(subprocess.Popen(argv, text=True, env=environment, **pipes))
            stack.callback(running[name].kill)
        said = {name: program.communicate(timeout=ENDS_S) for name, program in running.items()}
    assert [(name, said[name][1]) for name, program in running.items() if program.returncode] == []
    return {name: json.loads(out.splitlines()[-1]) for name, (out, _) in said.items()}


@pytest.fixture
def told(all_told: dict[str, Any]) -> dict[str, Any]:
    """What became of what while the GCS was away, and nothing else."""
    told: dict[str, Any] = all_told["head_loss.py"]
    return told


def test_a_head_that_is_lost_with_all_on_it_has_another_in_its_place(all_told: dict[str, Any]) -> None:
    assert all_told["new_head.py"] == {
        "failed": [],
        "unanswered": 0,
        "two of one name": [],
        "some ran on the head that was lost": True,
        "others were left alone": True,
        "revision": 1,
        "deployed afterwards": 4,
    }


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
