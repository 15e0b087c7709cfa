"""The command line: `headrace run | deploy | rollout | status | ...`.

In: the arguments of a shell. Out: lines for a person, and an exit code (`cli.exits`). Each command is a module with
`add_arguments(parser)` and `main(arguments) -> int`, loaded when the command is used.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from headrace import __version__
from headrace.cli.exits import FAILED, INTERRUPTED, usage_code
from headrace.spec.errors import HeadraceError
from headrace.spec.names import hint

DESCRIPTION = "Serve machine-learning models from plain Python."

COMMANDS = {
    "run": "serve an application in the foreground, until Ctrl-C",
    "start": "start an empty instance in the background, to deploy to",
    "deploy": "bring an application, or a new revision of it, to an instance that runs",
    "rollout": "look at and steer how a revision takes over the traffic",
    "promote": "bring a revision of one instance, unchanged, to another",
    "status": "show what runs, and what is not well",
    "build": "write a config file of what applications declare in their code",
    "config": "show the config that applications were deployed by, or check a file",
    "api": "serve the control API over HTTP, in the foreground, until Ctrl-C",
    "shutdown": "end an instance with all that runs on it",
}
_QUOTED = "'([^']*)'"
_CHOICE = re.compile(r"invalid choice: (.*) \(choose from (.*)\)")  # argparse's own words
# They take words (KEY=VALUE) after their target, also between and behind options.
_WITH_WORDS = frozenset(("run", "deploy"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A mistake of the user's is one message, never a traceback."""
    try:
        parsed = parse(arguments)
        return int(_module(parsed.command).main(parsed))
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`headrace status | head`): end quietly, also when the streams are flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, understood. Exits with a usage line, and the nearest right name, when they are not right."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    root = parser(command)
    if command is not None and command not in COMMANDS:
        root.error(f"there is no command {command!r}: {hint(command, COMMANDS)}")
    parsed, rest = root.parse_known_args(words)
    if rest[:1] == ["--"]:
        rest = rest[1:]
    elif any(word.startswith("-") for word in rest):
        root.of(parsed).unrecognized(rest)
    # argparse ends a list of words at the first option: `run m:app --port 1 key=value` has the rest of it here.
    if rest and parsed.command not in _WITH_WORDS:
        root.of(parsed).unrecognized(rest)
    if rest:
        parsed.arguments += rest
    return parsed


def parser(command: str | None = None) -> Parser:
    """The arguments of the command, and the names of the others; of all commands where none is named."""
    root = Parser(prog="headrace", description=DESCRIPTION, allow_abbrev=False)
    root.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        each = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False)
        if command in (None, name):
            _module(name).add_arguments(each)
    return root


class Parser(argparse.ArgumentParser):
    """argparse's, which names the nearest option that there is, and ends with the command's own code."""

    def error(self, message: str) -> NoReturn:
        wrong = _CHOICE.search(message)
        if wrong is not None:
            message = f"{message[: wrong.start()]}{wrong[1]}: {hint(wrong[1][1:-1], re.findall(_QUOTED, wrong[2]))}"
        self.print_usage(sys.stderr)
        self.exit(usage_code("".join(self.prog.split()[1:2])), f"{self.prog}: error: {message}\n")

    def unrecognized(self, words: Sequence[str]) -> NoReturn:
        """End, saying which of the words are not understood and what may have been meant."""
        option = next((word for word in words if word.startswith("-") and word != "-"), None)
        if option is None:
            self.error(f"unrecognized arguments: {' '.join(words)}")
        name = option.partition("=")[0]
        known = [text for text in self._option_string_actions if text.startswith("--")]
        near = hint(name, known)
        self.error(f"unrecognized arguments: {' '.join(words)}{f' ({near})' if near.startswith('did') else ''}")

    def of(self, parsed: argparse.Namespace) -> Parser:
        """The parser that read the innermost command of the arguments."""
        found = self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                inner: Any = action.choices.get(str(getattr(parsed, action.dest, None)))
                if isinstance(inner, Parser):
                    found = inner.of(parsed)
        return found


def _module(command: str) -> Any:
    return importlib.import_module(f"headrace.cli.{command}")
