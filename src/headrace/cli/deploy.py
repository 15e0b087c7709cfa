"""`headrace deploy`: an application, or a new revision of it, onto an instance that runs.

In: `module:app`, built in a process of its own, or a config file; how the revision takes over. Out: progress on stderr,
the result on stdout (with `--json` as one JSON object), and an exit code that tells a pipeline how it ended.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import msgspec

from headrace.cli.building import build
from headrace.cli.exits import DONE, FAILED, INTERRUPTED, TIMED_OUT, USAGE
from headrace.cli.follow import Teller, code_of, follow
from headrace.cli.instance import add_instance, ask, mean, running_at, site, whoami
from headrace.cli.strategy import add_strategy, strategy
from headrace.cli.target import add_application, check_application, is_config_file
from headrace.engine.directory import InstanceDirectory
from headrace.spec.application import checked_history, checked_labels
from headrace.spec.errors import HeadraceError, ImportPathError, OptionError, OptionTypeError, RequestTimeoutError
from headrace.spec.status import RolloutOutcome, RolloutStatus
from headrace.spec.sticky import sticky
from headrace.wire.control import Deploy, Deployed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace deploy`."""
    add_application(parser, "MODULE:APP | FILE", "an application, a function that builds one, or a config file")
    parser.add_argument(
        "--sticky", metavar="KEY", help="what keeps a client to a revision: header:NAME, cookie:NAME or query:NAME"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="a note in the history (several times)"
    )
    parser.add_argument(
        "--history", type=int, metavar="N", help="how many former revisions are kept to go back to (default: 10)"
    )
    add_strategy(parser)
    add_deploying(parser)
    add_instance(parser)


def add_deploying(parser: argparse.ArgumentParser) -> None:
    """What all commands have that deploy."""
    parser.add_argument(
        "--expected-revision",
        type=int,
        metavar="N",
        help="refuse unless this is the newest revision there (0: there is no such application)",
    )
    parser.add_argument("--by", metavar="NAME", help="who deploys, for the history (default: the user's name)")
    add_waiting(parser)


def add_waiting(parser: argparse.ArgumentParser) -> None:
    """Whether to wait for the end of a rollout, and what to print then."""
    parser.add_argument(
        "--wait", action="store_true", help="until it has ended: exit code 0 promoted, 1 failed, 2 rolled back"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="with --wait: for at most so long (code 124)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Returns an exit code of `cli.exits`."""
    if is_config_file(arguments.target):
        from headrace.cli.deploy_file import deploy_file  # it takes a while to load

        return deploy_file(arguments)
    teller = Teller(sys.stderr)
    try:
        meant = site(arguments)
        check(arguments)
        rollout = strategy(arguments)
        key = sticky(arguments.sticky)
        labels = checked_labels(dict(pair.partition("=")[::2] for pair in arguments.label))
        depth = None if arguments.history is None else checked_history(arguments.history)
    except (OptionError, OptionTypeError, ImportPathError) as error:
        return wrong(error)

    def deploy(directory: InstanceDirectory) -> Deploy:
        built = build(arguments, directory.name, lambda line: teller.say(teller.style.dim(line)))
        spec = msgspec.structs.replace(
            built.spec,
            sticky=key or built.spec.sticky,
            history=built.spec.history if depth is None else depth,
            labels=labels,
        )
        return Deploy(
            spec,
            wait=arguments.wait,
            rollout=rollout,
            expected=arguments.expected_revision,
            by=whoami(arguments.by),
            packs=built.packs,
        )

    directory = running_at(meant)
    mean(meant)  # also for the builder
    return perform(arguments, arguments.name, directory, deploy, teller)


def check(arguments: argparse.Namespace) -> None:
    """What can be told to be wrong before anything is built. Raises OptionError, ImportPathError."""
    check_application(arguments)
    check_waiting(arguments)
    for pair in arguments.label:
        if "=" not in pair or pair.startswith("="):
            raise OptionError(f"--label {pair!r} is not KEY=VALUE")
    if arguments.expected_revision is not None and arguments.expected_revision < 0:
        raise OptionError(f"--expected-revision {arguments.expected_revision} must be a revision, or 0 for none")


def check_waiting(arguments: argparse.Namespace) -> None:
    """Raise OptionError for a time that is none, or that nobody would wait."""
    if arguments.timeout is None:
        return
    if not arguments.timeout > 0:
        raise OptionError(f"--timeout {arguments.timeout:g} must be a number of seconds above 0")
    if not arguments.wait:
        raise OptionError("--timeout has no effect without --wait")


def wrong(error: Exception) -> int:
    """Say that the arguments are not right."""
    print(f"headrace: {error}", file=sys.stderr)
    return USAGE


def perform(
    arguments: argparse.Namespace,
    app: str,
    directory: InstanceDirectory,
    make: Callable[[InstanceDirectory], Deploy],
    teller: Teller,
) -> int:
    """Deploy what `make` makes, wait for the end of its rollout if asked to, and tell how it ended."""
    asked = False
    status = RolloutStatus(app=app, revision=0)
    code = DONE
    try:
        operation = make(directory)
        asked = True
        if arguments.wait:
            status = follow(directory, app, teller, operation, arguments.timeout)
            teller.end(status)
            code = code_of(status)
        else:
            answer = ask(directory, operation)
            revision = answer.revision if isinstance(answer, Deployed) else 0
            status = msgspec.structs.replace(status, revision=revision)
            how = f" ({operation.rollout.__struct_config__.tag})" if operation.rollout is not None else ""
            teller.say(
                f"deploying application {app} as revision {revision}{how}; "
                f"`headrace rollout status {app} --watch` shows how it goes"
            )
    except RequestTimeoutError as error:
        teller.leave()
        teller.say(teller.style.bad(str(error)))
        status, code = msgspec.structs.replace(status, reason=str(error)), TIMED_OUT
    except HeadraceError as error:
        teller.leave()
        status = msgspec.structs.replace(status, outcome=RolloutOutcome.FAILED.value, reason=str(error))
        teller.end(status)
        code = FAILED
    except KeyboardInterrupt:
        teller.leave()
        teller.say(interrupted(app) if asked else "interrupted: nothing was deployed")
        return INTERRUPTED
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(status, str_keys=True)))
    return code


def interrupted(app: str) -> str:
    """What to tell somebody who stops to watch."""
    return (
        f"the rollout goes on: `headrace rollout status {app} --watch` shows it, `headrace rollout abort {app}` ends it"
    )
