"""The code of the pages that needs a Ray cluster does what the pages say, on a node of a real one.

In: blocks marked `<!-- not run: on a Ray cluster -->`, which tests/docs leaves out, and files of the same page. Out:
the commands, run in an empty folder with a free port in the place of 8000, and their output compared.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray_cluster import RayCluster

from bench.instance import free_port

ROOT = Path(__file__).parents[2]
MARK = "on a Ray cluster"
ENDS_S = 110  # the longest takes 5 s where nothing else runs; a worker that Ray has lost costs one of them a minute
FENCE = re.compile(r"^<!-- (file|not run): ([^\n]+) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ([^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: Path) -> list[tuple[str, str, str, str]]:
    """(directive, argument, language, text) of the blocks that are to be saved or run here."""
    found: list[tuple[str, str, str, str]] = FENCE.findall(page.read_text())
    return [block for block in found if block[0] == "file" or block[1] == MARK]


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if any(block[1] == MARK for block in blocks(page))]


def test_there_are_such_pages() -> None:
    assert ROOT / "docs/how-to/cluster.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_does_what_the_page_says(page: Path, cluster: RayCluster, tmp_path: Path) -> None:
    port = str(free_port())
    for directive, argument, language, text in blocks(page):
        if directive == "file":
            (tmp_path / argument).write_text(text)
        elif language == "python":
            (tmp_path / "script.py").write_text(on_port(text, port))
            run(f"{sys.executable} script.py", cluster, tmp_path)
        else:
            for line, wanted in COMMAND.findall(text):
                said = run(on_port(line, port), cluster, tmp_path)
                checker = doctest.OutputChecker()
                assert not wanted or checker.check_output(wanted, said, FLAGS), f"{line}\n{wanted}\n{said}"


def on_port(text: str, port: str) -> str:
    """The same on another port than the usual one, which one node alone can have: they are one machine here."""
    text = text.replace(":8000", f":{port}").replace("curl", "curl -sS")
    text = re.sub(r"^headrace (run|start) .*$", rf"\g<0> --port {port} --proxy-location HeadOnly", text)
    http = f'{{"port": {port}, "location": "HeadOnly"}}'
    return text.replace('serve.start(engine="ray")', f'serve.start(engine="ray", http_options={http})')


def run(line: str, cluster: RayCluster, folder: Path) -> str:
    """What it says. One that does not end is aborted, and the error has what it said and where its threads stood."""
    path = f"{Path(sys.executable).parent}:{cluster.environment()['PATH']}"
    command = subprocess.Popen(
        ["bash", "-c", line],
        cwd=folder,
        env={**cluster.environment(), "PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = command.communicate(timeout=ENDS_S)
    except subprocess.TimeoutExpired:
        os.killpg(command.pid, signal.SIGABRT)
        out, error = command.communicate()
    assert command.returncode == 0, f"{line}\n{out}{error}"
    return out + (error if not out else "")
