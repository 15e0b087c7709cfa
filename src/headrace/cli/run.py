"""`headrace run module:app`: this process becomes an instance's keeper, and a builder deploys the application on it.

In: arguments; lines that the instance's processes print; reports of the builder. Out: the terminal of whoever ran it,
and the exit code: 0 after Ctrl-C, SIGTERM or `headrace shutdown`, 1 when the application or the instance failed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

from headrace import __version__
from headrace.cli.terminal import Style, shown_name
from headrace.engine.base import ProcessExited, ProcessRequest
from headrace.engine.directory import instance_directory
from headrace.engine.keeper import Keeper
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import InstanceError, OptionError
from headrace.spec.names import checked_name, checked_route_prefix, split_import_path
from headrace.wire.report import Failure, Line, Ready, read

BUILDER = "builder"
_TOLD = re.compile("failed to start|did not come up")  # the builder's reports tell the same
_STOPPING = {
    "SIGINT": "stopping (Ctrl-C again: at once)",
    "SIGTERM": "stopping, as SIGTERM says",
    "asked by the controller": "stopping, as headrace shutdown says",
}


def main(arguments: argparse.Namespace) -> int:
    """Serve until stopped. Raises OptionError, or InstanceError when the instance runs already."""
    started = time.monotonic()
    check(arguments)
    directory = instance_directory(arguments.instance)
    pid = directory.keeper_pid()
    if pid is not None:
        raise InstanceError(
            f"instance {directory.name!r} runs already (pid {pid}): stop it with "
            f"`headrace shutdown --instance {directory.name}`, or give this one another name with --instance"
        )
    screen = Screen(arguments.target, Style.of(sys.stdout), started)
    session = Session(arguments, screen)
    session.keeper = keeper = Keeper(
        directory, on_line=screen.line, on_ready=session.start_builder, on_exit=session.process_ended
    )
    screen.say(f"headrace {__version__} · instance {directory.name} · pid {os.getpid()}")
    code = keeper.run()
    if keeper.failure:
        screen.fail(f"the instance failed: {keeper.failure}")
    elif session.failed:
        if not screen.failure_shown:
            screen.fail(session.failed)
        code = 1
    screen.say("stopped")
    return code


def check(arguments: argparse.Namespace) -> None:
    """What can be told to be wrong before anything is started. Raises OptionError."""
    split_import_path(arguments.target)
    checked_name(arguments.name)
    checked_route_prefix(arguments.route_prefix)
    if not Path(arguments.app_dir).is_dir():
        raise OptionError(f"--app-dir {arguments.app_dir!r} is not a directory")
    HTTPOptions(host=arguments.host, port=arguments.port, ingress_workers=arguments.ingress_workers)
    for pair in arguments.arguments:
        if "=" not in pair or pair.startswith("="):
            raise OptionError(f"{pair!r} is not KEY=VALUE, an argument for the function that builds the application")


class Session:
    """The builder's life beside the instance's: when it fails, the instance ends."""

    def __init__(self, arguments: argparse.Namespace, screen: Screen) -> None:
        self.keeper: Keeper | None = None
        self.failed = ""  # how the builder ended, when not well
        self._arguments = arguments
        self._screen = screen

    def start_builder(self) -> None:
        """Beside the controller, which starts meanwhile."""
        assert self.keeper is not None
        self.keeper.start_process(ProcessRequest(id=BUILDER, role="driver", argv=builder_argv(self._arguments)))

    def process_ended(self, event: ProcessExited) -> None:
        """A process of the instance is gone."""
        if event.id != BUILDER or event.code == 0:
            return
        assert self.keeper is not None
        ending = f"signal {signal.Signals(-event.code).name}" if event.code < 0 else f"exit code {event.code}"
        if not self._screen.stopping:
            self.failed = f"the process that imports {self._arguments.target} ended with {ending}"
            self.keeper.stop("the application was not deployed")


def builder_argv(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The builder's command line, in which nothing of the user's can be taken for an option."""
    options = {
        "--host": arguments.host,
        "--port": str(arguments.port),
        "--name": arguments.name,
        "--route-prefix": arguments.route_prefix,
        "--app-dir": arguments.app_dir,
        "--ingress-workers": str(arguments.ingress_workers),
    }
    flags = [f"{name}={value}" for name, value in options.items()]
    return (sys.executable, "-P", "-m", "headrace.serve.build", *flags, "--", arguments.target, *arguments.arguments)


class Screen:
    """The terminal: our own lines, and those of processes under their names. Lines come from one thread at a time."""

    def __init__(self, target: str, style: Style, started: float) -> None:
        self.style = style
        self.failure_shown = False
        self.stopping = False
        self._ready = False
        self._target = target
        self._started = started

    def say(self, text: str) -> None:
        """A line of our own."""
        self._write(text)

    def fail(self, text: str, details: str = "") -> None:
        """What went wrong, on stderr: a script that keeps our output apart still shows it."""
        self.failure_shown = True
        self._write(self.style.bad(text.rstrip()), 2)
        if details:
            self._write(details.rstrip(), 2)

    def line(self, process_id: str, line: str) -> None:
        """A line that a process printed; the builder's reports are shown for what they say."""
        if process_id == BUILDER:
            event = read(line)
            if event is not None:
                self._report(event)
                return
        if process_id == "keeper":
            self._keeper(line)
            return
        if process_id == "controller" and not self._ready and _TOLD.search(line):
            return
        name = self._target.partition(":")[0] if process_id == BUILDER else shown_name(process_id)
        self._write(f"{self.style.process(name)} | {line}")

    def _keeper(self, line: str) -> None:
        if not self.stopping and line.endswith(": stopping"):
            self.stopping = True
            self._write(self.style.dim(_STOPPING.get(line.partition(":")[0], line)))
        else:
            self._write(self.style.dim(line))

    def _report(self, event: Line | Ready | Failure) -> None:
        match event:
            case Line(text=text):
                # A replica prints its own traceback, and a deploy that fails brings the last one.
                self._write(self.style.dim(f"{self._elapsed()}  {gist(text)}"))
            case Ready(app=app, address=address, route_prefix=prefix):
                self._ready = True
                self._write(self.style.good(f"ready in {self._elapsed()}") + f"  {_place(app, address, prefix)}")
            case Failure(text=text, traceback=traceback):
                if traceback:
                    self.fail(f"{self._target} could not be imported:", text)
                else:
                    self.fail(text)

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started:.2f} s"

    def _write(self, text: str, fd: int = 1) -> None:
        # Past Python's buffers: at the end, nothing waits in them while the process is killed.
        data = (text + "\n").encode(errors="replace")
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            return  # the terminal is gone; the instance's logs have what is printed


def gist(text: str) -> str:
    """The first line, and of a traceback under it the last: what was raised."""
    first, _, rest = text.strip().partition("\n")
    if rest.startswith("Traceback "):
        return f"{first} {rest.rpartition(chr(10))[2]}"
    return f"{first} {rest.partition(chr(10))[0]}" if first.endswith(":") else first


def _place(app: str, address: str, prefix: str | None) -> str:
    if not address or prefix is None:
        return f"application {app}, without HTTP"
    return address + prefix
