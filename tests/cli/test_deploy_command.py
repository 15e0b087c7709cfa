"""`headrace start` and `headrace deploy` as people and pipelines have them: exit codes, and what is printed."""

import json
import os
import re
import signal
import threading
import urllib.request
from pathlib import Path

import pytest
from terminals import PATIENCE_S, OnTerminal

from headrace.engine.directory import InstanceDirectory

APP = """
    import os
    from headrace import serve

    print("imported")

    @serve.deployment
    class Greeter:
        def __init__(self, greeting="hello"):
            self.greeting = greeting

        async def __call__(self, request):
            if self.greeting == "faulty":
                raise RuntimeError("this one fails")
            return self.greeting

    app = Greeter.bind()

    def build(args):
        return Greeter.bind(args["greeting"])

    @serve.deployment
    class Broken:
        def __init__(self):
            raise ValueError("the model is not there")

    broken = Broken.bind()
"""


@pytest.fixture(scope="module")
def shop(place):
    """An instance, its address, and an application to deploy on it."""
    place.write("greeting.py", APP)
    place.url = place.start()
    return place


def deploy(shop, app, *arguments):
    """Deploy under a name and a route of its own."""
    return shop.command("deploy", *arguments, "--name", app, "--route-prefix", f"/{app}")


def get(shop, app):
    with urllib.request.urlopen(f"{shop.url}/{app}", timeout=PATIENCE_S) as response:
        return response.read().decode()


def test_an_instance_is_started_deployed_to_and_ended(terminal):
    terminal.write("greeting.py", APP)
    nothing = terminal.command("deploy", "greeting:app", "--wait", "--json")
    assert nothing.returncode == 1
    assert nothing.stderr == "headrace: no instance 'default' is running\n"
    url = terminal.start()
    again = terminal.command("start", "--port", "0")
    assert again.returncode == 1
    assert again.stderr.startswith("headrace: instance 'default' runs already (pid ")
    done = terminal.command("deploy", "greeting:app", "--wait")
    assert (done.returncode, done.stdout) == (0, "")
    assert "greeting | imported" in done.stderr.splitlines()
    assert done.stderr.endswith("promoted: application default, revision 1\n"), done.stderr
    assert "\x1b" not in done.stderr
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        assert response.read() == b"hello"
    assert terminal.command("shutdown").stdout == "instance 'default' has ended\n"


def test_a_pipeline_reads_one_object_and_branches_on_the_code(shop):
    done = deploy(
        shop, "ci", "greeting:build", "greeting=one", "--wait", "--json", "--by", "ci", "--label", "commit=1f0"
    )
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert (status["app"], status["revision"], status["outcome"]) == ("ci", 1, "PROMOTED")
    assert get(shop, "ci") == "one"
    record = json.loads(shop.command("rollout", "history", "ci", "--json").stdout)["revisions"][0]
    assert (record["by"], record["labels"], record["source"]) == ("ci", {"commit": "1f0"}, "greeting:build")

    same = deploy(shop, "ci", "greeting:build", "greeting=one", "--wait", "--json", "--expected-revision", "1")
    assert (same.returncode, json.loads(same.stdout)["revision"]) == (0, 1)

    conflict = deploy(shop, "ci", "greeting:app", "--wait", "--json", "--expected-revision", "7")
    assert conflict.returncode == 1
    status = json.loads(conflict.stdout)
    assert status["outcome"] == "FAILED"
    assert "revision 7 was expected to be its newest" in status["reason"]

    failed = deploy(shop, "ci", "greeting:broken", "--wait", "--json")
    assert failed.returncode == 1
    status = json.loads(failed.stdout)
    assert (status["revision"], status["outcome"]) == (2, "FAILED")
    assert 'raise ValueError("the model is not there")' in status["reason"]
    assert failed.stderr.count("Traceback (most recent call last)") == 1, failed.stderr
    assert get(shop, "ci") == "one"


def test_without_wait_it_says_where_to_look(shop):
    done = deploy(shop, "later", "greeting:app", "--rollout", "blue-green", "--hold", "0s")
    assert done.returncode == 0, done.stderr
    assert (
        "deploying application later as revision 1 (blue_green); `headrace rollout status later --watch`" in done.stderr
    )
    watched = shop.command("rollout", "status", "later", "--watch")
    assert (watched.returncode, watched.stdout.splitlines()[-1]) == (0, "promoted: application later, revision 1")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("greetin:app", "there is no module 'greetin' in .*: did you mean 'greeting'"),
        ("greeting:ap", "did you mean greeting:app"),
        ("wrong:app", "ZeroDivisionError: division by zero"),
        ("dying:app", "failed: the process that imports dying:app ended with signal SIGSEGV"),
        ("leaving:app", "failed: the process that imports leaving:app ended before it had built anything"),
    ],
)
def test_what_cannot_be_built_is_not_deployed(shop, target, message):
    shop.write("wrong.py", "1 / 0\n")
    shop.write("dying.py", "import os\nos.kill(os.getpid(), 11)\n")
    shop.write("leaving.py", "import os\nos._exit(0)\n")
    done = deploy(shop, "never", target, "--wait", "--json")
    assert done.returncode == 1
    status = json.loads(done.stdout)
    assert (status["revision"], status["outcome"]) == (0, "FAILED")
    assert re.search(message, done.stderr), done.stderr
    assert "never" not in json.loads(shop.command("status", "--json").stdout)["applications"]


