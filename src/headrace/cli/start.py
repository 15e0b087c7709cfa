"""`headrace start`: an empty instance in the background, which lives until `headrace shutdown`.

In: arguments. Out: a keeper with its controller and its ingress, and a line that says where it listens.
"""

from __future__ import annotations

import argparse
import os

from headrace import __version__
from headrace.cli.instance import add_instance, ask
from headrace.cli.listening import add_listening, check_listening
from headrace.cli.status import addresses
from headrace.engine.directory import instance_directory
from headrace.spec.config import TLS_FILES
from headrace.spec.errors import InstanceError
from headrace.wire.control import GetStatus, Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `headrace start`."""
    add_listening(parser)
    parser.add_argument(
        "--app-dir", default=".", metavar="DIR", help="where to import the functions of gRPC from (default: here)"
    )
    add_instance(parser)


def main(arguments: argparse.Namespace) -> int:
    """Returns 0 once it listens. Raises OptionError, or InstanceError when the instance runs already."""
    options, grpc = check_listening(arguments)
    directory = instance_directory(arguments.instance)
    pid = directory.keeper_pid()
    if pid is not None:
        raise InstanceError(
            f"instance {directory.name!r} runs already (pid {pid}): deploy to it, end it with "
            f"`headrace shutdown --instance {directory.name}`, or give the new one another name with --instance"
        )
    # They take a while to load: not for who only mistyped an option.
    from headrace import serve
    from headrace.serve.target import import_from

    if grpc.enabled:
        import_from(arguments.app_dir)
    os.environ.pop("HEADRACE_RUNTIME_DIR", None)
    os.environ["HEADRACE_INSTANCE"] = directory.name
    files = {name: getattr(arguments, name) for name in TLS_FILES}
    serve.start(
        http_options={
            "host": options.host,
            "port": options.port,
            "ingress_workers": options.ingress_workers,
            **{name: file for name, file in files.items() if file is not None},
        },
        grpc_options=grpc if grpc.enabled else None,
        detached=True,
    )
    answer = ask(directory, GetStatus())
    where = addresses(answer.status) if isinstance(answer, Status) else ""
    print(f"headrace {__version__} · instance {directory.name} · {where} · pid {directory.keeper_pid()}")
    flag = "" if directory.name == "default" else f" --instance {directory.name}"
    print(f"deploy to it with `headrace deploy MODULE:APP{flag}`, end it with `headrace shutdown{flag}`")
    return 0
