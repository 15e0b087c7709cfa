"""Applications are built in processes of their own: the command's own process never imports a user's module.

In: `module:app` with what belongs to it, checked. Out: the application as data, and what the builder printed meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from headrace.serve.build_process import Builder, builder_environment
from headrace.spec.errors import DeployFailedError
from headrace.wire.report import Built, decode_built


def application_flags(arguments: argparse.Namespace) -> list[str]:
    """The part of a builder's command line that says what the application is besides its code."""
    options = {"--name": arguments.name, "--route-prefix": arguments.route_prefix, "--app-dir": arguments.app_dir}
    if arguments.request_timeout is not None:
        options["--request-timeout"] = str(arguments.request_timeout)
    return [f"{name}={value}" for name, value in options.items()]


def builder_command(flags: list[str], arguments: argparse.Namespace, *python: str) -> tuple[str, ...]:
    """A builder's command line, in which nothing of the user's can be taken for an option.

    `python` are options of the interpreter.
    """
    return (
        sys.executable,
        "-P",
        *python,
        "-m",
        "headrace.serve.build",
        *flags,
        "--",
        arguments.target,
        *arguments.arguments,
    )


def build(arguments: argparse.Namespace, instance: str, say: Callable[[str], None]) -> Built:
    """Build the application that the arguments name, for the instance of this name; `say` gets the builder's lines.

    Raises DeployFailedError with the user's own traceback, or with how the builder died.
    """

    def command(result: int) -> tuple[str, ...]:
        return builder_command([*application_flags(arguments), f"--to-fd={result}"], arguments)

    module = arguments.target.partition(":")[0]
    made = Builder(arguments.target, module, command, builder_environment(os.environ, instance)).run(say)
    built = decode_built(made)
    if built is None:
        raise DeployFailedError(f"the process that imports {arguments.target} ended before it had built anything")
    return built
