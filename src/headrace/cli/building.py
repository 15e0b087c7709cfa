"""Applications are built in processes of their own: the command's own process never imports a user's module.

In: `module:app` with what belongs to it, checked. Out: the application as data, and what the builder printed meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping

from headrace.spec.errors import DeployFailedError
from headrace.wire.report import Built, Failure, Line, decode_built, read

_NOT_FOR_BUILDERS = ("HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID", "HEADRACE_LIFELINE_FD")


def application_flags(arguments: argparse.Namespace) -> list[str]:
    """The part of a builder's command line that says what the application is besides its code."""
    options = {"--name": arguments.name, "--route-prefix": arguments.route_prefix, "--app-dir": arguments.app_dir}
    if arguments.request_timeout is not None:
        options["--request-timeout"] = str(arguments.request_timeout)
    return [f"{name}={value}" for name, value in options.items()]


def builder_command(flags: list[str], arguments: argparse.Namespace, *python: str) -> tuple[str, ...]:
    """A builder's command line, in which nothing of the user's can be taken for an option.

    `python` are options of the interpreter.
    """
    return (
        sys.executable,
        "-P",
        *python,
        "-m",
        "headrace.serve.build",
        *flags,
        "--",
        arguments.target,
        *arguments.arguments,
    )


def build(arguments: argparse.Namespace, instance: str, say: Callable[[str], None]) -> Built:
    """Build the application that the arguments name, for the instance of this name; `say` gets the builder's lines.

    Raises DeployFailedError with the user's own traceback, or with how the builder died.
    """
    module = arguments.target.partition(":")[0]
    failure = ""
    with tempfile.TemporaryFile() as result:
        flags = [*application_flags(arguments), f"--to-fd={result.fileno()}"]
        process = subprocess.Popen(
            builder_command(flags, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=builder_environment(os.environ, instance),
            pass_fds=(result.fileno(),),
            start_new_session=True,  # a group of its own, which ends with it
        )
        assert process.stdout is not None
        end = threading.Thread(target=_end_group, args=(process.pid,), name="builder", daemon=True)
        end.start()
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                match read(line):
                    case Failure(text=text):
                        failure = text
                    case Line(text=text):
                        say(text)
                    case None:
                        say(f"{module} | {line}")
            end.join()
            code = process.wait()
        except BaseException:
            process.kill()
            end.join()
            process.wait()
            raise
        finally:
            process.stdout.close()
        if failure:
            raise DeployFailedError(failure.rstrip())
        if code:
            raise DeployFailedError(f"the process that imports {arguments.target} ended with {ending(code)}")
        result.seek(0)
        built = decode_built(result.read())
    if built is None:
        raise DeployFailedError(f"the process that imports {arguments.target} ended before it had built anything")
    return built


def _end_group(pid: int) -> None:
    """Once the builder has ended, end what it has started: that may hold the pipe open that is read here."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: the number is still the group's
        os.killpg(pid, signal.SIGKILL)


def builder_environment(inherited: Mapping[str, str], instance: str) -> dict[str, str]:
    """The environment of a builder that is no process of the instance: what asks `serve` there means this instance."""
    kept = {name: value for name, value in inherited.items() if name not in _NOT_FOR_BUILDERS}
    return {**kept, "HEADRACE_INSTANCE": instance, "PYTHONUNBUFFERED": "1"}


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
