"""The command line: `headrace run | status | shutdown`.

In: the arguments of a shell. Out: lines for a person, and an exit code: 0, 1 when it could not be done, 2 for arguments
that are not right. Each command's module is loaded when the command is used.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from headrace import __version__
from headrace.spec.errors import HeadraceError

DESCRIPTION = "Serve machine-learning models from plain Python."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A mistake of the user's is one message, never a traceback."""
    try:
        parsed = parse(arguments)
        return int(importlib.import_module(f"headrace.cli.{parsed.command}").main(parsed))
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`headrace status | head`): end quietly, also when the streams are flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, understood. Exits with 2 and a usage line when they are not right."""
    root = parser()
    parsed, rest = root.parse_known_args(arguments)
    if rest[:1] == ["--"]:
        rest = rest[1:]
    elif any(word.startswith("-") for word in rest):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    # argparse ends a list of words at the first option: `run m:app --port 1 key=value` has the rest of it here.
    if rest and parsed.command != "run":
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.arguments += rest
    return parsed


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    root = argparse.ArgumentParser(prog="headrace", description=DESCRIPTION, allow_abbrev=False)
    root.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="run | status | shutdown")

    run = commands.add_parser(
        "run",
        help="serve an application in the foreground, until Ctrl-C",
        description="Serve an application in the foreground, until Ctrl-C.",
        allow_abbrev=False,
    )
    run.add_argument("target", metavar="MODULE:APP", help="an application, or a function that builds one")
    # With a default, or argparse names it among what is missing.
    run.add_argument(
        "arguments", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the function that builds it"
    )
    _add_listening(run)
    run.add_argument("--name", default="default", help="name of the application (default: %(default)s)")
    run.add_argument("--route-prefix", default="/", metavar="/PATH", help="where it answers (default: %(default)s)")
    run.add_argument(
        "--request-timeout",
        type=float,
        metavar="SECONDS",
        help="time that a request has, unless it says less (default: no limit)",
    )
    run.add_argument("--app-dir", default=".", metavar="DIR", help="where to import MODULE from (default: here)")
    _add_instance(run)

    status = commands.add_parser(
        "status", help="show what runs, and what is not well", description="Show what runs, and what is not well."
    )
    status.add_argument("--json", action="store_true", help="for programs: everything, as JSON")
    _add_instance(status)

    shutdown = commands.add_parser(
        "shutdown",
        help="end an instance with all that runs on it",
        description="End an instance with all that runs on it.",
    )
    _add_instance(shutdown)
    return root


def _add_listening(run: argparse.ArgumentParser) -> None:
    """Where and how clients are listened for."""
    run.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    run.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free one (default: %(default)s)")
    run.add_argument("--ssl-certfile", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    run.add_argument("--ssl-keyfile", metavar="FILE", help="the certificate's key, where it is in a file of its own")
    run.add_argument("--ssl-ca-certs", metavar="FILE", help="clients must show certificates signed by one of these")
    run.add_argument(
        "--grpc-servicer-functions",
        action="append",
        default=[],
        metavar="MODULE.FUNCTION",
        help="serve gRPC too: the add_XServicer_to_server function of a service (may be given several times)",
    )
    run.add_argument(
        "--grpc-port",
        type=int,
        metavar="PORT",
        help="port for gRPC; 0: any free one (default: 9000)",
    )
    run.add_argument(
        "--ingress-workers", type=int, default=1, metavar="N", help="processes that accept HTTP (default: %(default)s)"
    )


def _add_instance(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--instance",
        default=os.environ.get("HEADRACE_INSTANCE") or "default",
        metavar="NAME",
        help="which instance (default: %(default)s)",
    )
