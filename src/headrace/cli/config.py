"""`headrace config`: the configuration that an instance's applications were declared by; or checks of a file.

In: arguments, a file, the state of an instance. Out: YAML, JSON, or the JSON Schema of configuration files, on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from headrace.cli.instance import add_instance, ask, running
from headrace.serve.config_file import read_config
from headrace.serve.config_text import json_schema, written_config
from headrace.spec.errors import ApplicationNotFound, HeadraceError, OptionError
from headrace.spec.status import ServeStatus
from headrace.wire.control import GetStatus, Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace config`."""
    parser.add_argument("app", nargs="?", metavar="APP", help="of this application alone (default: of all)")
    parser.add_argument("--json", action="store_true", help="as JSON (default: as YAML)")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of configuration files")
    parser.add_argument("--check", metavar="FILE", help="say what is wrong with the file, and deploy nothing")
    add_instance(parser)


def main(arguments: argparse.Namespace) -> int:
    """Returns 0. Raises ConfigError, ApplicationNotFound, OptionError, InstanceError."""
    if arguments.schema:
        print(json_schema(), end="")
        return 0
    if arguments.check is not None:
        return check(arguments.check)
    answer = ask(running(arguments), GetStatus())
    if not isinstance(answer, Status):
        raise HeadraceError(f"the controller answered GetStatus with {type(answer).__name__}")
    config = declared(answer.status, arguments.app)
    if arguments.json:
        print(json.dumps(config, indent=2))
        return 0
    for name, app in answer.status.applications.items():
        if arguments.app is None and app.deployed_app_config is None:
            print(f"# application {name!r} was deployed by code, and is not declared")
    print(written_config(config), end="")
    return 0


def check(file: str) -> int:
    """Read the file, and say that it is well, and what has no effect. Raises ConfigError."""
    read = read_config(file)
    for note in read.notes:
        print(note, file=sys.stderr)
    names = ", ".join(app.name for app in read.schema.applications) or "none"
    print(f"{file} is well: applications {names}")
    return 0


def declared(status: ServeStatus, app: str | None) -> dict[str, Any]:
    """The configuration of the instance's declared applications, or of one. Raises ApplicationNotFound, OptionError."""
    apps = status.applications
    if app is None:
        return {"applications": [each.deployed_app_config for each in apps.values() if each.deployed_app_config]}
    if app not in apps:
        raise ApplicationNotFound(f"no application is called {app!r}; there are: {', '.join(sorted(apps)) or 'none'}")
    config = apps[app].deployed_app_config
    if config is None:
        raise OptionError(
            f"application {app!r} was deployed by code: `headrace build MODULE:APP` writes a config of it"
        )
    return config
