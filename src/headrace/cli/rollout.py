"""`headrace rollout`: how a revision takes over the traffic, looked at and steered.

In: what to do, and to which application. Out: operations of the controller; views, tables and JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.cli.deploy import add_waiting, check_waiting, interrupted, wrong
from headrace.cli.exits import DONE, INTERRUPTED, TIMED_OUT
from headrace.cli.follow import Teller, ask_rollout, code_of, follow
from headrace.cli.instance import add_instance, ask, running, whoami
from headrace.cli.live import DEFAULT_WIDTH, Painter, in_one_line, view
from headrace.cli.strategy import add_strategy, share, strategy
from headrace.cli.terminal import Style
from headrace.engine.directory import InstanceDirectory
from headrace.spec.errors import ApplicationNotFound, HeadraceError, OptionError, OptionTypeError, RequestTimeoutError
from headrace.spec.names import hint
from headrace.spec.rollout import Command, Comparison, ShadowTraffic, weights
from headrace.spec.status import ApplicationStatusOverview, History, RevisionRecord, RolloutOutcome
from headrace.spec.sticky import sticky
from headrace.wire.control import (
    ControlRollout,
    GetHistory,
    GetStatus,
    Operation,
    Past,
    Rollback,
    SetShadow,
    SetTraffic,
    Status,
)

_ANY_TIME_S = 24 * 3600.0
_SAID = {
    Command.PAUSE: "paused",
    Command.RESUME: "goes on",
    Command.PROMOTE: "takes all of the traffic",
    Command.ABORT: "gives its traffic back",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace rollout` and of the commands in it."""
    inner = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, what: str) -> argparse.ArgumentParser:
        each: argparse.ArgumentParser = inner.add_parser(
            name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
        )
        each.add_argument("app", metavar="APP", help="name of the application")
        add_instance(each)
        return each

    def add_who(each: argparse.ArgumentParser, reason: bool = True) -> None:
        each.add_argument("--by", metavar="NAME", help="who does it, for the history (default: the user's name)")
        if reason:
            each.add_argument("--reason", default="", metavar="TEXT", help="why, for the history")

    status = add("status", "show how far the rollout is, or how the last one ended")
    status.add_argument("--watch", action="store_true", help="until it has ended, with the exit codes of deploy --wait")
    status.add_argument("--timeout", type=float, metavar="SECONDS", help="with --watch: for at most so long (code 124)")
    status.add_argument("--json", action="store_true", help="print it as one JSON object")
    for name, what in (
        ("pause", "let the rollout go no further, and keep the weights as they are"),
        ("resume", "let a rollout go on that is paused, or waits"),
    ):
        each = add(name, what)
        each.add_argument("--revision", type=int, default=0, metavar="N", help="only if it is this revision's")
        add_who(each)
    for name, what in (
        ("promote", "give the revision all of the traffic now"),
        ("abort", "give the traffic back to the revisions before"),
    ):
        each = add(name, what)
        each.add_argument("--revision", type=int, default=0, metavar="N", help="only if it is this revision's")
        add_who(each)
        add_waiting(each)
    undo = add("undo", "abort the rollout under way, or go back to the revision before, or to another one")
    undo.add_argument("--to", type=int, default=0, metavar="N", help="which revision (default: the one before)")
    add_who(undo)
    add_strategy(undo)
    add_waiting(undo)
    history = add("history", "show the revisions: when, by whom, what changed, how it ended")
    history.add_argument("--events", action="store_true", help="show what happened to the traffic as well")
    history.add_argument("--limit", type=int, default=20, metavar="N", help="the last N (default: %(default)s)")
    history.add_argument("--json", action="store_true", help="for programs: everything, as JSON")
    traffic = add("traffic", "share the traffic among revisions until it is changed, or show how it is shared")
    traffic.add_argument("shares", nargs="*", default=[], metavar="REVISION=WEIGHT", help="such as 1=0.9 2=0.1")
    traffic.add_argument("--sticky", metavar="KEY", help="what keeps a client to a revision: header:NAME, cookie:NAME")
    traffic.add_argument("--no-sticky", action="store_true", help="draw each request anew")
    traffic.add_argument("--expected-revision", type=int, metavar="N", help="refuse unless this is the newest revision")
    add_who(traffic, reason=False)
    shadow = add("shadow", "mirror a share of the requests to revisions, whose answers nobody gets")
    shadow.add_argument("shares", nargs="*", default=[], metavar="REVISION=SHARE", help="such as 2=0.5")
    shadow.add_argument("--numeric", metavar="RTOL", help="numbers in answers may differ by this share")
    shadow.add_argument("--atol", metavar="NUMBER", help="with --numeric: and by this much besides")
    shadow.add_argument("--off", action="store_true", help="mirror no more")
    add_who(shadow, reason=False)


