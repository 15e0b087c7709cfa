"""Headrace's own log lines: on stderr, and no other logger is touched."""

from __future__ import annotations

import subprocess
import sys

_PROCESS = """
import logging
from headrace.observe.logs import log_to_stderr
log_to_stderr()
logging.getLogger("headrace.replica").info("ours")
logging.getLogger("model").info("of the user, who asked for none")
logging.basicConfig(format="user: %(message)s", level="INFO")
logging.getLogger("model").info("of the user")
logging.getLogger("headrace.replica").error("once")
"""


def test_ours_go_to_stderr_once_and_those_of_users_where_they_say() -> None:
    done = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["INFO ours", "user: of the user", "ERROR once"]
    assert done.stdout == ""
