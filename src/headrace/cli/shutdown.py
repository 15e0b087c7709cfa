"""`headrace shutdown`: end an instance, and wait until it is gone."""

from __future__ import annotations

import argparse
import contextlib
import time

from headrace.cli.instance import POLL_S, add_instance, ask, running_at, site
from headrace.engine.directory import InstanceDirectory
from headrace.engine.site import RaySite
from headrace.spec.errors import InstanceError, RequestTimeoutError
from headrace.wire.control import Shutdown

STOP_TIMEOUT_S = 90.0
FORCE_TIMEOUT_S = 10.0  # what answers nobody gets so long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace shutdown`."""
    add_instance(parser)


def main(arguments: argparse.Namespace) -> int:
    """Returns 0 once the instance is gone. Raises InstanceError when none runs, or when it does not end."""
    meant = site(arguments)
    if isinstance(meant, RaySite):
        end_on_ray(meant)
    else:
        directory = running_at(meant)
        pid = directory.keeper_pid()
        try:
            ask(directory, Shutdown())
        except InstanceError:
            if directory.keeper_pid() is not None:
                raise
        if not has_ended(directory, pid):
            raise InstanceError(f"instance {meant.name!r} (pid {pid}) did not end within {STOP_TIMEOUT_S:g} s")
    print(f"instance {meant.name!r} has ended")
    return 0


def end_on_ray(meant: RaySite) -> None:
    """End the instance in order, then by force what is left of it: also where nothing but that is left.

    Raises InstanceError when none runs.
    """
    directory = meant.find()
    if directory is not None:
        pid = directory.keeper_pid()
        with contextlib.suppress(InstanceError, RequestTimeoutError):
            ask(directory, Shutdown())
            has_ended(directory, pid)
    meant.end(FORCE_TIMEOUT_S)
    if directory is None:
        raise meant.not_running()


def has_ended(directory: InstanceDirectory, pid: int | None) -> bool:
    """Whether this keeper has ended, which is waited for."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while directory.keeper_pid() == pid is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
