"""The wheel in an empty environment: the README's 'your own model', line by line, answers a real request."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from importlib.metadata import files, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUIET = ["install", "--quiet", "--disable-pip-version-check"]


def run(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def clean(**more: str) -> dict[str, str]:
    """The environment without what would let the checkout, or the environment of the tests, be seen."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {**{name: value for name, value in os.environ.items() if name not in hidden}, **more}


def readme_blocks() -> list[str]:
    """The python blocks of the README's section on one's own model: model.py, then the script that makes a model."""
    section = (ROOT / "README.md").read_text().partition("## Your own model")[2].partition("\n## ")[0]
    return [rest.partition("```")[0] for rest in section.split("```python\n")[1:]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: the build backend is a test dependency, and nothing has to be fetched.
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], folder)
    (built,) = folder.glob("headrace-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel, all that it asks for, and what the README's lines import."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, *QUIET, wheel], folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in with_requirements(["joblib", "scikit-learn"]):
        link(name, packages)
    return python


def with_requirements(names: list[str]) -> list[str]:
    """These distributions, and all that they need."""
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            needed = [text for text in requires(name) or () if "extra ==" not in text]
            waiting += [text[: re.match(r"[\w.-]+", text).end()].lower() for text in needed]  # type: ignore[union-attr]
    return found


def link(name: str, packages: Path) -> None:
    """Have a distribution of the tests' own environment in another: to fetch and unpack it takes a minute."""
    for file in files(name) or ():
        top = file.parts[0]
        if top != ".." and top != "__pycache__" and not (packages / top).exists():
            (packages / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert "headrace/py.typed" in names
    assert {top for top in tops if not top.endswith(".dist-info")} == {"headrace"}
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_the_readmes_model_is_served_from_the_wheel_alone(python: Path, tmp_path: Path) -> None:
    model, training = readme_blocks()
    assert len([line for line in model.splitlines() if line.strip()]) <= 10
    (tmp_path / "model.py").write_text(model)
    (tmp_path / "train.py").write_text(training)
    run([python, "train.py"], tmp_path)
    where = run([python, "-c", "import headrace; print(headrace.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1])

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    terminal = tmp_path / "terminal.txt"
    with terminal.open("wb") as output:
        server = subprocess.Popen(
            [python.parent / "headrace", "run", "model:app", "--port", str(port)],
            cwd=tmp_path,
            env=clean(HEADRACE_HOME=str(tmp_path / "home")),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 60
        while "ready in" not in terminal.read_text():
            assert server.poll() is None, terminal.read_text()
            assert time.monotonic() < end, terminal.read_text()
            time.sleep(0.02)
        body = b"[[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data=body, timeout=30) as answer:
            assert answer.status == 200
            assert json.load(answer) == [0, 2]
    finally:
        server.send_signal(signal.SIGINT)
        code = server.wait(40)
    assert code == 0, terminal.read_text()


def test_the_readmes_model_is_the_one_in_the_examples() -> None:
    example = (ROOT / "examples" / "own_model" / "model.py").read_text()
    code = example.partition('"""\n')[2].replace("\n\n\n", "\n\n").replace("joblib\n\nfrom", "joblib\nfrom").strip()
    assert code == readme_blocks()[0].strip()