def main(arguments: argparse.Namespace) -> int:
    """Returns an exit code of `cli.exits`."""
    act: Callable[[argparse.Namespace, InstanceDirectory], int] = _ACTIONS[arguments.action]
    try:
        return act(arguments, running(arguments))
    except (OptionError, OptionTypeError) as error:
        return wrong(error)
    except RequestTimeoutError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return TIMED_OUT


# --- the actions ----------------------------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace, directory: InstanceDirectory) -> int:
    arguments.wait = arguments.watch
    if arguments.timeout is not None and not arguments.watch:
        raise OptionError("--timeout has no effect without --watch")
    check_waiting(arguments)
    app: str = arguments.app
    if not arguments.watch:
        status = ask_rollout(directory, app)
        if arguments.json:
            print(json.dumps(msgspec.to_builtins(status, str_keys=True)))
        else:
            width = Painter(sys.stdout).width() if sys.stdout.isatty() else max(DEFAULT_WIDTH, 200)
            print("\n".join(view(status, time.time(), width, Style.of(sys.stdout))))
        return DONE
    return _follow(arguments, directory, None, sys.stderr if arguments.json else sys.stdout)


def _control(arguments: argparse.Namespace, directory: InstanceDirectory) -> int:
    command = Command(arguments.action)
    ends = command in (Command.PROMOTE, Command.ABORT)
    if ends:
        check_waiting(arguments)
    wait = ends and arguments.wait
    operation = ControlRollout(
        app=arguments.app,
        command=command,
        revision=arguments.revision,
        reason=arguments.reason,
        by=whoami(arguments.by),
        wait=wait,
    )
    if wait:
        wanted = RolloutOutcome.PROMOTED if command is Command.PROMOTE else RolloutOutcome.ROLLED_BACK
        return _follow(arguments, directory, operation, sys.stderr, wanted)
    ask(directory, operation)
    status = ask_rollout(directory, arguments.app)
    if ends and arguments.json:
        print(json.dumps(msgspec.to_builtins(status, str_keys=True)))
    else:
        print(f"application {arguments.app}, revision {status.revision}: {_SAID[command]}")
    return DONE


def _undo(arguments: argparse.Namespace, directory: InstanceDirectory) -> int:
    check_waiting(arguments)
    if arguments.to < 0:
        raise OptionError(f"--to {arguments.to} must be the number of a revision")
    operation = Rollback(
        app=arguments.app,
        revision=arguments.to,
        rollout=strategy(arguments),
        by=whoami(arguments.by),
        reason=arguments.reason,
        wait=arguments.wait,
    )
    if arguments.wait:
        return _follow(arguments, directory, operation, sys.stderr, RolloutOutcome.ROLLED_BACK)
    ask(directory, operation)
    status = ask_rollout(directory, arguments.app)
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(status, str_keys=True)))
    elif status.stage == "retreating" or status.outcome == RolloutOutcome.ROLLED_BACK:
        print(f"application {arguments.app}: revision {status.revision} gives its traffic back to {status.baseline}")
    else:
        print(f"application {arguments.app}: going back to revision {status.revision}")
    return DONE


def _history(arguments: argparse.Namespace, directory: InstanceDirectory) -> int:
    answer = ask(directory, GetHistory(arguments.app))
    if not isinstance(answer, Past):
        raise HeadraceError(f"the controller answered GetHistory with {type(answer).__name__}")
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(answer.history, str_keys=True)))
    else:
        limit = max(1, arguments.limit)
        print("\n".join(history_lines(answer.history, limit, arguments.events, Style.of(sys.stdout))))
    return DONE


def _traffic(arguments: argparse.Namespace, directory: InstanceDirectory) -> int:
    if arguments.sticky is not None and arguments.no_sticky:
        raise OptionError("--sticky and --no-sticky exclude each other")
    if not arguments.shares:
        if arguments.sticky is not None or arguments.no_sticky:
            raise OptionError("--sticky needs the weights too, such as 1=0.9 2=0.1")
        app = _application(directory, arguments.app)
        shared = app.weights or ({app.revision: 1.0} if app.revision else {})
        print(" ".join(f"{number}={weight:g}" for number, weight in sorted(shared.items())) or "no traffic yet")
        return DONE
    given = weights(_shares(arguments.shares, "1=0.9 2=0.1"))
    operation = SetTraffic(
        app=arguments.app,
        weights=given,
        sticky=sticky(arguments.sticky),
        keyless=arguments.no_sticky,
        expected=arguments.expected_revision,
        by=whoami(arguments.by),
    )
    ask(directory, operation, _ANY_TIME_S)
    print(f"application {arguments.app}: " + ", ".join(f"{w:g} to revision {n}" for n, w in sorted(given.items())))
    return DONE


