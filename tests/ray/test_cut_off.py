"""A machine that nothing gets to or from, Ray's messages neither: in network namespaces, so collected only where these
can be made (`on_ray` says where they cannot).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(400)
def test_a_machine_that_is_cut_off_costs_no_request_and_at_the_end_there_is_one_truth() -> None:
    program = Path(__file__).with_name("cut_off.py")
    path = os.pathsep.join(map(str, (program.parents[2], program.parents[1], program.parent)))
    run = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=380,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    assert told["short"].pop("whole again after") < 60
    # What was cut off ran on, and was replaced all the same: it is the end of the cut that ends it.
    assert told["short"].pop("ran on meanwhile") > 0
    assert told["long"].pop("ran on meanwhile") > 0
    assert told["end"].pop("answered") > 1000
    assert told == {
        "short": {"Ray noticed": False, "others were left alone": True},
        "long": {"others were left alone": True},
        "end": {"failed": [], "two of one name": []},
    }
