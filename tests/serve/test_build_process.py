"""A builder's process: what it made, what it told, and that nothing of it goes on."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from headrace.serve.build_process import Builder, builder_environment
from headrace.spec.errors import DeployFailedError, RequestTimeoutError
from headrace.wire.report import Failure, Line, written

SLEEPER = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"


def builder(program: str, given: bytes | None = None) -> Builder:
    def command(result: int) -> tuple[str, ...]:
        return (sys.executable, "-S", "-c", program, str(result))

    return Builder("shop:app", "shop", command, builder_environment(os.environ, "test"), given=given)


def telling(event: Line | Failure) -> str:
    return f"print({written(event)!r}, flush=True)\n"


def test_what_it_made_and_what_it_told_arrive() -> None:
    program = (
        "import os, sys\n" + telling(Line("importing")) + "print('hello', flush=True)\n"
        "os.write(int(sys.argv[1]), sys.stdin.buffer.read() + os.environ['HEADRACE_INSTANCE'].encode())"
    )
    lines: list[str] = []
    assert builder(program, b"given to ").run(lines.append) == b"given to test"
    assert lines == ["importing", "shop | hello"]


def test_what_the_module_started_holds_nobody_up() -> None:
    # It has the pipe that is read, which thus ends with it alone.
    assert builder(SLEEPER).run(lambda line: None) == b""


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (telling(Failure("no module named bread")) + "raise SystemExit(1)", "^no module named bread$"),
        ("raise SystemExit(7)", "^the process that imports shop:app ended with exit code 7$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal SIGSEGV$"),
    ],
)
def test_a_builder_that_fails_says_why(program: str, message: str) -> None:
    for given in (None, b"x" * 1_000_000):  # which nobody reads
        with pytest.raises(DeployFailedError, match=message):
            builder(program, given).run(lambda line: None)


def test_one_that_takes_too_long_is_ended_with_what_it_started() -> None:
    with pytest.raises(RequestTimeoutError, match="shop:app was not built in time"):
        builder(SLEEPER + "p.wait()").run(lambda line: None, 0.2)


def test_one_that_is_not_wanted_any_more_ends_as_it_begins() -> None:
    build = builder(SLEEPER + "p.wait()")
    build.kill()
    with pytest.raises(DeployFailedError, match="ended with signal SIGKILL"):
        build.run(lambda line: None)


def test_one_that_is_killed_from_another_thread_ends() -> None:
    build = builder(SLEEPER + telling(Line("up")) + "p.wait()")
    with pytest.raises(DeployFailedError, match="ended with signal SIGKILL"):
        build.run(lambda line: threading.Thread(target=build.kill).start())
