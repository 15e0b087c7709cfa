"""Whose processes are whose: what a test kills must be of its own instance, whatever else runs on the machine."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from bench.instance import Instance

AT = "127.0.10.1:6379"


@pytest.mark.parametrize(
    ("ours", "anothers"),
    [
        ({"HEADRACE_RUNTIME_DIR": "{home}/default"}, {"HEADRACE_RUNTIME_DIR": "{home}/default2"}),
        (
            {"HEADRACE_INSTANCE": "default", "RAY_ADDRESS": AT},
            {"HEADRACE_INSTANCE": "default", "RAY_ADDRESS": "127.0.11.1:6379"},
        ),
        ({"HEADRACE_INSTANCE": "default", "RAY_ADDRESS": AT}, {"HEADRACE_INSTANCE": "other", "RAY_ADDRESS": AT}),
    ],
    ids=["a directory", "a cluster", "a name"],
)
def test_children_are_those_of_the_instance_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: dict[str, str], anothers: dict[str, str]
) -> None:
    if "RAY_ADDRESS" in ours:
        monkeypatch.setenv("HEADRACE_ENGINE", "ray")
        monkeypatch.setenv("HEADRACE_ADDRESS", AT)
    with contextlib.ExitStack() as stack:
        pids = {}
        for name, variables in (("ours", ours), ("another's", anothers)):
            told = {key: value.format(home=tmp_path) for key, value in variables.items()}
            process = subprocess.Popen(["/bin/sleep", "60"], env={**told, "HEADRACE_PROCESS_ID": name})
            stack.enter_context(process)
            stack.callback(process.kill)
            pids[name] = process.pid
        assert Instance(tmp_path, "model:app", tmp_path).children() == {"ours": pids["ours"]}
