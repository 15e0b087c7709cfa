"""What users do, as they do it: cells of a notebook, a prompt, scripts, beside an instance that runs."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from bench.instance import Instance, wait_for
from bench.processes import pss_mb

HERE = Path(__file__).parent
PATIENCE_S = 60
BIG = 100 * 1000 * 1000

# Each part is typed at a prompt, or runs as a cell: definitions in __main__, deployed, called, defined anew.
CELLS = (
    """
    from headrace import serve
    FACTOR = 2
    def times(number): return number * FACTOR
    """,
    """
    @serve.deployment
    class Model:
        def __init__(self, offset): self.offset = offset
        def __call__(self, number): return times(number) + self.offset
        def fail(self): raise ValueError("of a cell")
    """,
    "handle = serve.run(Model.bind(1), route_prefix=None)",
    'print("FIRST", await handle.remote(20))',
    'print("MANY", [await each for each in [handle.remote(n) for n in range(3)]])',
    """
    try: await handle.fail.remote()
    except ValueError as error: print("ERROR", error)
    """,
    """
    try: handle.remote(1).result()
    except RuntimeError as error: print("BLOCKED", error)
    """,
    "FACTOR = 3",
    """
    @serve.deployment
    class Model:
        def __init__(self, offset): self.offset = offset
        def __call__(self, number): return ["anew", times(number) + self.offset]
    """,
    "again = serve.run(Model.bind(1), route_prefix=None)",
    'print("SECOND", await again.remote(20), await handle.remote(1))',
    "serve.shutdown()",
    'print("AFTER", dict(serve.status().applications))',
)
SHOWN = (
    "FIRST 41",
    "MANY [1, 3, 5]",
    "ERROR of a cell",
    "BLOCKED DeploymentResponse.result() would block the running event loop: `await` the response instead",
    "SECOND ['anew', 61] ['anew', 4]",
    "AFTER {}",
)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of a user's process, with a home of its own for instances."""
    private = ("HEADRACE_INSTANCE", "HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID")
    kept = {name: value for name, value in os.environ.items() if name not in private}
    return kept | {
        "HEADRACE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(HERE),
        "USERS_DIARY": str(tmp_path / "diary"),
    }


