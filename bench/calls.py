"""Runs the measurement of handle calls (`bench/apps/calls.py`) in a peer's own environment.

In: a peer whose framework has handles. Out: `CallRound`; PeerFailed with the reason when it does not come to its end.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import msgspec

from bench import processes
from bench.peers import BENCH, Peer
from bench.server import PeerFailed, environment_of

TIMEOUT_S = 180.0
MARK = "FIGURES "


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
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder) / "log.txt"
        with log.open("wb") as output:
            script = subprocess.Popen(
                [peer.python, str(BENCH / "apps" / "calls.py"), peer.calls, str(seconds)],
                cwd=folder,
                env=environment_of(peer, Path(folder)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                script.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise PeerFailed(f"handle calls: not done within {TIMEOUT_S:.0f} s") from None
            finally:
                processes.stop_all(script.pid, 10)
        lines = log.read_text(errors="replace").splitlines()
    for line in lines:
        if line.startswith(MARK):
            return msgspec.json.decode(line.removeprefix(MARK), type=CallRound)
    said = [line.strip() for line in lines if line.strip()]
    raise PeerFailed(f"handle calls: status {script.returncode}: {said[-1][:200] if said else 'nothing said'}")
