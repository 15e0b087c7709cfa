"""Network namespaces of the kernel as machines: a bridge, and a cable from it to each, which can be drawn.

In: how many machines. Out: commands that run on one of them; cables that are out and in again. Unlike with `fabric`,
Ray's own connections are cut too. The bridge is in a namespace of its own, so that nothing of this lies in the network
of whoever makes it. Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN).
"""

from __future__ import annotations

import os
import subprocess
from types import TracebackType

HOST = "10.231.0.{number}"


class Namespaces:
    """Machines 1 to `count`. Use as a context manager; by its `prefix` another process can use what one has made."""

    def __init__(self, count: int, prefix: str = "") -> None:
        self.count = count
        self.prefix = prefix or f"hr{os.getpid()}-"

    def __enter__(self) -> Namespaces:
        try:
            self._add("bridge")
            self._ip("bridge", "link add bridge type bridge")
            self._ip("bridge", "link set bridge up")
            for number in range(1, self.count + 1):
                name = str(number)
                self._add(name)
                self._ip("bridge", f"link add cable{name} type veth peer name eth0 netns {self.prefix}{name}")
                self._ip(name, f"address add {HOST.format(number=name)}/24 dev eth0")
                self._ip(name, "link set eth0 up")
                self._ip("bridge", f"link set cable{name} up")
                self.restore(number)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def command(self, number: int, *argv: str) -> list[str]:
        """What runs `argv` on this machine."""
        return ["ip", "netns", "exec", self.prefix + str(number), *argv]

    def cut(self, number: int) -> None:
        """Nothing gets to the machine or from it any more; its own end of the cable looks as if all were well."""
        self._ip("bridge", f"link set cable{number} nomaster")

    def restore(self, number: int) -> None:
        """The cable is in again."""
        self._ip("bridge", f"link set cable{number} master bridge")

    def _add(self, name: str) -> None:
        _run("ip", "netns", "add", self.prefix + name)
        self._ip(name, "link set lo up")

    def _ip(self, name: str, what: str) -> None:
        _run("ip", "-n", self.prefix + name, *what.split())

    def _remove(self) -> None:
        for name in ["bridge", *map(str, range(1, self.count + 1))]:
            subprocess.run(["ip", "netns", "del", self.prefix + name], capture_output=True, check=False)


def why_none() -> str:
    """Why no namespaces can be made here; "" where they can."""
    try:
        with Namespaces(2):
            return ""
    except FileNotFoundError:
        return "there is no command `ip` (Debian's iproute2)"
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}`: {error.stderr.strip()}"


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)
