"""The code of README and docs does what the pages say: files are saved, scripts and commands run, output compared."""

from __future__ import annotations

import doctest
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_blocks import Block, Command, blocks_of, commands_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
RUN = {"python", "console"}
SHOWN = {"", "text", "json", "bash", "toml", "yaml"}  # languages that are for the reader's eyes
COMMANDS = "api|build|config|deploy|promote|rollout|run|shutdown|start|status"
ALLOWED = re.compile(rf"^(headrace ({COMMANDS})|curl|openssl req|python [\w-]+\.py|pytest test_\w+\.py)\b")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Reader:
    """Somebody who follows a page in an empty folder, with ports of their own in the places of the usual ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.grpc_port, self.api_port = free_port(), free_port(), free_port()
        self.api: subprocess.Popen[str] | None = None
        self.server: subprocess.Popen[str] | None = None
        self.second_port = free_port()
        self.started: list[str] = []  # instances in the background, which the page ends
        self.scheme = "http"
        bin_folder = Path(sys.executable).parent
        home = folder / ".h"
        self.env = {
            **os.environ,
            "HEADRACE_HOME": str(home),
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }

    def follow(self, block: Block) -> None:
        if block.directive == "file":
            (self.folder / block.argument).write_text(block.text.replace(":9000", f":{self.grpc_port}"))
        elif block.language == "python":
            self.run_script(block.text)
        else:
            for command in commands_of(block):
                self.type(command)

    def run_script(self, text: str) -> None:
        self.stop()
        # A script that serves must not meet another server on port 8000.
        start = f'from headrace import serve; serve.start(http_options={{"port": {self.port}}})'
        if "serve.run(" in text:
            text = text.replace("from headrace import serve", start, 1)
        script = self.folder / "script.py"
        script.write_text(text.replace(":8000", f":{self.port}").replace("=8000", f"={self.port}"))
        done = subprocess.run(
            [sys.executable, str(script)], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"

    def type(self, command: Command) -> None:
        line = command.line.replace(":8000", f":{self.port}").replace(":8265", f":{self.api_port}")
        line = line.replace("8001", str(self.second_port))
        assert ALLOWED.match(line), f"a page may not run {line!r}"
        if line.startswith("headrace run"):
            grpc = f" --grpc-port {self.grpc_port}" if "--grpc" in line else ""
            self.serve(f"{line} --port {self.port}{grpc}")
            return
        if line.startswith("headrace start"):
            named = re.search(r"--instance (\S+)", line)
            self.started.append(named[1] if named else "default")
            line += "" if "--port" in line else f" --port {self.port}"
        if line.startswith("headrace api"):
            self.serve_api(f"{line} --port {self.api_port}")
            return
        if line.startswith("curl"):
            line = line.replace("curl", "curl -sS", 1)
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{line}: {said}"
        wanted = command.output.replace(":8000", f":{self.port}").replace("8001", str(self.second_port))
        if wanted:
            matches = doctest.OutputChecker().check_output(wanted, said.rstrip("\n") + "\n", FLAGS)
            assert matches, f"{line}\nis to print:\n{wanted}\nand prints:\n{said}"

    def serve(self, line: str) -> None:
        self.stop()
        self.scheme = "https" if "--ssl-certfile" in line else "http"
        log = (self.folder / "server.txt").open("w")
        self.server = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.env, stdout=log, stderr=log, text=True
        )
        end = time.monotonic() + 60
        while not self.is_ready():
            said = (self.folder / "server.txt").read_text()
            assert self.server.poll() is None, f"{line} ended: {said}"
            assert time.monotonic() < end, f"{line} is not ready: {said}"
            time.sleep(0.02)

    def serve_api(self, line: str) -> None:
        said = self.folder / "api.txt"
        with said.open("w") as log:
            self.api = subprocess.Popen(line.split(), cwd=self.folder, env=self.env, stdout=log, stderr=log, text=True)
        end = time.monotonic() + 60
        while "the token is in" not in said.read_text():
            assert self.api.poll() is None, f"{line} ended: {said.read_text()}"
            assert time.monotonic() < end, f"{line} is not ready: {said.read_text()}"
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Whether it has said so. Its health alone does not tell: routes appear one by one."""
        try:
            anyone = ssl._create_unverified_context()
            url = f"{self.scheme}://127.0.0.1:{self.port}/-/healthz"
            with urllib.request.urlopen(url, timeout=5, context=anyone) as answer:
                return answer.status == 200 and "ready in" in (self.folder / "server.txt").read_text()
        except OSError:
            return False

    def stop(self) -> None:
        if self.api is not None:
            self.api.terminate()
            assert self.api.wait(40) == 0, (self.folder / "api.txt").read_text()
            self.api = None
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            assert self.server.wait(40) == 0, (self.folder / "server.txt").read_text()
            self.server = None


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    for process in (reader.api, reader.server):
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait(40)
    for name in reader.started:
        command = ["headrace", "shutdown", "--instance", name]
        subprocess.run(command, env=reader.env, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=title)
def test_the_code_of_a_page_does_what_the_page_says(page: Path, reader: Reader) -> None:
    for block in blocks_of(page):
        assert block.language in RUN | SHOWN, f"{title(page)}:{block.line}: unknown language {block.language!r}"
        if block.directive == "file" or (block.language in RUN and block.directive != "not run"):
            try:
                reader.follow(block)
            except AssertionError as error:
                raise AssertionError(f"{title(page)}:{block.line}: {error}") from None
    reader.stop()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{title(page)} links to {target}, which is not there"


def test_the_readme_stays_under_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
