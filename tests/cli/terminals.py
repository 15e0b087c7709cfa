"""A shell in a directory of its own: commands, long-running ones among them, and what a terminal shows of them."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading

HEADRACE = (sys.executable, "-m", "headrace.cli")
PATIENCE_S = 40
_NOT_OURS = ("HEADRACE_INSTANCE", "HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID", "NO_COLOR")


class Running:
    """A command that runs on, and all that it has printed so far."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.changed = threading.Condition()
        self.ended = False
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_for(self, pattern, after=0):
        """The match in the first line from line `after` that has one."""

        def found():
            return next((m for line in self.lines[after:] if (m := re.search(pattern, line))), None)

        with self.changed:
            assert self.changed.wait_for(lambda: found() or self.ended, PATIENCE_S), self.lines
            assert found(), f"no {pattern!r} in:\n" + "\n".join(self.lines)
            return found()

    def url(self):
        return self.wait_for(r"ready in .*(http://\S+)")[1]

    def code(self):
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended, PATIENCE_S), self.lines
        return self.process.wait(PATIENCE_S)

    @property
    def text(self):
        return "\n".join(self.lines)


class Terminal:
    """A directory to work in, a private home for instances. `close` leaves nothing running."""

    def __init__(self, folder):
        self.path = folder / "project"
        self.path.mkdir()
        self.env = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
        self.env |= {"HEADRACE_HOME": str(folder / "h"), "TERM": "xterm"}
        self._started = []
        self._instances = []

    def write(self, name, source):
        (self.path / name).write_text(textwrap.dedent(source))

    def popen(self, *arguments):
        process = subprocess.Popen(
            (*HEADRACE, *arguments),
            cwd=self.path,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return Running(process)

    def run(self, *arguments):
        return self.popen("run", *arguments)

    def command(self, *arguments):
        return subprocess.run(
            (*HEADRACE, *arguments),
            cwd=self.path,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(self, name="default"):
        """An empty instance; its address."""
        started = self.command("start", "--port", "0", "--instance", name)
        assert started.returncode == 0, started.stderr
        self._instances.append(name)
        return re.search(r"http://\S+", started.stdout)[0]

    def close(self):
        for name in self._instances:
            self.command("shutdown", "--instance", name)
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(PATIENCE_S)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
            process.stdout.close()


class Glass:
    """What a terminal of so many columns shows of a text that moves up, clears and colours."""

    def __init__(self, columns):
        self.columns = columns
        self.rows = [""]
        self.row = self.column = 0

    def feed(self, text):
        for escape, arguments, command, character in re.findall(r"(\x1b\[)([0-9;?]*)([A-Za-z])|(.|\n)", text):
            if escape:
                self._do(command, arguments)
            elif character == "\n":
                self._down()
                self.column = 0
            elif character == "\r":
                self.column = 0
            else:
                if self.column == self.columns:
                    self._down()
                    self.column = 0
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
                self.column += 1

    def _do(self, command, arguments):
        assert command in "FJm", f"an escape sequence that not all terminals know: {command}"
        if command == "F":
            self.row, self.column = max(0, self.row - int(arguments)), 0
        elif command == "J":
            self.rows = [*self.rows[: self.row], self.rows[self.row][: self.column]]

    def _down(self):
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")


class OnTerminal:
    """A command on a terminal of its own, of 80 columns."""

    def __init__(self, terminal, *arguments, columns=80):
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(terminal.path)
            os.execve(sys.executable, (*HEADRACE, *arguments), terminal.env)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.glass = Glass(columns)
        self.raw = ""

    def until(self, condition):
        """Read until the glass meets the condition, or to the end; whether it met it."""
        while not condition(self.glass):
            try:
                data = os.read(self._fd, 65536).decode()
            except OSError:  # the other end is closed
                return condition(self.glass)
            self.raw += data
            self.glass.feed(data)
        return True

    def press_ctrl_c(self):
        os.write(self._fd, b"\x03")

    def code(self):
        self.until(lambda glass: False)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
