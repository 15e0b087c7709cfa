"""`headrace run module:app`: this process becomes an instance's keeper, and a builder deploys the application on it.

In: arguments; lines that the instance's processes print; reports of the builder; with `--reload` changes of files, each
of which gets a builder. Out: the terminal of whoever ran it, and the exit code: 0 after Ctrl-C, SIGTERM or `headrace
shutdown`, 1 when the application or the instance failed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace import __version__
from headrace.cli.building import application_flags, builder_command
from headrace.cli.cluster import add_cluster, cluster
from headrace.cli.failures import StartFailures, gist
from headrace.cli.instance import add_instance, site, whoami
from headrace.cli.listening import add_listening, check_listening
from headrace.cli.target import add_application, check_application
from headrace.cli.terminal import Style, shown_name
from headrace.cli.watch import Watcher
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.keeper import Keeper, Stage
from headrace.engine.site import RaySite
from headrace.serve.build_process import ending
from headrace.spec.config import TLS_FILES
from headrace.spec.errors import InstanceError
from headrace.wire.report import NO_HTTP, Event, Failure, Imported, Line, Ready, Waiting, read

BUILDER = "builder"
STOP_BUILDER_S = 0.5
_TOLD = re.compile("failed to start|did not come up")  # the builder's reports tell the same
_FAILED = re.compile(r"(?P<replica>\S+) (?P<how>failed(?: to start)?):\n(?P<error>.*)", re.DOTALL)
_STOPPING = {
    "SIGINT": "stopping when what is in work has ended (Ctrl-C again: at once)",
    "SIGTERM": "stopping, as SIGTERM says",
    "asked by the controller": "stopping, as headrace shutdown says",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace run`."""
    add_application(parser)
    parser.add_argument(
        "--reload", action="store_true", help="serve new code when a source file changes; broken code is not served"
    )
    add_listening(parser)
    add_instance(parser)
    add_cluster(parser)


def main(arguments: argparse.Namespace) -> int:
    """Serve until stopped; on a Ray cluster, until it is deployed. Raises OptionError, or InstanceError when the
    instance runs already.
    """
    started = time.monotonic()
    check(arguments)
    meant = site(arguments)
    screen = Screen(arguments.target, arguments.name, Style.of(sys.stdout), started)
    if isinstance(meant, RaySite):
        from headrace.cli.run_on_ray import run_on_ray  # what is needed there alone takes a while to load

        return run_on_ray(arguments, meant, screen)
    cluster(arguments, meant)
    directory = meant.directory()
    pid = directory.keeper_pid()
    if pid is not None:
        raise InstanceError(
            f"instance {directory.name!r} runs already (pid {pid}): stop it with "
            f"`headrace shutdown --instance {directory.name}`, or give this one another name with --instance"
        )
    session = Session(arguments, screen)
    session.keeper = keeper = Keeper(
        directory, on_line=screen.line, on_ready=session.start_builder, on_exit=session.process_ended
    )
    screen.say(f"headrace {__version__} · instance {directory.name} · pid {os.getpid()}")
    try:
        code = keeper.run()
    finally:
        session.end()
    screen.release()
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
    check_application(arguments)
    check_listening(arguments)


