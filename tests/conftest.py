"""What holds for all tests, whoever starts them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY = Path(__file__).parent / "ray"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine", choices=("local", "ray"), default="local", help="where tests start their instances (default: local)"
    )
    parser.addoption("--long", action="store_true", help="with --engine ray: what `make test-ray` leaves out")


def pytest_configure(config: pytest.Config) -> None:
    """Have Ctrl-C mean what it means in a terminal: a shell that runs tests beside each other starts them, and so the
    processes that they start, deaf to it. And have scripts write their lines whole: unbuffered, as in many container
    images, what replicas print comes between a line of theirs and its end.
    """
    os.environ.pop("PYTHONUNBUFFERED", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asks_for_ray(config):
        sys.path.insert(0, str(RAY))
        config.pluginmanager.import_plugin("on_ray")


def asks_for_ray(config: pytest.Config) -> bool:
    """Whether the command line asks for tests on Ray, as `make test-ray` does: they need Ray, and clusters of it."""
    if config.getoption("--engine") == "ray":
        return True
    named = [Path(config.invocation_params.dir, argument.partition("::")[0]).resolve() for argument in config.args]
    return any(path.is_relative_to(RAY) for path in named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path == RAY and not asks_for_ray(config) else None


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if asks_for_ray(config) else "tests/ray: not asked for, `make test-ray` runs them"


@pytest.fixture(autouse=True)
def _variables() -> Iterator[None]:
    """A command that runs in the process of the tests says by variables which instance it means, to that process."""
    before = {name: value for name, value in os.environ.items() if name.startswith("HEADRACE_")}
    yield
    for name in [name for name in os.environ if name.startswith("HEADRACE_") and name not in before]:
        del os.environ[name]
    os.environ.update(before)