def python(env: dict[str, str], *arguments: str, typed: str = "") -> str:
    """What a Python process printed that was given these arguments and what was typed."""
    done = subprocess.run(
        [sys.executable, *arguments], env=env, input=typed, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def told(output: str) -> list[str]:
    """The lines that the cells printed, without the prompts and the replicas' lines among them."""
    return [found[0] for found in re.finditer(r"(?:FIRST|MANY|ERROR|BLOCKED|SECOND|AFTER) .*", output)]


class TestNotebooks:
    def test_at_an_asyncio_prompt(self, env: dict[str, str]) -> None:
        typed = "".join(textwrap.dedent(cell).strip("\n") + "\n\n" for cell in CELLS)
        output = python(env, "-m", "asyncio", typed=typed)
        assert [line for line in told(output) if "request" not in line] == list(SHOWN)

    def test_in_a_jupyter_kernel(self, env: dict[str, str], tmp_path: Path) -> None:
        env = env | {"IPYTHONDIR": str(tmp_path / "ipython"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter")}
        manager, client = start_new_kernel(kernel_name="python3", env=env)
        shown: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                shown.append(content["text"])
            assert message["msg_type"] != "error", "\n".join(content["traceback"])

        try:
            for cell in CELLS:
                client.execute_interactive(textwrap.dedent(cell).strip(), output_hook=hook, timeout=PATIENCE_S)
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
        assert [line for line in told("".join(shown)) if "request" not in line] == list(SHOWN)

    def test_a_script_from_standard_input(self, env: dict[str, str]) -> None:
        # As SHOWN up to the place where cells run on an event loop and scripts do not.
        cells = (*CELLS[:3], 'print("FIRST", handle.remote(20).result())', CELLS[-2])
        typed = "".join(textwrap.dedent(cell) + "\n" for cell in cells)
        assert told(python(env, "-", typed=typed)) == ["FIRST 41"]


SCRIPT = """
    import os, sys
    from headrace import serve
    import user_apps

    front = serve.run(user_apps.app, name="graph", route_prefix=None)
    assert sorted(serve.status().applications["graph"].deployments) == ["Base", "Front", "Left", "Right"]
    assert front.diamond.remote(1).result() == [11, 21]
    base = serve.get_deployment_handle("Base", "graph")
    pid, config = base.who.remote().result()
    assert config == {}, config

    try:
        front.fail.remote().result()
    except user_apps.ModelError as error:
        assert (error.code, str(error)) == (7, "no such class")
        assert "in fail" in str(error.__cause__) and "raise ModelError(7" in str(error.__cause__)
    else:
        raise AssertionError("no error")

    blocked = front.block.remote(0.3)
    try:
        blocked.result(timeout_s=0.01)
    except TimeoutError:
        pass
    assert blocked.result() == "done"

    serve.run(user_apps.graph({"limit": 2}), name="graph", route_prefix=None)
    assert base.who.remote().result() == (pid, {"limit": 2})
    serve.delete("graph")
    serve.run(user_apps.hello.bind(), name="hello", route_prefix="/hello")
    serve.run(user_apps.hello.options(name="deeper").bind(), name="deeper", route_prefix="/hello/deeper")
"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """`headrace run user_apps:app`, which the tests share."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USERS_DIARY", str(home / "diary"))
        running = Instance(home, "user_apps:app", HERE)
    with running:
        yield running.ready()


def diary(instance: Instance) -> list[str]:
    return Path(instance.env["USERS_DIARY"]).read_text().splitlines()


class TestBesideAnInstance:
    def test_a_script_deploys_calls_and_leaves_its_applications_behind(
        self, instance: Instance, env: dict[str, str]
    ) -> None:
        before = len(diary(instance))  # replicas have the environment of whoever started the instance
        python(env | {"HEADRACE_HOME": instance.env["HEADRACE_HOME"]}, "-c", textwrap.dedent(SCRIPT))
        assert diary(instance)[before:] == ["init", "reconfigure {}", "reconfigure {'limit': 2}", "del"]
        # The longest prefix takes it; the first application still has the rest.
        routes = {"/": "default", "/hello": "hello", "/hello/deeper": "deeper"}
        assert json.loads(instance.ask("/-/routes")[1]) == routes
        assert instance.ask("/hello")[1] == b"hello from /hello"
        assert instance.ask("/hello/deeper/still")[1] == b"hello from /hello/deeper/still"
        assert instance.ask("/hello/deep")[1] == b"hello from /hello/deep"
        assert json.loads(instance.ask("/hellos")[1]) == {"path": "/hellos"}
        assert instance.ask("/-/healthz")[1] == b"success"

    def test_a_stream_a_head_and_an_id(self, instance: Instance) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=PATIENCE_S)
        connection.request("GET", "/?what=stream", headers={"x-request-id": "mine-1"})
        response = connection.getresponse()
        assert (response.read(), response.headers["x-request-id"]) == (b"0\n1\n2\n", "mine-1")
        connection.request("HEAD", "/there")
        response = connection.getresponse()
        assert (response.status, response.headers["content-length"]) == (200, str(len('{"path":"/there"}')))
        assert response.read() == b""
        connection.close()

    def test_a_client_that_leaves_cancels_through_two_replicas(self, instance: Instance) -> None:
        with socket.create_connection(("127.0.0.1", instance.port), PATIENCE_S) as client:
            client.sendall(b"GET /?what=for%20ever HTTP/1.1\r\nhost: here\r\n\r\n")
            wait_for(lambda: "for ever" in diary(instance), "the call has come to the second replica")
        wait_for(lambda: "cancelled" in diary(instance), "the call is cancelled there")

    def test_an_upload_of_100_mb_does_not_fill_the_ingress(self, instance: Instance) -> None:
        pids = [proxy["pid"] for proxy in instance.status()["proxies"].values()]
        before, peak = pss_mb(pids), 0.0
        answers: list[tuple[int, bytes, dict[str, str]]] = []
        upload = threading.Thread(target=lambda: answers.append(instance.ask("/?what=length", bytes(BIG))))
        upload.start()
        while upload.is_alive():
            peak = max(peak, pss_mb(pids))
            upload.join(0.005)
        ((status, body, _),) = answers
        assert (status, json.loads(body)) == (200, {"length": BIG})
        assert max(peak, pss_mb(pids)) - before < 20
