"""`headrace promote`: a revision of one instance onto another, unchanged, such as from staging to production.

In: the application, and the two instances. Out: the revision's specification and its source packs, read from the one
and deployed on the other; nothing is imported or built, so what was tried is what serves.
"""

from __future__ import annotations

import argparse
import sys

from headrace.cli.deploy import add_deploying, check_waiting, perform, wrong
from headrace.cli.follow import Teller
from headrace.cli.instance import add_engine, ask, running, whoami
from headrace.cli.strategy import add_strategy, strategy
from headrace.engine.directory import InstanceDirectory
from headrace.spec.application import ImportedCode
from headrace.spec.errors import DeployFailedError, HeadraceError, OptionError, OptionTypeError
from headrace.wire.control import Deploy, GetRevision, Revision
from headrace.wire.pack import name_of, unpack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace promote`."""
    parser.add_argument("app", metavar="APP", help="name of the application")
    parser.add_argument("--from", required=True, dest="source", metavar="NAME", help="the instance that has it")
    parser.add_argument("--to", required=True, metavar="NAME", help="the instance that gets it")
    parser.add_argument(
        "--revision", type=int, default=0, metavar="N", help="which revision (default: the one with the traffic)"
    )
    add_strategy(parser)
    add_deploying(parser)
    add_engine(parser)


def main(arguments: argparse.Namespace) -> int:
    """Returns an exit code of `cli.exits`."""
    teller = Teller(sys.stderr)
    try:
        rollout = strategy(arguments)
        check_waiting(arguments)
        if arguments.revision < 0:
            raise OptionError(f"--revision {arguments.revision} must be the number of a revision")
        if arguments.source == arguments.to:
            raise OptionError(f"--from and --to are both {arguments.to!r}: name two instances")
        source, target = running(arguments, arguments.source), running(arguments, arguments.to)
    except (OptionError, OptionTypeError) as error:
        return wrong(error)

    def deploy(_: InstanceDirectory) -> Deploy:
        revision = fetch(source, arguments.app, arguments.revision)
        teller.say(f"revision {revision.number} of application {arguments.app}, from {source.name} to {target.name}:")
        for line in describe(revision):
            teller.say(teller.style.dim(f"  {line}"))
        return Deploy(
            revision.spec,
            wait=arguments.wait,
            rollout=rollout,
            expected=arguments.expected_revision,
            by=whoami(arguments.by),
            packs=revision.packs,
        )

    return perform(arguments, arguments.app, target, deploy, teller)


def fetch(source: InstanceDirectory, app: str, number: int) -> Revision:
    """The revision as the instance has it. Raises DeployFailedError where another one would run other code."""
    answer = ask(source, GetRevision(app, number))
    if not isinstance(answer, Revision):
        raise HeadraceError(f"the controller answered GetRevision with {type(answer).__name__}")
    trouble = unlike(answer)
    if trouble:
        raise DeployFailedError(f"revision {answer.number} of application {app!r} cannot be promoted: {trouble}")
    return answer


def unlike(revision: Revision) -> str:
    """Why another instance would not run the very code of this revision, "" when it would."""
    name = revision.spec.environment.pack
    for each, data in revision.packs.items():
        if name_of(data) != each:
            return f"its source pack {each[:12]} is damaged: deploy it again where it comes from"
    if name and name not in revision.packs:
        return f"its source pack {name[:12]} is missing: deploy it again where it comes from"
    return ""


def describe(revision: Revision) -> list[str]:
    """What is brought over, a line each."""
    lines = [
        f"{each.name}  {each.digest}  {each.options.num_replicas} replica{'s' * (each.options.num_replicas != 1)}"
        for each in revision.spec.deployments
    ]
    packed: set[str] = set()
    for data in revision.packs.values():
        modules = unpack(data)
        packed |= modules.keys()
        lines.append(f"sources of {len(modules)} module{'s' * (len(modules) != 1)}, {len(data):,} bytes")
    outside = {each.code.module for each in revision.spec.deployments if isinstance(each.code, ImportedCode)} - packed
    if outside:
        lines.append(f"imported from where they are installed: {', '.join(sorted(outside))}")
    return lines