def _shadow(arguments: argparse.Namespace, directory: InstanceDirectory) -> int:
    if bool(arguments.shares) == arguments.off:
        raise OptionError("say which revisions get how much, such as 2=0.5, or --off to mirror no more")
    if arguments.atol is not None and arguments.numeric is None:
        raise OptionError("--atol has no effect without --numeric")
    compare = Comparison()
    if arguments.numeric is not None:
        atol = share("--atol", arguments.atol) if arguments.atol is not None else 0.0
        compare = Comparison(kind="numeric", rtol=share("--numeric", arguments.numeric), atol=atol)
    given = _shares(arguments.shares, "2=0.5")
    for number, fraction in given.items():
        if not 0 < fraction <= 1:
            raise OptionError(f"{number}={fraction:g} must be a share of the requests, above 0 and at most 1")
    shadows = {number: ShadowTraffic(fraction=fraction, compare=compare) for number, fraction in given.items()}
    ask(directory, SetShadow(app=arguments.app, shadows=shadows, by=whoami(arguments.by)))
    mirrored = ", ".join(f"{fraction:g} of the requests to revision {number}" for number, fraction in given.items())
    print(f"application {arguments.app}: {f'mirrors {mirrored}' if mirrored else 'mirrors nothing'}")
    return DONE


_ACTIONS: dict[str, Callable[[argparse.Namespace, InstanceDirectory], int]] = {
    "status": _status,
    "pause": _control,
    "resume": _control,
    "promote": _control,
    "abort": _control,
    "undo": _undo,
    "history": _history,
    "traffic": _traffic,
    "shadow": _shadow,
}


# --- what they have in common ---------------------------------------------------------------------------------------


def _follow(
    arguments: argparse.Namespace,
    directory: InstanceDirectory,
    operation: Operation | None,
    stream: Any,
    wanted: RolloutOutcome | None = None,
) -> int:
    """Follow to the end; 0 where it ended as `wanted`, or was promoted."""
    teller = Teller(stream)
    try:
        status = follow(directory, arguments.app, teller, operation, arguments.timeout)
    except KeyboardInterrupt:
        teller.leave()
        teller.say(interrupted(arguments.app))
        return INTERRUPTED
    except HeadraceError:
        teller.leave()
        raise
    teller.end(status)
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(status, str_keys=True)))
    return DONE if wanted is not None and status.outcome == wanted else code_of(status)


def _shares(words: list[str], example: str) -> dict[int, float]:
    """Revision -> share of `1=0.9` or `1=90%`. Raises OptionError."""
    found: dict[int, float] = {}
    for word in words:
        number, equals, text = word.partition("=")
        if not equals or not number.isascii() or not number.isdecimal() or not 0 < int(number) < 2**31:
            raise OptionError(f"{word!r} is not REVISION=SHARE, such as {example}")
        if int(number) in found:
            raise OptionError(f"{word!r}: revision {int(number)} is named twice")
        found[int(number)] = share(f"revision {number}:", text)
    return found


def _application(directory: InstanceDirectory, name: str) -> ApplicationStatusOverview:
    answer = ask(directory, GetStatus())
    apps = answer.status.applications if isinstance(answer, Status) else {}
    if name not in apps:
        raise ApplicationNotFound(f"no application is called {name!r}: {hint(name, apps) if apps else 'there is none'}")
    return apps[name]


def history_lines(history: History, limit: int, events: bool, style: Style) -> list[str]:
    """The history as lines, the newest first: each revision with what changed and why it ended so."""
    lines: list[str] = []
    for record in sorted(history.revisions, key=lambda each: -each.number)[:limit]:
        lines += _record(record, style)
    if not lines:
        lines.append(f"application {history.app} has no revision in its history")
    if events and history.events:
        lines.append("")
        for event in history.events[-limit:]:
            what = f"{_moment(event.at)}  revision {event.revision}  {event.what}"
            by = f" by {event.by}" if event.by else ""
            lines.append(_printable(f"{what}{by}{f': {in_one_line(event.reason)}' if event.reason else ''}"))
    return lines


def _record(record: RevisionRecord, style: Style) -> list[str]:
    outcome = record.outcome.lower().replace("_", " ")
    paint = {RolloutOutcome.PROMOTED.value: style.good, "": style.strong}.get(record.outcome, style.bad)
    parts = [_moment(record.at), f"by {record.by}" if record.by else "", record.strategy.replace("_", " ")]
    head = "  ".join(_printable(part) for part in parts if part)
    kept = "" if record.kept else style.dim("  (not kept)")
    lines = [f"{style.strong(f'revision {record.number}')}  {head}  {paint(outcome or 'under way')}{kept}"]
    if record.source:
        lines.append(f"  of {_printable(record.source)}")
    lines += [f"  {_printable(change)}" for change in record.changes]
    if record.labels:
        lines.append("  " + _printable(", ".join(f"{name}={text}" for name, text in record.labels.items())))
    if record.reason:
        lines.append(f"  {_printable(in_one_line(record.reason))}")
    return lines


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
