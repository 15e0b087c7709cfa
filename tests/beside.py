"""Runs parts of the tests beside each other: `python tests/beside.py [options] PATH... -- [options] PATH... -- ...`.

In: what to give to pytest, part by part. Out: what the last part says as it says it, then what the others said, each
below a line with its arguments; the exit status of the worst part.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from itertools import groupby
from typing import IO


def main(arguments: list[str]) -> int:
    """Run them all, to the end of the last. Raises KeyboardInterrupt when it is stopped; none of the parts stays."""
    *quiet, loud = [list(part) for ends, part in groupby(arguments, lambda word: word == "--") if not ends]
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        said = [open(f"{folder}/{place}", "w+") for place, _ in enumerate(quiet)]  # noqa: SIM115
        running = [start(part, output) for part, output in zip(quiet, said, strict=True)]
        try:
            running.append(start(loud, None))
            worst = max(part.wait() for part in reversed(running))
        finally:
            for part in running:
                part.terminate()
        for part, output in zip(quiet, said, strict=True):
            output.seek(0)
            print(f"\n{' '.join(part)}:\n{output.read()}", flush=True)
            output.close()
    return worst


def start(part: list[str], output: IO[str] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "pytest", *part], stdout=output, stderr=output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
