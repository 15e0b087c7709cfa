"""Where and how an instance listens for clients, as options of a command.

In: arguments. Out: options that are valid, or an OptionError, before anything is started.
"""

from __future__ import annotations

import argparse

from headrace.spec.config import TLS_FILES, HTTPOptions
from headrace.spec.errors import OptionError
from headrace.spec.grpc import gRPCOptions


def add_listening(command: argparse.ArgumentParser) -> None:
    """The options of HTTP and gRPC. Ray Serve's names for the first two are taken too."""
    command.add_argument(
        "--host", "--http-host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    command.add_argument(
        "--port",
        "--http-port",
        type=int,
        default=8000,
        help="port to listen on; 0: any free one (default: %(default)s)",
    )
    command.add_argument("--ssl-certfile", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    command.add_argument(
        "--ssl-keyfile", metavar="FILE", help="the certificate's key, where it is in a file of its own"
    )
    command.add_argument("--ssl-ca-certs", metavar="FILE", help="clients must show certificates signed by one of these")
    command.add_argument(
        "--grpc-servicer-functions",
        action="append",
        default=[],
        metavar="MODULE.FUNCTION",
        help="serve gRPC too: the add_XServicer_to_server function of a service (may be given several times)",
    )
    command.add_argument("--grpc-port", type=int, metavar="PORT", help="port for gRPC; 0: any free one (default: 9000)")
    command.add_argument(
        "--ingress-workers", type=int, default=1, metavar="N", help="processes that accept HTTP (default: %(default)s)"
    )


def asks_for_listening(arguments: argparse.Namespace) -> bool:
    """Whether they say anything of HTTP that is not the default."""
    default = HTTPOptions()
    names = ("host", "port", "ingress_workers", *TLS_FILES)
    return any(getattr(arguments, name) != getattr(default, name) for name in names)


def check_listening(arguments: argparse.Namespace) -> tuple[HTTPOptions, gRPCOptions]:
    """The options of both. Raises OptionError, OptionTypeError; also for files of TLS that do not fit."""
    options = HTTPOptions(
        host=arguments.host,
        port=arguments.port,
        ingress_workers=arguments.ingress_workers,
        **{name: getattr(arguments, name) for name in TLS_FILES},
    )
    if options.ssl_certfile is not None:
        from headrace.ingress.tls import context_of  # it takes a while to load, for the few who ask for TLS

        context_of(options)
    port = {} if arguments.grpc_port is None else {"port": arguments.grpc_port}
    grpc = gRPCOptions(**port, grpc_servicer_functions=arguments.grpc_servicer_functions)
    if port and not grpc.enabled:
        raise OptionError("--grpc-port has no effect without --grpc-servicer-functions, which names your service")
    if grpc.enabled and not arguments.ingress_workers:
        raise OptionError("--grpc-servicer-functions needs an ingress process: let --ingress-workers be 1 or more")
    return options, grpc
