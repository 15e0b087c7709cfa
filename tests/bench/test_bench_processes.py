"""What the bench counts as a server's processes, and that none of them outlives its measurement."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers import PEERS
from bench.server import PeerFailed, _check_free

ROOT = Path(__file__).parents[2]

# In a process of its own: whoever becomes a subreaper stays one, and stop_all ends everything below it.
SCRIPT = """
import subprocess, sys, time
from bench import processes

processes.become_subreaper()
# A server that lets go of a child, which leaves its session and does not hear SIGTERM.
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
server = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
assert server.stdout.readline() == b"up\\n"
server.wait()
(daemon,) = processes.descendants()
assert daemon != server.pid
assert 1 < processes.held_mb([daemon]) < processes.pss_mb([daemon])
busy = subprocess.Popen([sys.executable, "-c", "print('up', flush=True)\\nwhile True: pass"], stdout=subprocess.PIPE)
assert busy.stdout.readline() == b"up\\n"
end = time.monotonic() + 60
while processes.cpu_s([busy.pid, daemon])[busy.pid] < 0.2:
    assert time.monotonic() < end
assert sorted(processes.descendants()) == sorted([daemon, busy.pid])
assert processes.stop_all(busy.pid, 0.2) is False, "the daemon does not go by itself"
assert processes.descendants() == []
assert processes.cpu_s([busy.pid, daemon]) == {}
quiet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
assert processes.stop_all(quiet.pid, 60) is True
"""


def test_daemons_are_counted_and_none_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_each_peer_has_an_app_and_pinned_requirements() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        if peer.requirements is not None:
            pins = peer.requirements.read_text().split()
            assert pins
            assert all(re.fullmatch(r"[\w-]+(\[\w+\])?==[\w.]+", pin) for pin in pins), peer.name
            assert list(peer.working_folder.glob("*.py")), peer.name


def test_an_unknown_peer_is_an_error_that_names_the_known_ones() -> None:
    command = [sys.executable, "-m", "bench", "--only", "headrace,flask"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "flask" in done.stderr
    assert "uvicorn" in done.stderr


def test_a_port_that_is_taken_is_not_taken_for_the_peers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(PeerFailed, match="taken"):
            _check_free(other.getsockname()[1])
        port = other.getsockname()[1]
    _check_free(port)
