"""`headrace build`: a configuration file of what applications declare in their code.

In: import paths, each imported in a process of its own. Out: YAML with comments, in a file or on stdout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headrace.serve.config_text import written_build
from headrace.serve.declared import build_declared
from headrace.spec.config_schema import ServeApplicationSchema, with_colon
from headrace.spec.errors import OptionError
from headrace.spec.names import split_import_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace build`."""
    parser.add_argument(
        "targets", nargs="+", metavar="MODULE:APP", help="an application, or a function that builds one"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: to stdout)")
    parser.add_argument("--app-dir", default=".", metavar="DIR", help="where to import MODULE from (default: here)")
    parser.add_argument("--force", action="store_true", help="also where FILE is there already")


def main(arguments: argparse.Namespace) -> int:
    """Returns 0. Raises OptionError, ImportPathError, or DeployFailedError with the user's own traceback."""
    file = Path(arguments.output) if arguments.output else None
    if file is not None and file.exists() and not arguments.force:
        raise OptionError(f"{file} is there already: --force writes it anew")
    if not Path(arguments.app_dir).is_dir():
        raise OptionError(f"--app-dir {arguments.app_dir!r} is not a directory")
    built = []
    for path, name, prefix in named(arguments.targets):
        schema = ServeApplicationSchema(name=name, route_prefix=prefix, import_path=path)
        built.append((path, build_declared(schema, app_dir=arguments.app_dir, tell=lambda app, line: say(line))))
    text = written_build(built)
    if file is None:
        print(text, end="")
    else:
        file.write_text(text)
        say(f"written: {file}")
    return 0


def say(line: str) -> None:
    """A line that is no part of the result."""
    print(line, file=sys.stderr, flush=True)


def named(targets: list[str]) -> list[tuple[str, str, str]]:
    """Import path, name and route prefix of each; of several, as their attributes are called."""
    paths = [with_colon(target) for target in targets]
    attributes = [split_import_path(path)[1].rpartition(".")[2] for path in paths]
    if len(paths) == 1:
        return [(paths[0], "default", "/")]
    names: list[str] = []
    for path, attribute in zip(paths, attributes, strict=True):
        name = attribute if attributes.count(attribute) == 1 else path.replace(":", ".")
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return [(path, name, f"/{name}") for path, name in zip(paths, names, strict=True)]
