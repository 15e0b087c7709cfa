"""An instance as a command sees it: where it is, whether it runs, and one question to its controller at a time."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import time

from headrace.engine.directory import InstanceDirectory, instance_directory, list_instances
from headrace.spec.errors import InstanceError
from headrace.wire.client import ControlClient
from headrace.wire.control import Answer, Operation

ANSWER_TIMEOUT_S = 10.0
AWAY_TIMEOUT_S = 10.0
POLL_S = 0.05


def add_instance(command: argparse.ArgumentParser) -> None:
    """The option that says which instance is meant."""
    command.add_argument(
        "--instance",
        default=os.environ.get("HEADRACE_INSTANCE") or "default",
        metavar="NAME",
        help="which instance (default: %(default)s)",
    )


def running(name: str) -> InstanceDirectory:
    """The directory of an instance that runs. Raises InstanceError naming those that do."""
    directory = instance_directory(name)
    if directory.keeper_pid() is None:
        others = [other.name for other in list_instances()]
        hint = f"; running: {', '.join(others)} (--instance NAME)" if others else ""
        raise InstanceError(f"no instance {name!r} is running{hint}")
    return directory


def ask(directory: InstanceDirectory, operation: Operation, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
    """The controller's answer; while the controller is away, waits for it to be back.

    Raises what the controller answers with, InstanceError, or RequestTimeoutError.
    """
    deadline = time.monotonic() + AWAY_TIMEOUT_S
    while True:
        client = ControlClient(str(directory.control_socket), role="cli")
        try:
            return client.request(operation, timeout_s)
        except InstanceError as error:
            if type(error) is not InstanceError:
                raise  # the controller's own answer
            if directory.keeper_pid() is None:
                raise InstanceError(f"instance {directory.name!r} has just ended") from None
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        finally:
            client.close()


def whoami(given: str | None) -> str:
    """Who asks, as the history tells it: as given, else the user's name."""
    if given is not None:
        return given
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())  # a user that has no name, as in containers
