"""An application that is named on a command line: `module:app`, arguments of its builder, its name and its route.

In: arguments. Out: the same, found to be possible, or the error that says why they are not; nothing is imported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from headrace.spec.application import checked_request_timeout
from headrace.spec.errors import OptionError
from headrace.spec.names import checked_name, checked_route_prefix, split_import_path

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def is_config_file(target: str) -> bool:
    """Whether the target of a deploy is a config file and not an import path."""
    return target.lower().endswith(CONFIG_SUFFIXES)


def add_application(
    command: argparse.ArgumentParser,
    metavar: str = "MODULE:APP",
    what: str = "an application, or a function that builds one",
) -> None:
    """The target, and what an application has that no code says."""
    command.add_argument("target", metavar=metavar, help=what)
    # With a default, or argparse names it among what is missing.
    command.add_argument(
        "arguments", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the function that builds it"
    )
    command.add_argument("--name", default="default", help="name of the application (default: %(default)s)")
    command.add_argument("--route-prefix", default="/", metavar="/PATH", help="where it answers (default: %(default)s)")
    command.add_argument(
        "--request-timeout",
        type=float,
        metavar="SECONDS",
        help="time that a request has, unless it says less (default: no limit)",
    )
    command.add_argument("--app-dir", default=".", metavar="DIR", help="where to import MODULE from (default: here)")


def check_application(arguments: argparse.Namespace) -> None:
    """Raise OptionError, or ImportPathError, for what cannot be an application."""
    split_import_path(arguments.target)
    checked_name(arguments.name)
    checked_route_prefix(arguments.route_prefix)
    checked_request_timeout(arguments.request_timeout)
    if not Path(arguments.app_dir).is_dir():
        raise OptionError(f"--app-dir {arguments.app_dir!r} is not a directory")
    for pair in arguments.arguments:
        if "=" not in pair or pair.startswith("="):
            raise OptionError(f"{pair!r} is not KEY=VALUE, an argument for the function that builds the application")
