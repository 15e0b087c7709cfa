"""Runs measurements that are scripts of `bench/apps` in a peer's own environment: that of handle calls, and others.

In: a peer whose framework has handles. Out: `CallRound`, or a script's figures as JSON; PeerFailed with the reason when
it does not come to its end.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec

from bench import processes
from bench.peers import APPS, Peer
from bench.server import PeerFailed, environment_of

TIMEOUT_S = 180.0
FIGURES = re.compile(r"^FIGURES (.*)\n", re.MULTILINE)


class CallRound(msgspec.Struct):
    """What one round saw: medians in microseconds, from a coroutine in a replica or (`result`, `driver`) a script."""

    sequence_us: float
    result_us: float
    at_once_per_s: float
    array_1mb_us: float
    array_10mb_us: float
    driver_array_10mb_us: float


def measure_calls(peer: Peer, seconds: float) -> CallRound:
    """Run the peer's handle measurement once, `seconds` for each figure."""
    return msgspec.json.decode(run_script(peer, "calls.py", peer.calls, str(seconds)), type=CallRound)


def run_script(peer: Peer, name: str, *arguments: str) -> str:
    """Run a script of `bench/apps` with the peer's interpreter; the JSON of the figures that it prints.

    Raises PeerFailed when it prints none, and ends whatever it has started.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder) / "log.txt"
        with log.open("wb") as output:
            script = subprocess.Popen(
                [peer.python, str(APPS / name), *arguments],
                cwd=folder,
                env=environment_of(peer, Path(folder)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                end = time.monotonic() + TIMEOUT_S
                while script.poll() is None and FIGURES.search(log.read_text(errors="replace")) is None:
                    if time.monotonic() > end:
                        raise PeerFailed(f"{name}: not done within {TIMEOUT_S:.0f} s")
                    time.sleep(0.05)
            finally:
                processes.stop_all(script.pid, 10)
        return figures_in(log.read_text(errors="replace"), name, script.returncode)


def figures_in(output: str, name: str, status: int) -> str:
    """The JSON of the figures among what a script printed. Raises PeerFailed, with its last words, without any."""
    if found := FIGURES.search(output):
        return found[1]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    raise PeerFailed(f"{name}: status {status}: {lines[-1][:200] if lines else 'nothing said'}")
