"""Runs test_moving.py on Ray Serve: puts the import lines back as they were, and starts pytest in Ray's environment.

In: the files beside this one; the arguments go to pytest. Out: pytest's exit code. By hand only: it takes minutes and
a gigabyte. `make bench` makes the environment; pytest, pytest-timeout, httpx, scikit-learn,
python-multipart and grpcio-tools are to be installed into it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / "bench" / ".envs" / "ray" / "bin" / "python"
IMPORT = re.compile(r"^(\s*)from headrace(\.| import )", re.MULTILINE)
# Each replica asks for a core, so that those of a small machine are to pass for many. The cluster begins with the first
# serve.start, for its workers inherit the PYTHONPATH of that moment.
CONFTEST = """
import ray
from ray import serve

begin = serve.start

def start(**options):
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    begin(**options)

serve.start = start
"""


def move_back(folder: Path) -> None:
    """Write the test and its applications to the folder, as they are on Ray Serve."""
    (folder / "apps").mkdir()
    for file in [HERE / "test_moving.py", *(HERE / "apps").iterdir()]:
        if file.is_file():
            text = IMPORT.sub(r"\1from ray\2", file.read_text())
            (folder / file.relative_to(HERE)).write_text(text)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\ntimeout = 180\nfilterwarnings = ignore\n")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        move_back(Path(folder))
        env = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        command = [str(PYTHON), "-m", "pytest", "-q", "--rootdir", folder, folder, *sys.argv[1:]]
        return subprocess.run(command, cwd=folder, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
