"""`headrace deploy FILE`: an instance's declared applications become those of a config file.

In: the arguments of `headrace deploy`, a file. Out: progress on stderr, what became of each application on stdout (with
`--json` as one JSON object), and the exit code of the worst.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

import msgspec

from headrace.cli.exits import DONE, FAILED, INTERRUPTED, ROLLED_BACK, TIMED_OUT, USAGE
from headrace.cli.follow import Teller
from headrace.cli.instance import mean, running_at, site, whoami
from headrace.serve.config_file import read_config
from headrace.serve.declared import Declared, deploy_config
from headrace.spec.config_schema import ServeDeploySchema
from headrace.spec.errors import ConfigError, HeadraceError, OptionError

# What the file says itself, with what stands there when nobody gives it.
_OF_THE_FILE: dict[str, object] = {
    "name": "default",
    "route_prefix": "/",
    "request_timeout": None,
    "sticky": None,
    "label": [],
    "history": None,
    "arguments": [],
    "rollout": None,
}


def deploy_file(arguments: argparse.Namespace) -> int:
    """Returns an exit code of `cli.exits`: that of the worst that became of an application."""
    teller = Teller(sys.stderr)
    try:
        meant = site(arguments)
        check(arguments)
        read = read_config(arguments.target)
        expected = expected_revisions(arguments.expected_revision, read.schema)
    except ConfigError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return USAGE
    except OptionError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return USAGE
    for note in read.notes:
        teller.say(note)
    several = len(read.schema.applications) > 1
    try:
        directory = running_at(meant)
        mean(meant)  # also for the builders
        results = deploy_config(
            read.schema,
            directory=directory,
            wait=arguments.wait,
            timeout_s=arguments.timeout,
            expected=expected,
            by=whoami(arguments.by),
            on_progress=lambda app, line: teller.progress(f"{app}: {line}" if app and several else line),
            app_dir=arguments.app_dir,
            source=arguments.target,
        )
    except HeadraceError as error:
        teller.say(teller.style.bad(str(error)))
        return FAILED
    except KeyboardInterrupt:
        teller.say("interrupted: what was deployed by then goes on")
        return INTERRUPTED
    for result in results.values():
        teller.say(told(result, teller))
    if arguments.json:
        print(json.dumps({"applications": msgspec.to_builtins(results)}))
    return code_of(results)


def check(arguments: argparse.Namespace) -> None:
    """Raise OptionError for an option that a file says itself."""
    for name, default in _OF_THE_FILE.items():
        if getattr(arguments, name, default) != default:
            option = "KEY=VALUE" if name == "arguments" else f"--{name.replace('_', '-')}"
            raise OptionError(f"{option} has no effect with a file: write it into {arguments.target}")


def expected_revisions(expected: int | None, schema: ServeDeploySchema) -> int | None:
    """The revision that is expected. Raises OptionError where it could be of several applications."""
    if expected is not None and len(schema.applications) != 1:
        raise OptionError("--expected-revision is of one application, and the file does not declare exactly one")
    return expected


def told(result: Declared, teller: Teller) -> str:
    """What became of an application, in a line and what follows."""
    match result:
        case Declared(action="deleted"):
            return f"deleted: application {result.app}"
        case Declared(action="failed"):
            how = _HOW.get(result.error, "failed")
            return teller.style.bad(f"{how}: application {result.app}: {result.reason}")
        case Declared(outcome=""):
            return f"deploying application {result.app} as revision {result.revision}"
    return teller.style.good(f"{result.outcome.lower()}: application {result.app}, revision {result.revision}")


_HOW = {"RolledBackError": "rolled back", "RequestTimeoutError": "not ended"}


def code_of(results: Mapping[str, Declared]) -> int:
    """1 where one failed, else 124 where one took too long, else 2 where one was rolled back, else 0."""
    errors = {result.error for result in results.values() if not result.well}
    if errors - {"RolledBackError", "RequestTimeoutError"}:
        return FAILED
    if errors:
        return TIMED_OUT if "RequestTimeoutError" in errors else ROLLED_BACK
    return DONE
