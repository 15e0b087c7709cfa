"""Runs measurements that are scripts of `bench/apps` in a peer's own environment: that of handle calls, and others.

In: a peer whose framework has handles. Out: `CallRound`, or a script's figures as JSON; PeerFailed with the reason when
it does not come to its end.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import msgspec

from bench import processes
from bench.peers import APPS, Peer
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
                script.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise PeerFailed(f"{name}: not done within {TIMEOUT_S:.0f} s") from None
            finally:
                processes.stop_all(script.pid, 10)
        return figures_in(log.read_text(errors="replace"), name, script.returncode)


def figures_in(output: str, name: str, status: int) -> str:
    """The JSON of the figures among what a script printed. Raises PeerFailed, with its last words, without any."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(MARK):
            return line.removeprefix(MARK)
    raise PeerFailed(f"{name}: status {status}: {lines[-1][:200] if lines else 'nothing said'}")
