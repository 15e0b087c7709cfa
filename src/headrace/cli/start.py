"""`headrace start`: an empty instance in the background, which lives until `headrace shutdown`.

In: arguments. Out: a keeper with its controller and its ingress, or an instance on a Ray cluster; lines that say where
it listens, and how to go on.
"""

from __future__ import annotations

import argparse

from headrace import __version__
from headrace.cli.cluster import add_cluster, cluster
from headrace.cli.instance import add_instance, ask, mean, running_at, site
from headrace.cli.listening import add_listening, asks_for_listening, check_listening
from headrace.cli.status import listening
from headrace.engine.site import Site
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
    add_cluster(parser)


def main(arguments: argparse.Namespace) -> int:
    """Returns 0 once it listens. Raises OptionError, or InstanceError when the instance runs already."""
    check_listening(arguments)
    meant = site(arguments)
    cluster(arguments, meant)
    running = meant.find()
    if running is not None:
        raise InstanceError(
            f"instance {meant.name!r} runs already (pid {running.keeper_pid()}): deploy to it, end it with "
            f"`headrace shutdown{meant.flags() or ' --instance default'}`, or give the new one another name with "
            "--instance"
        )
    mean(meant)
    start_instance(arguments, meant)
    directory = running_at(meant)
    answer = ask(directory, GetStatus())
    where = ", ".join(listening(answer.status)) if isinstance(answer, Status) else ""
    print(f"headrace {__version__} · instance {meant.name} · {where or 'no HTTP'} · pid {directory.keeper_pid()}")
    flags = meant.flags()
    print(f"deploy to it with `headrace deploy MODULE:APP{flags}`, end it with `headrace shutdown{flags}`")
    return 0


def start_instance(arguments: argparse.Namespace, meant: Site) -> None:
    """Start the instance, which this process means (`cli.instance.mean`), if it does not run, and have it listen.

    Warns where it runs and listens otherwise than somebody asked for. Raises OptionError, InstanceError, PortBusyError.
    """
    # They take a while to load: not for who only mistyped an option.
    from headrace import serve
    from headrace.serve.target import import_from

    options, grpc = check_listening(arguments)
    if grpc.enabled:
        import_from(arguments.app_dir)
    files = {name: getattr(arguments, name) for name in TLS_FILES}
    http = {
        "host": options.host,
        "port": options.port,
        "ingress_workers": options.ingress_workers,
        **{name: file for name, file in files.items() if file is not None},
    }
    serve.start(
        proxy_location=arguments.proxy_location,
        http_options=http if asks_for_listening(arguments) else None,
        grpc_options=grpc if grpc.enabled else None,
        detached=True,
        cluster_options=cluster(arguments, meant),
    )
