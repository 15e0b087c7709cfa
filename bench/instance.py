"""`headrace run` as a user starts it: a real process, with its own directory and port, and what it prints.

In: a target, HEADRACE_ENGINE. Out: `Instance`. On a Ray cluster (HEADRACE_ENGINE=ray, HEADRACE_ADDRESS) the same
command deploys and ends: there the instance goes on until it is shut down, and its processes are on all nodes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = 60) -> Any:
    """The first true answer of `condition`, which is asked for a quarter of the time at most: asking costs, too."""
    end = time.monotonic() + limit_s
    while True:
        asked = time.monotonic()
        answer = condition()
        if answer:
            return answer
        answered = time.monotonic()
        assert answered < end, f"waited {limit_s} s in vain until {what}"
        time.sleep(min(max(0.02, 3 * (answered - asked)), 0.5))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def on_ray() -> bool:
    """Whether instances are started on a Ray cluster."""
    return os.environ.get("HEADRACE_ENGINE") == "ray"


def tell_nodes(variables: Mapping[str, str]) -> None:
    """Have the nodes of a cluster know the paths that these variables name, as processes of an instance on one machine
    do who have the environment of whoever started it. TOLD_FOLDER has a link for each, which the nodes' variables name.
    """
    folder = os.environ.get("TOLD_FOLDER")
    if folder is None:
        return
    for link in Path(folder).iterdir():
        if link.name in variables:
            link.unlink()
            link.symlink_to(variables[link.name])


class Instance:
    """One running `headrace run`. Use as a context manager: leaving it interrupts it and waits for its end."""

    def __init__(self, home: Path, target: str, app_dir: Path, *arguments: str, name: str = "default") -> None:
        self.on_ray = on_ray()
        self.port = free_port()
        self.name = name
        self.env = os.environ | {"HEADRACE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self.output: list[str] = []
        self.command = [
            *(sys.executable, "-m", "headrace.cli", "run", target),
            *("--port", str(self.port), "--app-dir", str(app_dir), "--instance", name, *arguments),
        ]

    def __enter__(self) -> Instance:
        if self.on_ray:
            tell_nodes(self.env)
        self.process = subprocess.Popen(
            self.command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"it did not stop:\n{self.text}") from None
        self._reader.join(10)
        if self.on_ray:
            done = self.cli("shutdown")
            assert done.returncode == 0 or "is running" in done.stderr, done.stderr

    @property
    def text(self) -> str:
        return "".join(self.output)

    def ready(self) -> Instance:
        """Wait until the application answers."""

        def up() -> bool:
            ended = self.process.poll()
            assert ended == 0 if self.on_ray and ended is not None else ended is None, (
                f"it ended with {ended}:\n{self.text}"
            )
            if self.on_ray and ended is None:
                return False
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/healthz", timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        # On a cluster each of its processes begins with an interpreter of Ray's.
        wait_for(up, f"it is up:\n{self.text}", 100 if self.on_ray else 60)
        return self

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "headrace.cli", *arguments, "--instance", self.name]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)

    def status(self) -> dict[str, Any]:
        done = self.cli("status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def replicas(self, app: str = "default", deployment: str = "Model") -> dict[str, int]:
        """The running replicas: id to pid."""
        details = self.status()["applications"][app]["deployments"][deployment]["replicas"]
        return {replica["id"]: replica["pid"] for replica in details if replica["state"] == "RUNNING"}

    def ask(self, path: str = "/", body: bytes = b'{"n": 1}', timeout: float = 30) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of one POST."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def children(self) -> dict[str, int]:
        """All processes of the instance: HEADRACE_PROCESS_ID to pid."""
        found: dict[str, int] = {}
        if self.on_ray:  # of the same name there may be one on another cluster of this machine
            marks = {f"HEADRACE_INSTANCE={self.name}", f"RAY_ADDRESS={self.env['HEADRACE_ADDRESS']}"}
        else:
            marks = {f"HEADRACE_RUNTIME_DIR={self.env['HEADRACE_HOME']}/{self.name}"}
        wanted = {mark.encode() for mark in marks}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if wanted.issubset(environment) and alive(int(entry.name)):
                    for variable in environment:
                        if variable.startswith(b"HEADRACE_PROCESS_ID="):
                            found[variable.partition(b"=")[2].decode()] = int(entry.name)
        return found
