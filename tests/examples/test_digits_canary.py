"""The canary of the digits example, as its README has it run: the better model goes up, the worse one goes back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from bench.instance import free_port

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def test_the_second_model_is_promoted_and_the_third_goes_back_by_itself(tmp_path: Path) -> None:
    if not (DIGITS / "third.joblib").exists():
        subprocess.run([sys.executable, "train.py"], cwd=DIGITS, check=True)
    ran = subprocess.run(
        [sys.executable, str(DIGITS / "canary.py"), "--port", str(free_port()), "--seconds", "1"],
        env=os.environ | {"HEADRACE_HOME": str(tmp_path / "home"), "HEADRACE_INSTANCE": "canary"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "second: PROMOTED" in ran.stdout
    assert re.search(r"third: ROLLED_BACK. right 0\.[0-9]+ .* of the baseline; worse by", ran.stdout)
    assert re.search(r"[0-9]{3,} requests, 0 failed. The traffic goes to revision 2.", ran.stdout)
