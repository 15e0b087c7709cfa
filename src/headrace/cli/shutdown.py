"""`headrace shutdown`: end an instance, and wait until it is gone."""

from __future__ import annotations

import argparse
import time

from headrace.cli.instance import POLL_S, add_instance, ask, running
from headrace.spec.errors import InstanceError
from headrace.wire.control import Shutdown

STOP_TIMEOUT_S = 90.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace shutdown`."""
    add_instance(parser)


def main(arguments: argparse.Namespace) -> int:
    """Returns 0 once the instance is gone. Raises InstanceError when none runs, or when it does not end."""
    directory = running(arguments.instance)
    pid = directory.keeper_pid()
    try:
        ask(directory, Shutdown())
    except InstanceError:
        if directory.keeper_pid() is not None:
            raise
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while directory.keeper_pid() == pid is not None:
        if time.monotonic() > deadline:
            raise InstanceError(f"instance {directory.name!r} (pid {pid}) did not end within {STOP_TIMEOUT_S:g} s")
        time.sleep(POLL_S)
    print(f"instance {directory.name!r} has ended")
    return 0
