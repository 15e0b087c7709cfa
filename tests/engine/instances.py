"""Real keepers for tests: each in a short directory of its own, with a stand-in for the controller; and waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from headrace.engine import linux
from headrace.engine.directory import InstanceDirectory

PATIENCE_S = 20.0
IDLE_CONTROLLER = ("/bin/sleep", "1000")

_KEEPER = """
import os, sys
from headrace.engine.directory import instance_directory
from headrace.engine.keeper import Keeper
from headrace.spec.errors import HeadraceError
def print_line(process_id, line):
    data = f"{process_id} | {line}\\n".encode(errors="replace")
    while data:  # past Python's buffers, whose lock this thread may have at the end
        data = data[os.write(1, data) :]
driver_fd = int(os.environ["DRIVER_FD"]) if "DRIVER_FD" in os.environ else None
try:
    keeper = Keeper(instance_directory("t"), controller_argv=sys.argv[1:], on_line=print_line, driver_fd=driver_fd)
    code = keeper.run()
except HeadraceError as error:
    sys.exit(f"{type(error).__name__}: {error}")
if keeper.failure:
    print(keeper.failure, file=sys.stderr)
sys.exit(code)
"""


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until the condition holds; fails the test when it does not come to."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        time.sleep(0.003)


async def until_async(condition: Callable[[], object], what: str = "") -> None:
    """The same on an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        await asyncio.sleep(0.003)


def alive(pid: int) -> bool:
    """Whether the process lives (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def members(directory: InstanceDirectory) -> list[int]:
    """The living processes that the keeper of this directory started, and what those started."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    wanted = str(directory.path)
    return [pid for pid in pids if linux.environment_value(pid, "HEADRACE_RUNTIME_DIR") == wanted and alive(pid)]


class KeeperProcess:
    """A keeper in a process of its own, in a session of its own. Its output goes to `printed()`."""

    def __init__(
        self,
        controller_argv: Sequence[str] = IDLE_CONTROLLER,
        environment: Mapping[str, str] | None = None,
        home: Path | None = None,
        printed: int | None = None,
    ) -> None:
        self.home = home if home is not None else Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
        self.directory = InstanceDirectory(self.home / "t")
        self._own_home = home is None
        self._stdout = printed
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._argv = [sys.executable, "-c", _KEEPER, *controller_argv]
        self._environment = {**os.environ, "HEADRACE_HOME": str(self.home), **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, driver_fd: int | None = None) -> KeeperProcess:
        self.process = subprocess.Popen(
            self._argv,
            env=self._environment | ({} if driver_fd is None else {"DRIVER_FD": str(driver_fd)}),
            stdin=subprocess.DEVNULL,
            stdout=self._printed if self._stdout is None else self._stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if driver_fd is None else (driver_fd,),
        )
        return self

    def start_ready(self, driver_fd: int | None = None) -> KeeperProcess:
        self.start(driver_fd)
        until(lambda: self.listens() or self.poll() is not None, "the keeper's socket")
        assert self.poll() is None, self.printed()
        return self

    def listens(self) -> bool:
        """Whether it can be asked: a socket file alone may be an ended keeper's."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.directory.keeper_socket)) == 0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def poll(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def printed(self) -> str:
        return os.pread(self._printed.fileno(), 1 << 24, 0).decode(errors="replace")

    def controller_pid(self) -> int | None:
        """The stand-in's pid, once it runs."""
        for pid in members(self.directory):
            if linux.environment_value(pid, "HEADRACE_PROCESS_ID") == "controller":
                return pid
        return None

    def descriptors(self) -> set[int]:
        """The numbers of the descriptors that it has open."""
        return {int(entry.name) for entry in Path(f"/proc/{self.pid}/fd").iterdir()}

    def close(self) -> None:
        """End everything, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in members(self.directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._printed.close()
        if self._own_home:
            shutil.rmtree(self.home, ignore_errors=True)


@contextlib.contextmanager
def kept(
    controller_argv: Sequence[str] = IDLE_CONTROLLER,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Iterator[KeeperProcess]:
    """A keeper that runs and can be asked."""
    keeper = KeeperProcess(controller_argv, environment, home)
    try:
        yield keeper.start_ready()
    finally:
        keeper.close()
