"""A builder is run: a process of its own that imports a user's module, which whoever deploys never does itself.

In: its command line, environment and input. Out: the bytes that it made; what it reports and what the module prints,
line by line, as it comes. With the process ends all that it has started: that may hold open the pipe
that is read here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from headrace.spec.errors import DeployFailedError, RequestTimeoutError
from headrace.wire.report import Failure, Line, read

_OF_A_PROCESS = ("HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID", "HEADRACE_LIFELINE_FD")


class Builder:
    """One process. `what` it imports is said in errors, `name` before what that prints; `command` gets the number of
    the file descriptor that the result goes to.
    """

    def __init__(
        self,
        what: str,
        name: str,
        command: Callable[[int], Sequence[str]],
        environment: Mapping[str, str],
        *,
        given: bytes | None = None,
        cwd: str | None = None,
    ) -> None:
        self._what = what
        self._name = name
        self._command = command
        self._environment = environment
        self._given = given
        self._cwd = cwd
        self._lock = threading.Lock()
        self._group = 0  # while it lives, and its number is nobody else's
        self._unwanted = False
        self._late = False

    def __repr__(self) -> str:
        return f"Builder({self._what}{f', pid {self._group}' if self._group else ''})"

    def run(self, say: Callable[[str], None], timeout_s: float | None = None) -> bytes:
        """What it made, which may be nothing. `say` gets its lines.

        Raises DeployFailedError with the user's own traceback, or with how the process died; RequestTimeoutError after
        `timeout_s`.
        """
        with tempfile.TemporaryFile() as result:
            failure, code = self._run(result.fileno(), say, timeout_s)
            if self._late and code:
                raise RequestTimeoutError(
                    f"{self._what} was not built in time: does it wait for something while it is imported?"
                )
            if failure:
                raise DeployFailedError(failure.rstrip())
            if code:
                raise DeployFailedError(f"the process that imports {self._what} ended with {ending(code)}")
            result.seek(0)
            return result.read()

    def kill(self) -> None:
        """End it with all that it has started, from any thread; one that has not begun yet ends when it does."""
        with self._lock:
            self._unwanted = True
            if self._group:
                _kill_group(self._group)

    def _run(self, result: int, say: Callable[[str], None], timeout_s: float | None) -> tuple[str, int]:
        process = subprocess.Popen(
            self._command(result),
            stdin=subprocess.DEVNULL if self._given is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._cwd,
            pass_fds=(result,),
            start_new_session=True,  # a group of its own, which ends with it
        )
        with self._lock:
            self._group = process.pid
        end = threading.Thread(target=_end_group, args=(process.pid,), name="builder", daemon=True)
        end.start()
        assert process.stdout is not None
        try:
            with self._bounded(timeout_s), process.stdout:
                if self._unwanted:
                    self.kill()
                self._give(process)
                failure = self._hear(process.stdout, say)
                end.join()
        except BaseException:
            self.kill()
            end.join()
            raise
        finally:
            with self._lock:
                self._group = 0
            code = process.wait()
        return failure, code

    @contextlib.contextmanager
    def _bounded(self, timeout_s: float | None) -> Iterator[None]:
        """It is killed when it takes longer."""

        def stop() -> None:
            self._late = True
            self.kill()

        watch = None if timeout_s is None else threading.Timer(timeout_s, stop)
        if watch is not None:
            watch.daemon = True
            watch.start()
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()

    def _give(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            # One that died before it read all tells why, or by what code, in its own words.
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(self._given or b"")

    def _hear(self, output: Iterable[bytes], say: Callable[[str], None]) -> str:
        """Pass on what it says; returns what it failed with, "" for nothing."""
        failure = ""
        for raw in output:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            match read(line):
                case Failure(text=text):
                    failure = text
                case Line(text=text):
                    say(text)
                case None:
                    say(f"{self._name} | {line}")
        return failure


def _end_group(pid: int) -> None:
    """Once the builder has ended, end what it has started."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: the number is still the group's
        _kill_group(pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def builder_environment(inherited: Mapping[str, str], instance: str = "") -> dict[str, str]:
    """The environment of a builder, which is no process of the instance: what asks `serve` there means `instance`."""
    kept = {name: value for name, value in inherited.items() if name not in _OF_A_PROCESS}
    named = {"HEADRACE_INSTANCE": instance} if instance else {}
    return {**kept, **named, "PYTHONUNBUFFERED": "1"}


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
