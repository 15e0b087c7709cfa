"""`headrace api`: the control API over HTTP, in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from headrace.cli.instance import add_instance, mean, site
from headrace.spec.errors import InstanceError, OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace api`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8265, help="port to listen on; 0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the API may be called by, beside loopback ones (may be given several times)",
    )
    parser.add_argument(
        "--app-dir", default=".", metavar="DIR", help="where configs' modules are imported from (default: here)"
    )
    parser.add_argument(
        "--token-header",
        action="store_true",
        help="serve nothing: print the header that requests need, as `curl -H @FILE` reads it",
    )
    add_instance(parser)


def main(arguments: argparse.Namespace) -> int:
    """Serve until stopped. Raises OptionError, InstanceError; the latter, too, where the extra is not installed."""
    if arguments.token_header:
        from headrace.api.token import own_token

        directory = site(arguments).directory()
        directory.create()
        print(f"Authorization: Bearer {own_token(directory.api_token)}")
        return 0
    if not 0 <= arguments.port <= 65535:
        raise OptionError(f"--port {arguments.port} must be from 0 to 65535")
    app_dir = Path(arguments.app_dir)
    if not app_dir.is_dir():
        raise OptionError(f"--app-dir {arguments.app_dir!r} is not a directory")
    if importlib.util.find_spec("uvicorn") is None:
        raise InstanceError("the control API needs uvicorn, which is not installed: pip install 'headrace[api]'")
    from headrace.api.main import run  # it takes a while to load, and needs the extra

    meant = site(arguments)
    directory = meant.directory()
    mean(meant)  # also for what is built for it
    run(directory, arguments.host, arguments.port, arguments.allow_host, app_dir.resolve())
    return 0
