"""An instance as a command sees it: where it is, whether it runs, and one question to its controller at a time.

In: `--instance`, `--engine`, `--address`. Out: the instance's directory on this machine, and answers of its controller.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import time

from headrace.engine.directory import InstanceDirectory, list_instances
from headrace.engine.site import ENGINES, LocalSite, Site, controller_away_s, site_of
from headrace.spec.errors import InstanceError
from headrace.wire.client import ControlClient
from headrace.wire.control import Answer, Operation

ANSWER_TIMEOUT_S = 10.0
POLL_S = 0.05


def add_instance(command: argparse.ArgumentParser) -> None:
    """The options that say which instance is meant."""
    command.add_argument(
        "--instance",
        default=os.environ.get("HEADRACE_INSTANCE") or "default",
        metavar="NAME",
        help="which instance (default: %(default)s)",
    )
    add_engine(command)


def add_engine(command: argparse.ArgumentParser) -> None:
    """The options that say where instances are: on this machine, or on a Ray cluster."""
    command.add_argument(
        "--engine",
        choices=ENGINES,
        help="where it is: local (this machine) or ray (a Ray cluster; default: HEADRACE_ENGINE, else local)",
    )
    command.add_argument(
        "--address",
        metavar="ADDRESS",
        help="which Ray cluster: auto (that of this node, the default), or HOST:PORT of its head",
    )


def site(arguments: argparse.Namespace, name: str | None = None) -> Site:
    """The instance that the arguments mean, or the one of this name there. Raises OptionError."""
    return site_of(arguments.engine, arguments.address, arguments.instance if name is None else name)


def mean(meant: Site) -> None:
    """Have what this process does with `serve`, and the processes that it starts, mean this instance."""
    os.environ.pop("HEADRACE_RUNTIME_DIR", None)
    os.environ.update(variables(meant))


def variables(meant: Site) -> dict[str, str]:
    """The environment variables by which a process means this instance."""
    address = {} if isinstance(meant, LocalSite) else {"HEADRACE_ADDRESS": meant.address}
    return {"HEADRACE_INSTANCE": meant.name, "HEADRACE_ENGINE": meant.engine, **address}


def running(arguments: argparse.Namespace, name: str | None = None) -> InstanceDirectory:
    """The directory of the instance that is meant, which runs. Raises InstanceError, OptionError."""
    return running_at(site(arguments, name))


def running_at(meant: Site) -> InstanceDirectory:
    """The directory of an instance that runs. Raises InstanceError naming those that do."""
    directory = meant.find()
    if directory is not None:
        return directory
    if not isinstance(meant, LocalSite):
        raise meant.not_running()
    others = [other.name for other in list_instances()]
    hint = f"; running: {', '.join(others)} (--instance NAME)" if others else ""
    raise InstanceError(f"no instance {meant.name!r} is running{hint}")


def ask(directory: InstanceDirectory, operation: Operation, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
    """The controller's answer; while the controller is away, waits for it to be back.

    Raises what the controller answers with, InstanceError, or RequestTimeoutError.
    """
    deadline = time.monotonic() + controller_away_s(directory)
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
