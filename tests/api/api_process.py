"""`headrace api` as a user starts it, and a client of bytes that says to it what no library would."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformity import check_answer

PATIENCE_S = 30.0


class ApiProcess:
    """One running `headrace api`. Use as a context manager."""

    def __init__(self, home: Path, *arguments: str, instance: str = "api-test", app_dir: Path | None = None) -> None:
        self.token_file = home / instance / "api.token"
        self.lines: list[str] = []
        env = {**os.environ, "HEADRACE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "headrace.cli", "api", "--port", "0", "--instance", instance]
        self.process = subprocess.Popen(
            [*command, "--app-dir", str(app_dir or home), *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def __enter__(self) -> ApiProcess:
        until(lambda: len(self.lines) >= 2 or self.process.poll() is not None, "it listens")
        assert self.process.poll() is None, "".join(self.lines)
        self.port = int(self.lines[0].rstrip().rpartition(":")[2])
        self.token = self.token_file.read_text().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0, "".join(self.lines)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 60
    ) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        given = {"authorization": f"Bearer {self.token}", "content-type": "application/json", **(headers or {})}
        connection.request(method, path, None if body is None else json.dumps(body), given)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        found = json.loads(text)
        check_answer(method, path.partition("?")[0], answer.status, found)
        return answer.status, found


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer of the condition."""
    end = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.01)
    return answer


class Raw:
    """A connection, and the bytes that come back."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)

    def send(self, data: bytes) -> None:
        """Send as much as the other end takes before it closes."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def rest(self) -> bytes:
        """All that comes until the other end closes."""
        found = b""
        try:
            while data := self.socket.recv(65536):
                found += data
        except ConnectionResetError:
            pass
        self.socket.close()
        return found


def said(port: int, data: bytes) -> tuple[int, str]:
    """The status and the type of error of the only answer to these bytes."""
    raw = Raw(port)
    raw.send(data)
    head, _, body = raw.rest().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["type"]
