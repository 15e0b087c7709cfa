"""The fixtures that Headrace brings along, in pytest runs of a user's project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = """
import asyncio, threading
import pytest
from headrace import serve
from headrace.serve import testing

@serve.deployment
class Model:
    def __init__(self, word):
        self.word = word
    async def __call__(self, request):
        return self.word
    def say(self):
        return self.word

async def try_all(instance):
    handle = await instance.run(Model.bind("hello"))
    assert await handle.say.remote() == "hello"
    instance.engine.crash("Model#1@default")
    assert await handle.say.remote() == "hello"
    async with instance.http_client() as client:
        assert (await client.get("/")).text == "hello"
"""

PLAIN = """
def test_local(headrace_local):
    handle = headrace_local.run(Model.bind("hello"))
    assert handle.say.remote().result(20) == "hello"
    assert headrace_local.http.get("/").text == "hello"
    assert headrace_local.processes() == ["Model#1@default", "ingress#0"]
    headrace_local.crash("Model#1@default")
    assert handle.say.remote().result(20) == "hello"
    headrace_local.run(Model.bind("more"), name="more", route_prefix="/more")
    assert set(headrace_local.status().applications) == {"default", "more"}
    headrace_local.delete("more")
    headrace_local.delete("more")
    with headrace_local.http_client(base_url="http://localhost/more") as client:
        assert client.get("/").text == "hello"

def test_nothing_of_the_test_before_is_left(headrace_local):
    assert testing.local_tie() is None
    assert not [each for each in threading.enumerate() if each.name == "headrace-local"]

@pytest.fixture(scope="module")
def outer():
    serve.run(Model.bind("outer"), name="outer", route_prefix="/outer", _local_testing_mode=True)
    yield
    serve.shutdown()

def test_beside_somebody_elses(outer, headrace_local):
    headrace_local.run(Model.bind("inner"))
    assert headrace_local.http.get("/").text == "inner"

def test_somebody_elses_goes_on(outer):
    assert set(serve.status().applications) == {"outer"}

def test_in_a_loop(headrace_local):
    async def body():
        handle = headrace_local.run(Model.bind("hello"))
        async with headrace_local.async_http_client() as client:
            assert (await client.get("/")).text == "hello"
        assert await handle.say.remote() == "hello"
    asyncio.run(body())
"""

STRICT = """
@pytest.mark.asyncio
async def test_instance(headrace_instance):
    await try_all(headrace_instance)

@pytest.mark.asyncio
async def test_local(headrace_local):
    handle = headrace_local.run(Model.bind("hello"))
    assert await handle.say.remote() == "hello"
"""

ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_instance(headrace_instance):
    await try_all(headrace_instance)
"""


def run_pytest(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(COMMON + text)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error::pytest.PytestUnraisableExceptionWarning", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "HEADRACE_"))}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("text", "options", "passed"),
    [(PLAIN, (), 5), (STRICT, ("--asyncio-mode=strict",), 2), (ANYIO, ("-p", "no:asyncio", "-c", os.devnull), 1)],
    ids=["plain", "asyncio", "anyio"],
)
def test_fixtures(tmp_path: Path, text: str, options: tuple[str, ...], passed: int) -> None:
    done = run_pytest(tmp_path, text, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout


def test_who_does_not_ask_for_them_loads_nothing(tmp_path: Path) -> None:
    text = """
import sys
def test_nothing():
    loaded = {name for name in sys.modules if name.partition(".")[0] == "headrace"}
    assert loaded == {"headrace", "headrace.pytest_plugin"}
    assert not {"msgspec", "uvloop", "httpx", "cloudpickle"} & set(sys.modules)
"""
    (tmp_path / "test_it.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", "-p", "no:anyio"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_httpx_the_extra_that_brings_it_is_told() -> None:
    code = """
import sys
sys.modules["httpx"] = None  # as where it is not installed
from headrace.serve import testing
from headrace.serve.http_client import client
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = ended.stderr.splitlines()[-1]
    assert "ImportPathError: HTTP clients of tests need httpx: pip install 'headrace[testing]'" in told
