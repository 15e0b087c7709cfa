"""Load over HTTP by wrk, from outside of the process that is measured, and what wrk says about it.

In: a URL and a number of connections. Out: `Load`; LoadFailed when wrk is missing or says nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parent / "post.lua"
UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


class LoadFailed(Exception):
    """There is no wrk, or it could not do its work. The message says what to do."""


@dataclass(frozen=True)
class Load:
    """What wrk saw: requests a second, the median latency in microseconds, and how many requests failed."""

    requests: int
    rate: float
    p50_us: float
    failed: int


def run_wrk(url: str, connections: int, seconds: float) -> Load:
    """Keep `connections` busy with the POST of post.lua for `seconds` (wrk takes whole ones)."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadFailed("wrk is not installed: apt-get install wrk")
    command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(SCRIPT), url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise LoadFailed(f"wrk: {(done.stderr or done.stdout).strip()[:200]}")
    return parse(done.stdout)


def parse(text: str) -> Load:
    """wrk's report as numbers."""
    count = re.search(r"^\s*(\d+) requests in", text, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    p50 = re.search(r"^\s+50%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    if not (count and rate and p50):
        raise LoadFailed(f"wrk's report could not be read: {text.strip()[:200]!r}")
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", text)))
    if errors := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        failed += sum(map(int, errors.groups()))
    return Load(int(count[1]), float(rate[1]), float(p50[1]) * UNITS_US[p50[2]], failed)