class Session:
    """The builder's life beside the instance's: when it fails, the instance ends.

    Where files are watched it does not: the next change gets the next builder, which is there already and only waits.
    """

    def __init__(self, arguments: argparse.Namespace, screen: Screen) -> None:
        self.keeper: Keeper | None = None
        self.failed = ""  # how the builder ended, when not well
        self._arguments = arguments
        self._screen = screen
        self._builder = ""  # the id of the one at work
        self._again = False  # a file changed while it was
        self._next: ProcessInfo | None = None
        self._next_waits = False
        self._started = 0
        self._began_at = 0.0
        self._watcher = Watcher(arguments.app_dir, self._noticed) if arguments.reload else None
        screen.on_files = self._read
        screen.on_waiting = self._waits

    def start_builder(self) -> None:
        """Beside the controller, which starts meanwhile."""
        if self._watcher is not None:
            self._watcher.start()
        self._build()

    def process_ended(self, event: ProcessExited) -> None:
        """A process of the instance is gone."""
        if self._next is not None and event.id == self._next.id:
            self._next = None
        if event.id != self._builder:
            return
        self._builder = ""
        assert self.keeper is not None
        runs = self.keeper.stage is Stage.RUNNING
        if self._again and runs:
            self._again = False
            self._build()
        elif event.code and not self._screen.stopping:
            what = f"the process that imports {self._arguments.target} ended with {ending(event.code)}"
            if self._watcher is not None and event.code != NO_HTTP:
                self._screen.wait_for_change(what)
            else:
                self.failed = what
                self.keeper.stop("the application was not deployed")
                return
        if self._watcher is not None and self._next is None and runs:
            self._next, self._next_waits = self._start("--when-told"), False

    def end(self) -> None:
        """Watch no more."""
        if self._watcher is not None:
            self._watcher.stop()

    def _build(self) -> None:
        self._began_at = time.time()
        if self._next is None:
            self._builder = self._start().id
            return
        self._builder = self._next.id
        if self._next_waits:
            self._tell_next()

    def _tell_next(self) -> None:
        """It is not reaped before `process_ended` has told of it: the pid is its own."""
        assert self._next is not None
        os.kill(self._next.pid, signal.SIGUSR1)
        self._next = None

    def _start(self, *flags: str) -> ProcessInfo:
        assert self.keeper is not None
        self._started += 1
        id = BUILDER if self._started == 1 else f"{BUILDER}#{self._started}"
        argv = builder_argv(self._arguments, *flags)
        return self.keeper.start_process(ProcessRequest(id=id, role="driver", argv=argv))

    # --- called on other threads ------------------------------------------------------------------------------------

    def _read(self, files: tuple[str, ...]) -> None:
        if self._watcher is not None:
            self._watcher.add(files, self._began_at)

    def _waits(self, id: str) -> None:
        assert self.keeper is not None
        self.keeper.call(lambda: self._has_loaded(id))

    def _noticed(self, changed: list[str]) -> None:
        assert self.keeper is not None
        self.keeper.call(lambda: self._changed(changed))

    # --- and on the keeper's loop -----------------------------------------------------------------------------------

    def _has_loaded(self, id: str) -> None:
        if self._next is None or self._next.id != id:
            return
        self._next_waits = True
        if self._builder == id:
            self._tell_next()

    def _changed(self, changed: list[str]) -> None:
        """Build again; what is being built is out of date."""
        assert self.keeper is not None
        if self.keeper.stage is not Stage.RUNNING:
            return
        self._screen.begin_again(changed)
        if not self._builder:
            self._build()
        elif self._next is None or self._next.id != self._builder:  # else it has read nothing yet
            self._again = True
            self.keeper.stop_process(self._builder, STOP_BUILDER_S)


def builder_argv(arguments: argparse.Namespace, *more: str) -> tuple[str, ...]:
    """The command line of the builder, which also starts HTTP, and deploys."""
    options = {
        "--host": arguments.host,
        "--port": str(arguments.port),
        "--ingress-workers": str(arguments.ingress_workers),
    }
    if arguments.grpc_port is not None:
        options["--grpc-port"] = str(arguments.grpc_port)
    for name in TLS_FILES:
        file = getattr(arguments, name)
        if file is not None:
            options[f"--{name.replace('_', '-')}"] = str(Path(file).absolute())
    flags = application_flags(arguments) + [f"{name}={value}" for name, value in options.items()]
    flags += [f"--grpc-servicer-functions={function}" for function in arguments.grpc_servicer_functions]
    flags.append(f"--by={whoami(None)}")
    if not arguments.reload:
        return builder_command(flags, arguments)
    # Bytecode is found valid by seconds: what was compiled in the second of the next change would pass for it.
    return builder_command([*flags, "--tell-files", *more], arguments, "-B")


