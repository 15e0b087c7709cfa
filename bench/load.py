"""Load by wrk (HTTP/1.1) and h2load (HTTP/2, for gRPC), from outside of the process that is measured.

In: a URL and a number of connections. Out: `Load`, what the tool saw; LoadFailed when it is missing or says nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"  # what wrk sends
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


def run_wrk(url: str, connections: int, seconds: float, script: Path | None = None) -> Load:
    """Keep `connections` busy with the script's request, a GET without one, for `seconds` (wrk takes whole ones)."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadFailed("wrk is not installed: apt-get install wrk")
    command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
    command += [*(["-s", str(script)] if script else []), url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise LoadFailed(f"wrk: {(done.stderr or done.stdout).strip()[:200]}")
    return parse(done.stdout)


def parse(text: str) -> Load:
    """wrk's report as numbers."""
    count = re.search(r"^\s*(\d+) requests in", text, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    p50 = re.search(r"^\s+50%\s+([\d.]+)(us|ms|s|m) ?$", text, re.MULTILINE)  # units of one letter are padded
    if not (count and rate and p50):
        raise LoadFailed(f"wrk's report could not be read: {text.strip()[:200]!r}")
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", text)))
    if errors := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        failed += sum(map(int, errors.groups()))
    return Load(int(count[1]), float(rate[1]), float(p50[1]) * UNITS_US[p50[2]], failed)


def run_h2load(url: str, connections: int, streams: int, seconds: float, body: Path, reply_bytes: int) -> Load:
    """Keep `streams` gRPC calls with this body (prefix and message) under way on each of `connections`.

    h2load knows no gRPC status, and a gRPC error is an HTTP 200 without a message: what is missing of `reply_bytes` for
    each call are the failed ones. p50 is the mean here, for that is what h2load tells.
    """
    tool = shutil.which("h2load")
    if tool is None:
        raise LoadFailed("h2load is not installed: apt-get install nghttp2-client")
    command = [tool, "-t1", f"-c{connections}", f"-m{streams}", f"-D{max(1, round(seconds))}", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise LoadFailed(f"h2load: {(done.stderr or done.stdout).strip()[:200]}")
    return parse_h2load(done.stdout, reply_bytes)


def parse_h2load(text: str, reply_bytes: int) -> Load:
    """h2load's report as numbers."""
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", text, re.MULTILINE)
    count = re.search(r"^requests: .* (\d+) done,", text, re.MULTILINE)
    data = re.search(r"\((\d+)\) data$", text, re.MULTILINE)
    mean = re.search(r"^time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s|m)\s", text, re.MULTILINE)
    if not (rate and count and data and mean):
        raise LoadFailed(f"h2load's report could not be read: {text.strip()[:200]!r}")
    done = int(count[1])
    return Load(done, float(rate[1]), float(mean[1]) * UNITS_US[mean[2]], max(0, done - int(data[1]) // reply_bytes))
