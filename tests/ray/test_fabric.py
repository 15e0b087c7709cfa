"""The network that can be cut carries all of it, holds up what it must, and knows who speaks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fabric import Fabric

from bench.instance import free_port

PATIENCE_S = 20
QUIET_S = 0.3  # how long a silence must last to be one
HERE, THERE = "127.0.5.1", "127.0.5.2"
OUTSIDE_HERE, OUTSIDE_THERE = "127.99.5.1", "127.99.5.2"

CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as sock:
    for line in sys.stdin:
        sock.sendall(line.encode())
        print(sock.makefile().readline(), end="", flush=True)
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A server `there` that says again what it was told."""
    with socket.create_server((THERE, free_port())) as server:

        def answer(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def fabric(port: int, tmp_path: Path) -> Iterator[Fabric]:
    hosts = [(HERE, OUTSIDE_HERE, tmp_path / "here"), (THERE, OUTSIDE_THERE, tmp_path / "there")]
    with Fabric(hosts, (port, port)) as fabric:
        yield fabric


class Speaker:
    """A process of a node that is connected to the server."""

    def __init__(self, port: int, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, OUTSIDE_THERE, str(port)],
            env=os.environ | {"HEADRACE_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.heard: list[str] = []
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.came = threading.Semaphore(0)
        self.thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard.append(line.strip())
            self.came.release()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hears(self, timeout_s: float = PATIENCE_S) -> bool:
        return self.came.acquire(timeout=timeout_s)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)


@pytest.mark.parametrize("way", ["both", "in", "out"])
def test_a_node_that_is_cut_off_hears_what_was_held_up_when_it_is_back(
    fabric: Fabric, port: int, tmp_path: Path, way: str
) -> None:
    speaker = Speaker(port, tmp_path / "here")
    speaker.say("one")
    assert speaker.hears()
    fabric.cut(HERE, way)
    speaker.say("two")
    assert not speaker.hears(QUIET_S)
    late = Speaker(port, tmp_path / "here")
    late.say("late")
    assert not late.hears(QUIET_S)
    fabric.restore(HERE)
    assert speaker.hears()
    assert late.hears()
    assert (speaker.heard, late.heard) == (["one", "two"], ["late"])
    speaker.close()
    late.close()


def test_a_cut_of_one_node_is_nothing_to_the_others(fabric: Fabric, port: int, tmp_path: Path) -> None:
    fabric.cut(HERE)
    speaker = Speaker(port, tmp_path / "there")  # of the server's own node
    speaker.say("near")
    assert speaker.hears()
    fabric.cut(THERE)
    speaker.say("still")
    assert speaker.hears()
    speaker.close()


def test_all_of_a_long_message_comes_through_a_slow_network(fabric: Fabric, port: int, tmp_path: Path) -> None:
    fabric.delay(THERE, 0.01)
    speaker = Speaker(port, tmp_path / "here")
    words = ["x" * 3_000_000, "y" * 1000]
    for word in words:
        speaker.say(word)
        assert speaker.hears()
    assert speaker.heard == words
    speaker.close()