def test_what_an_import_leaves_running_ends_with_it(shop):
    shop.write("leaky.py", APP + "\n    import subprocess\n    print(subprocess.Popen(['sleep', '600']).pid)\n")
    done = deploy(shop, "leaky", "leaky:app", "--wait")
    assert done.returncode == 0, done.stderr
    pid = re.search(r"leaky \| (\d+)", done.stderr)[1]
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_patience_ends_before_the_rollout_does(shop):
    assert deploy(shop, "slow", "greeting:app", "--wait").returncode == 0
    canary = ("--rollout", "canary", "--steps", "10%")
    done = deploy(shop, "slow", "greeting:build", "greeting=x", *canary, "--wait", "--timeout", "0.5", "--json")
    assert done.returncode == 124, done.stderr
    status = json.loads(done.stdout)
    assert status["outcome"] == ""
    assert "has not ended within 0.5 s, and goes on" in status["reason"]
    assert shop.command("rollout", "abort", "slow", "--wait").returncode == 0


class Clients:
    """Requests, one after the other, until they are stopped."""

    def __init__(self, url):
        self.url = url
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stopped.is_set():
            try:
                urllib.request.urlopen(self.url, timeout=PATIENCE_S).read()
            except OSError:
                pass  # the faulty revision answers so

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()


def test_a_revision_that_fails_requests_is_rolled_back_with_code_2(shop):
    assert deploy(shop, "guarded", "greeting:app", "--wait").returncode == 0
    canary = ("--rollout", "canary", "--steps", "50%:60", "--check", "error_rate:min_samples=20")
    with Clients(f"{shop.url}/guarded"):
        done = deploy(shop, "guarded", "greeting:build", "greeting=faulty", *canary, "--wait", "--json")
    assert done.returncode == 2, done.stderr
    status = json.loads(done.stdout)
    assert (status["revision"], status["outcome"]) == (2, "ROLLED_BACK")
    assert "error rate" in status["reason"]
    assert status["errors"]["2"] == status["requests"]["2"] > 0  # to fail it need not have seen enough to pass
    assert get(shop, "guarded") == "hello"


def test_on_a_terminal_the_view_is_redrawn_and_ctrl_c_leaves_the_rollout_alone(shop):
    assert deploy(shop, "seen", "greeting:app", "--wait").returncode == 0
    arguments = ("deploy", "greeting:build", "greeting=x", "--name", "seen", "--route-prefix", "/seen", "--wait")
    shown = OnTerminal(shop, *arguments, "--rollout", "canary", "--steps", "25%,50%")
    head = "seen · revision 2 · canary · step 1 of 2 · watching"
    assert shown.until(lambda glass: head in glass.rows and any("25 %" in row for row in glass.rows)), shown.glass.rows
    assert shop.command("rollout", "pause", "seen").returncode == 0
    head = "seen · revision 2 · canary · paused · step 1 of 2 · watching"
    assert shown.until(lambda glass: head in glass.rows)
    assert sum("revision 2 · canary" in row for row in shown.glass.rows) == 1
    assert "\x1b[32m█" in shown.raw
    shown.press_ctrl_c()
    assert shown.code() == 130
    assert "the rollout goes on: `headrace rollout status seen --watch`" in "\n".join(shown.glass.rows)
    assert "Traceback" not in shown.raw
    assert json.loads(shop.command("rollout", "status", "seen", "--json").stdout)["paused"]
    assert shop.command("rollout", "abort", "seen", "--wait").returncode == 0


def controller_pid(shop):
    """Of the keeper's children the one that runs the controller."""
    keeper = InstanceDirectory(Path(shop.env["HEADRACE_HOME"]) / "default").keeper_pid()
    for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        if b"headrace.controller" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


def test_who_waits_goes_on_waiting_when_the_controller_is_killed(shop):
    assert deploy(shop, "lasting", "greeting:app", "--wait").returncode == 0
    arguments = ("deploy", "greeting:build", "greeting=x", "--name", "lasting", "--route-prefix", "/lasting")
    waiting = shop.popen(*arguments, "--wait", "--rollout", "canary", "--steps", "25%,50%")
    waiting.wait_for("step 1 of 2 · watching")
    killed = controller_pid(shop)
    os.kill(killed, signal.SIGKILL)
    promoted = shop.command("rollout", "promote", "lasting", "--wait")
    assert promoted.returncode == 0, promoted.stderr
    assert controller_pid(shop) not in (None, killed)
    assert waiting.code() == 0, waiting.text
    assert waiting.lines[-1] == "promoted: application lasting, revision 2"