class Screen:
    """The terminal: our own lines, and those of processes under their names. Lines come from one thread at a time."""

    def __init__(self, target: str, app: str, style: Style, started: float) -> None:
        self.style = style
        self.failure_shown = False
        self.stopping = False
        self.on_files: Callable[[tuple[str, ...]], None] = lambda _files: None
        self.on_waiting: Callable[[str], None] = lambda _id: None
        self._ready = False
        self._served = False
        self._target = target
        self._app = app
        self._started = started
        self._failures = StartFailures()

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
        if is_builder(process_id):
            event = read(line)
            if event is not None:
                self.report(event, process_id)
                return
        if process_id == "keeper":
            self._keeper(line)
            return
        if not self._ready:
            if process_id == "controller" and _TOLD.search(line):
                return
            if not self._failures.line(process_id, line):
                return
        self._show(process_id, line)

    def begin_again(self, changed: Sequence[str]) -> None:
        """Files changed: what comes now is of another build."""
        self.release()
        here = Path.cwd()
        names = [str(path.relative_to(here)) if path.is_relative_to(here) else path.name for path in map(Path, changed)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        self._started = time.monotonic()
        self._ready = self.failure_shown = False
        self._failures = StartFailures()
        self._write(self.style.strong(f"changed: {', '.join(names[:3])}{more}"))

    def wait_for_change(self, what: str) -> None:
        """The build failed, and the next change may mend it."""
        self.release()
        if not self.failure_shown:
            self.fail(what)
        self._ready = True
        before = "the code before goes on serving; " if self._served else ""
        self._write(self.style.dim(f"{before}waiting for a change"))

    def release(self) -> None:
        """Show what was held back as long as a report might have said the same."""
        for process_id, line in self._failures.rest():
            self._show(process_id, line)

    def _show(self, process_id: str, line: str) -> None:
        name = self._target.partition(":")[0] if is_builder(process_id) else shown_name(process_id)
        self._write(f"{self.style.process(name)} | {line}")

    def _keeper(self, line: str) -> None:
        if not self.stopping and line.endswith(": stopping"):
            self.stopping = True
            self._write(self.style.dim(_STOPPING.get(line.partition(":")[0], line)))
        else:
            self._write(self.style.dim(line))

    def report(self, event: Event, process_id: str = BUILDER) -> None:
        """What a builder tells, or whoever deploys in its place."""
        match event:
            case Line(text=text):
                failed = _FAILED.fullmatch(text)
                if failed is None:
                    self._write(self.style.dim(f"{self._elapsed()}  {text}"))
                else:
                    self._replica_failed(failed["replica"], failed["how"], failed["error"].rstrip())
            case Ready(app=app, address=address, route_prefix=prefix, revision=revision):
                which = f" · revision {revision}" if self._served else ""
                self._ready = self._served = True
                self.release()
                self._write(self.style.good(f"ready in {self._elapsed()}{which}") + f"  {_place(app, address, prefix)}")
            case Imported(files=files):
                self.on_files(files)
            case Waiting():
                self.on_waiting(process_id)
            case Failure(text=text, traceback=traceback):
                self._failed(text, traceback)

    def _replica_failed(self, replica: str, how: str, error: str) -> None:
        """A replica did not start: its error in full the first time, as if it had printed it just now."""
        process_id = f"{replica}@{self._app}"
        besides, in_full = self._failures.told(process_id, error)
        told = "" if in_full else f" {gist(error)}"
        self._write(self.style.dim(f"{self._elapsed()}  {replica} {how}:{told}"))
        for line in (error.splitlines() if in_full else []) + besides:
            self._show(process_id, line)

    def _failed(self, text: str, traceback: bool) -> None:
        first, _, rest = text.rstrip().partition("\n")
        if not traceback and self._failures.is_told(rest) and _same_file(1, 2):
            self.fail(f"{first} {gist(rest)}")
        else:
            self.fail(first, rest)

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


def is_builder(process_id: str) -> bool:
    """Whether a builder has this id: the first one, or a later one."""
    return process_id.partition("#")[0] == BUILDER


def _same_file(one: int, other: int) -> bool:
    """Whether what is written to the two descriptors is read in one place."""
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


def _place(app: str, address: str, prefix: str | None) -> str:
    if not address or prefix is None:
        return f"application {app}, without HTTP"
    return address + prefix
