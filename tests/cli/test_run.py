"""`headrace run` as a user has it: real processes, real sockets, what the terminal shows."""

import json
import os
import re
import signal
import socket
import urllib.request

import pytest
from terminals import PATIENCE_S

APP = """
    import os
    from headrace import serve

    print("imported by", os.environ.get("HEADRACE_PROCESS_ID"))

    @serve.deployment(num_replicas=2)
    class Greeter:
        def __init__(self, greeting="hello"):
            self.greeting = greeting

        async def __call__(self, request):
            print("asked")
            return {self.greeting: request.query_params["name"]}

    app = Greeter.bind()

    def build(args):
        return Greeter.bind(args["greeting"])

    @serve.deployment
    class Broken:
        def __init__(self):
            self.load()

        def load(self):
            raise ValueError("the model is not there")

    broken = Broken.bind()
"""


@pytest.fixture(autouse=True)
def application(terminal):
    terminal.write("greeting.py", APP)


def get(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return json.load(response)


def test_from_the_start_to_ctrl_c(terminal):
    running = terminal.run("greeting:app", "--port", "0", "--request-timeout", "30")
    url = running.url()
    assert get(f"{url}?name=x") == {"hello": "x"}
    running.wait_for(r"^Greeter#\d+ \| asked$")
    running.wait_for(r"^greeting \| imported by builder$")

    table = terminal.command("status")
    assert table.returncode == 0
    assert re.search(r"default/Greeter  HEALTHY  2 running", table.stdout), table.stdout
    status = json.loads(terminal.command("status", "--json").stdout)
    assert status["applications"]["default"]["status"] == "RUNNING"
    assert status["applications"]["default"]["request_timeout_s"] == 30

    second = terminal.command("run", "greeting:app", "--port", "0")
    assert second.returncode == 1
    assert second.stderr.startswith("headrace: instance 'default' runs already (pid ")

    pids = [replica["pid"] for replica in status["applications"]["default"]["deployments"]["Greeter"]["replicas"]]
    assert len(pids) == 2
    os.kill(running.process.pid, signal.SIGINT)
    assert running.code() == 0
    assert "\x1b" not in running.text
    assert "stopping when what is in work has ended (Ctrl-C again: at once)" in running.lines
    assert running.lines[-1] == "stopped"
    assert "Traceback" not in running.text
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_builder_with_arguments_another_name_and_route_and_instance(terminal):
    running = terminal.run(
        "greeting:build", "--port", "0", "greeting=salve", "--name", "g", "--route-prefix", "/g", "--instance", "mine"
    )
    url = running.url()
    assert url.endswith("/g")
    assert get(f"{url}?name=x") == {"salve": "x"}
    assert "no instance 'default' is running; running: mine" in terminal.command("status").stderr
    assert "g/Greeter" in terminal.command("status", "--instance", "mine").stdout
    ended = terminal.command("shutdown", "--instance", "mine")
    assert (ended.returncode, ended.stdout) == (0, "instance 'mine' has ended\n")
    assert running.code() == 0
    assert "stopping, as headrace shutdown says" in running.lines


def test_without_http(terminal):
    running = terminal.run("greeting:app", "--ingress-workers", "0")
    running.wait_for(r"ready in .* application default, without HTTP")
    assert "no HTTP" in terminal.command("status").stdout


def test_a_constructor_that_raises_shows_its_traceback_once(terminal):
    running = terminal.run("greeting:broken", "--port", "0")
    assert running.code() == 1
    assert running.text.count("Traceback (most recent call last)") == 1, running.text
    assert running.text.count('raise ValueError("the model is not there")') == 1
    assert f'Broken#1 |   File "{terminal.path}/greeting.py"' in running.text
    running.wait_for(r"Broken#3 failed to start: ValueError: the model is not there$")
    running.wait_for(r"did not come up: .* 3 times; its last error: ValueError: the model is not there$")
    assert "headrace/" not in running.text.replace(str(terminal.path), "")


def test_stderr_apart_has_the_whole_traceback(terminal):
    ended = terminal.command("run", "greeting:broken", "--port", "0")
    assert ended.returncode == 1
    assert f'File "{terminal.path}/greeting.py"' in ended.stderr
    assert ended.stderr.rstrip().endswith("ValueError: the model is not there")


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("greeting:ap", None, "has no 'ap': did you mean greeting:app"),
        ("greetin:app", None, "there is no module 'greetin' in .*: did you mean 'greeting'"),
        ("greeting:Greeter", None, r"use Greeter.bind\("),
        ("wrong:app", "1 / 0\n", 'File ".*/project/wrong.py", line 1, in <module>'),
        (
            "wrong:app",
            "from headrace import serve\n@serve.deployment(num_replica=2)\nclass A: ...\n",
            "^OptionTypeError: .* did you mean 'num_replicas'",
        ),
        ("wrong:app", "def app():\n    raise LookupError('x')\n", "^the builder wrong:app raised:$"),
        (
            "wrong:app",
            "import os\nos.kill(os.getpid(), 11)\n",
            "the process that imports wrong:app ended with signal SIGSEGV",
        ),
    ],
)
def test_what_is_wrong_with_the_application(terminal, target, source, message):
    if source is not None:
        (terminal.path / "wrong.py").write_text(source)
    running = terminal.run(target, "--port", "0")
    assert running.code() == 1
    running.wait_for(message)
    assert "headrace/serve" not in running.text
    assert running.lines[-1] == "stopped"


def test_a_busy_port_is_told_before_slow_imports_end(terminal):
    (terminal.path / "slow.py").write_text("import threading\nthreading.Event().wait(600)\n")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        running = terminal.run("slow:app", "--port", str(port))
        assert running.code() == 1
    running.wait_for(f"port {port} is taken")
