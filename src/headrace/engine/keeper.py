"""The keeper: the small process that is parent of all others, never runs user code, and leaves nothing behind.

In: signals, the ends of children, what they print, requests on the keeper's socket. Out: processes, their ends, lines.
`headrace run` is its own keeper; `python -m headrace.engine.keeper --instance NAME` is that of `serve.run`. It ends
with its driver, which holds the other end of the pipe HEADRACE_LIFELINE_FD; without that variable it is detached.

It stops in this order: the controller drains ingress and workers and exits; what is left is asked to end; what is left
then is killed. A second signal kills at once.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from headrace.core.restart import RestartPolicy, Restarts
from headrace.engine import linux, messages
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.child import Child
from headrace.engine.desk import Desk
from headrace.engine.directory import InstanceDirectory, KeeperLock, instance_directory
from headrace.engine.family import Family
from headrace.engine.machine import Machine, detect_machine
from headrace.engine.output import LineFeed, OnLine, ProcessOutput
from headrace.engine.ports import HeldPorts
from headrace.spec.errors import HeadraceError, InstanceError

CONTROLLER = "controller"
CONTROLLER_ARGV = (sys.executable, "-P", "-m", "headrace.controller")  # -P: no module of the directory shadows another
DRAIN_S = 60.0  # for the controller to drain all, unless it says itself how long that may take
TERMINATE_S = 5.0  # for what it left
GIVE_UP_S = 10.0  # for the kernel to end what was killed
_DESCRIPTORS = 65536
_STOPPING = ": stopping"
_FLUSH_S = 1.0
_ORPHAN_CHECK_S = 0.05
_HOPELESS_STARTS = 3  # a controller that never came up is not tried for longer
_POLICY = RestartPolicy(first_wait_s=0.1, longest_wait_s=5.0, quiet_s=60.0, period_s=60.0, intensity=10)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stage(enum.IntEnum):
    """How far the keeper's life has gone. It only ever grows."""

    RUNNING = 0
    DRAINING = 1  # the controller is draining
    TERMINATING = 2  # the controller is gone, the others were asked to end
    KILLING = 3  # all were killed


