"""One process of the keeper: spawned in a session of its own, its output read, killed with all that it started.

In: a request and its environment. Out: the process's group, its output's descriptor. Order matters at the end: the
group is killed while the ended leader is not reaped yet, for until then the kernel gives its number to nobody else.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping

from headrace.engine.base import ProcessInfo, ProcessRequest
from headrace.engine.environment import LIFELINE_FD
from headrace.engine.output import ProcessOutput
from headrace.spec.errors import InstanceError

_CHUNK_BYTES = 64 * 1024
_LAST_CHUNKS = 64  # of output read at the end; one that prints for ever is cut there
_DEFAULTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


class Child:
    """A living process. `served` ones belong to the engine; the others (the controller, a builder) to the keeper."""

    def __init__(self, info: ProcessInfo, token: str, stdout: int, output: ProcessOutput, served: bool) -> None:
        self.info = info
        self.token = token
        self.stdout = stdout
        self.output = output
        self.served = served
        self.kill_at: float | None = None  # by the keeper's clock, once it was asked to stop

    def __repr__(self) -> str:
        return f"Child({self.info.id}, pid {self.info.pid}{', stopping' if self.kill_at is not None else ''})"

    def read(self) -> bool:
        """Take what it has printed; False once nobody can print any more."""
        try:
            data = os.read(self.stdout, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        if data:
            self.output.feed(data)
        return bool(data)

    def read_rest(self) -> None:
        """Take what is left in the pipe of a process that is gone, without waiting for others that hold it."""
        for _ in range(_LAST_CHUNKS):
            try:
                data = os.read(self.stdout, _CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self.output.feed(data)

    def terminate(self) -> None:
        """SIGTERM to the process alone: what it started is its own to end, while the grace lasts."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.info.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its whole group."""
        kill_group(self.info.pid)


def kill_group(pid: int) -> None:
    """SIGKILL to the process group that `pid` leads; nothing happens when there is none left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def spawn(request: ProcessRequest, environment: Mapping[str, str], lifeline: int) -> tuple[int, int]:
    """Start the process; returns its pid and the read end of its output. Raises InstanceError, or OSError for want of
    descriptors.
    """
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        pid = os.posix_spawnp(
            request.argv[0],
            request.argv,
            environment,
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
                # Last: the pipe of the output may happen to have this number here.
                (os.POSIX_SPAWN_DUP2, lifeline, LIFELINE_FD),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULTED,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument or variable
        os.close(reader)
        raise InstanceError(f"{request.id} cannot be started by {list(request.argv)}: {error}") from error
    finally:
        os.close(writer)
    return pid, reader