class Keeper:
    """One instance's keeper. `run` is its life, on the main thread; callbacks come on its loop but for `on_line`.

    `on_line(process_id, line)` gets what children print, whole lines, on a thread of its own (id `keeper`: what the
    keeper has to say). `on_ready()` once the controller is started; `on_exit` for the end of each child. While `run`
    runs, children of this process belong to it: those that it had before are left alone, but their ends are reaped.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        *,
        on_line: OnLine | None = None,
        on_ready: Callable[[], None] | None = None,
        on_exit: Callable[[ProcessExited], None] | None = None,
        driver_fd: int | None = None,
        controller_argv: Sequence[str] = CONTROLLER_ARGV,
        environment: Mapping[str, str] | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.directory = directory
        self.stage = Stage.RUNNING
        self.failure = ""  # why it ended, when nobody asked it to
        self._on_ready = on_ready
        self._on_exit = on_exit
        self._driver_fd = driver_fd
        self._controller_argv = tuple(controller_argv)
        self._selector = selectors.DefaultSelector()
        self._lines = LineFeed(on_line) if on_line is not None else None
        inherited = dict(os.environ if environment is None else environment)
        machine = machine if machine is not None else detect_machine(inherited)
        self._family = Family(directory, machine, inherited, self._selector, self._lines, self._ended)
        self._desk = Desk(directory.keeper_socket, self._selector, self._answer)
        self._ports = HeldPorts()
        self._restarts = Restarts(_POLICY)
        self._restart_level = 0
        self._controller_started_at = 0.0
        self._controller_opened = False
        self._signals: collections.deque[str] = collections.deque()
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._wake = (-1, -1)
        self._kill_by = 0.0
        self._log: ProcessOutput | None = None
        self._lock: KeeperLock | None = None

    def __repr__(self) -> str:
        return f"Keeper({self.directory.name}, {self.stage.name}, {self._family!r})"

    def run(self) -> int:
        """Keep the instance until it is stopped or fails; returns 0, or 1 with `failure` set.

        Raises InstanceError when the instance runs already or its directory is not usable.
        """
        self.directory.create()
        self._lock = self.directory.lock_keeper()
        handlers: dict[int, object] = {}
        try:
            self.directory.clean()
            self._open()
            handlers = self._take_signals()
            self._start_controller()
            if self._on_ready is not None:
                self._on_ready()
            while not self._finished():
                registered = self._selector.get_map()
                for key, events in self._selector.select(self._timeout()):
                    # What came first may have closed what comes next, and its number may be another's by now.
                    if registered.get(key.fd) is key:
                        key.data(events)
                self._act()
        finally:
            self._close(handlers)
        return 1 if self.failure else 0

    def stop(self, reason: str = "stopping") -> None:
        """Note that the instance is to stop; the second time, at once. From any thread, and from signal handlers."""
        self._signals.append(reason)
        os.write(self._wake[1], b"\0")

    def call(self, act: Callable[[], None]) -> None:
        """Have this called on the keeper's loop, as callbacks are. From any thread."""
        self._calls.append(act)
        os.write(self._wake[1], b"\0")

    def start_process(self, request: ProcessRequest) -> ProcessInfo:
        """Start a process of whoever runs the keeper (a builder); it ends with the instance. From callbacks only."""
        return self._family.start(request, served=False)

    def stop_process(self, id: str, grace_s: float) -> None:
        """End such a process; `on_exit` tells when it is gone. From callbacks only."""
        self._family.stop(id, grace_s, time.monotonic())

    # Life

    def _open(self) -> None:
        _allow_descriptors()
        linux.become_subreaper()
        if self._lines is not None:
            self._lines.start()
        self._family.open()
        self._log = self._family.output("keeper")
        self._wake = os.pipe()
        for descriptor in self._wake:
            os.set_blocking(descriptor, False)
        self._selector.register(self._wake[0], selectors.EVENT_READ, self._woken)
        if self._driver_fd is not None:
            os.set_inheritable(self._driver_fd, False)
            self._selector.register(self._driver_fd, selectors.EVENT_READ, self._driver_gone)
            # Forks of the driver hold the pipe open; the driver's own end is what counts.
            pidfd = linux.open_pidfd(os.getppid())
            if pidfd is not None:
                self._selector.register(pidfd, selectors.EVENT_READ, self._driver_gone)
        self._desk.listen()

    def _take_signals(self) -> dict[int, object]:
        handlers: dict[int, object] = {}
        for number in _STOP_SIGNALS:
            handlers[number] = signal.signal(number, lambda n, _: self._signals.append(signal.Signals(n).name))
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _n, _f: None)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        return handlers

    def _close(self, handlers: Mapping[int, object]) -> None:
        """Leave nothing behind, also after an error: children, sockets, ports, the lock last."""
        if not self._family.known_empty():
            self._family.kill_all()
            self._reap_until_empty()
        self._desk.close()
        self._ports.close()
        self.directory.remove_sockets()
        if handlers:
            signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._log is not None:
            self._log.finish()
        if self._lines is not None:
            self._lines.close(_FLUSH_S)
        self._family.close()
        self._selector.close()
        for descriptor in self._wake:
            if descriptor >= 0:
                os.close(descriptor)
        self._wake = (-1, -1)
        if self._lock is not None:
            self._lock.release()

    def _reap_until_empty(self) -> None:
        give_up = time.monotonic() + GIVE_UP_S
        self.stage = Stage.KILLING
        while not self._family.empty() and time.monotonic() < give_up:
            self._family.reap()
            self._family.kill_all()
            time.sleep(_ORPHAN_CHECK_S / 5)  # after an error in the loop there is no loop to wait in

    def _finished(self) -> bool:
        if self.stage is not Stage.KILLING:
            return False
        return self._family.empty() or time.monotonic() > self._kill_by

    def _timeout(self) -> float | None:
        if self.stage is Stage.KILLING:
            return _ORPHAN_CHECK_S
        restart = self._restarts.due() if self.stage is Stage.RUNNING else None
        due = [when for when in (self._family.due(), restart) if when is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _act(self) -> None:
        """After each wait: what was noted, what is due."""
        while self._signals:
            self._stop(self._signals.popleft(), DRAIN_S)
        while self._calls:
            self._calls.popleft()()
        now = time.monotonic()
        self._family.expire(now)
        if self.stage is Stage.RUNNING and not self._family.runs(CONTROLLER) and self._restarts.due() is not None:
            levels = self._restarts.take(now, 1)
            if levels:
                self._restart_level = levels[0]
                self._start_controller()
        if self.stage is Stage.TERMINATING and self._family.known_empty():
            self._advance(Stage.KILLING)
        if self.stage is Stage.KILLING:
            self._family.kill_all()
            self._family.reap()

    def _woken(self, _events: int) -> None:
        try:
            while os.read(self._wake[0], 4096):
                pass
        except BlockingIOError:
            pass
        self._family.reap()

    def _driver_gone(self, _events: int) -> None:
        for key in [key for key in self._selector.get_map().values() if key.data == self._driver_gone]:
            self._selector.unregister(key.fileobj)
            os.close(key.fd)
        if self.stage is Stage.RUNNING:
            self._stop("the driver is gone", DRAIN_S)

    # Stopping

    def _stop(self, reason: str, grace_s: float) -> None:
        """The instance is to stop. The second time, at once."""
        if self.stage is Stage.RUNNING:
            self._note(reason + _STOPPING)
            if self._family.runs(CONTROLLER):
                self._advance(Stage.DRAINING, grace_s)
            else:
                self._advance(Stage.TERMINATING)
        elif self.stage is not Stage.KILLING:
            self._note(f"{reason} again: killing all")
            self._advance(Stage.KILLING)

    def _advance(self, stage: Stage, grace_s: float = 0.0) -> None:
        assert stage > self.stage, f"a keeper that is {self.stage.name} cannot become {stage.name}"
        self.stage = stage
        now = time.monotonic()
        if stage is Stage.DRAINING:
            self._family.stop(CONTROLLER, grace_s, now)
        elif stage is Stage.TERMINATING:
            self._family.stop_all(TERMINATE_S, now)
        else:
            self._kill_by = now + GIVE_UP_S
            self._family.kill_all()

    # Children

    def _start_controller(self) -> None:
        request = ProcessRequest(id=CONTROLLER, role="controller", argv=self._controller_argv)
        self._controller_opened = False
        self._controller_started_at = time.monotonic()
        try:
            self._family.start(request, served=False)
        except (InstanceError, OSError) as error:  # out of descriptors, of memory, of processes
            self._controller_failed(f"cannot be started: {error}", ())

    def _ended(self, child: Child, event: ProcessExited) -> None:
        if child.served:
            self._desk.tell(event)
        if event.id == CONTROLLER:
            self._controller_ended(event)
        if self._on_exit is not None:
            self._on_exit(event)

    def _controller_ended(self, event: ProcessExited) -> None:
        if self.stage is Stage.DRAINING or (self.stage is Stage.RUNNING and event.code == 0):
            self._advance(Stage.TERMINATING)
            return
        if self.stage is Stage.RUNNING:
            self._controller_failed(_describe(event.code), event.tail)

    def _controller_failed(self, how: str, tail: Sequence[str]) -> None:
        """It is started again, unless there is nothing that an instance without a controller does."""
        now = time.monotonic()
        lived_s = now - self._controller_started_at
        wait_s = self._restarts.fail(now, self._restart_level, lived_s, 1)
        hopeless = not self._controller_opened and self._restart_level + 1 >= _HOPELESS_STARTS
        # An instance that serves does so without a controller, and the next one may find its disk with room again.
        serves = bool(self._family.processes())
        if (hopeless or self._restarts.escalated(now, 1)) and not serves:
            what = "did not start" if hopeless else "died too often"
            self.failure = f"the controller {what} ({how})" + ("; its last lines:\n" + "\n".join(tail) if tail else "")
            self._note(self.failure)
            self._advance(Stage.TERMINATING)
        else:
            self._note(f"the controller died ({how}); it starts again in {wait_s:g} s")

    # Requests

    def _answer(self, message: messages.ToKeeper) -> messages.FromKeeper | None:
        now = time.monotonic()
        match message:
            case messages.Open():
                self._controller_opened = True
                return messages.Opened(os.getpid(), self._family.capacity)
            case messages.ListProcesses(n=n):
                return messages.Listed(n, self._family.processes())
            case messages.Start(n=n, request=request):
                return _guard(n, lambda: messages.Started(n, self._start(request)))
            case messages.ReservePort(n=n, name=name, host=host, port=port):
                return _guard(n, lambda: messages.PortReserved(n, self._ports.reserve(name, host, port)))
            case messages.Stop(id=id, grace_s=grace_s):
                self._family.stop(id, grace_s, now)
            case messages.EndInstance(grace_s=grace_s):
                if self.stage is Stage.RUNNING:
                    self._stop("asked by the controller", grace_s)
                elif self.stage is Stage.DRAINING:
                    self._family.extend(CONTROLLER, grace_s, now)
        return None

    def _start(self, request: ProcessRequest) -> ProcessInfo:
        if self.stage is not Stage.RUNNING:
            raise InstanceError(f"instance {self.directory.name} is stopping: {request.id} was not started")
        return self._family.start(request, served=True)

    def _note(self, text: str) -> None:
        if self._log is not None:
            self._log.feed(text.encode() + b"\n")


def _allow_descriptors() -> None:
    """Room for many: each child costs two descriptors here, and each client one in an ingress, which inherits this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems have a limit below what they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _guard(n: int, act: Callable[[], messages.FromKeeper]) -> messages.FromKeeper:
    try:
        return act()
    except HeadraceError as error:
        return messages.Refused(n, type(error).__name__, str(error))
    except OSError as error:  # out of descriptors, of memory, of processes
        return messages.Refused(n, InstanceError.__name__, f"the keeper cannot do it now: {error}")


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def print_line(process_id: str, line: str) -> None:
    """To standard output, prefixed by who printed it; past Python's buffers, which would be in the way at the end."""
    if process_id == "keeper" and line.endswith(_STOPPING):
        return  # the driver stops it, and knows
    data = f"{process_id.partition('@')[0]} | {line}\n".encode(errors="replace")
    while data:
        data = data[os.write(1, data) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m headrace.engine.keeper --instance NAME`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) not in (0, 2) or (words and words[0] != "--instance"):
        print("usage: python -m headrace.engine.keeper [--instance NAME]", file=sys.stderr)
        return 2
    text = os.environ.get("HEADRACE_LIFELINE_FD")
    driver_fd = int(text) if text else None
    try:
        directory = instance_directory(words[1] if words else "default")
        detached = driver_fd is None
        keeper = Keeper(
            directory,
            on_line=None if detached else print_line,
            on_ready=(lambda: _leave_terminal(directory)) if detached else None,
            driver_fd=driver_fd,
        )
        code = keeper.run()
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 1
    if keeper.failure:
        print(f"headrace: {keeper.failure}", file=sys.stderr)
    return code


def _leave_terminal(directory: InstanceDirectory) -> None:
    """Let go of the terminal or pipe of whoever started this: it may want to see the end of it."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    log = os.open(directory.log("keeper"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


if __name__ == "__main__":
    sys.exit(main())
